"""Stored YUV samples as arrays: out of a decoded frame, from RGB, and into the encoder's frame.

swscale's own RGB to YUV places 4:2:0 chroma in the middle whatever the clip's siting, and cuts full-range chroma
instead of rounding it: colours that drift a little to the left, or to green, with every generation.
"""

from __future__ import annotations

from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from kiwi_cli.video.clip import Colour, Siting
from kiwi_cli.video.formats import Grid, grid_of, planar_name
from kiwi_cli.video.siting import turned

# matrix -> weights of red and blue in the luma (ITU-R BT.601, BT.709, BT.2020, FCC 73.682, SMPTE 240M)
WEIGHTS = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
    "fcc": (0.30, 0.11),
    "smpte240m": (0.212, 0.087),
}


class Samples(NamedTuple):
    """Upright planes of a frame, integers: luma, and where the format has them the two of chroma."""

    planes: tuple[np.ndarray, ...]
    grid: Grid
    siting: Siting


class Unpacker:
    """Takes decoded frames apart. One per reader: it keeps swscale's tables."""

    def __init__(self, colour: Colour) -> None:
        self._colour = colour
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame, rotation: int, mirrored: bool) -> Samples | None:
        """The frame's samples, upright; None where it has none or turning them would need new ones."""
        name = planar_name(frame.format.name)
        grid = grid_of(frame.format.name)
        if name is None or grid is None:
            return None
        across, down = grid.factors
        if rotation % 180 and across != down:
            return None
        moved = bool(rotation or mirrored)
        if moved and (frame.width % across or frame.height % down):
            return None
        stored = frame.format.name.replace("yuva", "yuv").replace("yuvj", "yuv")
        if stored != name or frame.format.name.startswith("yuva"):
            frame = self._reformatter.reformat(frame, format=name, threads=1, **self._same_range())
        planes = [_array(frame, index, grid) for index in range(1 if grid.gray else 3)]
        if moved:
            planes = [_upright(plane, rotation, mirrored) for plane in planes]
        return Samples(tuple(planes), grid, turned(self._colour.siting, rotation, mirrored))

    def _same_range(self) -> dict[str, int]:
        level = 2 if self._colour.full_range else 1
        return {"src_color_range": level, "dst_color_range": level}


def from_rgb(rgb: np.ndarray, colour: Colour, grid: Grid) -> list[np.ndarray]:
    """Planes of (H, W, 3) uint8 or uint16 RGB in the colour's matrix, range and siting: rounded integers.

    Chroma is averaged over the samples that it stands for: in pairs where it lies between them, with weights
    1, 2, 1 where it lies on one.
    """
    red, blue = WEIGHTS[colour.matrix]
    r, g, b = (rgb[..., i].astype(np.float32) for i in range(3))
    luma = red * r
    luma += (1 - red - blue) * g
    luma += blue * b
    top = 255.0 if rgb.dtype == np.uint8 else 65_535.0
    scale, offset, spread, middle = _levels(grid.depth, colour.full_range)
    kind = np.uint8 if grid.depth == 8 else np.uint16
    limit = (1 << grid.depth) - 1

    def stored(values: np.ndarray, factor: float, shift: float) -> np.ndarray:
        values = values * np.float32(factor / top)
        values += np.float32(shift + 0.5)
        np.clip(values, 0, limit, out=values)
        return values.astype(kind)

    planes = [stored(luma, scale, offset)]
    if grid.gray:
        return planes
    small = [_reduced(plane, grid.factors, colour.siting) for plane in (luma, b, r)]
    planes.append(stored(small[1] - small[0], spread / (2 * (1 - blue)), middle))
    planes.append(stored(small[2] - small[0], spread / (2 * (1 - red)), middle))
    return planes


def to_rgb(planes: list[np.ndarray], depth: int, colour: Colour, out: np.ndarray) -> None:
    """Fill `out`, (H, W, 3) uint16, from three 16-bit planes of equal size, whose upper `depth` bits are set."""
    red, blue = WEIGHTS[colour.matrix]
    scale, offset, spread, middle = (level * (1 << (16 - depth)) for level in _levels(depth, colour.full_range))
    luma = (planes[0].astype(np.float32) - np.float32(offset)) * np.float32(65_535 / scale)
    b, r = (
        (plane.astype(np.float32) - np.float32(middle)) * np.float32(65_535 / spread * 2 * (1 - weight))
        for plane, weight in zip(planes[1:], (blue, red), strict=True)
    )
    g = -(red * r + blue * b) / np.float32(1 - red - blue)
    for index, values in enumerate((r, g, b)):
        values += luma + np.float32(0.5)
        out[..., index] = np.clip(values, 0, 65_535)


