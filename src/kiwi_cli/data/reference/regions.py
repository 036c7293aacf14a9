"""Where frames differ, and regions of pixels: boxes, pieces, filling."""

from __future__ import annotations

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in 0..1 of the frame."""


def changed(source: np.ndarray, target: np.ndarray, tolerance: int) -> np.ndarray:
    """(..., H, W) bool: where a channel of two uint8 pictures or clips differs by more than `tolerance` levels."""
    apart = np.zeros(source.shape[:-1], bool)
    for channel in range(source.shape[-1]):  # one at a time: clips of int16 would take four times the clip
        one, other = source[..., channel], target[..., channel]
        apart |= np.maximum(one, other) - np.minimum(one, other) > tolerance
    return apart


def pieces(region: np.ndarray, least: float = 0.1) -> np.ndarray:
    """A region (H, W) without what is small: connected pieces of at least `least` of the largest one's area."""
    labels, areas = _label(region)
    if not areas.size:
        return region
    return np.append(areas >= least * areas.max(), False)[labels]


def _label(region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) numbers of connected pieces, -1 outside, and each piece's area; pieces touch by their sides."""
    parents: list[int] = []

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    runs: list[tuple[int, int, int]] = []  # (line, begin, end); its place here is its number
    above: list[int] = []
    for line, pixels in enumerate(region):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], pixels.astype(np.int8), [0]))))
        here = []
        for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            number = len(runs)
            runs.append((line, begin, end))
            parents.append(number)
            here.append(number)
            for other in above:
                if runs[other][1] < end and begin < runs[other][2]:
                    parents[root(other)] = root(number)
        above = here
    roots = {number: place for place, number in enumerate(sorted({root(n) for n in range(len(runs))}))}
    labels, areas = np.full(region.shape, -1, np.int32), np.zeros(len(roots), np.int64)
    for number, (line, begin, end) in enumerate(runs):
        place = roots[root(number)]
        labels[line, begin:end] = place
        areas[place] += end - begin
    return labels, areas


def box_of(region: np.ndarray) -> Box | None:
    """The box around a region (H, W); None of an empty one."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    if not rows.size:
        return None
    height, width = region.shape
    edges = (columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height)
    left, top, right, bottom = (round(float(edge), 6) for edge in edges)
    return left, top, right, bottom


def filled_box(box: Box, height: int, width: int) -> np.ndarray:
    """(H, W) bool: the pixels of a box."""
    left, right = round(box[0] * width), round(box[2] * width)
    top, bottom = round(box[1] * height), round(box[3] * height)
    region = np.zeros((height, width), bool)
    region[top:bottom, left:right] = True
    return region


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two regions; 1 of two empty ones."""
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0


def grown(region: np.ndarray) -> np.ndarray:
    """A region (H, W) with a border, for a segmenter's edge is never exact: two pixels, or 1 in 100 of a side."""
    for _ in range(max(2, round(min(region.shape) / 100))):
        wide = np.pad(region, 1)
        region = wide[1:-1, 1:-1] | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
    return region


def fill(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) uint8 whose hole (H, W) is filled smoothly from around it.

    Each pixel of the hole gets the average of what is known near it: of the smallest of 2x2, 4x4, ... pixels that hold
    something known, then softened towards its neighbours.
    """
    known = ~hole
    if known.all() or not known.any():
        return picture
    filled = _pulled(picture.astype(np.float64) * known[..., None], known.astype(np.float64))
    result = np.where(hole[..., None], filled, picture)
    for _ in range(8):
        padded = np.pad(result, ((1, 1), (1, 1), (0, 0)), mode="edge")
        soft = (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]) / 4
        result = np.where(hole[..., None], soft, result)
    return np.clip(np.round(result), 0, 255).astype(np.uint8)


def _pulled(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Values where something is known, and elsewhere those of the picture at half the size."""
    if weights.all() or min(weights.shape) == 1:
        whole = values.sum(axis=(0, 1)) / max(weights.sum(), 1e-9)
        return np.where(weights[..., None] > 0, values / np.maximum(weights, 1e-9)[..., None], whole)
    high, wide = weights.shape
    odd = ((0, high % 2), (0, wide % 2))
    v, w = np.pad(values, (*odd, (0, 0))), np.pad(weights, odd)
    v = v[::2, ::2] + v[1::2, ::2] + v[::2, 1::2] + v[1::2, 1::2]
    w = w[::2, ::2] + w[1::2, ::2] + w[::2, 1::2] + w[1::2, 1::2]
    small = _pulled(v, w).repeat(2, axis=0).repeat(2, axis=1)[:high, :wide]
    return np.where(weights[..., None] > 0, values / np.maximum(weights, 1e-9)[..., None], small)


def cut_out(picture: np.ndarray, region: np.ndarray, margin: float) -> Image.Image | None:
    """What a region (H, W) of a picture shows, on white, cropped tightly; None of an empty region.

    Args:
        margin: of the longer side of the region's box, on every side.
    """
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    if not rows.size:
        return None
    some = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    inner = np.where(region[some][..., None], picture[some], np.uint8(255))
    edge = round(margin * max(inner.shape[:2]))
    return Image.fromarray(np.pad(inner, ((edge, edge), (edge, edge), (0, 0)), constant_values=255))
