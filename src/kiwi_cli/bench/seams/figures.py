"""Where windows meet, is it seen? Figures of an edited clip beside its source, frame by frame as they come.

    seam ratio   change of the edit at a frame over the median change near it, over the same of the source: 1 is no seam
    colour step  how far the mean colour moves at a frame beyond the source's, in Lab
    drift        how far edit and source have come apart in mean colour from a shot's first second to its last, in Lab
    psnr         against the exact truth, where there is one

Each is told of the frames where windows meet, and of all others: what the same edit does where nothing meets, the null.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

NEAR = 8
"""Frames on either side that a change is compared with."""
STILL = 0.1
"""Levels of 255 that are added to a change, so that a clip that stands still has a ratio."""

_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32)
_WHITE = np.array([0.9505, 1.0, 1.089], np.float32)
_LINEAR = np.array(
    [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in np.arange(256) / 255], np.float32
)


def mean_lab(frame: np.ndarray) -> np.ndarray:
    """The mean of a frame's (H, W, 3) uint8 sRGB colours in CIE Lab (D65), (3,) float64."""
    xyz = _LINEAR[frame.reshape(-1, 3)] @ _TO_XYZ.T / _WHITE
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = root.mean(axis=0, dtype=np.float64)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@dataclass
class Watch:
    """What is remembered of a clip's frames as they go by: four numbers each.

    Attributes:
        changes: mean absolute difference to the frame before, of 255; the first is 0. labs: mean colours.
    """

    changes: list[float] = field(default_factory=list)
    labs: list[np.ndarray] = field(default_factory=list)
    _last: np.ndarray | None = None

    def add(self, frame: np.ndarray) -> None:
        """The next frame, (H, W, 3) uint8."""
        now = frame.astype(np.int16)
        self.changes.append(0.0 if self._last is None else float(np.abs(now - self._last).mean()))
        self.labs.append(mean_lab(frame))
        self._last = now


@dataclass(frozen=True)
class Spread:
    """A figure over many frames: median, 95th percentile and worst."""

    median: float
    p95: float
    worst: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None of no values."""
        found = np.asarray(list(values), np.float64)
        if not len(found):
            return None
        return cls(float(np.median(found)), float(np.quantile(found, 0.95)), float(found.max()), len(found))


@dataclass(frozen=True)
class Figures:
    """What was measured of one clip.

    Attributes:
        ratios, steps: of every frame but each shot's first, by its number. boundaries: frames where windows meet.
        drifts: of each shot. psnr: of every frame, against the truth; empty without one.
    """

    ratios: dict[int, float]
    steps: dict[int, float]
    boundaries: frozenset[int]
    drifts: tuple[float, ...]
    psnr: tuple[float, ...] = ()

    def at(self, values: dict[int, float], meet: bool) -> list[float]:
        """Of `ratios` or `steps`, those where windows meet, or all others."""
        return [value for frame, value in values.items() if (frame in self.boundaries) == meet]

    @property
    def psnr_gap(self) -> float | None:
        """dB that the frames where windows meet, on either side, have more than the others; None without truth."""
        beside = {frame - 1 for frame in self.boundaries} | self.boundaries
        meet = [value for frame, value in enumerate(self.psnr) if frame in beside]
        other = [value for frame, value in enumerate(self.psnr) if frame not in beside]
        return float(np.mean(meet) - np.mean(other)) if meet and other else None


def figures(
    edit: Watch, source: Watch, shots: Sequence[int], boundaries: Iterable[int], rate: float, psnr: Sequence[float] = ()
) -> Figures:
    """The figures of a clip whose frames were watched.

    Args:
        shots: frames of each. boundaries: frames of the clip that are the first of a window that is not a shot's first.
        rate: frames a second. psnr: of each frame, in dB.
    """
    ratios: dict[int, float] = {}
    steps: dict[int, float] = {}
    drifts = []
    start = 0
    second = max(1, round(rate))
    for length in shots:
        for frame in range(start + 1, start + length):
            near = [n for n in range(max(start + 1, frame - NEAR), min(start + length, frame + NEAR + 1)) if n != frame]
            if near:
                ratios[frame] = _relative(edit.changes, frame, near) / _relative(source.changes, frame, near)
            moved, was = (watch.labs[frame] - watch.labs[frame - 1] for watch in (edit, source))
            steps[frame] = float(np.linalg.norm(moved - was))
        apart = np.array(edit.labs[start : start + length]) - np.array(source.labs[start : start + length])
        if length >= 2 * second:
            drifts.append(float(np.linalg.norm(apart[-second:].mean(axis=0) - apart[:second].mean(axis=0))))
        start += length
    return Figures(ratios, steps, frozenset(boundaries), tuple(drifts), tuple(psnr))


def _relative(changes: Sequence[float], frame: int, near: Sequence[int]) -> float:
    return (changes[frame] + STILL) / (float(np.median([changes[n] for n in near])) + STILL)


@dataclass(frozen=True)
class Summary:
    """Several clips together: what a row of a table has."""

    clips: int
    ratio: Spread | None
    ratio_null: Spread | None
    step: Spread | None
    step_null: Spread | None
    drift: tuple[float, float] | None
    psnr: tuple[float, float] | None
    psnr_gap: tuple[float, float] | None

    @classmethod
    def of(cls, clips: Sequence[Figures]) -> Summary:
        """Spreads over all frames of all clips; means over clips with their standard errors."""

        def spread(name: str, meet: bool) -> Spread | None:
            return Spread.of(value for clip in clips for value in clip.at(getattr(clip, name), meet))

        return cls(
            len(clips),
            spread("ratios", True),
            spread("ratios", False),
            spread("steps", True),
            spread("steps", False),
            _mean([value for clip in clips for value in clip.drifts]),
            _mean([float(np.mean(clip.psnr)) for clip in clips if clip.psnr]),
            _mean([gap for clip in clips if (gap := clip.psnr_gap) is not None]),
        )

    @property
    def unseen(self) -> bool | None:
        """Whether the 95th percentile where windows meet is within that of the null; None without such frames."""
        return None if self.ratio is None or self.ratio_null is None else self.ratio.p95 <= self.ratio_null.p95


def _mean(values: Sequence[float]) -> tuple[float, float] | None:
    """Mean and standard error; the error is 0 for a single value."""
    if not values:
        return None
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    return float(np.mean(values)), error
