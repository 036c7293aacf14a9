"""What a model was made for, where files can be written and how a rectangle is: said when an edit asks for more."""

from __future__ import annotations

import errno
import json
import os
import shlex
from pathlib import Path

import av
import pytest

import kiwi_cli
from kiwi_cli.batch import planning
from kiwi_cli.errors import MediaError
from kiwi_cli.video.failures import writing
from kiwi_cli.video.writer import FrameWriter

from .. import fakes
from ..conftest import CHECKPOINT
from ..video.media import make_clip
from .terminal import CLIP, REFERENCE, inside

TINY = ("--model", "tiny", "--device", "cpu")
OFF = "was made for 5 frames at a time, and --windows off gives it {} at once"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "clip.mp4", frames=6)


@pytest.mark.parametrize("reference", [False, True])
def test_more_frames_at_once_than_a_model_was_made_for_are_warned_of(
    reference: bool, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "change the background to the reference image" if reference else "make it snowy"
    command = ("ref-edit", clip, words, "--ref", REFERENCE) if reference else ("edit", clip, words)
    code, out, err = inside(capsys, *command, *TINY, "--windows", "off", "--dry-run", "--json")
    assert code == 0 and err.count("warning: ") == 1 and f"warning: 'tiny' {OFF.format(6)}" in err, err
    assert "leave --windows off out" in err
    assert any(OFF.format(6) in line for line in json.loads(out)["notices"])
    for fine in ((), ("--windows", "off", "--frames", 5), ("--windows", "independent")):
        code, _, err = inside(capsys, *command, *TINY, *fine, "--dry-run")
        assert code == 0 and "warning" not in err, (fine, err)


def test_a_model_that_says_nothing_of_its_length_is_given_what_is_asked_for(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = inside(capsys, "edit", clip, "x", "--model", CHECKPOINT, "--windows", "off", "--dry-run")
    assert code == 0 and "warning" not in err, err


def test_an_edit_that_is_made_again_or_finished_is_warned_of_too(
    clip: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(writer: FrameWriter) -> None:
        raise MediaError("no space left")

    out = clip.with_name("out.mkv")
    with monkeypatch.context() as patch:
        patch.setattr(FrameWriter, "_publish", full)
        code, _, err = inside(capsys, "edit", clip, "make it snowy", *TINY, "--windows", "off", "--steps", 1, "-o", out)
    assert code == 1 and OFF.format(6) in " ".join(err.split()), err
    left = shlex.split(err[err.index("kiwi finish") :])[2]
    code, _, err = inside(capsys, "finish", left)
    assert code == 0 and OFF.format(6) in err, err
    code, stdout, err = inside(capsys, "rerun", out, "--json")
    assert code == 0 and OFF.format(6) in err, err
    assert any(OFF.format(6) in line for line in json.loads(stdout)["notices"])


def test_a_row_of_a_table_is_warned_of_and_edited(
    clip: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is when it is an edit of its own: it was refused at its turn, by the loaded model."""
    monkeypatch.chdir(clip.parent)
    rows = [
        "make it snowy,off,,a.mp4",
        "make it snowy,,,b.mp4",
        "make it night,off,,c.mp4",
        "make it night,off,5,d.mp4",
    ]
    table = ["input,instruction,windows,frames,output", *(f"clip.mp4,{row}" for row in rows)]
    Path("jobs.csv").write_text("\n".join(table))
    command = ("batch", "jobs.csv", "--out-dir", "out", *TINY, "--steps", 1)
    code, _, err = inside(capsys, *command)
    assert code == 0 and err.count("warning: ") == 1, err
    assert f"warning: line 2, line 4: 'tiny' {OFF.format(6)}" in err
    monkeypatch.setattr(planning, "PLANNED", 1)  # of more, the frames are not counted
    code, _, err = inside(capsys, *command, "--dry-run")
    assert code == 0 and f"line 2, line 4: 'tiny' {OFF.format('all frames of a clip')}" in err, err


def test_from_python_it_is_in_the_notices(clip: Path) -> None:
    editor = kiwi_cli.load("tiny", device="cpu")
    options = {"model": "tiny", "device": "cpu", "windows": "off", "steps": 1, "overwrite": True}
    for loaded in (None, editor):
        given = {"editor": loaded} if loaded is not None else {}
        result = kiwi_cli.edit(clip, "make it snowy", output=clip.with_name("out.mp4"), **given, **options)
        assert OFF.format(6) in result.notices[0]


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("480p", "works at 832x480: 35 times the pixels, which takes longer"),
        ("source", "works at 480x272: 11 times the pixels"),
        ("64x32", "works at 64x32: fewer pixels, and a strong look may come out in blots"),
        ("160x80", "works at 160x80\n"),
        ("144x80", ""),
        (None, ""),
    ],
)
def test_a_size_that_a_model_was_not_made_for_is_said(
    size: str | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("edit", CLIP, "make it snowy", *(() if size is None else ("--size", size)), "--dry-run")
    code, out, err = inside(capsys, *command, *TINY)
    assert code == 0 and "warning" not in err
    said = "the model was made for 144x80, its size without --size, and "
    assert (said + words in out) == bool(words) and ("was made for" in out) == bool(words), out
    code, out, _ = inside(capsys, *command, "--model", CHECKPOINT)
    assert code == 0 and "was made for" not in out


def test_a_file_where_a_folder_would_be_and_the_reverse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()
    edit = ("edit", CLIP, "x", "--model", CHECKPOINT, "--dry-run", "--overwrite", "-o")
    code, _, err = inside(capsys, *edit, tmp_path / "file" / "a" / "out.mp4")
    assert code == 2 and f"'{tmp_path / 'file'}' is a file, and no folder to write in" in err and "mkdir" not in err
    code, _, err = inside(capsys, *edit, tmp_path / "file")
    assert code == 2 and f"'{tmp_path / 'file'}' is a file, and a folder would be written" in err
    code, _, err = inside(capsys, *edit, tmp_path / "folder.mp4")
    assert code == 2 and "is a folder, and a file would be written" in err


# -- places -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
@pytest.mark.parametrize("name", ["x.png", "x.mp4", "x.gif", "folder"])
def test_a_folder_that_takes_no_files_is_named(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if not os.access("/proc", os.W_OK):
        pytest.skip("only root is let that far")
    source = REFERENCE if name.endswith(".png") else CLIP
    with fakes.commands_use(fakes.FakeEditor()):
        code, _, err = inside(capsys, "edit", source, "x", "--model", CHECKPOINT, "-o", f"/proc/{name}")
    assert code == 1 and f"cannot write '/proc/{name}': the folder '/proc' takes no files" in err, err
    assert "hint: write elsewhere with --output" in err


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_a_preview_asks_for_its_place_before_anything_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    if not os.access("/proc", os.W_OK):
        pytest.skip("only root is let that far")
    never = fakes.FailingEditor(AssertionError("an edit was begun"))
    with fakes.commands_use(never):
        code, _, err = inside(capsys, "edit", CLIP, "x", "--model", CHECKPOINT, "-o", "/proc/x.mp4", "--preview")
    assert code == 1 and "cannot write '/proc/x-preview.png': the folder '/proc' takes no files" in err, err


@pytest.mark.parametrize("name", ["a.mp4", "a.png", "frames", "a.mp4.json", "a.mp4.latents"])
@pytest.mark.parametrize(
    ("number", "words", "hint"),
    [
        (errno.ENOENT, "takes no files", "ELSEWHERE"),
        (errno.EACCES, "not allowed to write", "ELSEWHERE"),
        (errno.EPERM, "not allowed to write", "ELSEWHERE"),
        (errno.EROFS, "the disk is read-only", "ELSEWHERE"),
        (errno.ENOSPC, "no space left", "free some space, or ELSEWHERE"),
        (errno.EDQUOT, "no space left", "free some space, or ELSEWHERE"),
        (errno.ENAMETOOLONG, "the name is too long", "choose a shorter name"),
        (errno.EIO, "input/output error", "ELSEWHERE"),
        (errno.EINVAL, "invalid argument", "ELSEWHERE"),
    ],
)
def test_what_the_system_refuses_is_not_blamed_on_the_codec(
    number: int, words: str, hint: str, name: str, tmp_path: Path
) -> None:
    with pytest.raises(MediaError, match=words) as caught, writing(tmp_path / name, "ELSEWHERE"):
        raise OSError(number, os.strerror(number))
    assert caught.value.hint == hint


def test_what_a_library_refuses_is() -> None:
    for error in (av.error.InvalidDataError(-1, "x"), av.error.ArgumentError(errno.EINVAL, "x"), OSError("mode P")):
        with pytest.raises(MediaError) as caught, writing(Path("a.mp4")):
            raise error
        assert caught.value.hint == "try another --codec or container"
    with pytest.raises(MediaError, match="no such folder: '/nowhere'") as caught, writing(Path("/nowhere/a.mp4")):
        raise av.error.FileNotFoundError(errno.ENOENT, "x")
    assert "--output" in caught.value.hint


# -- masks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ("0,0,50", "has 3 numbers, and a rectangle has four"),
        ("0,0,50,50,", "is no rectangle"),
        ("0,0,50,50,9", "has 5 numbers, and a rectangle has four"),
        ("1.5,0,50,50", "is no rectangle"),
        ("0,0,50,-5", "is no rectangle"),
        ("0 0 50 50", "is no rectangle"),
        ("0,0,0,5", "has no area"),
    ],
)
def test_numbers_that_are_no_rectangle(mask: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = inside(capsys, "edit", CLIP, "x", "--model", CHECKPOINT, f"--mask={mask}", "--dry-run")
    assert code == 2 and f"the mask '{mask}' {words}" in err, err
    assert "hint: write x,y,width,height in whole pixels, the last two from 1: --mask 120,40,180,160" in err


def test_an_empty_mask_is_not_the_current_folder(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = inside(capsys, "edit", CLIP, "x", "--model", CHECKPOINT, "--mask", "", "--dry-run")
    assert code == 2 and "the mask is empty: ''" in err and "hint: write x,y,width,height" in err, err


def test_a_name_with_numbers_is_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("50", "0,0,a.png", "2026-11-28"):
        code, _, err = inside(capsys, "edit", CLIP, "x", "--model", CHECKPOINT, "--mask", name, "--dry-run")
        assert code == 2 and f"mask not found: '{name}'" in err, err
