"""What the tests of the command line share: processes, and calls inside this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from ..conftest import CHECKPOINT, ROOT

CLIP, REFERENCE = ROOT / "examples/clip.mp4", ROOT / "examples/reference.png"
FAST = ("--model", str(CHECKPOINT), "--size", "96x64", "--steps", "1")


def kiwi(*arguments: Any, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """A real process."""
    return subprocess.run(
        [sys.executable, "-m", "kiwi_cli", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def inside(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    """The same without a new process: (exit code, stdout, stderr)."""
    from kiwi_cli.cli import run

    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def frames_of(path: Path) -> list[np.ndarray]:
    """Every frame of a file, decoded."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
