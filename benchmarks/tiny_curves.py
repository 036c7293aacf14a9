"""Draws the curves of docs/tiny.md from the files that scripts/train_tiny.py wrote.

python benchmarks/tiny_curves.py            # runs/tiny to docs/tiny
python benchmarks/tiny_curves.py --minutes results/colourist/metrics.jsonl    # of runs in minutes, in their order
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from kiwi_cli.train import curves

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("alignment", "instruction", "reference", "polish", "longer")


def draw_vae(lines: list[dict[str, float]]) -> Image.Image:
    """Loss and held-out figures of the autoencoder over its steps."""
    held_out = {"clips": curves.series(lines, "held_out_db"), "first frames": curves.series(lines, "first")}
    panels = [
        ("training loss, with noise on the latents", curves.series(lines, "loss")),
        (
            "held-out clips, 5 frames of 64x64, dB",
            {name: found[""] for name, found in held_out.items() if found},
        ),
    ]
    page = Image.new("RGB", (curves.WIDTH, curves.PANEL * len(panels)), "white")
    draw, last = ImageDraw.Draw(page), max(line["step"] for line in lines)
    for number, (title, found) in enumerate(panels):
        curves._panel(draw, number * curves.PANEL, title, found, last)
    return page


MEAN_OF = 10  # lines at most, of a run in minutes, where batches of many forms take turns
WARM_UP = 100  # steps that are left out of a longer run: the rate still rises
LEAST = 20  # points of a run, if it has as many lines: on a GPU a line is of hundreds of steps


def draw_minutes(paths: list[Path]) -> Image.Image:
    """The loss of runs in minutes that went on from each other, each in a colour of its own.

    Raises:
        SystemExit: a file that cannot be read, or has no loss of the model.
    """
    found: dict[str, curves.Points] = {}
    for number, path in enumerate(paths, 1):
        try:
            read = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
        except (OSError, ValueError) as error:
            sys.exit(f"error: cannot read '{path}': {error}\n\nhint: --minutes takes a run's metrics.jsonl")
        lines = [line for line in read if line.get("stage") == "model" and math.isfinite(line.get("loss", math.nan))]
        points = curves.series(lines, "loss").get("", [])
        points = [point for point in points if point[0] > WARM_UP] or points
        if not points:
            sys.exit(f"error: '{path}' has no loss of the model\n\nhint: it had not come to the model; leave it out")
        of = max(1, min(MEAN_OF, len(points) // LEAST))
        groups = [points[first : first + of] for first in range(0, len(points), of)]
        found[f"run {number}"] = [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]
    page = Image.new("RGB", (curves.WIDTH, curves.PANEL), "white")
    last = int(max(step for points in found.values() for step, _ in points))
    curves._panel(ImageDraw.Draw(page), 0, "training loss, means of up to ten lines", found, last)
    return page


def save(page: Image.Image, path: Path) -> None:
    page.quantize(64).save(path, optimize=True)
    print(f"{path} ({path.stat().st_size // 1000} kB)")


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "runs/tiny", help="what train_tiny.py wrote")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/tiny")
    parser.add_argument("--minutes", type=Path, nargs="+", help="metrics of runs in minutes, for one curve")
    args = parser.parse_args(given)
    if args.minutes:
        page = draw_minutes(args.minutes)
        args.out.mkdir(parents=True, exist_ok=True)
        save(page, args.out / "colourist-curve.png")
        return
    if not args.work.is_dir():
        sys.exit(f"error: '{args.work}' is not there\n\nhint: run scripts/train_tiny.py first")
    args.out.mkdir(parents=True, exist_ok=True)
    vae = args.work / "vae/curve.jsonl"
    if vae.is_file():
        lines = [json.loads(line) for line in vae.read_text(encoding="utf-8").splitlines()]
        save(draw_vae(lines), args.out / "vae-curve.png")
    else:
        print("vae: no curve yet", file=sys.stderr)
    for stage in STAGES:
        drawn = args.work / stage / curves.CURVES  # the stage draws it
        if not drawn.is_file():
            print(f"{stage}: no curves yet", file=sys.stderr)
        else:
            save(Image.open(drawn).convert("RGB"), args.out / f"{stage}-curves.png")


if __name__ == "__main__":
    main()
