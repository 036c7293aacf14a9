"""The documents say what the commands do: the reference is the app's, and the keys are the ones that come out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .. import fakes
from ..conftest import CHECKPOINT, ROOT
from ..video.media import make_clip
from .terminal import inside


def test_the_command_line_reference_is_not_stale() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/cli_reference.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_files_that_documents_name_are_there() -> None:
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        for path in re.findall(
            r"(?:src|scripts|benchmarks|recipes|tests|examples)/[\w/.-]+\.\w+", page.read_text("utf-8")
        ):
            assert (ROOT / path).exists() or "{" in path, f"{page.name} names {path}"


@pytest.mark.slow
def test_the_screen_of_doctor_has_a_row_for_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    shown = (ROOT / "docs/terminal.md").read_text("utf-8").partition("$ kiwi doctor")[2].partition("```")[0]
    checks = json.loads(inside(capsys, "doctor", "--json")[1])["checks"]
    for check in checks:
        assert f" {check['name']} " in shown, check["name"]


def test_every_key_that_comes_out_is_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kiwi_cli.editing import doctor

    monkeypatch.setattr(doctor, "import_problem", lambda module: None)
    text = (ROOT / "docs/json.md").read_text()
    source, out = make_clip(tmp_path / "clip.mp4", frames=2), tmp_path / "out.mp4"
    with fakes.commands_use(fakes.FakeEditor()):
        made = json.loads(inside(capsys, "edit", source, "x", "--model", CHECKPOINT, "-o", out, "--json")[1])
    objects = [made, made["settings"]]
    for arguments in (
        ("edit", source, "x", "--model", CHECKPOINT, "--dry-run", "--json"),
        ("show", out, "--json"),
        ("doctor", "--json"),
        ("download", "--list", "--json"),
    ):
        objects.append(json.loads(inside(capsys, *arguments)[1]))
    for data in objects:
        for key in data:
            assert f"`{key}`" in text, key
