"""What goes wrong in one clip of many stays in it: programs that misbehave, and a disk that takes no more."""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from kiwi_cli.batch.jobs import JobStore
from kiwi_cli.video import Size
from kiwi_cli.video.plain import write_mp4

from .. import fakes
from ..batch.work import left_over, lines
from ..conftest import CHECKPOINT, random_frames
from ..video.media import make_clip
from .terminal import inside

PROGRAM = """
import os, sys, time
source, out, other, text = sys.argv[1:]
if text == "hang":
    time.sleep(1000)
if text == "flood":
    while True:
        print("x" * 60000, flush=True)
if text != "nothing":
    open(out, "wb").write(open(other if text == "longer" else source, "rb").read())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "a.mp4", frames=3)
    return tmp_path


def test_programs_that_misbehave_spoil_no_other_clip(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kiwi_cli.editors.programs.MOST_SAID", 1 << 20)
    write_mp4(folder / "long.mp4", [random_frames(30)], Fraction(24), Size(64, 64), "20")
    (folder / "edit.py").write_text(PROGRAM)
    rows = ["input,instruction,editor_timeout,output"]
    # Only the one that waits for ever has little time: on a slow machine the others take what they take.
    rows += [f"a.mp4,{text},{1 if text == 'hang' else 600},{text}.mp4" for text in ("hang", "flood", "nothing")]
    rows += [f"a.mp4,{text},600,{text}.mp4" for text in ("good", "longer", "better")]
    (folder / "jobs.csv").write_text("\n".join(rows) + "\n")
    line = f"command:{sys.executable} -S {folder / 'edit.py'} {{input}} {{output}} {folder / 'long.mp4'} {{text}}"
    code, out, err = inside(capsys, "batch", "jobs.csv", "--out-dir", "out", "--editor", line, "--json")
    data = json.loads(out)
    assert (code, data["done"], data["left"]) == (1, 2, 0), err
    assert sorted(data["failures"]) == ["flood.mp4", "hang.mp4", "longer.mp4", "nothing.mp4"]
    for name, words in (
        ("hang.mp4", "was not done after 1"),
        ("flood.mp4", "printed more than 1.0 MB"),
        ("nothing.mp4", "ended well but wrote nothing"),
        ("longer.mp4", "gave 30 frames"),
    ):
        assert words in data["failures"][name], data["failures"][name]
    assert sorted(path.name for path in (folder / "out").glob("*.mp4")) == ["better.mp4", "good.mp4"]
    assert left_over(JobStore(folder / "out")) == []


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files end at a size, as they do where a disk is full; the error has another number."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_clip_that_the_disk_does_not_take_is_said_and_the_rest_goes_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (6, 240, 320, 3), np.uint8)
    write_mp4(folder / "large.mp4", [noise], Fraction(24), Size(320, 240), "1")
    rows = ["input,instruction,quality", "large.mp4,x,1", "a.mp4,x,"]
    (folder / "jobs.csv").write_text("\n".join(rows) + "\n")
    command = ("batch", "jobs.csv", "--out-dir", "out", "--model", CHECKPOINT, "--device", "cpu")
    with fakes.commands_use(fakes.FakeEditor()) as editor:
        with largest_file(100_000):
            code, out, err = inside(capsys, *command, "--json")
        data = json.loads(out)
        assert (code, data["done"], list(data["failures"])) == (1, 1, ["large.mp4"]), err
        assert "large.mp4" in data["failures"]["large.mp4"] and "no space left" in data["failures"]["large.mp4"]
        assert sorted(path.name for path in (folder / "out").glob("*.mp4")) == ["a.mp4"]
        assert left_over(JobStore(folder / "out")) == []
        code, _, err = inside(capsys, *command, "--retry-failed")  # there is room again
        assert code == 0 and len(editor.seen) == 3 and lines(JobStore(folder / "out"), "failed"), err
