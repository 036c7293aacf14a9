"""What a model was made for, where files can be written and how a rectangle is: said when an edit asks for more."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

import kiwi_cli
from kiwi_cli.batch import planning
from kiwi_cli.errors import MediaError
from kiwi_cli.video.writer import FrameWriter

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
