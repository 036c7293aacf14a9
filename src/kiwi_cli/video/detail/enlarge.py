"""Frames at full size, a strip at a time: no whole one is ever there."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F

EXACT = 1 << 14
"""Weights are whole multiples of 1 / this: sums over bytes are exact in fp32, and the same in whatever strips."""


def resized(frame: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
    """(h, w, 3) -> (height, width, 3) with antialiasing; bytes stay bytes on the CPU, where that is much faster."""
    if frame.shape[:2] == (height, width):
        return frame
    planar = frame.permute(2, 0, 1)[None]
    if frame.dtype == torch.uint8 and frame.device.type != "cpu":
        planar = planar.float()
    big = F.interpolate(planar, size=(height, width), mode=mode, antialias=True)[0].permute(1, 2, 0)
    return big if frame.dtype == big.dtype else big.round_().clamp_(0, 255).to(frame.dtype)


class Enlarged:
    """A frame, or some rows of one, at another size: bicubic with antialiasing, in planes and not rounded.

    What the rows are made of is made wider at once, bytes as bytes, which torch does several times as fast; and then
    taller as it is asked for, by one matrix product.

    Args:
        frame: (h, w, 3): bytes, floats, or whole numbers that are `scale` times too large.
        part: the rows; a few strips of them are worth it.
        scale: what is divided by, of whole numbers other than bytes.
        exact: bytes are not rounded on the way either.
    """

    def __init__(
        self, frame: torch.Tensor, size: tuple[int, int], part: slice, scale: float = 1.0, exact: bool = False
    ) -> None:
        self._first, self._weights = taps(len(frame), size[0])
        self._height, self._wanted = len(frame), size[0]
        self._scale, self._top = scale, int(self._first[part.start])
        near = frame[self._top : int(self._first[part.stop - 1]) + self._weights.shape[1]]
        wide = resized(near.float() if exact or frame.dtype != torch.uint8 else near, len(near), size[1], "bicubic")
        self._planes = wide.permute(2, 0, 1)

    def rows(self, strip: slice) -> torch.Tensor:
        """(3, n, W) fp32 in 0..255, a little beyond at sharp edges: rows of the whole, by number, all in the part."""
        top, bottom, pieces = products(self._height, self._wanted, strip.start, strip.stop)
        near = self._planes[:, top - self._top : bottom - self._top].to(
            torch.float32, memory_format=torch.contiguous_format
        )
        if self._scale != 1:
            near = near / self._scale
        found = near.new_empty((3, strip.stop - strip.start, near.shape[2]))
        for rows, lines, matrix in pieces:
            torch.matmul(matrix.to(near.device), near[:, lines], out=found[:, rows])
        return found


PIECE = 24
"""Rows of a product: fewer are made of fewer, and a product is of all by all."""


@lru_cache(maxsize=512)
def products(
    count: int, wanted: int, start: int, stop: int
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
        found.append((rows, slice(low - top, high - top), matrix))
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
