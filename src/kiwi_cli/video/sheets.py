"""Sheets: rows of small pictures with words above them."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kiwi_cli.base.whole import whole_file
from kiwi_cli.errors import UsageError
from kiwi_cli.video.failures import writing
from kiwi_cli.video.geometry import Size
from kiwi_cli.video.pictures import save_picture
from kiwi_cli.video.planning import check_output, container_of

CAPTION = 18  # pixels
GAP = 4  # pixels
PAPER, INK = "white", "black"
_WORDS = 13  # pixels of a letter's height, in the lines above and below
_LINE = 18  # pixels
_LETTER = 6.6  # pixels of a letter's width, about
_NARROWEST = 640  # pixels, where there are lines to read


@dataclass(frozen=True)
class Tile:
    """A picture of a sheet. `pixels`: (h, w, 3) uint8, at most as large as the sheet's cell. caption: above it."""

    pixels: np.ndarray
    caption: str = ""


def cell_within(size: Size, box: Size) -> Size:
    """The largest size of the shape of `size` in a box, at least a pixel."""
    scale = min(box.width / size.width, box.height / size.height)
    return Size(max(round(size.width * scale), 1), max(round(size.height * scale), 1))


def draw(rows: Sequence[Sequence[Tile]], cell: Size, head: Sequence[str] = (), foot: Sequence[str] = ()) -> Image.Image:
    """The sheet: tiles side by side in each row. A row without captions has no room for them.

    Args:
        cell: size of a tile. head, foot: lines above and below, broken where they are too long.
    """
    width = (cell.width + GAP) * max(map(len, rows)) - GAP
    width = max(width, _NARROWEST) if head or foot else width
    above, below = (_broken(lines, width) for lines in (head, foot))
    captions = [CAPTION if any(tile.caption for tile in row) else 0 for row in rows]
    height = sum(captions) + len(rows) * (cell.height + GAP) - GAP
    page = Image.new("RGB", (width, height + _room(above) + _room(below)), PAPER)
    ink = ImageDraw.Draw(page)
    _write(ink, above, 0)
    top = _room(above)
    for row, caption in zip(rows, captions, strict=True):
        for column, tile in enumerate(row):
            left = column * (cell.width + GAP)
            if tile.caption:
                ink.text((left + 2, top + 3), tile.caption, fill=INK)
            page.paste(Image.fromarray(tile.pixels), (left, top + caption))
        top += caption + cell.height + GAP
    _write(ink, below, top - GAP)
    return page


def _broken(lines: Sequence[str], width: int) -> list[str]:
    most = int(width / _LETTER)
    return [part for line in lines for part in textwrap.wrap(line, most, subsequent_indent="    ") or [""]]


def _room(lines: Sequence[str]) -> int:
    return _LINE * len(lines) + 2 * GAP if lines else 0


def _write(ink: ImageDraw.ImageDraw, lines: Sequence[str], top: int) -> None:
    font = ImageFont.load_default(_WORDS)
    for number, line in enumerate(lines):
        ink.text((2, top + GAP + number * _LINE), line, fill=INK, font=font)


def check(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse a path that no sheet can be written to.

    Raises:
        UsageError, MediaError: which, and why.
    """
    check_output(path, overwrite=overwrite)
    if container_of(path) != "png":
        raise UsageError(f"a contact sheet is a PNG, not '{path}'", "end its name in .png")


def save(page: Image.Image, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a sheet as a PNG, whole or not at all."""
    target = Path(path)
    with writing(target), whole_file(target, replace=overwrite) as part:
        save_picture(part, np.asarray(page), file_format="PNG")
