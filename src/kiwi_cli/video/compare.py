"""Source and result in one picture: side by side, a moving divider, and a contact sheet."""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kiwi_cli.errors import UsageError
from kiwi_cli.video.clip import Clip
from kiwi_cli.video.decode import frames_of, walk
from kiwi_cli.video.geometry import Size
from kiwi_cli.video.probing import probe
from kiwi_cli.video.resize import scale
from kiwi_cli.video.timeline import Span

Compare = Literal["side", "wipe"]
COMPARES: tuple[Compare, ...] = ("side", "wipe")

SOURCE, RESULT = "source", "edit"


def compared_size(size: Size, how: Compare | None) -> Size:
    """The size of a comparison of two pictures of `size`."""
    if how is not None and how not in COMPARES:
        raise UsageError(f"comparison not understood: {how!r}", f"pass --compare {' or '.join(COMPARES)}")
    return Size(size.width * 2, size.height) if how == "side" else size


def compare(source: np.ndarray, result: np.ndarray, how: Compare, done: Fraction) -> np.ndarray:
    """One frame of a comparison, labelled: the source on the left of the result.

    Args:
        source, result: (H, W, 3) uint8 or uint16, of one kind.
        done: how much of the clip is over, 0 at the first frame and 1 at the last. 'wipe' shows the result from the
            right: nothing of it at 0, all of it at 1.
    """
    width = source.shape[1]
    if how == "side":
        frame = np.concatenate([source, result], axis=1)
        _label(frame, 0, SOURCE)
        _label(frame, width, RESULT)
        return frame
    at = round((1 - min(max(float(done), 0.0), 1.0)) * width)
    frame = np.concatenate([source[:, :at], result[:, at:]], axis=1)
    if 0 < at < width:
        frame[:, max(at - 1, 0) : at + 1] = np.iinfo(frame.dtype).max
    if at > width // 4:
        _label(frame, 0, SOURCE)
    if at < 3 * width // 4:
        _label(frame, width - _label_picture(RESULT, frame.shape).shape[1], RESULT)
    return frame


def _label(frame: np.ndarray, left: int, text: str) -> None:
    """Write a word at the top of a frame, in place; not where it would cover half of it."""
    label = _label_picture(text, frame.shape)
    height, width = label.shape
    room = frame[:height, left : left + width]
    if room.shape[:2] != label.shape or 4 * height > frame.shape[0]:
        return
    top = np.iinfo(frame.dtype).max
    room[...] = np.where(label[..., None] > 127, top, room // 4)  # white on a darkened ground


@cache
def _label_picture(text: str, shape: tuple[int, ...]) -> np.ndarray:
    """(h, w) uint8: a word in white on black, of a size that suits frames of a shape."""
    size = max(shape[0] // 24, 10)
    font = ImageFont.load_default(size)
    _, _, right, bottom = font.getbbox(text)
    image = Image.new("L", (round(right) + size, round(bottom) + size // 2))
    ImageDraw.Draw(image).text((size // 2, size // 8), text, fill=255, font=font)
    return np.asarray(image)


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
    from kiwi_cli.video import sheets

    sheets.check(path, overwrite=overwrite)
    cell = Size(width, max(round(width * clip.display_size.height / clip.display_size.width), 1))
    wanted = _spread(max(span.source_frames, 1), columns)
    above: list[sheets.Tile] = []
    numbers = []
    inside = (frame for frame, choice in walk(replace(clip, keeps_alpha=False), span) if choice.inside)
    for position, frame in enumerate(inside):
        if position in wanted:
            words = "" if above else f"   {SOURCE} above, {RESULT} below"
            above.append(sheets.Tile(scale(frame.pixels.rgb(), cell), f"{float(frame.time):.2f} s{words}"))
            numbers.append(frame.number if keep_rest else position)
    frames = (frame for frame in frames_of(probe(result)) if frame.number in set(numbers))
    below = [sheets.Tile(scale(frame.pixels.rgb(), cell)) for frame in frames]
    sheets.save(sheets.draw([above, below], cell), path, overwrite=overwrite)


def _spread(count: int, columns: int) -> set[int]:
    """Up to `columns` positions spread evenly over `count`, the ends among them."""
    columns = min(max(columns, 1), count)
    return {round(i * (count - 1) / max(columns - 1, 1)) for i in range(columns)}
