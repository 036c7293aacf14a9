"""`read_frames`: the frames that the model sees, as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from kiwi_cli.errors import MediaError
from kiwi_cli.video.clip import Clip
from kiwi_cli.video.decode import walk
from kiwi_cli.video.geometry import Fit, Size, placement
from kiwi_cli.video.resize import to_working
from kiwi_cli.video.timeline import Number, Span, select


class SourceFrame(NamedTuple):
    """A frame for the model: `rgb` (H, W, 3) uint8; times in seconds from the clip's first picture."""

    rgb: np.ndarray
    time: Fraction
    duration: Fraction
    source_index: int


def read_frames(
    clip: Clip,
    span: Span | None = None,
    *,
    start: Number = 0,
    count: int | None = None,
    fps: Number | None = None,
    size: Size | None = None,
    fit: Fit = "stretch",
) -> Iterator[SourceFrame]:
    """Decode the frames of a span one at a time, upright, at the working size.

    Args:
        clip: from `probe`.
        span: from `select`; give the same one to `open_writer`. Without it, `start`, `count` and `fps` make one.
        size: working size in pixels; None is the clip's own pixel grid, untouched.
        fit: how the clip is placed in `size`.

    Raises:
        MediaError: a frame cannot be decoded, or there is none in the span.
    """
    if span is None:
        span = select(clip, start=start, frames=count, fps=fps)
    place = placement(clip.size, size, fit, clip.pixel_aspect) if size else None
    found = False
    for frame, choice in walk(clip, span):
        if choice.take:
            found = True
            rgb = frame.pixels.rgb()
            yield SourceFrame(to_working(rgb, place) if place else rgb, frame.time, frame.duration, frame.number)
    if not found:
        raise MediaError(f"no frames in '{clip.path}' from {float(span.start):g} s on", "pass a smaller --start")
