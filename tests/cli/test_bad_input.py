"""Everything that can be wrong with a command: one clear error, exit code 1 or 2, nothing on stdout, nothing left."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from kiwi_cli.errors import MediaError

from .. import fakes
from ..conftest import CHECKPOINT, ROOT
from ..video.media import Sound, add_sound, make_clip, make_sequence, picture
from ..video.test_fuzz import mutated
from .terminal import CLIP, FAST, REFERENCE, frames_of, inside

EDIT = ("edit", CLIP, "x", *FAST)


def fill(folder: Path) -> None:
    """One of everything that is wrong."""
    make_clip(folder / "good.mp4", frames=20, sound=Sound(seconds=0.8))
    (folder / "text.mp4").write_text("this is no video\n" * 50)
    (folder / "empty.mp4").touch()
    whole = (folder / "good.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48_000)
        stream.codec_context.layout = "mono"
        add_sound(container, stream, Sound(layout="mono", seconds=0.3))
    (make_sequence(folder / "gap", 5) / "0003.png").unlink()
    (folder / "void").mkdir()
    (folder / "there.mp4").write_text("somebody's")
    Image.fromarray(np.zeros((64, 96), np.uint8)).save(folder / "black.png")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder of a test, filled; it is left as it was."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    yield tmp_path
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.rglob("*kiwi-partial*"))


BAD: dict[str, tuple[tuple[Any, ...], int, str]] = {
    # the input
    "missing": (("edit", "missing.mp4", "x", *FAST), 2, "input not found: 'missing.mp4'"),
    "empty": (("edit", "empty.mp4", "x", *FAST), 1, "the file is empty: 'empty.mp4'"),
    "cut off": (("edit", "cut.mp4", "x", *FAST), 1, "cut off: 'cut.mp4'"),
    "not a video": (("edit", "text.mp4", "x", *FAST), 1, "text.mp4"),
    "sound only": (("edit", "sound.mp4", "x", *FAST), 1, "only sound"),
    "a gap": (("edit", "gap", "x", *FAST), 1, "a gap in the numbering of 'gap': 3 is missing"),
    "an empty folder": (("edit", "void", "x", *FAST), 1, "no pictures in 'void'"),
    "a device": (("edit", "/dev/null", "x", *FAST), 1, "/dev/null"),
    # the part of it
    "zero frames": ((*EDIT, "--frames", 0), 2, "0"),
    "negative frames": ((*EDIT, "--frames", -3), 2, "-3"),
    "start past the end": ((*EDIT, "--start", 99), 2, "start is past the end: 99 s"),
    "negative start": ((*EDIT, "--start", "-1"), 2, "-1"),
    "no time": ((*EDIT, "--start", "soon"), 2, "not a time: 'soon'"),
    "no duration": ((*EDIT, "--duration", 0), 2, "duration is not positive: 0"),
    "no rate": ((*EDIT, "--fps", 0), 2, "frame rate is not positive: 0"),
    "words for a number": ((*EDIT, "--frames", "many"), 2, "'many'"),
    # the picture
    "tiny size": ((*EDIT, "--size", "8x8"), 2, "8x8 is too small"),
    "huge size": ((*EDIT, "--size", "99999x99999"), 2, "99999x99999 is too large"),
    "size in words": ((*EDIT, "--size", "big"), 2, "'big'"),
    "fit": ((*EDIT, "--fit", "squeeze"), 2, "'squeeze'"),
    "mask missing": ((*EDIT, "--mask", "nowhere.png"), 2, "mask not found: 'nowhere.png'"),
    "mask broken": ((*EDIT, "--mask", "text.mp4"), 1, "text.mp4"),
    "mask black": ((*EDIT, "--mask", "black.png"), 1, "black all over: 'black.png'"),
    "mask outside": ((*EDIT, "--mask", "5000,0,10,10"), 2, "outside the clip"),
    "mask cut short": ((*EDIT, "--mask", "1,2,3"), 2, "'1,2,3'"),
    "feather alone": ((*EDIT, "--feather", 4), 2, "--feather needs --mask"),
    "negative feather": ((*EDIT, "--mask", "0,0,9,9", "--feather", -1), 2, "-1"),
    # the words
    "empty instruction": (("edit", CLIP, " \n", *FAST), 2, "the instruction is empty"),
    "unknown task": ((*EDIT, "--task", "dance"), 2, "'dance'"),
    "raw and task": ((*EDIT, "--task", "style", "--raw"), 2, "exclude each other"),
    "no reference": (("ref-edit", CLIP, *FAST), 2, "no reference picture"),
    "reference missing": (("ref-edit", CLIP, "--ref", "cat.png", *FAST), 2, "not found: 'cat.png'"),
    "reference broken": (("ref-edit", CLIP, "--ref", "text.mp4", *FAST), 1, "'text.mp4'"),
    "unknown replace": (("ref-edit", CLIP, "--ref", REFERENCE, "--replace", "sky", *FAST), 2, "'sky'"),
    # the model
    "unknown model": (("edit", CLIP, "x", "--model", "instruct-refrence"), 2, "'instruct-refrence'"),
    "no model there": (("edit", CLIP, "x", "--model", "void"), 1, "model_index.json"),
    "a revision of a folder": ((*EDIT, "--revision", "main"), 2, "--revision"),
    "LoRA missing": ((*EDIT, "--lora", "style.safetensors"), 2, "LoRA not found: 'style.safetensors'"),
    "LoRA broken": ((*EDIT, "--lora", "text.mp4"), 1, "text.mp4"),
    "no steps": ((*EDIT, "--steps", 0), 2, "--steps must be at least 1, not 0"),
    "negative seed": ((*EDIT, "--seed", -4), 2, "-4"),
    # the output
    "unknown format": ((*EDIT, "-o", "out.xyz"), 2, "'out.xyz'"),
    "no such folder": ((*EDIT, "-o", "nowhere/out.mp4"), 2, "nowhere"),
    "output exists": ((*EDIT, "-o", "there.mp4"), 2, "output exists: 'there.mp4'"),
    "output without a name": ((*EDIT, "-o", "", "--sidecar", "--compare"), 2, "output is not a file name: '.'"),
    "output is the input": (("edit", "good.mp4", "x", *FAST, "-o", "good.mp4", "--overwrite"), 2, "replace the input"),
    "codec and container": ((*EDIT, "-o", "out.webm", "--codec", "h264"), 2, "h264"),
    "unknown codec": ((*EDIT, "-o", "out.mp4", "--codec", "divx"), 2, "divx"),
    "codec of a folder": ((*EDIT, "-o", "out", "--codec", "h264"), 2, "h264"),
    "unknown quality": ((*EDIT, "-o", "out.mp4", "--quality", "best"), 2, "'best'"),
    "too many frames for a picture": ((*EDIT, "-o", "out.png"), 2, "a picture holds one frame"),
    "unknown option": ((*EDIT, "--guidance", 5), 2, "--guidance"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_clear_error_and_nothing_left(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, code, words = BAD[name]
    for more in ((), ("--json",), ("--dry-run",)):
        if more == ("--json",) and name not in ("missing", "empty", "fit"):
            continue
        got, out, err = inside(capsys, *arguments, *more)
        assert (got, out) == (code, ""), err
        lines = err.strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1 and words in errors[0], err
        assert lines[-1].startswith("hint: ") and lines[-2] == "", err
        assert "Traceback" not in err


def test_a_cut_off_clip_is_read_as_far_as_it_goes_when_asked(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "whole.mkv", frames=20)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(source.read_bytes()[: source.stat().st_size * 2 // 3])
    with pytest.raises(MediaError, match="cut off") as caught:
        fakes.edit(cut, tmp_path / "out.mkv")
    assert "--allow-truncated" in caught.value.hint
    result = fakes.edit(cut, tmp_path / "out.mkv", allow_truncated=True)
    assert 0 < result.frames < 20 and any("cut off" in notice for notice in result.notices)
    assert len(frames_of(result.output)) == result.frames


def test_an_unreadable_file_and_an_unwritable_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By what the system says of them: root may do everything."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    code, out, err = inside(capsys, "edit", "good.mp4", "x", *FAST)
    assert (code, out) == (1, ""), err
    assert "not allowed to read: 'good.mp4'" in err
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    code, out, err = inside(capsys, *EDIT, "-o", folder / "out.mp4")
    assert (code, out) == (1, "") and "not allowed to write in" in err


@pytest.mark.parametrize("kind", ["out.mp4", "frames"])
def test_a_full_disk_is_said_and_leaves_nothing(kind: str, folder: Path) -> None:
    """A process that may write 20 kB a file stands for a disk with that much room."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    arguments = ["edit", str(CLIP), "x", "--model", str(CHECKPOINT), "-o", kind]
    arguments += ["--quality", "lossless"] if kind == "out.mp4" else []
    done = subprocess.run(
        [sys.executable, "-m", "tests.cli.with_identity", *arguments],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )
    assert done.returncode == 1, done.stderr
    assert f"error: no space left to write '{kind}'" in done.stderr and done.stdout == ""
    assert not (folder / kind).exists()


