"""What a small model makes of single pictures, and how neutral its black and white is: figures of docs/tiny.md.

    python benchmarks/tiny_pictures.py tiny

Held-out scenes, drawn and nearer to filmed ones. A picture is edited as one frame, and as a clip of five copies; both
are compared with the exact truth, of half of the looks each, as the model gives them. Black and white is measured on
clips: the mean distance of a pixel's channels from their mean, in levels of 255.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
import torch

from kiwi_cli.bench.tiny import looks
from kiwi_cli.bench.tiny.edits import BatchEditor, Task
from kiwi_cli.bench.tiny.quality import FIRST_SEED, SOURCE, make_case, psnr
from kiwi_cli.engine.pipeline import KiwiPipeline
from kiwi_cli.errors import KiwiError
from kiwi_cli.synth.natural import natural_scene
from kiwi_cli.synth.scenes import make_scene
from kiwi_cli.synth.wordings import SPLITS

STEPS, COPIES = 16, 5


def pictures(pipe: Any, scenes: int) -> None:
    """dB of pictures as one frame and as five, and how often the right truth is the nearest."""
    found = []
    for made in (make_scene, natural_scene):
        for number in range(scenes):
            scene, rng = made(FIRST_SEED + number, 64, 64, COPIES, held_out=True), np.random.default_rng(number)
            frame = scene.source[:1]
            truths = {name: clip[:1] for name, clip in looks.truths(scene).items() if name != SOURCE}
            for ask in looks.ASKS[number % 2 :: 2]:
                words = ask.prompt("seen", "plain", rng)
                for given in (frame, np.repeat(frame, COPIES, axis=0)):
                    result = pipe.edit(given, words, [], steps=STEPS, seed=number)[:1]
                    nearest = max(truths, key=lambda name: psnr(result, truths[name]))
                    found.append((psnr(result, truths[ask.name]), nearest == ask.name))
    db, right = (np.array(column, float).reshape(-1, 2) for column in zip(*found, strict=True))
    for place, name in enumerate(("as one frame", f"as {COPIES} frames")):
        print(
            f"{len(db)} pictures {name}: {np.median(db[:, place]):.1f} dB, {100 * right[:, place].mean():.0f} % right"
        )


def neutrality(pipe: Any, scenes: int) -> None:
    """Mean chroma of black and white."""
    editor, cases = BatchEditor(pipe, STEPS), [make_case(number) for number in range(scenes)]
    for split in SPLITS:
        tasks = [Task(case.number, case.prompt("black-and-white", split), None, case.number) for case in cases]
        results = [clip.astype(np.float32) for clip in editor([case.scene.source for case in cases], tasks)]
        levels = [float(np.abs(clip - clip.mean(-1, keepdims=True)).mean()) for clip in results]
        worst = max(levels)
        print(
            f"black and white, {split}: {np.mean(levels):.1f} levels, median {np.median(levels):.1f}, most {worst:.1f}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint's folder, or a model's name")
    parser.add_argument("--scenes", type=int, default=4, help="of each sort, for pictures")
    parser.add_argument("--cases", type=int, default=60, help="scenes for black and white")
    args = parser.parse_args()
    torch.set_num_threads(1)  # operations this small wait for each other
    try:
        pipe = KiwiPipeline.from_pretrained(args.model, device="cpu", dtype="float32")
    except KiwiError as error:
        print(f"error: {error.message}\n\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    pictures(pipe, args.scenes)
    neutrality(pipe, args.cases)
    return 0


if __name__ == "__main__":
    sys.exit(main())
