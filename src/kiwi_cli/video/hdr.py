"""HDR (PQ and HLG) for a model that knows only SDR: ITU-R BT.2446 method A there, and the same curve back.

The model sees the picture as an SDR screen would show it. What it changes goes back through the inverse, so that
the result is as bright as the clip; what it leaves alone never takes this way.
"""

from __future__ import annotations

import struct
from fractions import Fraction
from functools import cache
from typing import Any

import av
import numpy as np

_PQ, _HLG = 16, 18  # AVCOL_TRC_*
_BT2020_PRIMARIES = 9
_R, _G, _B = 0.2627, 0.6780, 0.0593  # BT.2020's luma
_SDR_PEAK = 100.0  # cd/m2, what method A aims at
_HLG_PEAK = 1000.0  # cd/m2 of the screen that HLG's system gamma of 1.2 is for
# linear BT.2020 to linear BT.709 (ITU-R BT.2087)
_TO_709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)
_FROM_709 = np.linalg.inv(_TO_709).astype(np.float32)
_STEPS = 4096  # entries of a curve


def to_sdr(
    rgb: np.ndarray, transfer: int, primaries: int, peak: float, kind: type[np.uint8 | np.uint16] = np.uint8
) -> np.ndarray:
    """The SDR picture (H, W, 3) of stored HDR values, all bits of `kind` used.

    Args:
        rgb: (H, W, 3) uint16, full range, in the clip's own transfer.
        transfer, primaries: the clip's tags. peak: the brightest light of the clip, cd/m2.
    """
    peak = _peak(transfer, peak)
    values = _light_table(transfer, peak)[rgb]  # gamma 2.4 of light relative to the peak
    luma = values @ np.array([_R, _G, _B], np.float32)
    mapped = np.interp(luma, _grid(), _curve(peak)).astype(np.float32)
    factor = mapped / np.maximum(1.1 * luma, 1e-6)
    cb = factor * (values[..., 2] - luma) / 1.8814
    cr = factor * (values[..., 0] - luma) / 1.4746
    luma = mapped - np.maximum(0.1 * cr, 0)
    sdr = _rgb(luma, cb, cr)
    if primaries == _BT2020_PRIMARIES:
        sdr = _regamut(sdr, _TO_709)
    return (np.clip(sdr, 0, 1) * np.iinfo(kind).max + 0.5).astype(kind)


def from_sdr(rgb: np.ndarray, transfer: int, primaries: int, peak: float) -> np.ndarray:
    """The stored HDR values (H, W, 3) uint16 that `to_sdr` shows as `rgb`, (H, W, 3) uint8 or uint16."""
    peak = _peak(transfer, peak)
    sdr = rgb.astype(np.float32) / np.iinfo(rgb.dtype).max
    if primaries == _BT2020_PRIMARIES:
        sdr = _regamut(sdr, _FROM_709)
    luma = sdr @ np.array([_R, _G, _B], np.float32)
    cb, cr = (sdr[..., 2] - luma) / 1.8814, (sdr[..., 0] - luma) / 1.4746
    mapped = luma + np.maximum(0.1 * cr, 0)
    luma = np.interp(mapped, _curve(peak), _grid()).astype(np.float32)
    factor = np.maximum(mapped, 1e-6) / np.maximum(1.1 * luma, 1e-6)
    values = np.clip(_rgb(luma, cb / factor, cr / factor), 0, 1)
    table = _light_table(transfer, peak)
    return np.interp(values, table, np.arange(65_536)).round().astype(np.uint16)


def _rgb(luma: np.ndarray, cb: np.ndarray, cr: np.ndarray) -> np.ndarray:
    red, blue = luma + 1.4746 * cr, luma + 1.8814 * cb
    return np.stack([red, (luma - _R * red - _B * blue) / _G, blue], axis=-1)


def _regamut(values: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    linear = np.clip(values, 0, 1) ** np.float32(2.4)
    return np.clip(linear @ matrix.T, 0, 1) ** np.float32(1 / 2.4)


def _peak(transfer: int, peak: float) -> float:
    return _HLG_PEAK if transfer == _HLG else min(max(peak, 200.0), 10_000.0)


@cache
def _light_table(transfer: int, peak: float) -> np.ndarray:
    """For every 16-bit stored value the light relative to the peak, with gamma 2.4."""
    stored = np.arange(65_536) / 65_535
    if transfer == _PQ:  # SMPTE ST 2084
        power = stored ** (1 / 78.84375)
        light = (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125) * 10_000
    else:  # ARIB STD-B67; the system gamma is taken by channel, which keeps greys exact and one table enough
        scene = np.where(stored <= 0.5, stored**2 / 3, (np.exp((stored - 0.55991073) / 0.17883277) + 0.28466892) / 12)
        light = scene**1.2 * _HLG_PEAK
    return (np.clip(light / peak, 0, 1) ** (1 / 2.4)).astype(np.float32)


def _grid() -> np.ndarray:
    return np.linspace(0, 1, _STEPS)


@cache
def _curve(peak: float) -> np.ndarray:
    """Method A's tone curve on the grid of HDR luma."""
    wide = 1 + 32 * (peak / 10_000) ** (1 / 2.4)
    narrow = 1 + 32 * (_SDR_PEAK / 10_000) ** (1 / 2.4)
    perceived = np.log(1 + (wide - 1) * _grid()) / np.log(wide)
    bent = np.where(
        perceived <= 0.7399,
        1.0770 * perceived,
        np.where(perceived < 0.9909, -1.1510 * perceived**2 + 2.7811 * perceived - 0.6302, 0.5 * perceived + 0.5),
    )
    return np.maximum.accumulate((narrow**bent - 1) / (narrow - 1))


def mastering_display(frame: av.VideoFrame) -> tuple[Fraction, ...] | None:
    """(red x, y, green x, y, blue x, y, white x, y, darkest, brightest) of SMPTE ST 2086, None where not said."""
    side: Any = frame.side_data.get("MASTERING_DISPLAY_METADATA")
    data = bytes(side) if side is not None else b""
    if len(data) < 88:
        return None
    numbers = struct.unpack("=22i", data[:88])  # ten rationals, then which of them are set
    if not all(numbers[1:20:2]) or not (numbers[20] and numbers[21]):
        return None
    return tuple(Fraction(numbers[i], numbers[i + 1]) for i in range(0, 20, 2))


def light_level(frame: av.VideoFrame) -> tuple[int, int] | None:
    """(MaxCLL, MaxFALL) of CTA-861.3, cd/m2; None where not said."""
    side: Any = frame.side_data.get("CONTENT_LIGHT_LEVEL")
    data = bytes(side) if side is not None else b""
    return struct.unpack("=2I", data[:8]) if len(data) >= 8 else None
