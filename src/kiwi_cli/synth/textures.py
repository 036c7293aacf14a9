"""Grounds: colour as a function of place, so that a camera that drifts is a shift of the coordinates.

Coordinates are in units of the frame's shorter side, so a scene looks the same at any size. Each texture has its
random choices in an object and is painted at any resolution and at any time from it.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (216, 40, 40),
    "orange": (242, 138, 24),
    "yellow": (242, 220, 48),
    "green": (44, 160, 60),
    "blue": (40, 72, 216),
    "purple": (132, 52, 188),
    "pink": (244, 136, 190),
    "turquoise": (40, 196, 190),
    "brown": (122, 74, 38),
    "grey": (128, 128, 128),
    "white": (240, 240, 240),
    "black": (24, 24, 24),
}
"""Colours that instructions name, sRGB."""

HELD_OUT_HUES = ((0.11, 0.17), (0.44, 0.52), (0.78, 0.86))
"""Hues, as fractions of the circle, that no ground of a training scene has."""

SEEN = ("gradient", "stripes", "cells", "noise", "shapes", "clouds")
HELD_OUT = ("rings", "waves")
"""Families of textures; the latter are kept for tests."""

Paint = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(..., ) x and y -> (..., 3) fp32 RGB in 0..1."""


def rgb(name: str) -> np.ndarray:
    """A named colour, (3,) fp32 in 0..1."""
    return np.array(PALETTE[name], np.float32) / 255.0


def _in_held_out_band(hue: float) -> bool:
    return any(low <= hue <= high for low, high in HELD_OUT_HUES)


def random_colour(rng: np.random.Generator, held_out: bool = False) -> np.ndarray:
    """A ground's colour, (3,) fp32 in 0..1, its hue inside or outside the held-out bands."""
    if held_out:
        low, high = HELD_OUT_HUES[rng.integers(len(HELD_OUT_HUES))]
        hue = float(rng.uniform(low, high))
    else:
        hue = float(rng.uniform())
        while _in_held_out_band(hue):
            hue = float(rng.uniform())
    saturation, value = float(rng.uniform(0.15, 0.95)), float(rng.uniform(0.25, 1.0))
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)


def random_colours(rng: np.random.Generator, count: int, held_out: bool = False) -> np.ndarray:
    """(count, 3) colours that can be told apart: neighbours differ by 0.35 or more in some channel."""
    colours = [random_colour(rng, held_out)]
    while len(colours) < count:
        # In a held-out scene the first colour is a held-out one, the rest are either.
        colour = random_colour(rng, held_out and bool(rng.integers(2)))
        if np.abs(colour - colours[-1]).max() >= 0.35:
            colours.append(colour)
    return np.stack(colours)


def smoothstep(value: np.ndarray, width: float) -> np.ndarray:
    """0 below -width, 1 above +width, smooth between."""
    t = np.clip(value / (2 * width) + 0.5, 0.0, 1.0)
    return t * t * (3 - 2 * t)


