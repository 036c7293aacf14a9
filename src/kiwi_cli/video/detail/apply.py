"""Maps on to a frame at full size, in strips."""

from __future__ import annotations

import numpy as np
import torch

from kiwi_cli.video.detail.cores import Cores
from kiwi_cli.video.detail.enlarge import Enlarged, stretched

STRIP_PIXELS = 98304
"""Of a strip: small enough for the cache of a core, large enough that cores which share a frame seldom wait."""
DEVICE_PIXELS = 1 << 20
"""The same on other devices, where every strip is waited for."""
STRIPS = 2
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
    result = np.empty(source.shape, np.uint8 if source.dtype == torch.uint8 else np.uint16)
    held = max(1, height // (maps.shape[1] * ROWS_A_BLOCK))
    pixels = STRIP_PIXELS if maps.device.type == "cpu" else DEVICE_PIXELS
    rows = max(1, (strip or pixels // width) // held) * held
    whole = height // held * held

    def make(top: int) -> None:
        part = slice(top, min(top + STRIPS * rows, whole) if top < whole else height)
        mapped = _rows_of(maps, part, held, height)
        least, most = (ends.tolist() for ends in mapped[9].aminmax(dim=1))  # of how unchanged it is
        # E and R enlarged: what a plain result is, and what the source would be if that were done to it.
        both = Enlarged((edited, round_trip), (height, width), part, scale, deep)
        for first in range(top, part.stop, rows):
            strip = slice(first, min(first + rows, part.stop))
            groups = slice((first - top) // held, -(-(strip.stop - top) // held))
            if min(least[groups]) == 1:
                result[strip] = source[strip].cpu().numpy()
                continue
            planes = _strip(mapped[:, groups], both.rows(strip), source[strip], max(most[groups]) > 0).cpu().numpy()
            for channel in range(3):  # twice as fast as all three at once
                np.copyto(result[strip, :, channel], planes[:, channel], casting="unsafe")

    cores.each(make, [*range(0, whole, STRIPS * rows), *([whole] if whole < height else [])])
    return result


def _rows_of(maps: torch.Tensor, strip: slice, held: int, height: int) -> torch.Tensor:
    """Rows of the maps for rows at full size, one for each `held`: (10, n, w)."""
    count = maps.shape[1]
    centres = (torch.arange(strip.start, strip.stop, held, device=maps.device) + held / 2) * (count / height) - 0.5
    centres = centres.clamp(0, count - 1)
    before = centres.floor().long().clamp_max(max(0, count - 2))
    share = (centres - before)[:, None]
    first, second = (maps.index_select(1, rows) for rows in (before, (before + 1).clamp_max(count - 1)))
    return first.lerp_(second, share)


def _strip(mapped: torch.Tensor, enlarged: torch.Tensor, source: torch.Tensor, same: bool) -> torch.Tensor:
    """plain + A (source - blurred) + same (blurred - plain), which is the source exactly where A = I and same = 1.

    With noise `counts` times plain and blurred, and the rest is added.

    Args:
        mapped: (10 or 14, groups, w), for as many rows each.
        enlarged: (n, 2, 3, W) in 0..255, plain and blurred; written to.
        source: (n, W, 3).
        same: whether any of it is unchanged.

    Returns:
        (n, 3, W), to be cut off to whole numbers.
    """
    peak, device = PEAK[source.dtype], mapped.device
    count, (height, width) = len(mapped), source.shape[:2]
    groups = mapped.shape[1]
    # One row of maps for each group of rows; columns stay in the pieces that they are made in.
    across = stretched(mapped.flatten(0, 1), width)
    pieces = len(across)
    across = across.view(pieces, count, 1, groups, -1).permute(3, 2, 1, 0, 4)
    out, low = enlarged.view(groups, height // groups, 2, 3, pieces, -1).unbind(2)
    lost = source.to(device).transpose(1, 2).contiguous().float().view(groups, height // groups, 3, pieces, -1)
    if peak != 255:
        enlarged *= peak / 255
    if count > 10:
        counts = across[:, :, 10:11]
        lost.addcmul_(counts, low, value=-1)
    else:
        lost -= low
    if same:
        out.addcmul_(across[:, :, 9:10], low.sub_(out))
    if count > 10:
        out.mul_(counts).add_(across[:, :, 11:], alpha=peak / 255)
    for channel in range(3):
        out.addcmul_(across[:, :, channel:9:3], lost[:, :, channel : channel + 1])
    result = enlarged[:, 0].add_(0.5).clamp_(0, peak)
    if device.type == "cpu":
        return result
    # A device carries less to the host; not every one casts to 16 bits.
    return result.to(torch.uint8 if peak == 255 else torch.int32)
