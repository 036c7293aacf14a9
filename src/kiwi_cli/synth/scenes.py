"""Scenes: a textured ground under a drifting camera, and one or two things that move over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from kiwi_cli.synth.textures import PALETTE, Paint, Plain, Stripes, mix, random_ground, rgb

SHAPES = ("ball", "square", "triangle", "diamond")
LEAST_CONTRAST = 0.28
"""Root mean square difference, in 0..1, that a thing keeps from what is behind it."""


@dataclass(frozen=True)
class Thing:
    """A shape that moves in a straight line.

    Attributes:
        shape: one of SHAPES.
        name: its colour's name. colours: (1 or 2, 3); two are stripes.
        start, velocity: place in shorter sides of the frame, and a frame's step.
        radius: in shorter sides.
    """

    shape: str
    name: str
    colours: np.ndarray
    start: tuple[float, float]
    velocity: tuple[float, float]
    radius: float

    @property
    def words(self) -> str:
        """As an instruction calls it: 'red ball'."""
        return f"{self.name} {self.shape}"

    def coverage(self, x: np.ndarray, y: np.ndarray, frame: np.ndarray, pixel: float) -> np.ndarray:
        """How much of each pixel it covers, 0..1; `pixel` is a pixel's width, for smooth edges."""
        dx = x - self.start[0] - frame * self.velocity[0]
        dy = y - self.start[1] - frame * self.velocity[1]
        return np.clip((self.radius - self._distance(dx, dy)) / pixel + 0.5, 0.0, 1.0)

    def _distance(self, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
        if self.shape == "ball":
            return np.hypot(dx, dy)
        if self.shape == "square":
            return np.maximum(np.abs(dx), np.abs(dy)) * 1.12
        if self.shape == "diamond":
            return (np.abs(dx) + np.abs(dy)) * 0.8
        # A triangle from (0, -1.1) to a base of half width 1.05 at 0.8, in radii; distances to its sides.
        side = (1.645 * np.abs(dx) - 0.909 * dy - self.radius) / 1.88
        return np.maximum(side, dy - 0.8 * self.radius) + self.radius

    def paint(self, x: np.ndarray, y: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """Its own colours with light from the upper left, (..., 3)."""
        dx = (x - self.start[0] - frame * self.velocity[0]) / self.radius
        dy = (y - self.start[1] - frame * self.velocity[1]) / self.radius
        if len(self.colours) == 1:
            colour = np.broadcast_to(self.colours[0], (*x.shape, 3))
        else:
            colour = Stripes(self.colours[0], self.colours[1], 0.6, 0.9)(dx, dy)
        light = np.clip(1.0 - 0.22 * (dx + dy), 0.6, 1.35).astype(np.float32)
        return np.clip(colour * light[..., None], 0.0, 1.0)

    def over(self, picture: np.ndarray, grid: Grid) -> np.ndarray:
        """The picture (F, H, W, 3) with the thing on it."""
        covered = self.coverage(grid.x, grid.y, grid.frame, grid.pixel)
        return mix(picture, self.paint(grid.x, grid.y, grid.frame), covered)


@dataclass(frozen=True)
class Grid:
    """Coordinates of a clip's pixels, (F, H, W) each, in shorter sides; `frame` counts from 0."""

    width: int
    height: int
    frames: int

    @cached_property
    def pixel(self) -> float:
        return 1.0 / min(self.width, self.height)

    @cached_property
    def _axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        frame, y, x = np.meshgrid(
            np.arange(self.frames, dtype=np.float32),
            (np.arange(self.height, dtype=np.float32) + 0.5) * self.pixel,
            (np.arange(self.width, dtype=np.float32) + 0.5) * self.pixel,
            indexing="ij",
        )
        return x, y, frame

    @property
    def x(self) -> np.ndarray:
        return self._axes[0]

    @property
    def y(self) -> np.ndarray:
        return self._axes[1]

    @property
    def frame(self) -> np.ndarray:
        return self._axes[2]

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height of the frame in shorter sides."""
        return self.width * self.pixel, self.height * self.pixel


@dataclass(frozen=True)
class Scene:
    """One clip before any edit.

    Attributes:
        family, ground: the texture's family and its paint; drift: the camera's step a frame, in shorter sides.
        things: the first is the one that edits are about.
    """

    grid: Grid
    family: str
    ground: Paint
    drift: tuple[float, float]
    things: tuple[Thing, ...]
    held_out: bool

    @cached_property
    def bare(self) -> np.ndarray:
        """The ground alone, (F, H, W, 3) fp32 in 0..1."""
        grid = self.grid
        return self.ground(grid.x + grid.frame * self.drift[0], grid.y + grid.frame * self.drift[1])

    def compose(self, ground: np.ndarray, things: Sequence[Thing]) -> np.ndarray:
        """Things, in order, over a ground: (F, H, W, 3) fp32 in 0..1."""
        for thing in things:
            ground = thing.over(ground, self.grid)
        return ground

    @cached_property
    def picture(self) -> np.ndarray:
        """The source, (F, H, W, 3) fp32 in 0..1."""
        return self.compose(self.bare, self.things)

    @property
    def source(self) -> np.ndarray:
        """The source, (F, H, W, 3) uint8."""
        return to_bytes(self.picture)

    def covered(self, thing: Thing) -> np.ndarray:
        """Where a thing is, (F, H, W) in 0..1."""
        grid = self.grid
        return thing.coverage(grid.x, grid.y, grid.frame, grid.pixel)


def scene_of(picture: np.ndarray, family: str, held_out: bool = False) -> Scene:
    """A clip that was not drawn here, (F, H, W, 3) fp32 in 0..1, as a scene without things: for looks and styles."""
    frames, height, width = picture.shape[:3]
    nothing = Plain(np.zeros(3, np.float32))
    scene = Scene(Grid(width, height, frames), family, nothing, (0.0, 0.0), (), held_out)
    scene.__dict__["bare"] = picture
    return scene


def to_bytes(picture: np.ndarray) -> np.ndarray:
    """(..., 3) in 0..1 -> uint8. In fp32 always: halves would round by the precision that a paint happens to have."""
    return (np.clip(picture.astype(np.float32), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def stands_out(colour: np.ndarray, ground: np.ndarray, covered: np.ndarray) -> bool:
    """Whether a colour differs from the ground (F, H, W, 3) where `covered`, and just around, by LEAST_CONTRAST.

    Asked of the tenth part of the pixels that is nearest to it, so that no side of a thing melts into its ground.
    """
    behind = ground[covered > 0.5]
    if not len(behind):
        return False
    distance = np.sqrt(((behind - colour) ** 2).mean(axis=-1))
    return bool(np.quantile(distance, 0.1) >= LEAST_CONTRAST)


def random_thing(rng: np.random.Generator, grid: Grid, shape: str, colour: str) -> Thing:
    """A thing that stays inside the frame from the first frame to the last."""
    radius = float(rng.uniform(0.15, 0.23))
    wide, high = grid.extent
    # Over any length a thing travels 0.3 of the shorter side at most, and a frame's step is 0.03 at most.
    reach = min(0.3, 0.03 * (grid.frames - 1))
    ways = rng.uniform(-reach, reach, 2)
    start = []
    for extent, way in zip((wide, high), ways, strict=True):
        low, high_end = radius * 0.9 + max(0.0, -way), extent - radius * 0.9 - max(0.0, way)
        start.append(float(rng.uniform(low, max(low + 1e-3, high_end))))
    steps = max(1, grid.frames - 1)
    velocity = (float(ways[0]) / steps, float(ways[1]) / steps)
    return Thing(shape, colour, rgb(colour)[None], (start[0], start[1]), velocity, radius)


def _apart(first: Thing, second: Thing, frames: int) -> bool:
    """Whether two things keep clear of each other at the first and the last frame."""
    reach = (first.radius + second.radius) * 1.15
    for frame in (0, (frames - 1) / 2, frames - 1):
        dx = first.start[0] - second.start[0] + frame * (first.velocity[0] - second.velocity[0])
        dy = first.start[1] - second.start[1] + frame * (first.velocity[1] - second.velocity[1])
        if np.hypot(dx, dy) < reach:
            return False
    return True


def make_scene(seed: int, width: int, height: int, frames: int, held_out: bool = False) -> Scene:
    """The scene of a seed.

    Args:
        seed: any whole number from 0; training and held-out scenes of one seed differ.
        width, height: pixels, 16 or more. frames: 1 or more.
        held_out: with textures and hues that no training scene has.
    """
    rng = np.random.default_rng([seed, int(held_out)])
    grid = Grid(width, height, frames)
    while True:
        family, ground = random_ground(rng, held_out)
        speed = 0.3 / max(frames - 1, 10)
        drift = tuple(float(v) for v in rng.uniform(-speed, speed, 2)) if rng.integers(4) else (0.0, 0.0)
        scene = populated(Scene(grid, family, ground, (drift[0], drift[1]), (), held_out), rng)
        if scene.things:
            return scene


def populated(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one or two things on it, or as it is where no thing would stand out from the ground.

    Args:
        scene: without things.
        rng: that shapes, colours, places and ways are drawn from.
    """
    colours = list(PALETTE)
    things: list[Thing] = []
    wanted = 1 + int(rng.integers(2))
    for _ in range(12):  # attempts; a ground of many colours may leave no colour that stands out
        shape, colour = str(rng.choice(SHAPES)), str(rng.choice(colours))
        thing = random_thing(rng, scene.grid, shape, colour)
        if any(other.shape == shape or other.name == colour for other in things):
            continue
        if not all(_apart(thing, other, scene.grid.frames) for other in things):
            continue
        if stands_out(rgb(colour), scene.bare, scene.covered(thing)):
            things.append(thing)
        if len(things) == wanted:
            break
    whole = replace(scene, things=tuple(things))
    whole.__dict__["bare"] = scene.bare  # what was computed is kept; of a clip that was not drawn here there is no more
    return whole
