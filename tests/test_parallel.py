"""Two processes give what one gives, with and without a reference."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kiwi_cli import parallel
from kiwi_cli.errors import UsageError

from .cli.terminal import inside
from .conftest import CHECKPOINT, ROOT, random_frames, relative_error

CASES = {"clip": (9, 64, 96, False), "reference": (5, 64, 64, True)}
PROGRAM = """
import sys, torch
# The library asks how many accelerators there are; this machine's CPU counts as one.
torch.accelerator.device_count = lambda: 1
from kiwi_cli import KiwiPipeline, parallel
from tests.conftest import CHECKPOINT, random_frames
from tests.test_parallel import CASES
team = parallel.join("cpu")
pipe = KiwiPipeline.from_pretrained(str(CHECKPOINT), device=team.device, dtype="float32")
parallel.share(pipe.transformer, team)
for name, (frames, height, width, reference) in CASES.items():
    clip = random_frames(frames, height, width)
    latents = pipe(clip, "make it snowy", [clip[0]] if reference else [], steps=2, output="latents")
    torch.save(latents, f"{sys.argv[1]}/{name}-{team.rank}.pt")
parallel.leave()
"""


EDIT = """
import sys, torch
torch.accelerator.device_count = lambda: 1
from kiwi_cli.cli import run
sys.exit(run(sys.argv[1:]))
"""


def start_two(program: str, *arguments: object) -> list[tuple[str, str]]:
    """Two processes as torchrun starts them; (stdout, stderr) of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            cwd=ROOT,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return outputs


def test_two_processes_equal_one(pipe: Any, tmp_path: Path) -> None:
    start_two(PROGRAM, tmp_path)
    for name, (frames, height, width, reference) in CASES.items():
        clip = random_frames(frames, height, width)
        one = pipe(clip, "make it snowy", [clip[0]] if reference else [], steps=2, output="latents")
        for rank in range(2):
            two = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True)
            assert relative_error(two, one) < 1e-6, (name, rank)


def test_kiwi_edit_under_torchrun_writes_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit = ("edit", ROOT / "examples/reference.png", "in red", "--model", CHECKPOINT, "--size", "64x64", "--steps", "2")
    first, second = start_two(EDIT, *edit, "--device", "cpu", "-o", tmp_path / "two.png")
    assert first[0] == f"{tmp_path / 'two.png'}\n" and "wrote 1 frame" in first[1]
    assert second[0] == ""
    code, _, err = inside(capsys, *edit, "-o", tmp_path / "one.png")
    assert code == 0, err
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        difference = np.abs(np.asarray(one).astype(int) - np.asarray(two))
    assert difference.max() <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_what_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = SimpleNamespace(config=SimpleNamespace(num_attention_heads=24))
    with pytest.raises(UsageError, match="24 attention heads cannot be split over 5") as error:
        parallel.share(transformer, parallel.Team(0, 5, "cpu"))
    assert "start 4 processes" in error.value.hint
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(UsageError, match="'mps'"):
        parallel.join("mps")
    assert CHECKPOINT.is_dir() and parallel.team_size() == 1
