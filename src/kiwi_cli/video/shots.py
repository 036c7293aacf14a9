"""Where a clip's shots begin: scene scores, and a look at the pictures before and after.

The score is that of libavfilter's `scdet`, on frames that its filters made small; it is worked out here because not
every PyAV hands out what filters say of a frame. It is high where a picture differs from the last one more than that
did from the one before it: at a cut, and at a flash and the beginning of a quick fade as well. So a cut is only taken
for one when the pictures that follow look different from the last one before it: by correlation, which a change of
brightness leaves alone. Pictures with nothing in them (black, white) are neither.

Frames are looked at when they are a few thousand pixels, and at most `LOOK_AHEAD` of them are held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import av
import numpy as np

from kiwi_cli.errors import MediaError
from kiwi_cli.video.clip import Clip
from kiwi_cli.video.decode import walk
from kiwi_cli.video.filters import Chain
from kiwi_cli.video.timeline import Span

WIDTH, HEIGHT = 96, 54
"""Pixels that a frame is looked at in, whatever its shape."""
SCORE = 8.0
"""Of 0 to 100: below it nothing is a cut. FFmpeg's own default is 10, for scores without a second look."""
ALIKE = 0.7
"""Correlation of two pictures from which on they show the same scene."""
PLAIN = 4.0
"""Standard deviation, of 255, below which a picture has nothing in it."""
LOOK_AHEAD = 5
"""Frames that have to differ from the last one before a cut. A change that lasts for less is a flash."""


@dataclass(frozen=True)
class Shots:
    """The shots of a clip's span.

    Attributes:
        lengths: frames of each, in order; at least one, and at least one frame in each.
    """

    lengths: tuple[int, ...]

    @property
    def frames(self) -> int:
        """Of all shots together: counted, not taken from the container."""
        return sum(self.lengths)


class _Seen(NamedTuple):
    """A frame, small: its number, brightness less its mean, (H, W) fp32, and whether it may be a cut's first."""

    number: int
    picture: np.ndarray
    changed: bool

    @property
    def is_plain(self) -> bool:
        return float(self.picture.std()) < PLAIN


class ShotFinder:
    """Finds cuts as frames are added.

    finder = ShotFinder()
    for frame in frames:
        finder.add(frame)
    shots = finder.finish()
    """

    def __init__(self) -> None:
        self.count = 0
        self._starts = [0]
        self._chain: tuple[tuple[int, int, str], Chain] | None = None
        self._last: np.ndarray | None = None
        self._change = 0.0  # of the last frame, of 100
        self._ahead: deque[_Seen] = deque()
        self._before: _Seen | None = None  # the last frame that was neither plain nor of a flash
        self._flash = False

    def add(self, frame: av.VideoFrame) -> None:
        """The next frame, of any size and pixel format."""
        picture = self._small(frame)
        change = 0.0 if self._last is None else float(np.abs(picture - self._last).mean()) * 100 / 256
        # Right after a frame that changed, the difference alone says it: the score is of changes of that.
        follows = bool(self._ahead) and self._ahead[-1].changed
        score = change if follows else scene_score(change, self._change)
        self._ahead.append(_Seen(self.count, picture - picture.mean(), score >= SCORE))
        self._last, self._change = picture, change
        self.count += 1
        if len(self._ahead) == LOOK_AHEAD:
            self._decide()

    def finish(self) -> Shots:
        """The shots of all frames.

        Raises:
            MediaError: there were none.
        """
        while self._ahead:
            self._decide()
        if not self.count:
            raise MediaError("no frames to find shots in", "pass a smaller --start")
        return Shots(tuple(end - start for start, end in pairwise([*self._starts, self.count])))

    def _small(self, frame: av.VideoFrame) -> np.ndarray:
        """The frame's brightness, (H, W) fp32 from 0 to 255."""
        form = (frame.width, frame.height, frame.format.name)
        if self._chain is None or self._chain[0] != form:
            self._chain = form, Chain(frame, ("scale", f"{WIDTH}:{HEIGHT}:flags=area"), ("format", "gray"))
        return self._chain[1](frame).to_ndarray().astype(np.float32)

    def _decide(self) -> None:
        """Whether the first frame that is held begins a shot; it is let go."""
        held, before = list(self._ahead), self._before
        now = self._ahead.popleft()
        if before is None or (not now.changed and not self._flash):
            self._before = before if before is not None and now.is_plain else now
            return
        other = [not seen.is_plain and _correlation(before.picture, seen.picture) < ALIKE for seen in held]
        if now.changed and all(other):
            self._starts.append(now.number)
        self._flash = other[0] and not all(other)
        if not self._flash and not now.is_plain:
            self._before = now


def find_shots(clip: Clip, span: Span, progress: Callable[[int, int], None] | None = None) -> Shots:
    """The shots among the frames of a span that the model is given, counted as they are decoded.

    Args:
        progress: called with (frames done, frames expected).

    Raises:
        MediaError: a frame cannot be decoded, or there is none in the span.
    """
    finder = ShotFinder()
    for frame, choice in walk(clip, span):
        if choice.take:
            finder.add(frame.pixels.for_filters())
            if progress is not None:
                progress(finder.count, max(span.frame_count, finder.count))
    return finder.finish()


def scene_score(change: float, before: float) -> float:
    """libavfilter's `scdet`, 0 to 100: of a frame's mean difference to the last one, and of that to the one before."""
    return min(change, abs(change - before), 100.0)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Of two pictures without their means: 1 for the same scene in any brightness, 0 for unrelated ones."""
    lengths = float(np.sqrt((one * one).sum() * (other * other).sum()))
    return float((one * other).sum()) / lengths if lengths else 0.0
