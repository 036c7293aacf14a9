"""`kiwi data synth` through the whole command line."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kiwi_cli.synth.wordings import KINDS
from kiwi_cli.synth.writer import Settings, quadruplets

from .terminal import frames_of, inside, kiwi

SMALL = ("--size", "32x32", "--frames", "1")


def listed(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))


def test_it_writes_rows_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inside(capsys, "data", "synth", tmp_path / "rows", "--count", 13, "--seed", 2)
    assert (code, out) == (0, f"{tmp_path / 'rows' / 'rows.csv'}\n")
    assert "13 rows of 13 kinds" in err
    rows = listed(tmp_path / "rows" / "rows.csv")
    assert [row["kind"] for row in rows] == list(KINDS)
    for row, made in zip(rows, quadruplets(Settings(13, seed=2)), strict=True):
        assert row["prompt"] == made.prompt
        assert np.array_equal(np.stack(frames_of(tmp_path / "rows" / row["tgt_video"])), made.edit.target)


def test_every_option_does_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--kinds", "night, snow", "--kinds", "add", "--size", "70x40", "--frames", 9, "--fps", 12.5)
    command = ("data", "synth", tmp_path / "rows", "--count", 6, *options, "--format", "jsonl", "--held-out", "--json")
    code, out, err = inside(capsys, *command)
    report = json.loads(out)
    assert code == 0 and "70x40 is not in multiples of 32: training takes the middle, at 64x32" in err
    assert report["kinds"] == {"night": 2, "snow": 2, "add": 2} and report["rows"] == 6
    assert report["output"] == str(tmp_path / "rows") and report["seconds"] > 0
    assert report["bytes"] == sum(path.stat().st_size for path in (tmp_path / "rows").rglob("*") if path.is_file())
    rows = [json.loads(line) for line in Path(report["table"]).read_text().splitlines()]
    assert [row["wording_split"] for row in rows] == ["seen"] * 3 + ["held-out"] * 3
    frames = frames_of(tmp_path / "rows" / rows[5]["src_video"])
    assert len(frames) == 9 and frames[0].shape == (40, 70, 3)
    record = json.loads((tmp_path / "rows" / "synth.json").read_text())
    assert record["fps"] == 12.5 and record["held_out"] is True


def test_wordings_can_be_chosen_apart_from_the_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, options in (("a", ()), ("b", ("--wordings", "held-out")), ("c", ("--held-out", "--wordings", "seen"))):
        assert inside(capsys, "data", "synth", tmp_path / name, "--count", 13, *SMALL, *options)[0] == 0
    a, b, c = (listed(tmp_path / name / "rows.csv") for name in "abc")
    assert {row["wording_split"] for row in a} == {row["wording_split"] for row in c} == {"seen"}
    assert {row["wording_split"] for row in b} == {"held-out"}
    assert [row["prompt"] for row in a] != [row["prompt"] for row in b]
    same = [(tmp_path / name / a[0]["src_video"]).read_bytes() for name in "abc"]
    assert same[0] == same[1] != same[2]


def test_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, _ = inside(capsys, "data", "synth", tmp_path / "rows", "--count", 2, "--images", "--kinds", "sepia,add")
    assert code == 0
    assert {path.suffix for path in (tmp_path / "rows" / "clips").rglob("*") if path.is_file()} == {".png"}


def test_quiet_says_nothing_and_few_rows_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = inside(capsys, "data", "synth", tmp_path / "a", "--count", 1, *SMALL, "-q")
    assert (code, err) == (0, "")
    _, _, err = inside(capsys, "data", "synth", tmp_path / "b", "--count", 11, *SMALL)
    assert "11 rows: no room for reference-background, reference-subject" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--count", "0"), "cannot write 0 rows"),
        (("--count", "many"), "--count takes a whole number, not 'many'"),
        (("--count", "2", "--kinds", "melt"), "no kind of edit 'melt'"),
        (("--count", "2", "--size", "64"), "not a size: '64'"),
        (("--count", "2", "--size", "8x8"), "cannot be 8x8"),
        (("--count", "2", "--frames", "4"), "not 4"),
        (("--count", "2", "--frames", "9", "--images"), "one frame, not 9"),
        (("--count", "2", "--fps", "-1"), "not a frame rate: -1"),
        (("--count", "2", "--format", "xml"), "unknown format 'xml'"),
        (("--count", "2", "--wordings", "all"), "unknown wordings 'all'"),
        ((), "--count"),
    ],
)
def test_what_cannot_be_meant(
    options: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = inside(capsys, "data", "synth", tmp_path / "rows", *options)
    assert (code, out) == (2, "") and words in err and "hint: " in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_only_when_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("data", "synth", tmp_path / "rows", "--count", 1, *SMALL)
    assert inside(capsys, *command)[0] == 0
    code, out, err = inside(capsys, *command)
    assert (code, out) == (2, "") and "exists already" in err and "--overwrite" in err
    assert inside(capsys, *command, "--overwrite", "--seed", 1)[0] == 0
    assert json.loads((tmp_path / "rows" / "synth.json").read_text())["seed"] == 1


def test_a_killed_run_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kiwi_cli", "data", "synth", str(tmp_path / "rows"), "--count", "100000", *SMALL]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while process.poll() is None and not list(tmp_path.rglob("*-target.mkv")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(tmp_path.rglob("*-target.mkv")) and not (tmp_path / "rows").exists()
    for _ in range(6):  # one that arrives inside a library's callback is lost, as Ctrl-C is then: ask again
        os.kill(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            out, err = process.communicate(timeout=120)
            break
    assert process.returncode == 130 and out == "" and "interrupted" in err
    assert list(tmp_path.iterdir()) == []


def test_the_help_page_tells_every_kind_without_heavy_imports() -> None:
    page = " ".join(kiwi("data", "synth", "--help", COLUMNS="200").stdout.split())
    assert all(kind in page for kind in KINDS)
    script = (
        "import sys; from kiwi_cli.cli.commands import registered; registered('data')\n"
        "print({'torch', 'av', 'numpy'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
