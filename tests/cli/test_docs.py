"""The documents say what the commands do: the reference is the app's, and the keys are the ones that come out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import CHECKPOINT, ROOT
from ..video.media import make_clip
from .terminal import inside, through


def test_the_command_line_reference_is_not_stale() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/cli_reference.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_key_that_comes_out_is_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from types import SimpleNamespace

    from kiwi_cli import doctor, job
    from kiwi_cli.cli.edit import report

    monkeypatch.setattr(doctor, "import_problem", lambda module: None)
    text = (ROOT / "docs/json.md").read_text()
    source = make_clip(tmp_path / "clip.mp4", frames=2)
    result = through(source, tmp_path / "out.mp4")
    request = job.EditRequest(source, "x", model=str(CHECKPOINT), output=tmp_path / "other.mp4")
    objects = [report(SimpleNamespace(**vars(job.plan(request))), result, {}), result.settings]  # type: ignore[arg-type]
    for arguments in (
        ("edit", source, "x", "--model", CHECKPOINT, "--dry-run", "--json"),
        ("show", tmp_path / "out.mp4", "--json"),
        ("doctor", "--json"),
        ("download", "--list", "--json"),
    ):
        objects.append(json.loads(inside(capsys, *arguments)[1]))
    for data in objects:
        for key in data:
            assert f"`{key}`" in text, key
