"""A clip that is longer than a model's length: how it is cut, and that each window is an edit of its own."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kiwi_cli.base.events import WINDOWS
from kiwi_cli.editing import windows
from kiwi_cli.editing.session import Session
from kiwi_cli.video import read_frames

from . import fakes
from .conftest import make_model
from .video.media import make_clip


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (3, [((0, 3), 0)]),
        (4, [((0, 4), 0)]),
        (8, [((0, 4), 0), ((4, 8), 0)]),
        (9, [((0, 4), 0), ((4, 8), 0), ((5, 9), 3)]),  # the last reaches back: never shorter than the others
        (11, [((0, 4), 0), ((4, 8), 0), ((7, 11), 1)]),
    ],
)
def test_how_a_clip_is_cut(total: int, expected: list[tuple[tuple[int, int], int]]) -> None:
    frames = (np.full((1, 1, 3), index, np.uint8) for index in range(total))
    got = [((int(w[0, 0, 0, 0]), int(w[-1, 0, 0, 0]) + 1), known) for w, known in windows.cut(frames, 4)]
    assert got == expected


def test_every_frame_is_edited_once_and_in_order() -> None:
    def edit(window: np.ndarray, report: Any) -> Any:
        for stage, total in (("denoise", 2), ("decode", len(window))):
            for done in range(total):
                report(stage, done + 1, total)
        yield window[:1] + 100
        yield window[1:3] + 100
        yield window[3:] + 100

    told: list[tuple[str, int, int]] = []
    frames = (np.full((2, 2, 3), index, np.uint8) for index in range(11))
    plan = windows.Windows.of(11, 4)
    assert plan is not None
    chunks = list(windows.edited(frames, plan, edit, lambda *what: told.append(what)))
    assert all(len(chunk) for chunk in chunks)
    assert np.concatenate(chunks)[:, 0, 0, 0].tolist() == list(range(100, 111))
    assert [what for what in told if what[0] == "denoise"] == [("denoise", n, 6) for n in range(1, 7)]
    assert [what for what in told if what[0] == WINDOWS] == [(WINDOWS, n, 3) for n in range(4)]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_clip() -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def frames() -> Any:
        for _ in range(100):
            frame = np.zeros((2, 2, 3), np.uint8)
            alive.append(weakref.ref(frame))
            yield frame

    for _ in windows.cut(frames(), 5):
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive))
    assert most <= 2 * 5


def test_a_window_is_an_edit_of_its_own(loaded: Any, tmp_path: Path) -> None:
    """What comes out is what three calls of the pipeline give."""
    source = make_clip(tmp_path / "clip.mp4", frames=7, size=(96, 64))
    model = make_model(tmp_path / "model", working={"pixels": 4096, "frames": 5, "steps": 1})
    asked = {"instruction": "x", "model": str(model), "seed": 3, "windows": "independent"}
    work = fakes.plan(source, tmp_path / "out", **asked)
    assert (work.size, work.steps, work.windows) == ((64, 64), 1, windows.Windows(5, 2))
    result = fakes.edit(source, tmp_path / "out", loaded, **asked)
    assert result.frames == 7
    frames = np.stack([frame.rgb for frame in read_frames(work.clip, work.span, size=work.size)])
    first = loaded.edit(frames[:5], "x", steps=1, seed=3)
    second = loaded.edit(frames[2:], "x", steps=1, seed=3)
    whole = np.concatenate([first, second[3:]])
    with fakes.registered(fakes.LoadedKind(loaded)), Session() as session:
        given = np.concatenate(list(session.frames(work)))
    assert np.array_equal(given, whole)
