"""Which moments of a clip a preview shows, and the few frames around each that are edited for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

from kiwi_cli.editing.plan import EditPlan
from kiwi_cli.engine.layout import STRIDE
from kiwi_cli.engine.noise import NoisePart
from kiwi_cli.video import Size, Span, find_shots, latent_frame_count, select
from kiwi_cli.video.timeline import Chooser, frame_times

EACH = 3
"""Moments of a clip, or of each shot."""
MOST = 12
"""Moments of a preview."""
FRAMES = 5
"""Edited for a moment, where the model has no length of its own: two latent frames, the second of motion."""


@dataclass(frozen=True)
class Moment:
    """A frame of the span, and the frames that are edited for it.

    Attributes:
        frame: its number in the span, of those that the model sees. time: in the clip, seconds.
        shot: its number, from 0. first: of the edited frames.
        span: the edited frames. noise: whose part theirs is.
    """

    frame: int
    time: Fraction
    shot: int
    first: int
    span: Span
    noise: NoisePart


def moments(plan: EditPlan, size: Size) -> list[Moment]:
    """The moments that a plan's preview shows, in order.

    Three of the clip; of each shot, when there are at most four of them; else one of each of up to twelve. With seeds
    three of the clip, and with seeds alone one, of the longest shot.

    Args:
        size: that they are edited at.
    """
    shots = _shots(plan)
    asked = plan.request.previewing
    if not asked.preview:
        longest = max(range(len(shots)), key=lambda number: shots[number])
        frames = [sum(shots[:longest]) + shots[longest] // 2]
    elif asked.seeds is not None or len(shots) > MOST:
        frames = spread(0, sum(shots), EACH if asked.seeds is not None else MOST)
    else:
        each = EACH if len(shots) * EACH <= MOST else 1
        starts = [0, *accumulate(shots)]
        frames = [frame for start, length in zip(starts, shots, strict=False) for frame in spread(start, length, each)]
    times = _times(plan)
    return [_moment(plan, shots, frame, times, size) for frame in frames]


def spread(start: int, length: int, count: int) -> list[int]:
    """Up to `count` frames evenly over `length` from `start` on, the first and last as far from the ends as half the
    way between two."""
    return sorted({start + (2 * number + 1) * length // (2 * count) for number in range(count)})


def _shots(plan: EditPlan) -> Sequence[int]:
    """Frames of each shot; of the whole span where shots play no part."""
    if plan.windows is not None and plan.windows.shots:
        return plan.windows.shots
    if not plan.span.exact:  # a container's guess: a moment past the end has no frames
        return (find_shots(plan.clip, plan.span).frames,)
    return (plan.span.frame_count,)


def _times(plan: EditPlan) -> list[Fraction]:
    """The time of every frame that the model sees, as far as it is known."""
    chosen = Chooser(plan.span)
    return [time for time, length in frame_times(plan.clip) if chosen(time, length).take]


def _moment(plan: EditPlan, shots: Sequence[int], frame: int, times: Sequence[Fraction], size: Size) -> Moment:
    shot = next(number for number, end in enumerate(accumulate(shots)) if frame < end)
    start, length = sum(shots[:shot]), shots[shot]
    layout = plan.windows.layout if plan.windows is not None else None
    if plan.windows is not None and layout is None:  # windows that are edits of their own
        inside = frame // plan.windows.frames * plan.windows.frames
        start, length = inside, min(plan.windows.frames, start + length - inside)
    count = min(plan.settings.frames or FRAMES, length)
    # The clip's latent frames are kept together: the first stands for one frame, each other for four.
    row = -(-(frame - start) // STRIDE)
    lead = max(0, min(row - latent_frame_count(count) // 2, (length - count) // STRIDE))
    first = start + STRIDE * lead
    alone = layout is None or sum(window.shot == shot for window in layout.windows) == 1
    latents = latent_frame_count(max(length, plan.least))
    noise = NoisePart(latents, lead, plan.size, size, None if alone else layout, shot)
    at = _time(plan, times, first)
    shown = min(frame, first + count - 1)
    span = select(plan.clip, start=at, frames=count, fps=plan.span.fps)
    return Moment(shown, _time(plan, times, shown), shot, first, span, noise)


def _time(plan: EditPlan, times: Sequence[Fraction], frame: int) -> Fraction:
    return times[frame] if frame < len(times) else plan.span.start + frame / plan.rate
