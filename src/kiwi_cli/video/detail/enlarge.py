"""Frames at full size, whole where that is small, else a strip at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kiwi_cli.video.detail.maps import resized


class Enlarged:
    """A frame at another size, bicubic with antialiasing.

    Bytes are enlarged whole, which torch does several times as fast. Floats would be four frames of bytes: theirs are
    made as they are asked for, with the same weights.

    Args:
        frame: (h, w, 3), bytes or floats.
    """

    def __init__(self, frame: torch.Tensor, height: int, width: int) -> None:
        self._width = width
        self._frame, self._whole = frame, not frame.is_floating_point() or frame.shape[:2] == (height, width)
        if self._whole:
            self._frame = resized(frame, height, width, "bicubic")
            return
        count = len(frame)
        each = F.interpolate(torch.eye(count)[None, None], size=(height, count), mode="bicubic", antialias=True)[0, 0]
        used, place = each != 0, torch.arange(count)
        self._first = (used * (count - place)).argmax(1)
        last = (used * (place + 1)).argmax(1)
        taps = self._first[:, None] + torch.arange(int((last - self._first).max()) + 1)
        weights = each.gather(1, taps.clamp_max(count - 1)) * (taps <= last[:, None])
        self._weights = weights.to(frame.device, frame.dtype)

    def rows(self, part: slice) -> torch.Tensor:
        """(n, W, 3): those rows of it, all of them within."""
        if self._whole:
            return self._frame[part]
        first, weights = self._first[part], self._weights[part]
        top, taps = int(first.min()), weights.shape[1]
        near = self._frame[top : int(first.max()) + taps]
        wide = resized(near, len(near), self._width, "bicubic")
        total = torch.zeros((len(first), *wide.shape[1:]), dtype=wide.dtype, device=wide.device)
        for tap in range(taps):
            index = (first + (tap - top)).clamp_max(len(near) - 1).to(wide.device)
            total += wide[index] * weights[:, tap, None, None]
        return total
