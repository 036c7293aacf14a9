"""Training in minutes, its steps: what is drawn for them, what is judged and saved, and what ends them. No models."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kiwi_cli.errors import KiwiError
from kiwi_cli.train.ondevice import autoencoder, generators, run
from kiwi_cli.train.ondevice.drawing import Spec
from kiwi_cli.train.ondevice.generators import Generators
from kiwi_cli.train.ondevice.learner import Learner
from kiwi_cli.train.ondevice.session import MODEL, VAE, Progress, tools_of
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


class Stub(SimpleNamespace):
    """Of an `OnDeviceRun`, what the loops ask: a clock that is set by hand, and generators that have nothing yet."""

    def __init__(self, steps: int, every: float = 60.0, until: float = 1000.0, stage: str = MODEL) -> None:
        super().__init__(
            settings=SimpleNamespace(steps=steps, every=every, scale=1.0, vae_share=0.5, vae_lr=1e-3, minutes=1.0),
            progress=Progress(stage=stage, began=0.0, until=until),
            now=0.0,
            stopped=[],
            loaded={},
            lines=[],
            generators=SimpleNamespace(take=self._nothing),
            vae=nn.Linear(2, 2),
        )

    def _nothing(self, wait: float) -> None:
        assert not self.stopped, "it waits on"
        self.stopped.append(signal.SIGINT)

    def clock(self) -> float:
        return self.now

    def left(self) -> float:
        return self.progress.until - self.now

    def log(self, **line: Any) -> None:
        self.lines.append(line)


@pytest.mark.parametrize("gradient", [False, True])
def test_weights_are_judged_before_they_are_saved_and_at_the_end(
    gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses that are no numbers, and ones that are but whose gradient is none."""
    stub, value, saved = Stub(steps=10, every=15.0), nn.Parameter(torch.zeros(4)), []
    stub.generators.take = lambda wait: None
    monkeypatch.setattr(run, "write_state", lambda *_: saved.append(value.detach().clone()))
    monkeypatch.setattr(run, "export", lambda *_: saved.append(value.detach().clone()))
    learner = Learner({"value": value}, 0.1)

    def loss(_: Any) -> torch.Tensor:
        stub.now += 4.0
        if learner.steps not in (3, 9):  # the fourth, at which a state is due, and the last
            return value.sum()
        return (value - value.detach()).abs().sqrt().sum() if gradient else value.sum() * math.nan

    run._loop(stub, learner, lambda chunk: None, loss, lambda: True, warm_up=0.1)  # type: ignore[arg-type]
    assert learner.steps == 10 and learner.lr == 0.1 / 4
    assert len(saved) == 2 and all(bool(weights.isfinite().all()) for weights in [*saved, value])
    assert stub.lines[-1]["ended"] and math.isfinite(stub.lines[-1]["loss"]) == gradient


def test_a_run_that_waits_for_scenes_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    stub, saved = Stub(steps=4, until=0.0, stage=VAE), []  # its time is over, its clips are to be drawn anew
    monkeypatch.setattr(run, "write_state", lambda *_: saved.append(stub.progress.stage))
    run._train_vae(stub)  # type: ignore[arg-type]
    assert stub.stopped == [signal.SIGINT] and saved == [VAE]


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
