"""Means over blocks of a frame: all that maps are fitted to, a twentieth of the frame."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import gcd
from typing import NamedTuple

import torch
import torch.nn.functional as F

from kiwi_cli.video.detail.cores import Cores
from kiwi_cli.video.detail.enlarge import resized
from kiwi_cli.video.detail.noise import noise_of, planes
from kiwi_cli.video.detail.settings import STEP

ANALYSED_SIDE = 352
"""Pixels: frames whose shorter side is twice this or more are halved before moments are taken. An affine map survives
the averaging, and the moments cost a quarter."""
BAND = 16
"""Rows of blocks that are worked on at a time: they fit a core's cache."""
PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))  # of a symmetric 3x3 matrix

# Rows of the moments: means of R and E, of the products R R and R E, and of |E|^2 and |E - R|^2.
R, E, RR, RE = slice(0, 3), slice(3, 6), slice(6, 12), slice(12, 21)
EE, CHANGE = 21, 22
LIMITS = torch.tensor([0.5] * 6 + [0.25] * 15 + [0.75, 0.1])
"""How large a row can be, of values around 0; of a change no more counts."""
ROWS, WHOLE = len(LIMITS), 32767
FEW = 16
"""Blocks whose means are taken in one product, at most."""
COARSE = 4
"""Blocks to a side of a coarse one."""


