"""Two processes give what one gives, with and without a reference."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kiwi_cli.base.processes import team_size
from kiwi_cli.engine import parallel
from kiwi_cli.errors import UsageError

from .cli.terminal import inside
from .conftest import CHECKPOINT, ROOT, random_frames, relative_error

CASES = {"clip": (9, 64, 96, False), "reference": (5, 64, 64, True)}
PROGRAM = """
import sys, torch
# The library asks how many accelerators there are; this machine's CPU counts as one.
torch.accelerator.device_count = lambda: 1
from kiwi_cli import KiwiPipeline
from kiwi_cli.engine import parallel
from kiwi_cli.errors import DeviceError
from tests.conftest import CHECKPOINT, random_frames
from tests.test_parallel import CASES
team = parallel.join("cpu")
pipe = KiwiPipeline.from_pretrained(str(CHECKPOINT), device=team.device, dtype="float32")
parallel.share(pipe.transformer, team)

def edit(name, frames, height, width, reference):
    clip = random_frames(frames, height, width)
    pictures = [clip[0]] if reference else []
    latents = pipe.edit(clip, "make it snowy", pictures, steps=2, output="latents", notify=told.append)
    torch.save(latents, f"{sys.argv[1]}/{name}-{team.rank}.pt")

told = []
for name, case in CASES.items():
    edit(name, *case)

def full(module, given):
    hook.remove()
    raise torch.OutOfMemoryError("no room")

for place in (pipe.vae.quant_conv, pipe.transformer.blocks[1]):
    if team.rank == 1:
        hook = place.register_forward_pre_hook(full)
    try:
        edit("again", *CASES["clip"])
        print([line[:50] for line in told if "out of memory" in line])
    except DeviceError as error:
        print(error.message)
        parallel.leave()
        sys.exit(error.exit_code)
"""
"""Two edits, one more in which the second process has no room for the encoder, and one where it has none in a step."""


EDIT = """
import sys, torch
torch.accelerator.device_count = lambda: 1
from kiwi_cli.cli import run
sys.exit(run(sys.argv[1:]))
"""


FORK = """
import os, sys
import kiwi_cli.editing.session, kiwi_cli.editors.kiwi, kiwi_cli.engine.parallel, kiwi_cli.engine.pipeline
folder, program = sys.argv[1:3]
children = []
for rank in range(2):
    if not (child := os.fork()):
        break
    children.append(child)
else:
    print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
    sys.exit()
os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
for stream, name in ((1, "out"), (2, "err")):
    os.dup2(os.open(f"{folder}/{rank}.{name}", os.O_WRONLY | os.O_CREAT), stream)
sys.argv = ["-c", *sys.argv[3:]]
exec(program, {"__name__": "__main__"})
"""
"""Imports the libraries once, and is both processes of a program, each with a place of its own for what it says."""


def start_two(program: str, *arguments: object, code: int = 0) -> list[tuple[str, str]]:
    """Two processes with what torchrun gives them, which end with that code; (stdout, stderr) of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    with tempfile.TemporaryDirectory() as folder:
        both = subprocess.run(
            [sys.executable, "-c", FORK, folder, program, *map(str, arguments)],
            cwd=ROOT,
            env={**shared, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        outputs = [tuple(Path(folder, f"{rank}.{name}").read_text() for name in ("out", "err")) for rank in range(2)]
    assert both.stdout.split() == [str(code)] * 2, (both.stderr, outputs)
    return outputs  # type: ignore[return-value]


Two = tuple[Path, list[tuple[str, str]]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Two:
    """The folder of the latents that `PROGRAM` writes, and what its processes say."""
    folder = tmp_path_factory.mktemp("two")
    return folder, start_two(PROGRAM, folder, code=1)


@pytest.mark.parametrize(("name", "case"), [*CASES.items(), ("again", CASES["clip"])])
def test_two_processes_equal_one(pipe: Any, two: Two, name: str, case: tuple[int, int, int, bool]) -> None:
    frames, height, width, reference = case
    clip = random_frames(frames, height, width)
    one = pipe.edit(clip, "make it snowy", [clip[0]] if reference else [], steps=2, output="latents")
    for rank in range(2):
        latents = torch.load(two[0] / f"{name}-{rank}.pt", weights_only=True)
        assert relative_error(latents, one) < 1e-6, rank


def test_out_of_memory_in_one_of_two_processes_leaves_none_waiting(two: Two) -> None:
    """A stage before the steps is done again with less; within a step, where the other waits, both end and say why."""
    (first, _), (second, _) = two[1]
    assert first.splitlines() == [
        "[]",
        "another of the 2 processes ended, and this one cannot go on without it",
    ]
    smaller, message = second.splitlines()
    assert smaller == "['out of memory on cpu; going on with less: memory: ']"
    assert message.startswith("out of memory on cpu: no room; the 2 processes compute a step")


@pytest.mark.slow
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
    assert CHECKPOINT.is_dir() and team_size() == 1
