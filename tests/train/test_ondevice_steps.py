"""Training in minutes, its steps: what is drawn for them, what is judged and saved, and what ends them. No models."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from kiwi_cli.errors import KiwiError
from kiwi_cli.train.ondevice import autoencoder, generators
from kiwi_cli.train.ondevice.drawing import Spec
from kiwi_cli.train.ondevice.generators import Generators
from kiwi_cli.train.ondevice.learner import Learner
from kiwi_cli.train.ondevice.session import tools_of
from kiwi_cli.weights.hub import locate

SPECS = {"clip": Spec("clip", 32, 32, 5, 1, 2, 1)}


def test_reference_pictures_come_from_chunks_that_have_some() -> None:
    clips = autoencoder.Clips(0.001, room=1 << 20)
    black, white = torch.zeros(1, 2, 1, 16, 16, 3, dtype=torch.uint8), torch.full((1, 1, 1, 16, 16, 3), 255).byte()
    for number in range(4):
        clips.add("clip", {"clips": black} | ({"reference": white} if number == 0 else {}))
    stills = [clips.batch(autoencoder.STILLS - 1, torch.Generator()) for _ in range(40)]
    assert {tuple(pixels.unique().tolist()) for pixels in stills} == {(-1.0,), (1.0,)}


@pytest.mark.parametrize("grouped", [False, True])
def test_the_step_after_a_blow_up_is_no_longer_than_its_rate(grouped: bool) -> None:
    value = nn.Parameter(torch.zeros(4))
    learner = Learner({"value": value}, 1e-3, grouped=grouped)
    for _ in range(1000):
        learner.step(value.sum, 1.0)
    learner.keep()
    learner.back()
    before = value.detach().clone()
    learner.step(value.sum, 1.0)
    assert float((before - value.detach()).abs().max()) == pytest.approx(5e-4, rel=0.01)  # half of what it was


def test_processes_that_draw_leave_ctrl_c_to_the_run() -> None:
    with Generators(tools_of(locate("tiny")), SPECS, 1, {"clip": 1.0}) as drawn:
        for number in range(8):  # more than there are slots: the last are asked for after the signal
            chunk = drawn.take(wait=30.0)
            assert chunk is not None
            chunk.release()
            if number == 0:
                os.kill(drawn._processes[0].pid, signal.SIGINT)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_drawer_that_fails_says_why_and_leaves_no_memory(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generators, "SHARED_MEMORY", tmp_path)
    tools = replace(tools_of(locate("tiny")), tokenizer=str(tmp_path / "nowhere.json"))
    with (
        pytest.raises(KiwiError if workers else Exception, match="No such file"),
        Generators(tools, SPECS, workers, {"clip": 1.0}) as drawn,
    ):
        drawn.take(wait=30.0)
    assert not list(tmp_path.iterdir())
