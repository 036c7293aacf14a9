"""The numbers behind the transfer of detail; benchmarks/detail.py is what they were chosen by."""

from __future__ import annotations

from dataclasses import dataclass

STEP = 4
"""Working pixels: side of a block. Moments are kept, and maps are fitted, once a block."""


@dataclass(frozen=True)
class DetailSettings:
    """How detail is transferred.

    Attributes:
        radius: blocks to either side that a map is fitted over; 2 of 4 pixels are a box of 20 working pixels.
        eps: variance, in 0..1 squared, below which a map leans on its wider neighbourhood.
        reach: frames to either side that a map is fitted over (k).
        trust: the share of the edit's local variance that may stay unexplained; at that share a map is not used.
        steady: for models whose frames flicker or are edited in short windows: the edit too is averaged over the frames
            that maps are fitted over, which are `period` - 1 to either side, the near ones counting more. It blurs
            what moves in the edit and not in the source: leave it off for models with steady, sharp frames.
        period: frames from one such window to the next. What windows repeat is averaged out when it is theirs.
    """

    radius: int = 2
    eps: float = 1e-4
    reach: int = 2
    trust: float = 0.3
    steady: bool = False
    period: int = 5
