"""How a clip's latent frames are shared out among windows: numbers alone, no torch.

All rows of all shots lie in one table, shot after shot: a shot's own latent frames, then those of its private anchors.
A window lists rows in the order in which the model sees them, with the weight that its velocity has in each.

The first latent frame that a model sees stands for one frame and bears "the clip begins here"; the others cover four.
So a window that is not its shot's first may have an anchor in front, whose velocity the clip takes nothing of:

    frame    the source's frame just before the window, encoded alone, with noise of its own
    latent   the latent frame just before the window
    first    the shot's first latent frame
    none     no anchor: the window is one latent frame of the clip longer
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

Anchor = Literal["frame", "latent", "first", "none"]
ANCHORS: tuple[Anchor, ...] = get_args(Anchor)

STATES = {"euler": 1, "unipc": 4}
"""Tensors that a row holds for each solver: its latents, and what UniPC remembers (`joint.py`)."""

HOST_BYTES = 256 << 20
"""Tables that need more than this lie in files, which the system may drop from memory."""

STRIDE = 4
"""Frames that a latent frame covers, after the first."""


@dataclass(frozen=True)
class Window:
    """What the model sees at once.

    Attributes:
        rows: of the table, in order. weights: of its velocity in each; over all windows they add up to 1 for a row.
        shot: which one it belongs to.
        first, last: frames of the shot that its own latent frames cover, without `last`.
    """

    rows: tuple[int, ...]
    weights: tuple[float, ...]
    shot: int
    first: int
    last: int


@dataclass(frozen=True)
class Segment:
    """Rows that the autoencoder goes through in one go.

    Attributes:
        rows: of the table, in order. lead: whether the first is an anchor, whose frame is not the segment's.
        frames: of the clip that come out.
    """

    rows: tuple[int, ...]
    lead: bool
    frames: int

    def first_of(self, place: int) -> int:
        """The first frame of the segment that the row at a place covers; below 0 of an anchor."""
        if self.lead:
            return STRIDE * (place - 1) if place else -1
        return STRIDE * (place - 1) + 1 if place else 0


@dataclass(frozen=True)
class ShotRows:
    """A shot in the table.

    Attributes:
        start: its first row. latents: its latent frames. frames: of the clip. given: to the model, the last repeated.
        anchors: frames of the shot that are encoded alone, one for each row after the latent frames.
        segments: how the autoencoder goes through it.
    """

    start: int
    latents: int
    frames: int
    given: int
    anchors: tuple[int, ...] = ()
    segments: tuple[Segment, ...] = ()

    @property
    def end(self) -> int:
        """The row after its last."""
        return self.start + self.latents + len(self.anchors)


@dataclass(frozen=True)
class Layout:
    """The table's rows and the windows over them, both in the clip's order.

    Attributes:
        noise_period: latent frames after which a shot's noise begins again; None where each has its own.
    """

    shots: tuple[ShotRows, ...]
    windows: tuple[Window, ...]
    noise_period: int | None = None

    @property
    def rows(self) -> int:
        """Of the table."""
        return self.shots[-1].end

    @property
    def latents(self) -> int:
        """Of the clip, without anchors."""
        return sum(shot.latents for shot in self.shots)

    @property
    def evaluations(self) -> int:
        """Latent frames that the model sees in a step, over all windows."""
        return sum(len(window.rows) for window in self.windows)

    @property
    def longest(self) -> int:
        """Latent frames of the longest window."""
        return max(len(window.rows) for window in self.windows)


def table_bytes(rows: int, states: int, latent: int) -> int:
    """Bytes of a clip's tables on the host, fp32: the source's, and those of even and of odd steps.

    Args:
        states: of `STATES`. latent: values of a latent frame.
    """
    return 4 * rows * (1 + 2 * states) * latent


def lay_out(
    shots: tuple[int, ...], length: int, overlap: int, anchor: Anchor, least: int = 1, restarts: bool = False
) -> Layout:
    """Windows over shots.

    A shot that fits one window is one. In a longer one all windows have the same length, and their ends are spread
    evenly: neighbours share `overlap` latent frames or more. Weights are ramps in what is shared, and 1 elsewhere.
    Windows that need share nothing all begin with the same noise.

    Args:
        shots: frames of each. length: latent frames of a window, its anchor included; at least 1.
        overlap: latent frames that neighbours share at least; fewer where windows are too short for that.
        anchor: what is in front of all windows but a shot's first.
        least: frames that the model is given at a time; a shorter shot's last frame is repeated up to that.
        restarts: for an autoencoder that knows no more frames than a window has: it begins anew with each window, at
            the anchor; only with anchor 'frame'.
    """
    rows: list[ShotRows] = []
    windows: list[Window] = []
    start = 0
    for number, frames in enumerate(shots):
        given = max(frames, least)
        latents = 1 + -(-(given - 1) // STRIDE)
        spans = spans_of(latents, length, overlap, anchor)
        anchors = tuple(STRIDE * (first - 1) for first, _ in spans[1:]) if anchor == "frame" else ()
        starts = [first for first, _ in spans] if restarts and anchors else [0]
        segments = _segments(start, latents, frames, starts)
        shot = ShotRows(start, latents, frames, given, anchors, segments)
        for place, (own, weights) in enumerate(zip(spans, _weights(spans), strict=True)):
            front = [] if place == 0 else _anchor_row(anchor, shot, place, own[0])
            covered = (max(0, STRIDE * (own[0] - 1) + 1), min(given, STRIDE * (own[1] - 1) + 1))
            windows.append(
                Window(
                    (*front, *range(start + own[0], start + own[1])),
                    (*((1.0 if anchor == "frame" else 0.0) for _ in front), *weights),
                    number,
                    *covered,
                )
            )
        rows.append(shot)
        start = shot.end
    # Windows that share no latent frame have nothing in common but what they start from.
    period = max(1, length - (anchor != "none")) if overlap == 0 else None
    return Layout(tuple(rows), tuple(windows), period)


def spans_of(latents: int, length: int, overlap: int, anchor: Anchor) -> list[tuple[int, int]]:
    """The shot's own latent frames of each window, [first, last), without anchors."""
    if latents <= length:
        return [(0, latents)]
    own = length if anchor == "none" else max(1, length - 1)
    stride = max(1, own - overlap)
    more = -(-(latents - length) // stride)
    ends = [length + (place * (latents - length) * 2 + more) // (2 * more) for place in range(more + 1)]
    return [(0, length), *((max(0, end - own), end) for end in ends[1:])]


def _anchor_row(anchor: Anchor, shot: ShotRows, place: int, first: int) -> list[int]:
    """The row in front of a window that is not its shot's first."""
    if anchor == "none":
        return []
    return [
        {"frame": shot.start + shot.latents + place - 1, "latent": shot.start + first - 1, "first": shot.start}[anchor]
    ]


def _segments(start: int, latents: int, frames: int, starts: list[int]) -> tuple[Segment, ...]:
    """The autoencoder's ways through a shot, one from each of `starts`; all but the first begin with an anchor."""
    found = []
    for place, (first, last) in enumerate(pairwise([*starts, latents])):
        lead = (start + latents + place - 1,) if place else ()
        begin, end = (max(0, STRIDE * (row - 1) + 1) for row in (first, last))
        found.append(Segment((*lead, *range(start + first, start + last)), bool(lead), min(frames, end) - begin))
    return tuple(found)


def _weights(spans: list[tuple[int, int]]) -> list[list[float]]:
    """For each window, its weight in each of its own latent frames."""
    rises = [0, *(max(0, one[1] - other[0]) for one, other in pairwise(spans))]
    falls = [*rises[1:], 0]
    plain = [
        [min(1.0, (n + 1) / (rise + 1), (end - start - n) / (fall + 1)) for n in range(end - start)]
        for (start, end), rise, fall in zip(spans, rises, falls, strict=True)
    ]
    total: dict[int, float] = {}
    for (start, _), weights in zip(spans, plain, strict=True):
        for n, weight in enumerate(weights):
            total[start + n] = total.get(start + n, 0.0) + weight
    return [
        [weight / total[start + n] for n, weight in enumerate(weights)]
        for (start, _), weights in zip(spans, plain, strict=True)
    ]
