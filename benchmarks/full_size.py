"""A long clip at the released 5B's full size, 1280x704: what the dry run says of host and disk, and what is taken.

    python benchmarks/full_size.py                  # 300 and 14,400 frames: half an hour, 9 GB of disk
    python benchmarks/full_size.py --frames 300 --save-every 0.01

The edit is the real one, from a file to a file, with the plan that the dry run shows: shots, windows, contexts, tables,
states, writing. The model alone does nothing: its parts hand on zeros of the shapes that the 5B's have. Each clip runs
in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import marked_clip
import numpy as np
import torch
import watched_run

from kiwi_cli.base.hardware import peak_resident
from kiwi_cli.cli.dry_run import data
from kiwi_cli.editing.prepare import prepare
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.editing.session import Session
from kiwi_cli.editing.work_folders import work_folder
from kiwi_cli.editors.kiwi import KiwiEditor
from kiwi_cli.engine import long
from kiwi_cli.engine.long import LongEdit
from kiwi_cli.engine.long_decode import LongDecode
from kiwi_cli.engine.random_model import random_pipeline
from kiwi_cli.model.shape import RELEASED_5B
from kiwi_cli.video import Size
from kiwi_cli.weights.catalog import DEFAULT_EDIT

SIZE, FPS = Size(1280, 704), 24
OURS = Path(__file__).resolve()
COLUMNS = ("planned", "disk", "before", "steps", "written")
"""What the dry run says; the most in the working folder; the most resident before the edit, until all steps were made,
and until the result was written."""


class NoEncoder:
    """Frames -> a latent frame of zeros."""

    def __init__(self, *coder: Any) -> None:
        pass

    def __call__(self, chunk: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1, 48, 1, chunk.shape[-2] // 16, chunk.shape[-1] // 16)


def black(decoding: LongDecode) -> Iterator[np.ndarray]:
    """Black frames, one and then four for each latent frame, which is read."""
    frames = np.zeros((4, SIZE.height, SIZE.width, 3), np.uint8)
    made = decoding.made
    for shot in made.layout.shots:
        for number in range(shot.latents):
            made.latents[shot.start + number].sum()
            decoding.report("decode", number + 1, made.layout.latents)
            yield frames[: min(4, shot.frames - 4 * number + 3) if number else 1]


def nothing_done() -> Any:
    """The released 5B on `meta`, whose parts do nothing."""
    pipe = random_pipeline("5b", torch.device("meta"), torch.float32)
    pipe.encode_inputs = lambda inputs: torch.zeros(1, RELEASED_5B.queries[1], RELEASED_5B.width)
    pipe.transformer.forward = lambda latents, *args, **kwargs: (torch.zeros(latents.shape),)
    return pipe


def edit(clip: Path, output: Path, frames: int, every: float) -> None:
    """One edit in this process; prints what the plan says and what was taken, as JSON."""
    request = EditRequest.of(
        clip,
        "make it snowy",
        model=DEFAULT_EDIT,
        output=output,
        frames=frames,
        steps=2,
        detail="model",
        save_every=every,
        overwrite=True,
    )
    plan = prepare(request, fetch=False)
    assert plan.windows is not None and plan.windows.layout is not None
    mock.patch.object(long, "Encoder", NoEncoder).start()
    mock.patch.object(LongDecode, "frames", black).start()
    said, editor = data(plan), KiwiEditor(nothing_done(), plan.request.choice)
    found = {"frames": frames, "windows": plan.windows.count, "planned": said["latents_bytes"]}
    made = LongEdit.made.fget

    def denoised(edit: LongEdit) -> Any:
        found["steps"] = peak_resident()
        return made(edit)

    mock.patch.object(LongEdit, "made", property(denoised)).start()
    found["before"] = peak_resident()
    result = Session(editor).run(plan)
    found["written"] = result.memory["resident"]
    print("found " + json.dumps(found))


def measure(folder: Path, clip: Path, frames: int, every: float) -> dict[str, Any]:
    """An edit in a process of its own, with what its working folder took."""
    output, log = folder / f"{frames}.mkv", folder / f"{frames}.log"
    command = [sys.executable, str(OURS), "--edit", str(clip), str(output), str(frames), str(every)]
    watched = watched_run.run(command, work_folder(output), log, every=0, pause=0.05)
    found = next(json.loads(line[6:]) for line in log.read_text().splitlines() if line.startswith("found "))
    return {**found, "disk": watched.disk, "seconds": watched.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[300, 14400])
    parser.add_argument("--save-every", type=float, default=1.0, help="seconds between two saved states")
    parser.add_argument("--folder", type=Path, help="where clips, results and working folders lie")
    parser.add_argument("--edit", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.edit:
        clip, output, frames, every = options.edit
        edit(Path(clip), Path(output), int(frames), float(every))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        clip = folder / "clip.mp4"
        if not clip.exists():
            seconds = -(-max(options.frames) // FPS)
            subprocess.run(
                [
                    sys.executable,
                    marked_clip.__file__,
                    str(clip),
                    f"--seconds={seconds}",
                    f"--fps={FPS}",
                    f"--size={SIZE}",
                ],
                check=True,
            )
        print(f"{'frames':>7}{'windows':>9}" + "".join(f"{name:>10}" for name in COLUMNS) + f"{'time':>8}")
        for frames in options.frames:
            found = measure(folder, clip, frames, options.save_every)
            sizes = "".join(f"{found[name] / 1e6:>7.0f} MB" for name in COLUMNS)
            print(f"{frames:>7}{found['windows']:>9}{sizes}{found['seconds']:>6.0f} s", flush=True)


if __name__ == "__main__":
    main()
