"""A part of a clip that is made anew, as latent frames and windows of its layout: numbers alone, no torch.

Latent frames are made anew whole, so a part is rounded out to them: it begins with the first frame of the latent frame
that its first frame is in, and ends with the last frame of that which its last frame is in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from kiwi_cli.engine.layout import STRIDE, Layout, Segment, ShotRows

if TYPE_CHECKING:
    import numpy as np

FADE = 8
"""Frames in which a part comes in and goes, where neighbours of the same shot are; a quarter of a part below 16.
The fewer, the more is seen of it (docs/long-clips.md)."""


@dataclass(frozen=True)
class PartRows:
    """What is made anew.

    Attributes:
        first, last: frames of the clip, without `last`.
        rows: of the table, anchors that windows of the part begin with included where their frame is in it.
        windows: by number, those that have a say in such a row.
        fades: frames at its beginning and at its end in which it comes in and goes; 0 where a shot begins or ends.
    """

    first: int
    last: int
    rows: tuple[int, ...]
    windows: tuple[int, ...]
    fades: tuple[int, int] = (0, 0)

    def weight(self, frame: int) -> float:
        """How much of a frame of the clip is the part's: 1, less where it comes in or goes, 0 outside."""
        into, out = self.fades
        begin, end = (frame - self.first + 1) / (into + 1), (self.last - frame) / (out + 1)
        return max(0.0, min(1.0, begin, end))

    def mixed(self, frame: int, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """A frame of the part, with what was there before where it comes in or goes; integers of any depth."""
        weight = self.weight(frame)
        if not 0 < weight < 1:  # a frame that is not the clip's has none
            return after
        mixed: np.ndarray = before + weight * (after.astype("float32") - before)
        return mixed.round().astype(after.dtype)

    def within(self, segment: Segment) -> range:
        """The places in a segment's rows that are made anew; empty where there are none."""
        own = set(self.rows)
        places = [place for place, row in enumerate(segment.rows) if row in own]
        return range(places[0], places[-1] + 1) if places else range(0)

    def own_layout(self, layout: Layout) -> tuple[Layout, tuple[int, ...]]:
        """The part's windows over a table of the rows alone that they see, and those rows of the clip's table."""
        windows = [layout.windows[number] for number in self.windows]
        seen = tuple(sorted({row for window in windows for row in window.rows}))
        place = {row: number for number, row in enumerate(seen)}
        own = tuple(replace(window, rows=tuple(place[row] for row in window.rows)) for window in windows)
        return replace(layout, windows=own), seen


def part_rows(layout: Layout, first: int, last: int) -> PartRows:
    """The frames [first, last) of a clip, rounded out to whole latent frames; at least one of them is in the clip."""
    rows: list[int] = []
    frames: list[int] = []
    start = 0
    for number, shot in enumerate(layout.shots):
        begin, end = max(0, first - start), min(shot.frames, last - start)
        if begin < end:
            stop = shot.latents if end == shot.frames else latent_of(end - 1) + 1  # with those of a repeated last frame
            latents = range(latent_of(begin), stop)
            rows += [shot.start + latent for latent in latents]
            rows += _anchors(layout, number, shot, latents)
            frames += [start + frame_of(latents.start), start + min(shot.frames, frame_of(latents.stop))]
        start += shot.frames
    own = set(rows)
    windows = tuple(
        number
        for number, window in enumerate(layout.windows)
        if any(weight and row in own for row, weight in zip(window.rows, window.weights, strict=True))
    )
    starts = {0, *accumulate(shot.frames for shot in layout.shots)}
    ends = [0 if frame in starts else FADE for frame in (frames[0], frames[-1])]
    lengths = (frames[1] - frames[0], frames[-1] - frames[-2])  # of the part in its first and its last shot
    into, out = (
        fade if length >= 2 * FADE else min(fade, length // 4) for fade, length in zip(ends, lengths, strict=True)
    )
    return PartRows(frames[0], frames[-1], tuple(sorted(rows)), windows, (into, out))


def latent_of(frame: int) -> int:
    """The latent frame of a shot that covers one of its frames."""
    return -(-frame // STRIDE)


def frame_of(latent: int) -> int:
    """The first frame of a shot that a latent frame covers."""
    return max(0, STRIDE * (latent - 1) + 1)


def _anchors(layout: Layout, number: int, shot: ShotRows, latents: range) -> list[int]:
    """Rows of anchors whose frame is made anew, and the first latent frame of their window as well.

    An anchor before the part stays what it is, and one at its end too: that belongs to the window after it.
    """
    rows = []
    for place, frame in enumerate(shot.anchors):
        before = latent_of(frame)  # the window begins with the latent frame after it
        if before in latents and before + 1 in latents:
            rows.append(shot.start + shot.latents + place)
    return rows
