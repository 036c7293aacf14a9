"""Scenes nearer to filmed ones: overlapping patches, 1/f texture, soft light, grain, blur, a hand-held camera.

The dead leaves model: patches fall on each other, their sizes by a power law, which gives the edges and the scale
invariance of photographs; within each lies noise of a 1/f spectrum. Colours are drawn from those of skies, leaves,
earth, skin, stone and walls, seldom strong ones. Or the camera moves over a part of a photograph, where some are given.
Nothing in such a scene has a name, so it is for looks and styles; or drawn things are put on it, for edits of those on
a ground as in filmed clips.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np

from kiwi_cli.synth import photographs as photos
from kiwi_cli.synth.scenes import Scene, populated, scene_of

# Hue from and to, saturation, brightness, and how often.
_MATTER = (
    ((0.55, 0.64), (0.15, 0.7), (0.45, 1.0), 0.18),  # skies, water
    ((0.18, 0.38), (0.2, 0.75), (0.12, 0.65), 0.22),  # leaves, grass
    ((0.05, 0.12), (0.2, 0.65), (0.15, 0.75), 0.2),  # earth, wood
    ((0.02, 0.09), (0.25, 0.55), (0.45, 0.95), 0.1),  # skin
    ((0.0, 1.0), (0.0, 0.15), (0.05, 0.98), 0.2),  # stone, walls, clouds, shadow
    ((0.0, 1.0), (0.5, 1.0), (0.3, 1.0), 0.1),  # paint and cloth
)
_HELD_OUT_HUES = ((0.44, 0.5), (0.78, 0.86))  # of paint and cloth, for held-out scenes alone


PHOTOGRAPHED = 0.4
"""Share of training scenes whose ground is a part of a photograph, where some are given."""


def natural_scene(
    seed: int, width: int, height: int, frames: int, held_out: bool = False, photographs: Sequence[np.ndarray] = ()
) -> Scene:
    """The scene of a seed: a clip without things, (F, H, W, 3) fp32 in 0..1 as its `picture`.

    Args:
        seed: any whole number from 0; training and held-out scenes of one seed differ.
        width, height: pixels. frames: 1 or more.
        photographs: (H, W, 3) uint8 each, for training scenes; held-out ones are all made up.
    """
    rng = np.random.default_rng([seed, int(held_out), 77])
    margin = max(4, min(width, height) // 6)
    wide, high = width + 2 * margin, height + 2 * margin
    if photographs and not held_out and rng.random() < PHOTOGRAPHED:
        canvas = photos.part(rng, photographs, wide, high)
    else:
        canvas = _canvas(rng, wide, high, held_out)
    picture = _filmed(rng, canvas, width, height, frames, margin)
    return scene_of(picture, "natural", held_out)


def scene_with_things(
    seed: int, width: int, height: int, frames: int, held_out: bool = False, photographs: Sequence[np.ndarray] = ()
) -> Scene:
    """The natural scene of a seed with one or two drawn things on it, arguments as of `natural_scene`.

    Where nothing stands out from the ground in a few attempts, the next seed's ground is taken.
    """
    rng = np.random.default_rng([seed, int(held_out), 78])
    while True:
        scene = natural_scene(seed, width, height, frames, held_out, photographs)
        for _ in range(4):
            found = populated(scene, rng)
            if found.things:
                return found
        seed += 1


def _colour(rng: np.random.Generator, held_out: bool) -> np.ndarray:
    chances = np.array([row[3] for row in _MATTER])
    number = int(rng.choice(len(_MATTER), p=chances / chances.sum()))
    hues, saturations, values, _ = _MATTER[number]
    hue = rng.uniform(*hues)
    if number == len(_MATTER) - 1:
        if held_out:
            hue = rng.uniform(*_HELD_OUT_HUES[rng.integers(2)])
        while not held_out and any(low <= hue <= high for low, high in _HELD_OUT_HUES):
            hue = rng.uniform()
    return np.array(colorsys.hsv_to_rgb(hue, rng.uniform(*saturations), rng.uniform(*values)), np.float32)


def _noise(rng: np.random.Generator, width: int, height: int, power: float) -> np.ndarray:
    """Noise whose amplitude falls with frequency to `power`, mean 0, deviation 1, (H, W)."""
    across, down = np.fft.rfftfreq(width), np.fft.fftfreq(height)
    frequency = np.hypot(across[None], down[:, None])
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / frequency**power
    spectrum[0, 0] = 0.0
    noise = np.fft.irfft2(spectrum, s=(height, width))
    return (noise / (noise.std() + 1e-9)).astype(np.float32)


def _canvas(rng: np.random.Generator, width: int, height: int, held_out: bool) -> np.ndarray:
    """What the camera moves over, (H, W, 3) in 0..1."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    side = float(min(width, height))
    horizon = rng.uniform(0.25, 0.7) * height + rng.uniform(-0.15, 0.15) * (x - width / 2)
    below = np.clip(y - horizon + 2 * _noise(rng, width, height, 1.2), 0, 1)[..., None]
    canvas = _colour(rng, held_out) * (1 - below) + _colour(rng, held_out) * below
    textures = [_noise(rng, width, height, power) for power in (0.8, 1.1, 1.5)]
    for _ in range(int(rng.integers(12, 70))):
        radius = side * min(0.5, 0.02 / max(1e-3, rng.random()) ** 0.6)
        dx, dy = x - rng.uniform(0, width), y - rng.uniform(0, height)
        turn, flat = rng.uniform(0, np.pi), rng.uniform(0.3, 1.0)
        along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
        if rng.random() < 0.35:  # straight edges
            distance = np.maximum(np.abs(along), np.abs(across) / flat)
        else:
            distance = np.hypot(along, across / flat) * (1 + 0.12 * textures[1])
        covered = np.clip((radius - distance) / rng.choice([0.8, 0.8, 3.0]) + 0.5, 0, 1)[..., None]
        rough = np.float32(rng.uniform(0.02, 0.2)) * textures[int(rng.integers(3))][..., None]
        patch = _colour(rng, held_out) * (1 + rough) * (1 - rng.uniform(0, 0.4) * (dy / side)[..., None])
        canvas = canvas * (1 - covered) + patch * covered
    return np.clip(canvas, 0.0, 1.0)


