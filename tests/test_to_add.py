"""docs/architecture.md says what to touch to add something, and in how many files: a copy of the package is changed so.

The copy consists of links; the files that are touched are the only ones of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .cli.terminal import FAST, REFERENCE, frames_of
from .conftest import ROOT
from .video.media import make_clip

Touched = Mapping[str, tuple[str, str]]
"""A file's path in the package -> what is replaced, and by what; of a new file, '' and all of it."""

EDITOR: Touched = {
    "editors/negative.py": (
        "",
        """
from kiwi_cli.editors.base import Edited, Found, Identity, Named
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.weights.settings import ModelSettings


class Editor:
    name, multiple, most_frames, takes_references, gives_round_trip = "negative", 8, None, False, False

    def identity(self):
        return Identity(ModelChoice(editor="negative"), device="abacus", dtype="auto")

    def edit(self, frames, instruction, references=(), **options):
        return Edited(255 - frame[None] for frame in frames)

    def close(self): ...


class Negative(Named):
    def find(self, choice):
        return Found(None, settings=ModelSettings(multiple=8), pads=False)

    def identify(self, found, choice):
        return "negative"

    def load(self, found, choice, events):
        return Editor()


KIND = Negative("negative")
""",
    ),
    "editors/registry.py": (
        '    "fal": fal.KIND,\n',
        '    "fal": fal.KIND,\n    "negative": __import__("kiwi_cli.editors.negative").editors.negative.KIND,\n',
    ),
}
OPTION: Touched = {
    "editing/request.py": (
        '    overwrite: bool = option(False, "--overwrite"',
        '    darker: int = option(0, "--darker", "Levels that are taken off.", WHERE, unit="N", record="darker")\n'
        '    overwrite: bool = option(False, "--overwrite"',
    ),
    "editing/outputs.py": (
        "        frames[count] = frame.rgb\n",
        "        frames[count] = frame.rgb - np.minimum(frame.rgb, plan.request.darker).astype(np.uint8)\n",
    ),
}
LEVEL: Touched = {
    "engine/memory.py": (
        '        Level("tiled",',
        '        Level("coders", keeps=("vae_encoder", "vae_decoder"), streamed=True),\n        Level("tiled",',
    )
}
BENCHMARK: Touched = {
    "bench/suites/items.py": (
        "BENCHMARKS = {\n",
        """BENCHMARKS = {
    "mine": Benchmark(
        name="mine", title="My-Bench", about="two edits of my own", repo="someone/My-Bench", table="items.csv",
        form="csv", columns={"type": "kind", "instruction": "words", "source": "clip"}, patterns=("items.csv",),
        licence="mine", categories=("weather", "light"), headline=(), kind="video", model="instruct-reference",
        folders=("", "clips"),
    ),
""",
    )
}
ADDED = {"an editor": EDITOR, "an option": OPTION, "a memory level": LEVEL, "a benchmark": BENCHMARK}


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with one of each more."""
    top = tmp_path_factory.mktemp("changed")
    for source in (ROOT / "src/kiwi_cli").rglob("*"):
        if source.is_file() and "__pycache__" not in source.parts:
            path = top / source.relative_to(ROOT / "src")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(source)
    for name, (before, after) in (pair for files in ADDED.values() for pair in files.items()):
        path = top / "kiwi_cli" / name
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        assert (text.count(before) == 1) if before else not text, name
        path.unlink(missing_ok=True)
        path.write_text(text.replace(before, after) if before else after, encoding="utf-8")
    return top


def python(package: Path, program: str, *arguments: Any) -> list[Any]:
    """What a program says, a line of JSON for each thing, with the changed package."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(package), str(ROOT / "scripts"), str(ROOT)))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


PROGRAM = """
import contextlib, io, json, sys
import kiwi_cli
from kiwi_cli.cli import run
assert kiwi_cli.__file__.startswith(sys.path[1]), kiwi_cli.__file__

def kiwi(line):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(line)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))

for line in json.loads(sys.argv[1]):
    kiwi(line)
import cli_reference
print(json.dumps(cli_reference.reference()))
"""


def test_each_works_with_nothing_else_touched(changed: Path, tmp_path: Path) -> None:
    """The command, the result, its record, what is shown and made again, the dry run, and docs/cli.md."""
    clip = make_clip(tmp_path / "clip.mkv", frames=3, codec="ffv1", pixel_format="bgr0", options={})
    out, again = tmp_path / "out.mkv", tmp_path / "again.mkv"
    own = ("edit", clip, "x", "--editor", "negative", "--codec", "ffv1")
    lines = [
        (*own, "--darker", 7, "-o", out, "--json"),
        ("show", out, "--json"),
        ("rerun", out, "-o", again),
        ("rerun", out, "--darker", 0, "-o", tmp_path / "lighter.mkv"),
        (
            "edit",
            REFERENCE,
            "x",
            *FAST,
            "--memory",
            "coders",
            "--max-memory",
            "8GB",
            "-o",
            tmp_path / "out.png",
            "--dry-run",
        ),
        ("bench", "mine", "--help"),
    ]
    said = json.dumps([[str(word) for word in line] for line in lines])
    made, shown, remade, lighter, planned, bench, page = python(changed, PROGRAM, said)
    for code, _, err in (made, shown, remade, lighter, planned, bench):
        assert code == 0, err
    assert json.loads(made[1])["settings"]["darker"] == 7
    assert json.loads(shown[1])["settings"] | {"device": "abacus"} == json.loads(made[1])["settings"]
    source, edited = np.stack(frames_of(clip)), np.stack(frames_of(out))
    assert np.array_equal(edited, 255 - (source - np.minimum(source, 7)))
    assert np.array_equal(np.stack(frames_of(again)), edited)
    assert np.array_equal(np.stack(frames_of(tmp_path / "lighter.mkv")), 255 - source)
    assert "coders" in planned[1] and "My-Bench: two edits of my own." in bench[1]
    for command in ("edit", "ref-edit", "rerun", "batch"):
        assert "--darker" in page.split(f"\n## kiwi {command}\n")[1].split("\n## ")[0], command
    assert "kiwi bench mine" in page


@pytest.mark.parametrize("what", ADDED)
def test_the_table_says_how_many_files(what: str) -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("\n## To add something\n")[1]
    row = next(line for line in page.splitlines() if line.startswith(f"| {what} |"))
    assert int(re.findall(r"\d+", row.split("|")[2])[0]) == len(ADDED[what]), row
    for name in ADDED[what]:
        if (ROOT / "src/kiwi_cli" / name).exists() and what != "an option":
            assert f"`{name}`" in row, row
