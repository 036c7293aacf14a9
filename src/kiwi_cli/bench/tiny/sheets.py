"""Contact sheets of edits of synthetic clips: for each kind, scenes side by side, source, result and truth below each
other, with the instruction that was followed, or was not."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ZOOM = 2
MOST_BYTES = 150_000  # of a sheet: these are kept in the repository
INK, PAPER, RULE = "#30343a", "white", "#c9d9be"
_LEFT, _GAP, _TITLE, _LINE, _LINES = 74, 4, 24, 11, 4
_QUALITIES = (92, 88, 84, 80, 75, 70, 65, 60, 50)


@dataclass(frozen=True)
class Column:
    """One edit. `pictures`: (h, w, 3) uint8 by name, from top to bottom; the same names all along a kind."""

    instruction: str
    pictures: Mapping[str, np.ndarray]


def sheet(kinds: Mapping[str, Sequence[Column]], title: str) -> Image.Image:
    """Kinds below each other, each with its columns; pictures enlarged `ZOOM` times without smoothing."""
    columns = [column for group in kinds.values() for column in group]
    height, width = next(iter(columns[0].pictures.values())).shape[:2]
    cell = (width * ZOOM, height * ZOOM)
    words = _LINE * _LINES + 6
    across = _LEFT + max(len(group) for group in kinds.values()) * (cell[0] + _GAP) + _GAP
    down = _TITLE + sum(
        _TITLE + words + len(group[0].pictures) * (cell[1] + _GAP) + _GAP for group in kinds.values() if group
    )
    page = Image.new("RGB", (across, down), PAPER)
    draw = ImageDraw.Draw(page)
    large, font, small = (ImageFont.load_default(size) for size in (15, 12, 10))
    draw.text((_GAP, 4), title, fill=INK, font=large)
    y = _TITLE
    for kind, group in kinds.items():
        if not group:
            continue
        draw.line([(0, y), (across, y)], fill=RULE)
        draw.text((_GAP, y + 4), kind, fill=INK, font=large)
        y += _TITLE
        for number, column in enumerate(group):
            x = _LEFT + number * (cell[0] + _GAP)
            lines = textwrap.wrap(column.instruction, max(cell[0] // 5, 8))[:_LINES]
            draw.multiline_text((x, y), "\n".join(lines), fill=INK, font=small, spacing=1)
            for place, (name, picture) in enumerate(column.pictures.items()):
                top = y + words + place * (cell[1] + _GAP)
                shown = Image.fromarray(picture).resize(cell, Image.Resampling.NEAREST)
                page.paste(shown, (x, top))
                if number == 0:
                    draw.text((_GAP, top + cell[1] // 2 - 8), name, fill=INK, font=font)
        y += words + len(group[0].pictures) * (cell[1] + _GAP) + _GAP
    return page


def save(page: Image.Image, path: Path, most: int = MOST_BYTES) -> Path:
    """Write a page in at most `most` bytes, or as near as it goes: a PNG of 256 colours, else a JPEG.

    Args:
        path: without a suffix; the one that is written is added. The other is removed, should it be there.
    """
    buffer = io.BytesIO()
    page.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    suffix = ".png"
    if buffer.tell() > most:
        suffix = ".jpg"
        for quality in _QUALITIES:
            buffer = io.BytesIO()
            page.save(buffer, "JPEG", quality=quality, optimize=True)
            if buffer.tell() <= most:
                break
    written = path.with_name(path.name + suffix)
    written.write_bytes(buffer.getvalue())
    path.with_name(path.name + (".jpg" if suffix == ".png" else ".png")).unlink(missing_ok=True)
    return written