def mix(first: np.ndarray, second: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """Colours blended by `amount` in 0..1, (..., 3); at 0 and 1 to the bit the one and the other."""
    return first * (1 - amount[..., None]) + second * amount[..., None]


@dataclass(frozen=True)
class Plain:
    """One colour."""

    colour: np.ndarray

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.broadcast_to(self.colour, (*x.shape, 3)).astype(np.float32)


@dataclass(frozen=True)
class Gradient:
    """Two colours, blended along a direction over `length`, then back again."""

    first: np.ndarray
    second: np.ndarray
    angle: float
    length: float
    start: float = 0.0

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        along = (x * np.cos(self.angle) + y * np.sin(self.angle) - self.start) / self.length
        return mix(self.first, self.second, 1.0 - np.abs((along % 2.0) - 1.0))


@dataclass(frozen=True)
class Stripes:
    """Two colours in turn, with edges soft enough not to shimmer at 64 pixels."""

    first: np.ndarray
    second: np.ndarray
    angle: float
    period: float
    start: float = 0.0

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        along = (x * np.cos(self.angle) + y * np.sin(self.angle) - self.start) / self.period
        wave = np.abs((along % 1.0) - 0.5) - 0.25
        return mix(self.first, self.second, smoothstep(wave * self.period, 0.012))


@dataclass(frozen=True)
class Cells:
    """Voronoi cells, each of one colour."""

    centres: np.ndarray
    colours: np.ndarray

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        distances = np.stack([(x - cx) ** 2 + (y - cy) ** 2 for cx, cy in self.centres])
        return self.colours[distances.argmin(axis=0)].astype(np.float32)


@dataclass(frozen=True)
class Noise:
    """Smooth noise in octaves between colours; the lattice repeats, so any coordinate has a value."""

    lattices: tuple[np.ndarray, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    colours: np.ndarray

    def _value(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        total = np.zeros(x.shape, np.float32)
        for lattice, scale, weight in zip(self.lattices, self.scales, self.weights, strict=True):
            size = len(lattice)
            u, v = x * scale, y * scale
            left, top = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
            fu, fv = u - left, v - top
            fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
            x0, x1, y0, y1 = left % size, (left + 1) % size, top % size, (top + 1) % size
            upper = lattice[y0, x0] * (1 - fu) + lattice[y0, x1] * fu
            lower = lattice[y1, x0] * (1 - fu) + lattice[y1, x1] * fu
            total += weight * (upper * (1 - fv) + lower * fv)
        return total

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        place = np.clip(self._value(x, y), 0.0, 0.999) * (len(self.colours) - 1)
        index = place.astype(np.int64)
        return mix(self.colours[index], self.colours[index + 1], (place - index).astype(np.float32))


@dataclass(frozen=True)
class Shapes:
    """Overlapping soft discs and boxes on one colour."""

    base: np.ndarray
    discs: tuple[tuple[float, float, float, bool], ...]
    colours: np.ndarray

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        picture = Plain(self.base)(x, y)
        for (cx, cy, radius, box), colour in zip(self.discs, self.colours, strict=True):
            # The pattern repeats every 2 units, so that a drifting camera never runs out of it.
            dx, dy = (x - cx + 1.0) % 2.0 - 1.0, (y - cy + 1.0) % 2.0 - 1.0
            distance = np.maximum(np.abs(dx), np.abs(dy)) if box else np.hypot(dx, dy)
            picture = mix(picture, colour, smoothstep(radius - distance, 0.012))
        return picture


@dataclass(frozen=True)
class Rings:
    """Two colours in rings around a point. Held out."""

    first: np.ndarray
    second: np.ndarray
    centre: tuple[float, float]
    period: float

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        radius = np.hypot(x - self.centre[0], y - self.centre[1]) / self.period
        return mix(self.first, self.second, 0.5 + 0.5 * np.cos(2 * np.pi * radius).astype(np.float32))


@dataclass(frozen=True)
class Waves:
    """Two colours in wavy bands. Held out."""

    first: np.ndarray
    second: np.ndarray
    period: float
    bend: float
    start: float

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        along = (y + self.bend * np.sin(2 * np.pi * x / 0.9 + self.start)) / self.period
        return mix(self.first, self.second, 0.5 + 0.5 * np.sin(2 * np.pi * along).astype(np.float32))


def random_texture(rng: np.random.Generator, family: str, held_out: bool = False) -> Paint:
    """A texture of one of the families `SEEN` or `HELD_OUT`; `held_out` says which hues it may have."""
    angle, start = float(rng.uniform(0, np.pi)), float(rng.uniform(0, 2))

    def pair() -> tuple[np.ndarray, np.ndarray]:
        first, second = random_colours(rng, 2, held_out)
        return first, second

    if family == "gradient":
        return Gradient(*pair(), angle, float(rng.uniform(0.6, 1.3)), start)
    if family == "stripes":
        return Stripes(*pair(), angle, float(rng.uniform(0.28, 0.7)), start)
    if family == "cells":
        count = int(rng.integers(6, 14))
        return Cells(rng.uniform(-0.3, 2.1, (count, 2)).astype(np.float32), random_colours(rng, count, held_out))
    if family in ("noise", "clouds"):
        octaves = 1 if family == "noise" else 4
        weights = [0.62**octave for octave in range(octaves)]
        first = float(rng.uniform(2.5, 5.0)) if octaves == 1 else float(rng.uniform(1.5, 2.5))
        lattices = tuple(rng.uniform(-0.15, 1.15, (16, 16)).astype(np.float32) for _ in range(octaves))
        return Noise(
            lattices,
            tuple(first * 2.0**octave for octave in range(octaves)),
            tuple(weight / sum(weights) for weight in weights),
            random_colours(rng, int(rng.integers(2, 5)), held_out),
        )
    if family == "shapes":
        count = int(rng.integers(4, 9))
        discs = tuple(
            (float(rng.uniform(0, 2)), float(rng.uniform(0, 2)), float(rng.uniform(0.12, 0.4)), bool(rng.integers(2)))
            for _ in range(count)
        )
        colours = random_colours(rng, count + 1, held_out)
        return Shapes(colours[0], discs, colours[1:])
    if family == "rings":
        centre = (float(rng.uniform(0, 1)), float(rng.uniform(0, 1)))
        return Rings(*pair(), centre, float(rng.uniform(0.35, 0.7)))
    if family == "waves":
        return Waves(*pair(), float(rng.uniform(0.35, 0.7)), float(rng.uniform(0.04, 0.12)), start)
    raise ValueError(f"no texture family '{family}'")


def random_ground(rng: np.random.Generator, held_out: bool = False) -> tuple[str, Paint]:
    """(family, texture) of a scene. A held-out one has a held-out hue, and every other one a held-out family."""
    families = HELD_OUT if held_out and rng.integers(2) else SEEN
    family = families[int(rng.integers(len(families)))]
    return family, random_texture(rng, family, held_out)
