"""Whole runs of the command give what they gave: see whole_runs.py, which also records them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from . import whole_runs
from .cli.terminal import inside, kiwi
from .video.media import picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    whole_runs.inputs(path)
    return path


@pytest.fixture
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def distance(frames: np.ndarray, name: str) -> int:
    """The largest difference from what was recorded, in levels."""
    return int(np.abs(whole_runs.kept(frames).astype(int) - whole_runs.recorded(name)).max())


@pytest.mark.parametrize("name", whole_runs.RUNS_OF)
def test_a_run_gives_what_was_recorded(
    name: str, folder: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    code, _, err = inside(capsys, *whole_runs.command(name))
    assert code == 0, err
    frames = whole_runs.output_of(name, folder)
    assert frames.shape == (whole_runs.RUNS_OF[name].frames, *whole_runs.SIZE[::-1], 3)
    assert distance(frames, name) <= whole_runs.TOLERANCE


@pytest.mark.slow
def test_a_process_of_its_own_gives_the_same(folder: Path) -> None:
    arguments = whole_runs.command("picture")
    done = kiwi(*arguments[:-1], "process.png", cwd=folder, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert distance(whole_runs.frames_of(folder / "process.png"), "picture") <= whole_runs.TOLERANCE


def test_the_recorded_runs_are_edits() -> None:
    """They are far from their source where something was asked for, and are it where it was not."""
    source = np.stack([picture(number, *whole_runs.SIZE) for number in range(13)])[:, :: whole_runs.STRIDE]
    source = source[:, :, :: whole_runs.STRIDE].astype(int)
    change = {}
    for name, run in whole_runs.RUNS_OF.items():
        still = run.output != "out"
        before = picture(77, *whole_runs.SIZE)[None, ::2, ::2].astype(int) if still else source[: run.frames]
        change[name] = np.abs(whole_runs.recorded(name).astype(int) - before)
    for name in ("edit", "ref-edit", "replace", "windows", "fewer frames", "picture", "approximate", "tiny"):
        assert change[name].mean(axis=(1, 2, 3)).min() > 20, name
    outside = np.ones(change["mask"].shape[1:3], bool)
    outside[4:16, 8:28] = False  # 16,8,40,24 at every second pixel
    assert change["mask"][:, outside].max() == 0 and change["mask"][:, 8:12, 14:22].mean() > 20
    edited = [number for number, frame in enumerate(change["keep-rest"]) if frame.max() > 0]
    assert edited == [3, 4, 5, 6, 7, 8] and min(change["keep-rest"][number].mean() for number in edited) > 20
    assert [number for number, frame in enumerate(change["masks"]) if frame.max() > 0] == [2, 3, 4]
