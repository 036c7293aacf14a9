"""What the tests of the command line share: processes, calls inside this one, and a model that changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from kiwi_cli import job
from kiwi_cli.request import EditRequest

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


class Identity:
    """Stands for a loaded model: gives back the frames it gets, in chunks as the decoder does.

    Attributes:
        seen: the arguments of each call.
    """

    device, compute_dtype = "cpu", "float32"

    def __init__(self, change: Any = None) -> None:
        self.change = change
        self.seen: list[dict[str, Any]] = []

    def __call__(self, frames: np.ndarray, instruction: str, references: Any = (), **options: Any) -> Iterator[Any]:
        self.seen.append({"frames": frames, "instruction": instruction, "references": references, **options})

        def chunks() -> Iterator[np.ndarray]:
            yield self._changed(frames[:1])
            for start in range(1, len(frames), 4):
                yield self._changed(frames[start : start + 4])

        return chunks()

    def _changed(self, frames: np.ndarray) -> np.ndarray:
        return frames if self.change is None else self.change(frames)


def through(source: Path, output: Path, pipe: Any = None, **options: Any) -> job.EditResult:
    """A clip through the whole job with a model that changes nothing."""
    request = EditRequest(source, "as it is", model=str(CHECKPOINT), output=output, **options)
    return job.run(job.plan(request), pipe=pipe or Identity())