def _filmed(
    rng: np.random.Generator, canvas: np.ndarray, width: int, height: int, frames: int, margin: int
) -> np.ndarray:
    """The canvas under soft light through a hand-held camera, (F, H, W, 3) fp32 in 0..1."""
    light = np.exp(rng.uniform(0.05, 0.45) * _noise(rng, canvas.shape[1], canvas.shape[0], 2.0))[..., None]
    lit: np.ndarray = canvas * light * rng.uniform(0.6, 1.25) * (1 + rng.uniform(-0.12, 0.12, 3))
    curve = rng.uniform(0.7, 1.4)
    lit = np.clip(lit, 0.0, 1.0).astype(np.float32) ** np.float32(curve)
    step = margin * 0.9 / max(frames - 1, 10)
    drift = rng.uniform(-step, step, 2)[None] * np.arange(frames)[:, None] * (rng.random() < 0.8)
    way = drift + rng.normal(0, 0.25 * (rng.random() < 0.5), (frames, 2))
    softness, grain = rng.choice([0.0, 0.5, 1.0]), rng.choice([0.0, 0.01, 0.025])
    made = []
    for down, across in np.clip(margin + way, 0, 2 * margin - 1.001):
        top, left = int(down), int(across)
        cut = lit[top : top + height + 1, left : left + width + 1]
        cut = cut[:-1] * np.float32(1 - down + top) + cut[1:] * np.float32(down - top)
        cut = cut[:, :-1] * np.float32(1 - across + left) + cut[:, 1:] * np.float32(across - left)
        if softness:
            padded = np.pad(cut, ((1, 1), (1, 1), (0, 0)), mode="edge")
            around = (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]) / 4
            cut = cut * np.float32(1 - 0.5 * softness) + around * np.float32(0.5 * softness)
        made.append(cut + np.float32(grain) * rng.standard_normal(cut.shape, dtype=np.float32))
    return np.clip(np.stack(made), 0.0, 1.0).astype(np.float32)
