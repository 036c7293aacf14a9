"""Names of planar YUV formats, and how they store a picture."""

from __future__ import annotations

import re
from typing import NamedTuple

_PLANAR = re.compile(r"(?:yuvj?|yuva)(420|422|444|440|411|410)p(\d*)(?:le|be)?")
_GRAY = re.compile(r"gray(\d*)(?:le|be)?")
# packed and semi-planar formats -> the planar format with the same samples
_SAME_SAMPLES = {
    "nv12": "yuv420p",
    "nv21": "yuv420p",
    "nv16": "yuv422p",
    "nv24": "yuv444p",
    "yuyv422": "yuv422p",
    "uyvy422": "yuv422p",
    "yvyu422": "yuv422p",
    "uyyvyy411": "yuv411p",
    "p010le": "yuv420p10le",
    "p210le": "yuv422p10le",
    "y210le": "yuv422p10le",
    "p012le": "yuv420p12le",
    "p016le": "yuv420p16le",
}
_FACTORS = {"420": (2, 2), "422": (2, 1), "444": (1, 1), "440": (1, 2), "411": (4, 1), "410": (4, 4)}


class Grid(NamedTuple):
    """How a planar YUV format stores a picture. `factors`: luma samples per chroma sample, across and down."""

    factors: tuple[int, int]
    depth: int
    gray: bool = False


def planar_name(pixel_format: str) -> str | None:
    """The little-endian planar YUV or grey format that holds exactly the same samples; None for RGB and the rest."""
    name = _SAME_SAMPLES.get(pixel_format, pixel_format)
    if match := _PLANAR.fullmatch(name):
        return f"yuv{match[1]}p{match[2]}" + ("le" if match[2] else "")
    if match := _GRAY.fullmatch(name):
        return f"gray{match[1]}" + ("le" if match[1] else "")
    return None


def grid_of(pixel_format: str) -> Grid | None:
    """The grid of a planar YUV or grey format; None for others."""
    name = planar_name(pixel_format)
    if name is None:
        return None
    if match := _PLANAR.fullmatch(name):
        return Grid(_FACTORS[match[1]], int(match[2] or 8))
    match = _GRAY.fullmatch(name)
    assert match is not None
    return Grid((1, 1), int(match[1] or 8), gray=True)
