"""A picture of everything that a model offers: one frame of a clip, edited by the command itself, side by side.

    python scripts/looks_picture.py examples/bunny.mp4 --model tiny --at 60 --out docs/tiny/looks.jpg

Pictures of a reference are left out. Stops with the command's own words where an edit fails.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import av
from PIL import Image, ImageDraw, ImageFont

from kiwi_cli.cli import run
from kiwi_cli.weights.hub import locate
from kiwi_cli.weights.settings import read_settings

TILE, GAP, LINE = (320, 180), 4, 20
INK, PAPER = "#30343a", "white"


def frame_of(path: Path, number: int) -> Image.Image:
    """A frame of a clip."""
    with av.open(str(path)) as container:
        for at, frame in enumerate(container.decode(video=0)):
            if at == number:
                return frame.to_image()
    raise SystemExit(f"'{path}' has no frame {number}")


def edited(frame: Image.Image, sentence: str, model: str, folder: Path) -> Image.Image:
    """What `kiwi edit` makes of it."""
    source, result = folder / "frame.png", folder / "result.png"
    frame.save(source)
    words = ["edit", str(source), sentence, "--model", model, "--device", "cpu", "--quiet", "--overwrite"]
    if code := run([*words, "-o", str(result)]):
        raise SystemExit(code)
    return Image.open(result).convert("RGB")


def page(tiles: list[tuple[str, Image.Image]], columns: int) -> Image.Image:
    """Tiles in rows, each with its words below."""
    across, down = TILE[0] + GAP, TILE[1] + LINE + GAP
    whole = Image.new("RGB", (columns * across - GAP, math.ceil(len(tiles) / columns) * down - GAP), PAPER)
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(13)
    for number, (words, picture) in enumerate(tiles):
        x, y = number % columns * across, number // columns * down
        whole.paste(picture.resize(TILE, Image.Resampling.LANCZOS), (x, y))
        draw.text((x + 2, y + TILE[1] + 3), words, fill=INK, font=font)
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--at", type=int, default=60, help="number of the frame (60)")
    parser.add_argument("--columns", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    settings = read_settings(locate(args.model))
    frame = frame_of(args.clip, args.at)
    tiles = [("source", frame)]
    with tempfile.TemporaryDirectory() as folder:
        for kind in settings.offers:
            if not kind.startswith("reference-"):
                sentence = settings.understands[kind][0]
                tiles.append((f'"{sentence}"', edited(frame, sentence, args.model, Path(folder))))
    page(tiles, args.columns).save(args.out, quality=88)


if __name__ == "__main__":
    main()