def keep(planes: list[np.ndarray], source: Samples, changed: np.ndarray | None, grid: Grid, colour: Colour) -> bool:
    """Put the source's own samples into `planes` wherever the picture is not changed.

    Args:
        planes: of the output's grid, changed in place.
        changed: (H, W) bool; None where nothing is.
        colour: of the output.

    Returns:
        Whether every sample could be taken from the source (with fewer bits where the output has fewer).
    """
    depths = source.grid.depth, grid.depth
    _take(planes[0], source.planes[0], changed, depths, colour.full_range)
    if source.grid.gray or grid.gray:
        return True
    if grid.factors != source.grid.factors or (
        grid.factors != (1, 1) and not _same(colour.siting, source.siting, grid)
    ):
        return False
    if changed is not None:
        changed = _any_of(changed, grid.factors)
    for plane, own in zip(planes[1:], source.planes[1:], strict=True):
        _take(plane, own, changed, depths, colour.full_range)
    return True


def to_frame(planes: list[np.ndarray], pixel_format: str) -> av.VideoFrame:
    """An encoder's frame of the planes."""
    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, pixel_format)
    for plane, values in zip(frame.planes, planes, strict=True):
        lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size).view(values.dtype)
        lines[: values.shape[0], : values.shape[1]] = values
    return frame


def empty(shape: tuple[int, ...], grid: Grid) -> list[np.ndarray]:
    """Planes of the grid without chroma, to be filled."""
    kind = np.uint8 if grid.depth == 8 else np.uint16
    height, width = shape
    across, down = grid.factors
    planes = [np.zeros((height, width), kind)]
    for _ in range(0 if grid.gray else 2):
        planes.append(np.full((-(-height // down), -(-width // across)), 1 << (grid.depth - 1), kind))
    return planes


def _levels(depth: int, full_range: bool) -> tuple[float, float, float, float]:
    """(luma levels from black to white, black, chroma levels from end to end, chroma's zero)."""
    one = float(1 << (depth - 8))
    if full_range:
        return (1 << depth) - 1.0, 0.0, (1 << depth) - 1.0, 128 * one
    return 219 * one, 16 * one, 224 * one, 128 * one


def _reduced(plane: np.ndarray, factors: tuple[int, int], siting: Siting) -> np.ndarray:
    """A plane at chroma's resolution, at chroma's place."""
    across, down = factors
    plane = _reduced_down(plane, down, siting.down)
    return _reduced_down(plane.T, across, siting.across).T if across > 1 else plane


def _reduced_down(plane: np.ndarray, factor: int, place: float) -> np.ndarray:
    if factor == 1:
        return plane
    extra = -plane.shape[0] % factor
    if place == 0.5:
        padded = np.pad(plane, ((0, extra), (0, 0)), "edge") if extra else plane
        parts = [padded[i::factor] for i in range(factor)]
        return np.add.reduce(parts) * np.float32(1 / factor)
    reach = factor - 1
    first = 0 if place < 0.5 else reach
    padded = np.pad(plane, ((reach, reach + extra), (0, 0)), "edge")
    count = (plane.shape[0] + extra) // factor
    total: np.ndarray | None = None
    for step in range(-reach, reach + 1):
        begin = reach + first + step
        part = padded[begin : begin + factor * count : factor][:count] * np.float32((factor - abs(step)) / factor**2)
        total = part if total is None else total + part
    assert total is not None
    return total


def _take(
    plane: np.ndarray, own: np.ndarray, changed: np.ndarray | None, depths: tuple[int, int], full_range: bool
) -> None:
    """Copy samples that are not changed, from one depth to another: by factors of two, as video levels are; full
    range from its highest level to the other's."""
    before, after = depths
    if before != after and full_range:
        own = np.rint(own * (((1 << after) - 1) / ((1 << before) - 1))).astype(plane.dtype)
    elif after > before:
        own = own.astype(np.uint16) << (after - before)
    elif after < before:
        # halves go to the even level: always up would tint the whole clip
        less = before - after
        wide = own.astype(np.uint32)
        own = np.minimum((wide + (1 << (less - 1)) - 1 + (wide >> less & 1)) >> less, (1 << after) - 1)
    if changed is None:
        plane[...] = own
    else:
        np.copyto(plane, own, where=~changed, casting="unsafe")


def _any_of(changed: np.ndarray, factors: tuple[int, int]) -> np.ndarray:
    """For each chroma sample whether any of the pixels that it stands for is changed."""
    across, down = factors
    height, width = changed.shape
    padded = np.pad(changed, ((0, -height % down), (0, -width % across)), "edge")
    found = padded[::down, ::across].copy()
    for row in range(down):
        for column in range(across):
            found |= padded[row::down, column::across]
    return found


def _same(one: Siting, other: Siting, grid: Grid) -> bool:
    across, down = grid.factors
    return (across == 1 or one.across == other.across) and (down == 1 or one.down == other.down)


def _array(frame: av.VideoFrame, index: int, grid: Grid) -> np.ndarray:
    plane = frame.planes[index]
    lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    values = lines if grid.depth == 8 else lines.view("<u2")
    return values[: plane.height, : plane.width]


def _upright(plane: np.ndarray, rotation: int, mirrored: bool) -> np.ndarray:
    return np.rot90(plane[:, ::-1] if mirrored else plane, -rotation // 90)
