"""The numbers behind the transfer of detail; benchmarks/detail.py is what they were chosen by."""

from __future__ import annotations

from dataclasses import dataclass

STEP = 4
"""Pixels of a frame as it is looked at: side of a block. Moments are kept, and maps are fitted, once a block. A large
frame is looked at at half its size, so that its blocks are 8 working pixels: a quarter of the moments and maps, and two
thirds of the time, for up to 1.5 dB of 45."""


@dataclass(frozen=True)
class DetailSettings:
    """How detail is transferred.

    Attributes:
        box: working pixels, about: side of the box that a map is fitted over, 5 blocks of 4 pixels or 3 of 8.
        eps: variance, in 0..1 squared, below which a map leans on its wider neighbourhood.
        reach: frames to either side that a map is fitted over (k).
        trust: the share of the edit's local variance that may stay unexplained; at that share a map is not used.
        steady: for models whose frames flicker or are edited in short windows: the edit too is averaged over the frames
            that maps are fitted over, which are `period` - 1 to either side, the near ones counting more. It blurs
            what moves in the edit and not in the source: leave it off for models with steady, sharp frames.
        period: frames from one such window to the next. What windows repeat is averaged out when it is theirs.
    """

    box: int = 20
    eps: float = 1e-4
    reach: int = 2
    trust: float = 0.3
    steady: bool = False
    period: int = 5

    def radius(self, side: int) -> int:
        """Blocks of that side, to either side of one, that a map is fitted over."""
        return max(1, round((self.box / side - 1) / 2))
