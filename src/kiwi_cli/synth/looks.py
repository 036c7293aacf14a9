"""Looks: light, weather and colour as functions of a frame, exact on any footage.

A look takes frames (F, H, W, 3) fp32 in 0..1, sRGB as stored, and an amount from 0, which changes nothing (but for
`noir`, which is grey at any), to 1, the most of it; it gives frames of the same form, not clipped. The amounts of the
words "slightly", none and "strongly" are in `AMOUNTS`. Every pixel's colour follows from its own; three looks darken
the corners as well.
How a look is drawn is ours: the point is that there is one truth for each, and that no two are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np

Look = Callable[[np.ndarray, float], np.ndarray]
Strength = Literal["slight", "plain", "strong"]

AMOUNTS: Mapping[Strength, float] = MappingProxyType({"slight": 0.4, "plain": 0.75, "strong": 1.0})
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601

TINTS: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "red": (1.0, 0.18, 0.16),
        "orange": (1.0, 0.55, 0.12),
        "yellow": (1.0, 0.92, 0.2),
        "green": (0.25, 0.9, 0.3),
        "turquoise": (0.15, 0.85, 0.8),
        "blue": (0.2, 0.35, 1.0),
        "purple": (0.6, 0.25, 0.95),
        "pink": (1.0, 0.5, 0.75),
    }
)
"""Colours that a tint can be asked for by name, what white becomes."""


def _rgb(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def _grey(frames: np.ndarray) -> np.ndarray:
    return (frames @ LUMA)[..., None]


def _mixed(frames: np.ndarray, full: np.ndarray, amount: float) -> np.ndarray:
    return frames + np.float32(amount) * (full - frames)


def _coloured(frames: np.ndarray, factor: float) -> np.ndarray:
    """With `factor` times the colour; 0 is grey."""
    grey = _grey(frames)
    return grey + np.float32(factor) * (frames - grey)


def _contrast(frames: np.ndarray, gain: float, pivot: float = 0.5) -> np.ndarray:
    return np.float32(pivot) + np.float32(gain) * (frames - np.float32(pivot))


def _map(grey: np.ndarray, *stops: tuple[float, tuple[float, float, float]]) -> np.ndarray:
    """Colours by brightness, between stops."""
    places = [place for place, _ in stops]
    levels = grey[..., 0]
    return np.stack(
        [np.interp(levels, places, [colour[c] for _, colour in stops]) for c in range(3)], axis=-1, dtype=np.float32
    )


def _corners(frames: np.ndarray) -> np.ndarray:
    """1 in the middle, 0 in the corners, (H, W, 1)."""
    height, width = frames.shape[-3:-1]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    distance = ((x + 0.5) / width - 0.5) ** 2 + ((y + 0.5) / height - 0.5) ** 2
    return np.clip(1.0 - 2.0 * distance, 0.0, 1.0)[..., None]


# -- light and weather -----------------------------------------------------------------------------------------------


def golden_hour(frames: np.ndarray, amount: float) -> np.ndarray:
    """A low sun: brown shadows, everything else in gold."""
    glow = _map(_grey(frames), (0.0, (0.22, 0.1, 0.02)), (0.5, (0.9, 0.58, 0.2)), (1.0, (1.0, 0.92, 0.6)))
    return _mixed(frames, 0.5 * frames * _rgb(1.15, 0.95, 0.6) + 0.5 * glow, amount)


def sunset(frames: np.ndarray, amount: float) -> np.ndarray:
    """Violet shadows, red and orange light."""
    glow = _map(_grey(frames), (0.0, (0.22, 0.08, 0.3)), (0.5, (0.82, 0.3, 0.3)), (1.0, (1.0, 0.72, 0.35)))
    return _mixed(frames, 0.4 * frames * _rgb(1.1, 0.8, 0.8) + 0.6 * glow, amount)


def blue_hour(frames: np.ndarray, amount: float) -> np.ndarray:
    """Before the night: blue, of middling brightness."""
    return _mixed(frames, _coloured(frames, 0.5) * _rgb(0.42, 0.58, 0.95) + _rgb(0.02, 0.06, 0.2), amount)


def overcast(frames: np.ndarray, amount: float) -> np.ndarray:
    """A grey sky: flat, pale colours, darker."""
    return _mixed(frames, _contrast(_coloured(frames, 0.35), 0.5, 0.45) * _rgb(0.68, 0.74, 0.8), amount)


def fog(frames: np.ndarray, amount: float) -> np.ndarray:
    """Light grey over everything, little left of colour."""
    return _mixed(frames, 0.3 * _coloured(frames, 0.5) + 0.7 * _rgb(0.7, 0.71, 0.73), amount)


def winter(frames: np.ndarray, amount: float) -> np.ndarray:
    """Cold bright light, bluish white, pale colours."""
    pale = _coloured(np.clip(frames, 0.0, 1.0) ** np.float32(0.7), 0.35)
    return _mixed(frames, pale * _rgb(0.84, 0.98, 1.12) + _rgb(0.0, 0.04, 0.1), amount)


def autumn(frames: np.ndarray, amount: float) -> np.ndarray:
    """Greens turn to orange and brown, everything warmer."""
    turned = np.array([[0.55, 0.62, -0.05], [0.28, 0.36, 0.14], [0.05, 0.02, 0.5]], np.float32)
    return _mixed(frames, frames @ turned.T, amount)


def moonlight(frames: np.ndarray, amount: float) -> np.ndarray:
    """Silver: nearly grey, dim, with hard contrast."""
    return _mixed(frames, _contrast(_coloured(frames, 0.12), 1.25, 0.5) * _rgb(0.5, 0.6, 0.74), amount)


def candle_light(frames: np.ndarray, amount: float) -> np.ndarray:
    """Dim and orange, the corners dark."""
    lit = frames * _rgb(0.85, 0.4, 0.1) + _rgb(0.05, 0.01, 0.0)
    return _mixed(frames, lit * (0.25 + 0.75 * _corners(frames)), amount)


def underwater(frames: np.ndarray, amount: float) -> np.ndarray:
    """Little red left, green and blue haze."""
    return _mixed(frames, _contrast(frames, 0.75) * _rgb(0.18, 0.75, 0.8) + _rgb(0.0, 0.14, 0.2), amount)


def desert(frames: np.ndarray, amount: float) -> np.ndarray:
    """Sand in the air: pale yellow brown over everything."""
    return _mixed(frames, 0.5 * _coloured(frames, 0.5) + 0.5 * _rgb(0.88, 0.68, 0.4), amount)


# -- film and grading ------------------------------------------------------------------------------------------------


def vintage(frames: np.ndarray, amount: float) -> np.ndarray:
    """A faded print: grey blacks, yellow whites, greenish shadows, darker corners."""
    faded = _coloured(frames, 0.5) * _rgb(0.68, 0.6, 0.36) + _rgb(0.24, 0.24, 0.2)
    return _mixed(frames, faded * (0.75 + 0.25 * _corners(frames)), amount)


def noir(frames: np.ndarray, amount: float) -> np.ndarray:
    """Grey at any amount, with hard contrast and dark corners."""
    hard = _contrast(_grey(frames), 1.3 + 0.9 * amount, 0.52)
    return np.repeat(np.clip(hard, 0.0, 1.0) * (1.0 - 0.7 * amount * (1.0 - _corners(frames))), 3, axis=-1)


def teal_and_orange(frames: np.ndarray, amount: float) -> np.ndarray:
    """Shadows towards teal, lights towards orange."""
    grey = _grey(frames)
    toned = _coloured(frames, 0.6) + (1 - grey) * _rgb(-0.36, 0.12, 0.24) + grey * _rgb(0.36, 0.0, -0.44)
    return _mixed(frames, toned, amount)


def high_key(frames: np.ndarray, amount: float) -> np.ndarray:
    """Nearly everything white, colours pale."""
    return _mixed(frames, _coloured(1.0 - (1.0 - np.clip(frames, 0.0, 1.0)) ** 2.6, 0.4) + 0.06, amount)


def low_key(frames: np.ndarray, amount: float) -> np.ndarray:
    """Most of it black, the lights kept."""
    return _mixed(frames, np.clip(frames, 0.0, 1.0) ** np.float32(2.8) * 1.05, amount)


def neon(frames: np.ndarray, amount: float) -> np.ndarray:
    """Dark violet shadows, magenta between, cyan lights."""
    signs = _map(_grey(frames), (0.0, (0.06, 0.0, 0.22)), (0.5, (0.9, 0.08, 0.75)), (1.0, (0.25, 1.0, 1.0)))
    return _mixed(frames, 0.25 * _coloured(frames, 1.4) + 0.75 * signs, amount)


def infrared(frames: np.ndarray, amount: float) -> np.ndarray:
    """False colour film: greens to red and pink, reds to green."""
    turned = np.array([[-0.1, 1.25, -0.1], [0.75, -0.05, 0.1], [0.0, 0.35, 0.55]], np.float32)
    return _mixed(frames, frames @ turned.T, amount)


def pastel(frames: np.ndarray, amount: float) -> np.ndarray:
    """Pale: black becomes a pinkish light grey, colours are about half as far from grey."""
    return _mixed(frames, 0.36 * _coloured(frames, 1.5) + _rgb(0.64, 0.56, 0.6), amount)


def bleach_bypass(frames: np.ndarray, amount: float) -> np.ndarray:
    """Silver left in the film: hard contrast, little colour."""
    return _mixed(frames, _contrast(_coloured(frames, 0.35), 1.6, 0.52), amount)


def cross_process(frames: np.ndarray, amount: float) -> np.ndarray:
    """Film in the wrong bath: yellow green lights, blue shadows."""
    red, green, blue = (np.clip(frames, 0.0, 1.0)[..., c] for c in range(3))
    full = np.stack([red * red * (3 - 2 * red), 0.1 + 1.1 * green, 0.4 + 0.2 * blue], axis=-1)
    return _mixed(frames, full.astype(np.float32), amount)


# -- plain ones ------------------------------------------------------------------------------------------------------


def brighter(frames: np.ndarray, amount: float) -> np.ndarray:
    """Lighter everywhere, black and white kept."""
    return np.clip(frames, 0.0, 1.0) ** np.float32(1.0 - 0.55 * amount)


def darker(frames: np.ndarray, amount: float) -> np.ndarray:
    """Less light: every value times 1 to 0.4."""
    return frames * np.float32(1.0 - 0.6 * amount)


def warmer(frames: np.ndarray, amount: float) -> np.ndarray:
    """More red, less blue."""
    return frames * (1.0 + np.float32(amount) * _rgb(0.25, 0.02, -0.4)) + np.float32(amount) * _rgb(0.05, 0.0, 0.0)


def cooler(frames: np.ndarray, amount: float) -> np.ndarray:
    """More blue, less red."""
    return frames * (1.0 + np.float32(amount) * _rgb(-0.4, -0.02, 0.2)) + np.float32(amount) * _rgb(0.0, 0.0, 0.1)


def more_colour(frames: np.ndarray, amount: float) -> np.ndarray:
    """Colours up to 2.2 times as far from grey."""
    return _coloured(frames, 1.0 + 1.2 * amount)


def less_colour(frames: np.ndarray, amount: float) -> np.ndarray:
    """Colours down to three tenths as far from grey."""
    return _coloured(frames, 1.0 - 0.7 * amount)


def more_contrast(frames: np.ndarray, amount: float) -> np.ndarray:
    """Values up to 2.1 times as far from the middle."""
    return _contrast(frames, 1.0 + 1.1 * amount)


def less_contrast(frames: np.ndarray, amount: float) -> np.ndarray:
    """Values down to a third as far from the middle."""
    return _contrast(frames, 1.0 - 0.67 * amount)


def tint(frames: np.ndarray, amount: float, colour: str) -> np.ndarray:
    """One colour over everything: white becomes it, black stays, what was coloured keeps a sixth.

    Args:
        colour: one of `TINTS`.
    """
    full = _coloured(frames, 0.17) * _rgb(*TINTS[colour])
    return _mixed(frames, full, amount)


LOOKS: Mapping[str, Look] = MappingProxyType(
    {
        "golden-hour": golden_hour,
        "sunset": sunset,
        "blue-hour": blue_hour,
        "overcast": overcast,
        "fog": fog,
        "winter": winter,
        "autumn": autumn,
        "moonlight": moonlight,
        "candle-light": candle_light,
        "underwater": underwater,
        "desert": desert,
        "vintage": vintage,
        "noir": noir,
        "teal-and-orange": teal_and_orange,
        "high-key": high_key,
        "low-key": low_key,
        "neon": neon,
        "infrared": infrared,
        "pastel": pastel,
        "bleach-bypass": bleach_bypass,
        "cross-process": cross_process,
        "brighter": brighter,
        "darker": darker,
        "warmer": warmer,
        "cooler": cooler,
        "more-colour": more_colour,
        "less-colour": less_colour,
        "more-contrast": more_contrast,
        "less-contrast": less_contrast,
    }
)
"""Every look but the tint, by the name of its kind of edit."""


def one_after_another(frames: np.ndarray, kinds: Iterable[str], amount: float) -> np.ndarray:
    """Looks of one amount, each on the result of the one before, which is clipped."""
    for kind in kinds:
        frames = LOOKS[kind](np.clip(frames, 0.0, 1.0), amount)
    return frames
