"""Parts of a clip that are made anew when the whole is made: what a person asks for, and which frames that is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from kiwi_cli.errors import UsageError

if TYPE_CHECKING:
    from kiwi_cli.video import Clip, Span

NEAR = Fraction(1, 1000)
"""Seconds: times closer than this count as equal, as everywhere with clips."""


@dataclass(frozen=True)
class Part:
    """A part of a clip, in seconds from the clip's start.

    Attributes:
        seed, instruction: what it is made with; None is as the whole.
    """

    start: float
    end: float
    seed: int | None = None
    instruction: str | None = None

    def __str__(self) -> str:
        return f"{_seconds(self.start)}-{_seconds(self.end)}"

    @property
    def data(self) -> dict[str, Any]:
        """As an output records it."""
        return asdict(self)

    @classmethod
    def of(cls, data: dict[str, Any]) -> Part:
        """The part that `data` was of.

        Raises:
            TypeError, ValueError, KeyError: it is of none.
        """
        seed, words = data["seed"], data["instruction"]
        return cls(
            float(data["start"]),
            float(data["end"]),
            None if seed is None else int(seed),
            None if words is None else str(words),
        )


def times_of(clip: Clip, span: Span) -> list[tuple[Fraction, Fraction]]:
    """(time, seconds until the next) of every frame of a span that the model is given.

    Of a file that was too large to look through when it was opened, its frames are decoded for their times.
    """
    from kiwi_cli.video.decode import walk
    from kiwi_cli.video.timeline import Chooser, frame_times, with_durations

    times: list[Fraction] = []
    end = Fraction(0)

    def note(time: Fraction, length: Fraction, take: bool, inside: bool) -> None:
        nonlocal end
        if take:
            times.append(time)
        if inside:
            end = time + length

    if clip.has_timing and clip.timestamps is None:
        for frame, choice in walk(clip, span):
            note(frame.time, frame.duration, choice.take, choice.inside)
    else:
        chooser = Chooser(span)
        for time, length in frame_times(clip):
            note(time, length, *reversed(chooser(time, length)))
    return list(with_durations(times, end))


def frames_of(part: Part, clip: Clip, span: Span) -> tuple[int, int]:
    """The frames of a span, [first, last) in its own count, that are on screen during a part.

    Raises:
        UsageError: the part is not in the span.
    """
    times = times_of(clip, span)[: span.frame_count]
    begin, end = Fraction(part.start), Fraction(part.end)
    first, last = times[0][0], sum(times[-1])
    if begin < first - NEAR or end > last + max(NEAR, times[-1][1]) or begin >= last - NEAR:
        raise UsageError(
            f"the part {part} is not in what was edited: {_seconds(first)} s to {_seconds(last)} s of the clip",
            "pass a --span inside it",
        )
    shown = [n for n, (time, length) in enumerate(times) if time < end - NEAR and time + length > begin + NEAR]
    shown = shown or [max(n for n, (time, _) in enumerate(times) if time <= begin + NEAR)]
    return shown[0], shown[-1] + 1


def _seconds(time: float | Fraction) -> str:
    return f"{float(time):.3f}".rstrip("0").rstrip(".")
