"""When the frames of a span are shown, kept by the walk that read them: a writer that takes nothing else of the
source need not decode it again, which is an eighth of the work of a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from kiwi_cli.video.clip import Clip
from kiwi_cli.video.damage import Damage
from kiwi_cli.video.timeline import Choice, Chooser, Span

if TYPE_CHECKING:
    from kiwi_cli.video.decode import Frame


class Walked:
    """The times of the span's frames that were walked last. Give the same one to `read_frames` and `open_writer`."""

    def __init__(self) -> None:
        self._of: tuple[Path, Span] | None = None
        self._times: list[Fraction] = []
        self._last = Fraction(0)  # how long the last one is shown; the others are until the next
        self._damage = Damage()

    def walk(self, clip: Clip, span: Span, damage: Damage | None = None) -> Iterator[tuple[Frame, Choice]]:
        """What `decode.walk` gives; one that comes to the end is kept. damage: counts what is damaged."""
        from kiwi_cli.video.decode import walk  # only here: plans hold this, and need no decoder

        times: list[Fraction] = []
        last, damage = Fraction(0), Damage() if damage is None else damage
        for frame, choice in walk(clip, span, damage=damage):
            times.append(frame.time)
            last = frame.duration
            yield frame, choice
        self._of = (clip.path, span)
        self._times, self._last, self._damage = times, last, replace(damage)

    def knows(self, clip: Clip, span: Span) -> bool:
        """Whether the last walk that came to its end was that of a clip's span."""
        return self._of == (clip.path, span)

    def again(self, clip: Clip, span: Span, damage: Damage) -> Iterator[tuple[Frame, Choice]]:
        """The same frames and choices, of frames without pixels, counted from 0."""
        from kiwi_cli.video.decode import Frame

        assert self.knows(clip, span)
        damage.packets, damage.frames, damage.first = self._damage.packets, self._damage.frames, self._damage.first
        chooser, times = Chooser(span), self._times
        for number, time in enumerate(times):
            duration = times[number + 1] - time if number + 1 < len(times) else self._last
            yield Frame(cast(Any, _Unread()), time, duration, number), chooser(time, duration)


class _Unread:
    """Pixels that were not decoded this time: whoever asks for them has made a mistake."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"'{name}' of a frame that was not decoded")
