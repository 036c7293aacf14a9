"""Source and result in one picture: side by side, a moving divider, and a contact sheet."""

from __future__ import annotations

import math
import os
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from kiwi_cli.errors import UsageError
from kiwi_cli.video.clip import Clip
from kiwi_cli.video.decode import frames_of, walk
from kiwi_cli.video.failures import writing
from kiwi_cli.video.geometry import Size
from kiwi_cli.video.pictures import save_picture
from kiwi_cli.video.probing import probe
from kiwi_cli.video.resize import scale
from kiwi_cli.video.timeline import Span

Compare = Literal["side", "wipe"]
COMPARES: tuple[Compare, ...] = ("side", "wipe")

_WIPE_PERIOD = 4.0  # seconds for the divider to go right, left and back
_WIPE_REACH = 0.45  # of the width, from the middle
_LABEL = 18  # pixels
_GAP = 4  # pixels


def compared_size(size: Size, how: Compare | None) -> Size:
    """The size of a comparison of two pictures of `size`."""
    if how is not None and how not in COMPARES:
        raise UsageError(f"comparison not understood: {how!r}", f"pass --compare {' or '.join(COMPARES)}")
    return Size(size.width * 2, size.height) if how == "side" else size


def compare(source: np.ndarray, result: np.ndarray, how: Compare, time: Fraction) -> np.ndarray:
    """One frame of a comparison, the source on the left.

    Args:
        source, result: (H, W, 3) uint8.
        time: seconds from the beginning; moves the divider of 'wipe'.
    """
    if how == "side":
        return np.concatenate([source, result], axis=1)
    width = source.shape[1]
    middle = 0.5 + _WIPE_REACH * math.sin(2 * math.pi * float(time) / _WIPE_PERIOD)
    at = min(max(round(middle * width), 1), width - 1)
    frame = np.concatenate([source[:, :at], result[:, at:]], axis=1)
    frame[:, at - 1 : at + 1] = 255
    return frame


def write_sheet(
    path: str | os.PathLike[str],
    clip: Clip,
    span: Span,
    result: str | os.PathLike[str],
    *,
    keep_rest: bool = False,
    columns: int = 6,
    width: int = 320,
    overwrite: bool = False,
) -> None:
    """A PNG with frames of the span above the same frames of the finished output.

    Args:
        result: the output that `open_writer` made for this clip and span (not a comparison).
        keep_rest: as it was given to `open_writer`.
        columns: pairs of frames, evenly spread over the span.
        width: of one frame, pixels.

    Raises:
        UsageError, MediaError: the sheet cannot be written, or the result not be read.
    """
    from kiwi_cli.video.planning import check_output, container_of

    check_output(path, overwrite=overwrite)
    if container_of(path) != "png":
        raise UsageError(f"a contact sheet is a PNG, not '{path}'", "end its name in .png")
    cell = Size(width, max(round(width * clip.display_size.height / clip.display_size.width), 1))
    wanted = _spread(max(span.source_frames, 1), columns)
    above, numbers, times = [], [], []
    inside = (frame for frame, choice in walk(clip, span) if choice.inside)
    for position, frame in enumerate(inside):
        if position in wanted:
            above.append(scale(frame.pixels.rgb(), cell))
            times.append(frame.time)
            numbers.append(frame.number if keep_rest else position)
    below = [scale(frame.pixels.rgb(), cell) for frame in frames_of(probe(result)) if frame.number in set(numbers)]
    sheet = Image.new("RGB", ((cell.width + _GAP) * len(above) - _GAP, 2 * cell.height + _GAP + _LABEL), "white")
    draw = ImageDraw.Draw(sheet)
    for column, time in enumerate(times):
        left = column * (cell.width + _GAP)
        draw.text((left + 2, 3), f"{float(time):.2f} s", fill="black")
        sheet.paste(Image.fromarray(above[column]), (left, _LABEL))
        if column < len(below):
            sheet.paste(Image.fromarray(below[column]), (left, _LABEL + cell.height + _GAP))
    target = Path(path)
    temporary = target.with_name(f".{target.stem[:40]}.kiwi-partial.png")
    with writing(target):
        try:
            save_picture(temporary, np.asarray(sheet), file_format="PNG")
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def _spread(count: int, columns: int) -> set[int]:
    """Up to `columns` positions spread evenly over `count`, the ends among them."""
    columns = min(max(columns, 1), count)
    return {round(i * (count - 1) / max(columns - 1, 1)) for i in range(columns)}
