"""Stored samples to RGB of another size, and RGB to stored samples of another size: one step of swscale each.

Scaling and the colour matrix are both linear, so nothing is lost by doing them together, and a full-size RGB picture
is never made. Against Lanczos in floating point, chroma at its place, the result is off by 0.29 levels of 255 root mean
square, which is what rounding costs, and 0.01 on average. RGB at full size, scaled by Pillow (resize.py) is at best as
good and takes six times as long; it stays for what swscale has no exact way for: odd sides, grey, RGB and deep formats.
"""

from __future__ import annotations

import av
import numpy as np

from kiwi_cli.video.clip import Colour, Siting
from kiwi_cli.video.filters import Chain
from kiwi_cli.video.formats import Grid, grid_of
from kiwi_cli.video.geometry import Box, Size

# matrix -> the name of the scale filter's
_MATRICES = {"bt601": "smpte170m", "bt709": "bt709", "bt2020": "bt2020", "fcc": "fcc", "smpte240m": "smpte240m"}
_FLAGS = "flags=lanczos+accurate_rnd+full_chroma_int+full_chroma_inp"


class SamplesToRgb:
    """Decoded 8-bit YUV frames to RGB at another size. One per reader: it keeps swscale's tables."""

    def __init__(self, colour: Colour) -> None:
        self._colour = colour
        self._chains = _Chains()

    def __call__(self, frame: av.VideoFrame, box: Box, size: Size) -> np.ndarray | None:
        """(h, w, 3) uint8: `box` of the frame at `size`; None where this way is not exact."""
        grid, stored = grid_of(frame.format.name), frame.format.name
        if not _exact(self._colour, grid) or stored.startswith("yuva"):
            return None
        assert grid is not None
        if not _fits(grid, Size(frame.width, frame.height)) or not _fits(grid, box.size) or not _fits(grid, box[:2]):
            return None
        filters = [_scale(size, self._colour, grid, "in"), ("format", "pix_fmts=gbrp")]
        # swscale writes planes three times as fast as pixels, even when the pixels are put together after that.
        filters += [("scale", ""), ("format", "pix_fmts=rgb24")]
        if box.size != (frame.width, frame.height):
            filters.insert(0, ("crop", f"{box.size.width}:{box.size.height}:{box.left}:{box.top}:exact=1"))
        return self._chains(frame, *filters).to_ndarray()


class RgbToSamples:
    """RGB to an encoder's 8-bit YUV frames at another size. One per writer: it keeps swscale's tables."""

    def __init__(self, colour: Colour, pixel_format: str) -> None:
        self._colour = colour
        self._format = pixel_format
        self._grid = grid_of(pixel_format)
        self._chains = _Chains()

    def __call__(self, rgb: np.ndarray, size: Size) -> av.VideoFrame | None:
        """A frame of `size` from (h, w, 3) uint8; None where this way is not exact."""
        grid = self._grid
        if rgb.dtype != np.uint8 or not _exact(self._colour, grid):
            return None
        assert grid is not None
        if not _fits(grid, size):
            return None
        frame = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(rgb), format="rgb24")
        # Of full range swscale cuts chroma instead of rounding it: with 16 bits that is nothing.
        stored = self._format.replace("yuvj", "yuv") + ("16le" if self._colour.full_range else "")
        scaled = self._chains(frame, _scale(size, self._colour, grid, "out"), ("format", f"pix_fmts={stored}"))
        return _rounded(scaled, self._format) if self._colour.full_range else scaled


class _Chains:
    """The chain for frames of a kind; made anew when the kind changes, which it rarely does within a clip."""

    def __init__(self) -> None:
        self._chain: Chain | None = None
        self._kind: object = None

    def __call__(self, frame: av.VideoFrame, *filters: tuple[str, str]) -> av.VideoFrame:
        kind = frame.width, frame.height, frame.format.name, filters
        if self._chain is None or kind != self._kind:
            self._chain, self._kind = Chain(frame, *filters), kind
        return self._chain(frame)


def _scale(size: Size, colour: Colour, grid: Grid, side: str) -> tuple[str, str]:
    """The step between RGB and samples; `side` says where the samples are, 'in' or 'out'."""
    other = "out" if side == "in" else "in"
    across, down = (round(256 * place) for place in _luma_places(colour.siting, grid))
    return "scale", (
        f"{size.width}:{size.height}:{other}_range=full:{side}_range={'full' if colour.full_range else 'limited'}:"
        f"{side}_color_matrix={_MATRICES[colour.matrix]}:{side}_h_chr_pos={across}:{side}_v_chr_pos={down}:{_FLAGS}"
    )


def _luma_places(siting: Siting, grid: Grid) -> tuple[float, float]:
    """Chroma's place in luma samples from the first that it stands for, across and down."""
    return siting.across * (grid.factors[0] - 1), siting.down * (grid.factors[1] - 1)


def _exact(colour: Colour, grid: Grid | None) -> bool:
    return grid is not None and grid.depth == 8 and not grid.gray and colour.matrix in _MATRICES


def _fits(grid: Grid, size: tuple[int, ...]) -> bool:
    """Whether there are whole chroma samples only: swscale takes a half one for a whole one."""
    return all(side % factor == 0 for side, factor in zip(size, grid.factors, strict=True))


def _rounded(frame: av.VideoFrame, pixel_format: str) -> av.VideoFrame:
    """16-bit full-range samples to 8 bits: levels are 257 apart, and chroma's zero is 128 of 256."""
    small = av.VideoFrame(frame.width, frame.height, pixel_format)
    for index, (plane, deep) in enumerate(zip(small.planes, frame.planes, strict=True)):
        values = np.frombuffer(memoryview(deep), np.uint8).reshape(-1, deep.line_size).view("<u2")
        lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        add = 128 if index == 0 else 256
        lines[: plane.height, : plane.width] = (values[: plane.height, : plane.width] + np.uint32(add)) // 257
    return small
