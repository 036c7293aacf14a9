"""`kiwi edit --editor ...`: another editor in one edit, said in the plan and in the file, and made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..cli.terminal import inside
from ..video.media import make_sequence, picture
from ..whole_runs import frames_of

COPY = "command:cp {input} {output}"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    make_sequence(tmp_path / "clip", 6, (80, 48))
    return tmp_path / "clip"


def test_an_edit_by_a_program(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[Any]) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    code, stdout, err = inside(capsys, "edit", clip, "as it is", "--editor", COPY, "-o", out, "--json")
    assert code == 0, err
    assert "open the editor: done" in err and "edit: done" in err and "model" not in err and "denoise" not in err
    data = json.loads(stdout)
    assert (data["device"], data["settings"]["editor"], data["settings"]["model"]) == ("command", COPY, "")
    found, source = frames_of(out), np.stack([picture(number, 80, 48) for number in range(6)])
    assert found.shape == source.shape and np.abs(found.astype(int) - source).mean() < 4
    code, _, err = inside(capsys, "rerun", out, "-o", again)
    assert code == 0, err
    assert np.array_equal(frames_of(again), found)


def test_what_the_editor_changed_is_told_and_returned(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[Any]
) -> None:
    edits = tmp_path / "edits"
    edits.mkdir()
    make_sequence(edits / "frames", 6, (160, 96))
    from fractions import Fraction

    from kiwi_cli.video import Size
    from kiwi_cli.video.plain import write_mp4

    write_mp4(edits / "out.mp4", [frames_of(edits / "frames")], Fraction(24), Size(160, 96), "10")
    out = tmp_path / "out"
    code, stdout, err = inside(capsys, "edit", clip, "x", "--editor", f"folder:{edits}", "-o", out, "--json")
    assert code == 0, err
    line = "came back at 160x96, its middle scaled to 80x48"
    assert json.loads(stdout)["notices"][-1] == line and err.count(line) == 1


def test_a_plan_counts_nothing_of_a_model_that_is_not_kiwis(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[Any]
) -> None:
    command = ("edit", clip, "x", "--editor", COPY, "-o", tmp_path / "out", "--dry-run")
    code, stdout, err = inside(capsys, *command)
    assert code == 0 and f"editor       {COPY}" in stdout and "tokens" not in stdout and "padded" not in stdout, err
    data = json.loads(inside(capsys, *command, "--json")[1])
    assert (data["editor"], data["model"], data["estimate"]) == (COPY, "", None)


def test_reference_pictures_need_a_place(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[Any]) -> None:
    command = ("ref-edit", clip, "x", "--ref", clip / "0001.png", "-o", tmp_path / "out", "--editor", COPY)
    reference = next(clip.glob("*.png"))
    command = tuple(reference if part == clip / "0001.png" else part for part in command)
    code, _, err = inside(capsys, *command)
    assert code == 2 and f"'{COPY}' takes no reference pictures" in err


def test_several_clips_by_a_program_are_jobs_that_know_it(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[Any]
) -> None:
    """The same command again makes nothing; a program that changed is another editor."""
    tool, out = tmp_path / "tool.sh", tmp_path / "out"
    tool.write_text('#!/bin/sh\ncp "$1" "$2"\n')
    tool.chmod(0o755)
    make_sequence(tmp_path / "other", 6, (80, 48))
    options = ("--editor", f"command:{tool} {{input}} {{output}}", "--out-dir", out, "--json")
    command = ("edit", clip, tmp_path / "other", "-i", "as it is", *options)
    code, stdout, err = inside(capsys, *command)
    assert code == 0 and json.loads(stdout)["made"] == 2, err
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == ["clip", "other"]
    assert json.loads(inside(capsys, *command)[1])["made"] == 0
    tool.write_text('#!/bin/sh\ncp -f "$1" "$2"\n')
    code, _, err = inside(capsys, *command)
    assert code == 2 and "output exists" in err  # another job, whose output is another's
    code, stdout, err = inside(capsys, *command, "--overwrite")
    assert code == 0 and json.loads(stdout)["made"] == 2, err
