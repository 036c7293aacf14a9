"""`read_frames`: the frames that the model sees, as a stream."""

from __future__ import annotations

from collections.abc import Generator
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from kiwi_cli.errors import MediaError
from kiwi_cli.video.clip import Clip
from kiwi_cli.video.damage import Damage
from kiwi_cli.video.decode import walk
from kiwi_cli.video.geometry import Fit, Size, framing
from kiwi_cli.video.timeline import Number, Span, select
from kiwi_cli.video.walked import Walked


class SourceFrame(NamedTuple):
    """A frame for the model: `rgb` (H, W, 3) uint8, or uint16 as asked; times in seconds from the first picture."""

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
    deep: bool = False,
    damage: Damage | None = None,
    walked: Walked | None = None,
) -> Generator[SourceFrame, None, None]:
    """Decode the frames of a span one at a time, upright, at the working size.

    Args:
        clip: from `probe`.
        span: from `select`; give the same one to `open_writer`. Without it, `start`, `count` and `fps` make one.
        size: working size in pixels; None is the clip's own pixel grid, untouched.
        fit: how the clip is placed in `size`.
        deep: without a `size`, the frames of a clip with more than 8 bits come with 16.
        damage: counts what is damaged of them. walked: keeps the frames' times for the writer.

    Raises:
        MediaError: a frame cannot be decoded, or there is none in the span.
    """
    if span is None:
        span = select(clip, start=start, frames=count, fps=fps)
    place = framing(clip.size, size, fit, clip.pixel_aspect) if size else None
    found = False
    for frame, choice in (walked.walk if walked else walk)(clip, span, damage=damage):
        if choice.take:
            found = True
            pixels = frame.pixels
            rgb = pixels.working(place) if place else pixels.fine() if deep else pixels.rgb()
            yield SourceFrame(rgb, frame.time, frame.duration, frame.number)
    if not found:
        raise MediaError(f"no frames in '{clip.path}' from {float(span.start):g} s on", "pass a smaller --start")
