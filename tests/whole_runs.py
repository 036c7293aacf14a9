"""Whole runs of the command that are compared with recorded ones: which they are, and how they are recorded.

    python -m tests.whole_runs            records them anew in tests/data/runs, with their provenance
    python -m tests.whole_runs --check    says of each whether it is the recorded one to the bit, on this machine

The frames are written as PNG, so no codec lies between. Only every second pixel in each direction is kept, but a digest
of all of them is kept too: on one machine and one version of torch, the bits are the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .conftest import CHECKPOINT, DATA, ROOT, make_model
from .video.media import make_sequence, picture

RUNS = DATA / "runs"
PROVENANCE = RUNS / "runs.json"
SIZE = (72, 48)
WORKING = {"pixels": 4096, "frames": 5, "steps": 2}
STRIDE = 2
TOLERANCE = 1  # levels of 255: processors differ in the order of their sums, and so do one thread and two


@dataclass(frozen=True)
class Run:
    """A command on the files that `inputs` makes.

    Attributes:
        command: after `kiwi`; 'small' stands for the small checkpoint. frames: in its output.
        output: a folder, or a picture.
    """

    command: str
    frames: int
    output: str = "out"


RUNS_OF: dict[str, Run] = {
    "edit": Run("edit clip 'make it snowy' --model small --size 64x64 --steps 3", 9),
    "ref-edit": Run(
        "ref-edit clip 'put on the hat' --ref ref.png --ref white.png --model small --size 96x64 --steps 2 --frames 5 "
        "--seed 7",
        5,
    ),
    "replace": Run(
        "ref-edit clip --ref ref.png --replace background --model small --frames 2 --size 64x64 --steps 2 --fit pad "
        "--task background",
        2,
    ),
    "windows": Run("edit long 'turn it into a night scene' --model windowed --windows independent", 13),
    "mask": Run(
        "edit clip 'paint it red' --mask 16,8,40,24 --feather 6 --model small --size 64x64 --steps 2 --frames 5", 5
    ),
    "masks": Run(
        "edit clip 'paint it red' --mask mask.png --model small --size 64x64 --steps 2 --start 0.1 --frames 3 "
        "--fit crop --keep-rest",
        9,
    ),
    "keep-rest": Run(
        "edit long 'in watercolour' --start 0.125 --duration 0.21 --keep-rest --model small --size 64x64 --steps 2", 13
    ),
    "fewer frames": Run("edit clip 'in watercolour' --fps 12 --model small --size 64x64 --steps 2", 9),
    "picture": Run("edit ref.png 'make it snowy' --model small --size 64x64 --steps 4 --task style", 1, "out.png"),
    "approximate": Run(
        "edit clip 'make it snowy' --model small --size 64x64 --steps 6 --frames 5 --solver unipc --cache easy "
        "--cache-threshold 0.2 --quantize fp8-storage",
        5,
    ),
    "tiny": Run("edit ref.png 'make it black and white' --model tiny --steps 4", 1, "out.png"),
}


def inputs(folder: Path) -> None:
    """Everything the runs are made from, without a codec."""
    make_sequence(folder / "clip", 9, SIZE)
    make_sequence(folder / "long", 13, SIZE)
    Image.fromarray(picture(77, *SIZE)).save(folder / "ref.png")
    Image.fromarray(np.full((32, 32, 3), 255, np.uint8)).save(folder / "white.png")
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[10:30, 20:60] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    make_model(folder / "windowed", working=WORKING)


def command(name: str) -> list[str]:
    """The arguments of `kiwi`, to be run where the inputs are."""
    run = RUNS_OF[name]
    known = {"small": str(CHECKPOINT)}
    return [
        *(known.get(word, word) for word in shlex.split(run.command)),
        "--device",
        "cpu",
        "--detail",
        "model",
        "-o",
        f"{name} {run.output}",
    ]


def frames_of(path: Path) -> np.ndarray:
    """The frames of a folder of PNG or of one picture, (F, H, W, 3) uint8."""
    files = sorted(path.glob("*.png")) if path.is_dir() else [path]
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


def output_of(name: str, folder: Path) -> np.ndarray:
    return frames_of(folder / f"{name} {RUNS_OF[name].output}")


def recorded(name: str) -> np.ndarray:
    """Every second pixel of the recorded frames."""
    with np.load(RUNS / f"{name.replace(' ', '-')}.npz") as stored:
        return stored["frames"]


def kept(frames: np.ndarray) -> np.ndarray:
    return frames[:, ::STRIDE, ::STRIDE]


def digest(frames: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(frames).tobytes()).hexdigest()


def main() -> int:
    import torch

    from kiwi_cli.cli import run

    torch.set_num_threads(1)
    check = sys.argv[1:] == ["--check"]
    if not check and sys.argv[1:]:
        sys.exit(f"--check or nothing, not {sys.argv[1:]}")
    made: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs(folder)
        os.chdir(folder)
        try:
            for case in RUNS_OF:
                if run([*command(case), "-q"]) != 0:
                    return 1
                frames = output_of(case, folder)
                made[case] = {"command": RUNS_OF[case].command, "sha256": digest(frames)}
                if not check:
                    np.savez_compressed(RUNS / f"{case.replace(' ', '-')}.npz", frames=kept(frames))
        finally:
            os.chdir(ROOT)
    if check:
        before = json.loads(PROVENANCE.read_text())["runs"]
        same = {case: entry["sha256"] == before[case]["sha256"] for case, entry in made.items()}
        print("\n".join(f"{case}: {'the same bits' if equal else 'OTHER bits'}" for case, equal in same.items()))  # noqa: T201
        return 0 if all(same.values()) else 1
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    made_with = {
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "threads": 1,
    }
    PROVENANCE.write_text(json.dumps({"made_with": made_with, "runs": made}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
