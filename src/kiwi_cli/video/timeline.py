"""Which frames of a clip are edited: `Span`, and the one rule that the reader and the writer both follow.

All times are seconds (Fraction) from the clip's first picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from kiwi_cli.errors import UsageError
from kiwi_cli.video.clip import Clip

# Times closer than this count as equal: Matroska rounds to milliseconds, and people type three decimals.
TOLERANCE = Fraction(1, 1000)  # seconds

Number = int | float | Fraction


@dataclass(frozen=True)
class Span:
    """The edited part of a clip.

    Attributes:
        start: the first edited frame is the one on screen at this time.
        end: frames that begin before this time are edited; None is the clip's end.
        max_frames: frames given to the model at most.
        fps: frames a second given to the model; None takes every frame.
        frame_count: frames that will be given to the model; exact when `exact`, else an estimate.
        source_frames: frames of the clip that the span covers (more than `frame_count` when `fps` samples).
        duration: seconds of the clip that the span covers.
        whole: the span is the whole clip.
    """

    start: Fraction = Fraction(0)
    end: Fraction | None = None
    max_frames: int | None = None
    fps: Fraction | None = None
    frame_count: int = 0
    source_frames: int = 0
    duration: Fraction = Fraction(0)
    exact: bool = True
    whole: bool = True
    notices: tuple[str, ...] = ()


class Choice(NamedTuple):
    """What happens to one frame of the clip. `take`: the model sees it. `inside`: it shows an edited frame."""

    inside: bool
    take: bool


class Chooser:
    """Decides frame by frame, in order, so that a clip of any length streams."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._taken = 0
        self._next: Fraction | None = None  # the next sampling time, once inside
        self.finished = False  # no later frame is inside

    def __call__(self, time: Fraction, duration: Fraction) -> Choice:
        span = self._span
        if self.finished or time + duration <= span.start + min(TOLERANCE, duration / 2):
            return Choice(False, False)
        if span.end is not None and time >= span.end - TOLERANCE and self._taken:
            self.finished = True
            return Choice(False, False)
        due = self._next is None or self._next < time + duration - min(TOLERANCE, duration / 2)
        if span.fps is None:
            due = True
        if not due:
            return Choice(True, False)
        if span.max_frames is not None and self._taken >= span.max_frames:
            self.finished = True
            return Choice(False, False)
        self._taken += 1
        if span.fps is not None:
            step = 1 / span.fps
            self._next = time if self._next is None else self._next
            behind = time + duration - min(TOLERANCE, duration / 2) - self._next
            self._next += step * max(1, math.ceil(behind / step))
        return Choice(True, True)


def check_numbers(start: Number, duration: Number | None, frames: int | None, fps: Number | None) -> None:
    """Refuse numbers that are no time, length, count or rate of any clip.

    Raises:
        UsageError: the first such number.
    """
    if not math.isfinite(start) or start < 0:
        raise UsageError(f"start is not a time in the clip: {_show(start)}", "pass --start 0 or more seconds")
    if duration is not None and not (math.isfinite(duration) and duration > 0):
        raise UsageError(f"duration is not positive: {_show(duration)}", "pass --duration in seconds, more than 0")
    if frames is not None and frames < 1:
        raise UsageError(f"number of frames is not positive: {frames}", "pass --frames 1 or more")
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise UsageError(f"frame rate is not positive: {_show(fps)}", "pass --fps more than 0")


def select(
    clip: Clip,
    *,
    start: Number = 0,
    duration: Number | None = None,
    frames: int | None = None,
    fps: Number | None = None,
) -> Span:
    """Check what the person asked for against the clip, and count it.

    Args:
        start, duration: seconds.
        frames: frames given to the model at most.
        fps: frames a second given to the model; at or above the clip's own rate every frame is taken.

    Raises:
        UsageError: a negative or zero number, or a start past the clip's end.
    """
    check_numbers(start, duration, frames, fps)
    begin = Fraction(start).limit_denominator(1_000_000)
    if begin and begin >= clip.duration - min(TOLERANCE, clip.duration / 2):
        raise UsageError(
            f"start is past the end: {_show(start)} s of '{clip.path}', which lasts {_show(clip.duration)} s",
            f"pass --start below {_show(clip.duration)}",
        )
    rate = Fraction(fps).limit_denominator(100_000) if fps is not None else None
    notices = []
    if rate is not None and (rate >= clip.fps or clip.frame_count == 1):
        if rate > clip.fps:
            notices.append(f"every frame is used: the clip has {_show(clip.fps)} frames a second, --fps {_show(rate)}")
        rate = None
    end = begin + Fraction(duration).limit_denominator(1_000_000) if duration is not None else None
    if end is not None and end >= clip.duration:
        end = None
    bare = Span(begin, end, frames, rate)
    taken = inside = 0
    first = last = Fraction(0)
    chooser = Chooser(bare)
    for time, length in frame_times(clip):
        choice = chooser(time, length)
        if choice.inside:
            first = time if not inside else first
            last = time + length
            inside += 1
            taken += choice.take
    exact = clip.frame_count_exact and (clip.timestamps is not None or not clip.has_timing)
    whole = inside == clip.frame_count
    if not whole:
        notices.append(
            f"{inside} of the clip's {clip.frame_count} frames are edited "
            f"({_show(first)} s to {_show(last)} s of {_show(clip.duration)} s)"
        )
    if taken < inside:
        notices.append(f"{taken} of {inside} frames are sampled for the model, each shown until the next")
    return Span(begin, end, frames, rate, taken, inside, last - first, exact, whole, tuple(notices))


def frame_times(clip: Clip) -> Iterator[tuple[Fraction, Fraction]]:
    """(time, duration) of every frame, seconds; on an even grid when the clip's timestamps are not known."""
    if clip.timestamps is None:
        for index in range(clip.frame_count):
            yield index / clip.fps, 1 / clip.fps
        return
    yield from with_durations((clip.true_time(t * clip.time_base) for t in clip.timestamps), clip.duration)


def with_durations(times: Iterable[Fraction], end: Fraction) -> Iterator[tuple[Fraction, Fraction]]:
    """Pair each time with the time until the next; the last lasts until `end`."""
    previous: Fraction | None = None
    for time in times:
        if previous is not None:
            yield previous, time - previous
        previous = time
    if previous is not None:
        yield previous, max(end - previous, Fraction(0))


def _show(number: Number) -> str:
    return f"{float(number):.3f}".rstrip("0").rstrip(".")
