"""A picture of everything that a model offers: one frame of a clip, edited by the command itself, side by side.

    python scripts/looks_picture.py examples/bunny.mp4 --model tiny --at 60 --out docs/tiny/looks.jpg

Pictures of a reference are left out, and kinds whose every sentence names a thing or a place of the clip ("remove the
{object}"). Stops with the command's own words where an edit fails.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from kiwi_cli.cli import run
from kiwi_cli.cli.console import Console
from kiwi_cli.errors import KiwiError, UsageError
from kiwi_cli.video.opening import check_input, open_media, picture_stream
from kiwi_cli.weights.hub import locate
from kiwi_cli.weights.settings import ModelSettings, read_settings

TILE, GAP, LINE = (320, 180), 4, 20
INK, PAPER = "#30343a", "white"


def frame_of(path: Path, number: int) -> Image.Image:
    """A frame of a clip.

    Raises:
        UsageError, MediaError: a clip that is not there or cannot be read, or has no such frame.
    """
    check_input(path)
    with open_media(path) as container:
        for at, frame in enumerate(container.decode(picture_stream(container, path))):
            if at == number:
                return frame.to_image()
    raise UsageError(f"'{path}' has no frame {number}", "pass another --at")


def sentences(settings: ModelSettings) -> list[str]:
    """One for each kind that a model offers, as far as it can be said of any clip."""
    kinds = [kind for kind in settings.offers if not kind.startswith("reference-")]
    whole = ([text for text in settings.understands.get(kind, ()) if "{" not in text] for kind in kinds)
    return [texts[0] for texts in whole if texts]


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


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--at", type=int, default=60, help="number of the frame (60)")
    parser.add_argument("--columns", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(given)
    try:
        wanted = sentences(read_settings(locate(args.model)))
        if not wanted:
            raise UsageError(f"'{args.model}' does not say what it was trained with", "pass --model tiny")
        frame = frame_of(args.clip, args.at)
    except KiwiError as error:
        Console().error(error.message, error.hint)
        return error.exit_code
    tiles = [("source", frame)]
    with tempfile.TemporaryDirectory() as folder:
        for sentence in wanted:
            tiles.append((f'"{sentence}"', edited(frame, sentence, args.model, Path(folder))))
    page(tiles, args.columns).save(args.out, quality=88)
    return 0


if __name__ == "__main__":
    sys.exit(main())
