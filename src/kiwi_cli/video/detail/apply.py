"""Maps on to a frame at full size, in strips."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from kiwi_cli.video.detail.cores import Cores
from kiwi_cli.video.detail.enlarge import Enlarged

STRIP_PIXELS = 131072
"""Of a strip: small enough for the cache of a core, large enough for two to share."""
STRIPS = 4
"""In a row, by one core: what they are enlarged from is made wider at once."""
ROWS_A_BLOCK = 2
"""Rows of maps for each row of blocks: maps are so smooth that several full-size rows can share one."""
PEAK = {torch.uint8: 255, torch.uint16: 65535}


def apply(
    maps: torch.Tensor,
    edited: torch.Tensor,
    round_trip: torch.Tensor,
    source: torch.Tensor,
    cores: Cores,
    strip: int | None = None,
    scale: float = 1.0,
) -> np.ndarray:
    """The result, (H, W, 3) of the source's type.

    Args:
        maps: (10 or 14, h, w) of `fit`, on the device where the work is done.
        edited, round_trip: (h, w, 3) on the same device: bytes, floats in 0..255, or whole numbers `scale` times that.
        source: (H, W, 3) uint8 or uint16, all bits of it used, anywhere.
        cores: that share the strips.
        strip: rows that are worked on at a time, about; None chooses. The result does not depend on it.
        scale: of `edited` and `round_trip`, where they are sums over frames.
    """
    height, width = source.shape[:2]
    deep = source.dtype == torch.uint16
    result = torch.empty_like(source, device="cpu")
    held = max(1, height // (maps.shape[1] * ROWS_A_BLOCK))
    rows = max(1, (strip or STRIP_PIXELS // width) // held) * held
    whole = height // held * held

    def make(top: int) -> None:
        part = slice(top, min(top + STRIPS * rows, whole) if top < whole else height)
        # E and R enlarged: what a plain result is, and what the source would be if that were done to it.
        plain, blurred = (Enlarged(frame, (height, width), part, scale, deep) for frame in (edited, round_trip))
        each = _rows_of(maps, part, held, height).split(rows // held, dim=1)
        for first, mapped in zip(range(top, part.stop, rows), each, strict=True):
            strip = slice(first, min(first + rows, part.stop))
            if bool((mapped[9] == 1).all()):
                result[strip] = source[strip].cpu()
                continue
            planes = _strip(mapped, plain.rows(strip), blurred.rows(strip), source[strip]).cpu()
            for channel in range(3):  # twice as fast as all three at once
                result[strip, :, channel] = planes[channel]

    cores.each(make, [*range(0, whole, STRIPS * rows), *([whole] if whole < height else [])])
    return result.numpy()


def _rows_of(maps: torch.Tensor, strip: slice, held: int, height: int) -> torch.Tensor:
    """Rows of the maps for rows at full size, one for each `held`: (10, n, w)."""
    count = maps.shape[1]
    centres = (torch.arange(strip.start, strip.stop, held, device=maps.device) + held / 2) * (count / height) - 0.5
    centres = centres.clamp(0, count - 1)
    before = centres.floor().long().clamp_max(max(0, count - 2))
    share = (centres - before)[:, None]
    first, second = maps[:, before], maps[:, (before + 1).clamp_max(count - 1)]
    return first + (second - first) * share


def _strip(mapped: torch.Tensor, plain: torch.Tensor, blurred: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """plain + A (source - blurred) + same (blurred - plain), which is the source exactly where A = I and same = 1.

    Returns:
        (3, n, W) of whole numbers.
    """
    peak, device = PEAK[source.dtype], mapped.device
    height, width = source.shape[:2]
    rows, groups = mapped.shape[:2]
    # Rows are in place already; over one axis this takes half as long as a bilinear enlargement.
    across = F.interpolate(mapped.reshape(1, rows * groups, -1), size=width, mode="linear").view(rows, groups, 1, width)

    lost, low, out = (
        planar.view(3, groups, height // groups, width)
        for planar in (source.to(device).permute(2, 0, 1).contiguous().float(), blurred, plain)
    )
    if peak != 255:
        low *= peak / 255
        out *= peak / 255
    if rows > 10:
        low *= across[10]
        out *= across[10]
    lost -= low
    same = bool(mapped[9].any())
    if same:
        low -= out
    for row in range(3):
        out.addcmul_(across[row:9:3], lost[row])
    if same:
        out.addcmul_(across[9], low)
    if rows > 10:
        out.add_(across[11:14], alpha=peak / 255)
    out = out.add_(0.5).clamp_(0, peak).view(3, height, width)
    return out.to(torch.uint8 if peak == 255 else torch.int32)  # not every device casts to 16 bits; the host does
