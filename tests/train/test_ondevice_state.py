"""Training in minutes, its state: of which run it is, and what is refused before anything is loaded."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kiwi_cli.errors import CheckpointError, KiwiError
from kiwi_cli.train.ondevice.learner import Learner
from kiwi_cli.train.ondevice.recipe import COLOURIST
from kiwi_cli.train.ondevice.run import train
from kiwi_cli.train.ondevice.saving import STATE, read_state, write_state
from kiwi_cli.train.ondevice.session import DONE, MODEL, Progress, Settings


def written(settings: Settings, stage: str = MODEL) -> Settings:
    """The state of a run that is `stage` far."""
    vae = nn.Linear(2, 2)
    vae.config = SimpleNamespace(latents_mean=[0.0], latents_std=[1.0])  # type: ignore[assignment]
    run = SimpleNamespace(
        settings=settings,
        progress=Progress(stage=stage),
        clock=lambda: 5.0,
        generators=SimpleNamespace(seed=7),
        vae=vae,
    )
    settings.state.mkdir(parents=True, exist_ok=True)
    write_state(run, Learner({"value": nn.Parameter(torch.zeros(4))}, 0.1))  # type: ignore[arg-type]
    return settings


def test_a_state_goes_on_with_its_own_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = written(Settings(Path("model"), tmp_path / "out", tmp_path / "state"))
    for same in (settings, replace(settings, start=tmp_path / "model", minutes=20.0)):
        progress, tensors = read_state(same)
        assert (progress.stage, progress.seed, progress.seconds) == (MODEL, 7, 5.0) and "latents_mean" in tensors
    others = (
        (replace(settings, start=Path("other")), "--from 'model', not 'other'"),
        (replace(settings, recipe=COLOURIST), "--recipe 'whole', not 'colourist'"),
        (replace(settings, seed=1), "--seed '0', not '1'"),
        (replace(settings, start=settings.state / "base"), "--from 'model', not nothing"),
    )
    for other, why in others:
        with pytest.raises(CheckpointError, match=f"the state of another run: {why}") as refused:
            read_state(other)
        assert "another --state" in refused.value.hint


def test_the_state_of_a_run_from_nothing_may_be_moved(tmp_path: Path) -> None:
    settings = written(Settings(tmp_path / "state/base", tmp_path / "out", tmp_path / "state"))
    settings.state.rename(tmp_path / "moved")
    moved = replace(settings, start=tmp_path / "moved/base", state=tmp_path / "moved")
    assert read_state(moved)[0].stage == MODEL


def test_a_state_that_does_not_say_its_run_goes_on(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / STATE, metadata={"progress": json.dumps(asdict(Progress(seconds=9.0)))})
    progress, tensors = read_state(Settings(tmp_path / "model", tmp_path, tmp_path, seed=3))
    assert progress.seconds == 9.0 and list(tensors) == ["x"]


@pytest.mark.parametrize("content", [b"", b"not a state at all", "no metadata"])
def test_a_damaged_state_is_named(content: bytes | str, tmp_path: Path) -> None:
    if isinstance(content, bytes):
        (tmp_path / STATE).write_bytes(content)
    else:
        save_file({"x": torch.zeros(1)}, tmp_path / STATE)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(Settings(tmp_path / "model", tmp_path, tmp_path))


def test_a_run_that_is_done_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    settings = written(Settings(tmp_path / "model", tmp_path / "out", tmp_path / "state", "cpu"), DONE)
    assert train(replace(settings, say=said.append)) == 0
    assert len(said) == 1 and "done" in said[0] and "--state" in said[0]


def test_a_device_that_is_not_there_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(KiwiError, match="no CUDA device") as refused:
        train(Settings(tmp_path / "nowhere", tmp_path / "out", tmp_path / "state", "cuda", workers=0))
    assert "--max-steps" in refused.value.hint and not list(tmp_path.iterdir())