class Moments(NamedTuple):
    """Means over blocks of a frame.

    Kept in 16 bits: the rounding is 4e-6 at most, a twenty-fifth of `eps`, and a map is fitted to 25 blocks.

    Attributes:
        kept: (23, h / 4, w / 4) int16, in parts of `LIMITS`.
        coarse: (23, h / 16, w / 16) fp32, means over 4 x 4 blocks.
        side: of a block, in pixels: 4, as in these shapes, or 8; then the last row is the most of the block's quarters.
    """

    kept: torch.Tensor
    coarse: torch.Tensor
    side: int

    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of R and of E, around 0, (3, h / 4, w / 4) each."""
        found = self.kept[:6] * (0.5 / WHOLE)
        return found[R], found[E]


class Grid:
    """How a frame is divided: the size at which it is looked at, and into how many blocks of 4 x 4 pixels of that."""

    def __init__(self, height: int, width: int) -> None:
        shrink = 2 if min(height, width) >= 2 * ANALYSED_SIDE else 1
        self.side = STEP * shrink
        self.size = max(1, height // shrink), max(1, width // shrink)
        self.blocks = max(1, round(height / self.side)), max(1, round(width / self.side))
        self.even = self.size == (self.blocks[0] * STEP, self.blocks[1] * STEP)

    def bands(self) -> list[slice]:
        """Rows of blocks, band after band; where blocks are not of one size, all of them."""
        step = BAND if self.even else self.blocks[0]
        return [slice(top, min(top + step, self.blocks[0])) for top in range(0, self.blocks[0], step)]

    def lines(self, band: slice) -> slice:
        """The lines of the frame, as it is looked at, that are those rows of blocks."""
        return slice(band.start * STEP, band.stop * STEP) if self.even else slice(None)

    def means(self, pixels: torch.Tensor) -> torch.Tensor:
        """Means over blocks, of lines that a band is: (C, lines, w) -> (C, rows, w / 4)."""
        if not self.even:
            return F.adaptive_avg_pool2d(pixels, self.blocks)
        channels, lines, width = pixels.shape
        first, *others = pixels.view(channels, -1, STEP, width).unbind(2)
        total = first + others[0]
        for line in others[1:]:
            total += line
        # Across, a product with the means of a few blocks: much faster than sums of every fourth column, or a pooling.
        few = gcd(width // STEP, FEW)
        return (total.view(-1, few * STEP) @ means_of(few, pixels.device)).view(channels, lines // STEP, width // STEP)

    def most(self, pixels: torch.Tensor) -> torch.Tensor:
        """The largest mean over a quarter of a block, of lines that a band is: (lines, w) -> (rows, w / 4)."""
        if not self.even:
            quarters = F.adaptive_avg_pool2d(pixels[None], (2 * self.blocks[0], 2 * self.blocks[1]))
            return F.adaptive_max_pool2d(quarters, self.blocks)[0]
        for _ in range(STEP.bit_length() - 2):
            pixels = pixels[::2] + pixels[1::2]
            pixels = pixels[:, ::2] + pixels[:, 1::2]
        across = torch.maximum(pixels[::2], pixels[1::2])
        return torch.maximum(across[:, ::2], across[:, 1::2]) / (STEP * STEP // 4)


@lru_cache(maxsize=32)
def means_of(blocks: int, device: torch.device) -> torch.Tensor:
    """(4 blocks, blocks): of sums of four lines it makes means over blocks of 4 x 4."""
    return torch.eye(blocks, device=device).repeat_interleave(STEP, 0) / (STEP * STEP)


def block_moments(edited: torch.Tensor, round_trip: torch.Tensor, cores: Cores) -> Moments:
    """A frame's moments.

    Args:
        edited, round_trip: (h, w, 3) bytes, or floats in 0..255.
        cores: that share the work.
    """
    grid = Grid(*edited.shape[:2])
    e, r = cores.each(lambda frame: resized(frame, *grid.size, "bilinear"), (edited, round_trip))
    kept = torch.empty((ROWS, *grid.blocks), dtype=torch.int16, device=edited.device)
    size = max(1, grid.blocks[0] // COARSE), max(1, grid.blocks[1] // COARSE)
    parts = (WHOLE / LIMITS)[:, None, None].to(edited.device)

    def make(band: slice) -> None:
        lines = grid.lines(band)
        rows = _products(planes(e[lines]), planes(r[lines]))
        found = grid.means(rows)
        if grid.side > STEP:  # a small thing must not drown in a large block: of its quarters the most changed counts
            found[CHANGE] = grid.most(rows[CHANGE])
        kept[:, band] = found.mul_(parts).round_().clamp_(-WHOLE, WHOLE)

    cores.each(make, grid.bands())
    return Moments(kept, F.adaptive_avg_pool2d(kept.float(), size) / parts, grid.side)


def mean_of(frames: Sequence[Moments], weights: Sequence[float], lines: slice) -> torch.Tensor:
    """Means over frames, (23, n, w / 4) fp32: those rows of blocks."""
    total = torch.zeros_like(frames[0].kept[:, lines], dtype=torch.float32)
    for frame, weight in zip(frames, weights, strict=True):
        total.add_(frame.kept[:, lines].float(), alpha=weight)
    return total.mul_((LIMITS / (WHOLE * sum(weights)))[:, None, None].to(total.device))


def loss_of(
    round_trip: torch.Tensor, source: torch.Tensor, cores: Cores, noise: bool = True
) -> tuple[torch.Tensor, float | None]:
    """What the autoencoder loses: means of |R - s|^2 over blocks, (h / 4, w / 4), and its noise, of `noise_of`.

    Args:
        round_trip: (h, w, 3) bytes, or floats in 0..255. source: (H, W, 3), the same range.
        cores: that share the work.
        noise: whether it is measured; else None comes of it.
    """
    grid = Grid(*round_trip.shape[:2])
    r, s = cores.each(lambda frame: resized(frame, *grid.size, "bilinear"), (round_trip, source))
    rows = torch.empty((1, *grid.blocks), dtype=torch.float32, device=round_trip.device)

    def make(band: slice) -> None:
        lost = planes(r[grid.lines(band)]).sub_(planes(s[grid.lines(band)])).square_().sum(0, keepdim=True)
        rows[:, band] = grid.means(lost)

    cores.each(make, grid.bands())
    return rows[0], noise_of(r, s, cores) if noise else None


def _products(e: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """The moments of single pixels, (23, n, w)."""
    rows = torch.empty((ROWS, *e.shape[1:]), dtype=torch.float32, device=e.device)
    rows[R], rows[E] = r, e
    for row, (i, j) in enumerate(PAIRS):
        torch.mul(r[i], r[j], out=rows[RR][row])
    torch.mul(r[:, None], e[None], out=rows[RE].view(3, 3, *e.shape[1:]))
    torch.sum(e.square(), 0, out=rows[EE])
    torch.sum((e - r).square_(), 0, out=rows[CHANGE])
    return rows


def box(rows: torch.Tensor, radius: int) -> torch.Tensor:
    """Means over a box of 2 radius + 1, of what of it is inside: (C, h, w) -> the same."""
    for axis in (1, 2):
        total = rows.clone()
        length = rows.shape[axis]
        # A few shifted sums: in torch they are several times as fast as a pooling of the same size.
        for shift in range(1, min(radius, length - 1) + 1):
            total.narrow(axis, shift, length - shift).add_(rows.narrow(axis, 0, length - shift))
            total.narrow(axis, 0, length - shift).add_(rows.narrow(axis, shift, length - shift))
        place = torch.arange(length, device=rows.device)
        inside = (place + radius).clamp_max(length - 1) - (place - radius).clamp_min(0) + 1
        rows = total.div_(inside[:, None] if axis == 1 else inside)
    return rows


def covariances(moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cov(R, R) as (6, h, w) and cov(R, E) as (3 of R, 3 of E, h, w)."""
    r, e = moments[R], moments[E]
    own = torch.stack([moments[RR][row] - r[i] * r[j] for row, (i, j) in enumerate(PAIRS)])
    return own, moments[RE].unflatten(0, (3, 3)) - r[:, None] * e[None]


def variance(moments: torch.Tensor) -> torch.Tensor:
    """The edit's variance, summed over its channels."""
    return (moments[EE] - moments[E].square().sum(0)).clamp_min(0)
