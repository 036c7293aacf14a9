"""Frames at full size, a strip at a time: no whole one is ever there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F

EXACT = 1 << 14
"""Weights are whole multiples of 1 / this: sums over bytes are exact in fp32, and the same in whatever strips."""

HAT_PIECE = 240
"""Columns of one product of those that stretch maps, about; more where the width has no such divisor."""


def resized(frame: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
    """(h, w, 3) -> (height, width, 3) with antialiasing, of the same type."""
    return _resized(frame.permute(2, 0, 1)[None], height, width, mode)[0].permute(1, 2, 0)


def _resized(planes: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
    """(n, 3, h, w) -> (n, 3, height, width); bytes stay bytes on the CPU, where that is much faster."""
    if planes.shape[2:] == (height, width):
        return planes
    floats = planes.float() if planes.dtype == torch.uint8 and planes.device.type != "cpu" else planes
    big = F.interpolate(floats, size=(height, width), mode=mode, antialias=True)
    return big if planes.dtype == big.dtype else big.round_().clamp_(0, 255).to(planes.dtype)


class Enlarged:
    """Frames, or some rows of them, at another size: bicubic with antialiasing, in planes and not rounded.

    What the rows are made of is made wider at once, bytes as bytes, which torch does several times as fast; and then
    taller as it is asked for, by matrix products. All frames go together: each operation is one that threads which
    work beside each other wait for.

    Args:
        frames: (h, w, 3) of one type: bytes, floats, or whole numbers that are `scale` times too large.
        part: the rows; a few strips of them are worth it.
        scale: what is divided by, of whole numbers other than bytes.
        exact: bytes are not rounded on the way either.
    """

    def __init__(
        self,
        frames: Sequence[torch.Tensor],
        size: tuple[int, int],
        part: slice,
        scale: float = 1.0,
        exact: bool = False,
    ) -> None:
        self._height, self._wanted, self._scale = len(frames[0]), size[0], scale
        first, weights = taps(self._height, self._wanted)
        self._top, bottom = int(first[part.start]), int(first[part.stop - 1]) + weights.shape[1]
        near = torch.stack([frame[self._top : bottom] for frame in frames])
        if exact or near.dtype != torch.uint8:
            near = near.float()
        self._wide = _resized(near.permute(0, 3, 1, 2), near.shape[1], size[1], "bicubic").permute(2, 0, 1, 3)

    def rows(self, strip: slice) -> torch.Tensor:
        """(n, frames, 3, W) fp32 in 0..255, a little beyond at sharp edges: rows of the whole, all in the part."""
        top, bottom, pieces = products(self._height, self._wanted, strip.start, strip.stop, self._wide.device)
        lines = self._wide[top - self._top : bottom - self._top]
        near = torch.empty(lines.shape, dtype=torch.float32, device=lines.device).copy_(lines)
        if self._scale != 1:
            near /= self._scale
        found = near.new_empty((strip.stop - strip.start, *near.shape[1:]))
        flat, made = near.view(len(near), -1), found.view(len(found), -1)
        for rows, lines_of, matrix in pieces:
            torch.matmul(matrix, flat[lines_of], out=made[rows])
        return found


PIECE = 24
"""Rows of a product: fewer are made of fewer, and a product is of all by all."""


@lru_cache(maxsize=512)
def products(
    count: int, wanted: int, start: int, stop: int, device: torch.device
) -> tuple[int, int, list[tuple[slice, slice, torch.Tensor]]]:
    """How rows `start` to `stop` of `wanted` are made of `count`: from which to which, and by which products.

    Of each its rows, counted from `start`, the lines that they are made of, from the first of all, and the matrix.
    """
    first, weights = (table[start:stop] for table in taps(count, wanted))
    top, number = int(first[0]), weights.shape[1]
    found = []
    for at in range(0, stop - start, PIECE):
        rows = slice(at, min(at + PIECE, stop - start))
        low, high = int(first[rows][0]), int(first[rows][-1]) + number
        places = (first[rows] - low)[:, None] + torch.arange(number)
        matrix = torch.zeros(rows.stop - at, high - low).scatter_(1, places, weights[rows])
        found.append((rows, slice(low - top, high - top), matrix.to(device)))
    return top, int(first[-1]) + number, found


@lru_cache(maxsize=8)
def taps(count: int, wanted: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of `wanted` places the first of `count` that it is made of, (wanted,), and weights, (wanted, taps).

    Of Keys' bicubic with a = -0.5, spread out where it is made smaller, as torch and Pillow have it with antialiasing.
    """
    scale = count / wanted
    spread = max(scale, 1.0)
    centres = (torch.arange(wanted, dtype=torch.float64) + 0.5) * scale
    number = min(count, int(4 * spread) + 1)
    first = (centres - 2 * spread + 0.5).long().clamp(0, count - number)
    x = ((first[:, None] + torch.arange(number) + 0.5 - centres[:, None]) / spread).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    weights = (weights / weights.sum(1, keepdim=True) * EXACT).round()
    most = weights.argmax(1, keepdim=True)  # takes what rounding left over: what is even stays even
    weights.scatter_add_(1, most, EXACT - weights.sum(1, keepdim=True))
    return first, (weights / EXACT).float()


def stretched(rows: torch.Tensor, width: int) -> torch.Tensor:
    """(m, w) -> (pieces, m, width / pieces): linear between the middles of what there is, in pieces of the width.

    Whole ones would take as long again to put together.
    """
    starts, weights = hats(rows.shape[1], width, rows.device)
    return torch.bmm(torch.stack([rows[:, start : start + weights.shape[1]] for start in starts]), weights)


@lru_cache(maxsize=8)
def hats(count: int, wanted: int, device: torch.device) -> tuple[list[int], torch.Tensor]:
    """For each piece of `wanted` the first of `count` that it is made of, and weights, (pieces, number, of a piece)."""
    pieces = next(number for number in range(max(1, wanted // HAT_PIECE), 0, -1) if wanted % number == 0)
    places = ((torch.arange(wanted, dtype=torch.float64) + 0.5) * (count / wanted) - 0.5).clamp(0, count - 1)
    places = ((places * EXACT).round() / EXACT).view(pieces, -1)
    number = min(count, int((places[:, -1] - places[:, 0]).max()) + 3)
    starts = places[:, 0].long().clamp_max(count - number)
    lines = starts[:, None] + torch.arange(number)
    weights = (1 - (lines[:, :, None] - places[:, None]).abs()).clamp_min(0)
    return starts.tolist(), weights.float().to(device)