@pytest.mark.slow
def test_damaged_files_at_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As source, mask and reference: an error of ours or a result, never a traceback, nothing half-written."""
    rng = random.Random(7)
    video = make_clip(tmp_path / "a.mp4", frames=3, size=(48, 32)).read_bytes()
    Image.fromarray(picture(1, 48, 32)).save(tmp_path / "a.png")
    still = (tmp_path / "a.png").read_bytes()
    good = tmp_path / "a.mp4"
    outcomes = {0: 0, 1: 0, 2: 0}
    bad = tmp_path / "bad"
    bad.mkdir()
    for number in range(60):
        kind = ("source", "mask", "reference")[number % 3]
        suffix, data = (".mp4", video) if number % 2 else (".png", still)
        path = bad / f"{number}{suffix}"
        path.write_bytes(mutated(data, rng))
        output = bad / ("out.png" if kind == "source" and suffix == ".png" else "out.mp4")
        arguments: tuple[Any, ...] = ("edit", path if kind == "source" else good, "x")
        if kind == "mask":
            arguments += ("--mask", path)
        if kind == "reference":
            arguments = ("ref-edit", good, "--ref", path)
        with fakes.commands_use(fakes.FakeEditor()):
            code, out, err = inside(capsys, *arguments, "--model", CHECKPOINT, "-o", output)
        outcomes[code] += 1
        assert "Traceback" not in err and "unexpected" not in err, (number, err)
        assert (out != "") == (code == 0) == output.exists(), (number, err)
        output.unlink(missing_ok=True)
        assert [entry.name for entry in bad.iterdir()] == [path.name], number
        path.unlink()
    assert outcomes[0] > 5 and outcomes[1] > 5, outcomes
