"""Edits of a scene with exact truth: the target clip, where it differs, the reference picture, the words' slots.

What an instruction leaves open is fixed here once for all (how dark a night is, where the flakes are, how wide
the stripes of a named background), so that the truth follows from the source and the words alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import permutations

import numpy as np

from kiwi_cli.synth.looks import AMOUNTS, LOOKS, LUMA, TINTS, Strength, one_after_another, tint
from kiwi_cli.synth.phrases_looks import ADJECTIVES, STRENGTHS
from kiwi_cli.synth.scenes import SHAPES, Grid, Scene, Thing, stands_out, to_bytes
from kiwi_cli.synth.textures import PALETTE, Gradient, Paint, Plain, Stripes, mix, random_ground, rgb

STYLES = ("black-and-white", "sepia", "night", "snow", "negative", "pencil", "posterise")
LOCAL = ("change", "remove", "add", "reference-subject")
"""Kinds that leave most of the picture alone; the others change the whole frame or all of the background."""

PLACES = {
    "top left corner": (0.0, 0.0),
    "top right corner": (1.0, 0.0),
    "bottom left corner": (0.0, 1.0),
    "bottom right corner": (1.0, 1.0),
}
OPPOSITES = (
    {"brighter", "darker"},
    {"warmer", "cooler"},
    {"more-colour", "less-colour"},
    {"more-contrast", "less-contrast"},
    {"autumn", "winter"},
)
PAIRS = tuple(pair for pair in permutations(ADJECTIVES, 2) if set(pair) not in OPPOSITES)
"""Looks that can be asked for together, in the order of the words."""

ADDED_RADIUS = 0.16  # of an added thing, in shorter sides


@dataclass(frozen=True)
class Edit:
    """One edit of one scene.

    Attributes:
        kind: one of `wordings.EVERY_KIND`.
        target: (F, H, W, 3) uint8.
        mask: (F, H, W) bool, True where the edit is; all of it for styles.
        reference: (h, w, 3) uint8, or None.
        slots: what the wording needs to name.
    """

    kind: str
    target: np.ndarray
    mask: np.ndarray
    reference: np.ndarray | None = None
    slots: dict[str, str] = field(default_factory=dict)


def is_held_out(pair: tuple[str, str]) -> bool:
    """Whether two looks are seen together in held-out clips alone; in either order."""
    names = list(ADJECTIVES)
    return (names.index(pair[0]) + names.index(pair[1])) % 7 == 3


def make_edit(scene: Scene, kind: str, rng: np.random.Generator, held_out: bool = False) -> Edit:
    """The edit of a kind, its free choices (colours, places, references) from `rng`.

    Args:
        held_out: references have textures and hues that no training reference has.
    """
    if kind in STYLES:
        target = to_bytes(STYLE_OF[kind](scene))
        return Edit(kind, target, np.ones(target.shape[:3], bool))
    if kind in LOOKS or kind == "tint":
        return look(scene, kind, rng)
    if kind == "two-looks":
        return two_looks(scene, rng, held_out)
    return EDIT_OF[kind](scene, rng, held_out)


# -- styles: (F, H, W, 3) in 0..1 -> the same ------------------------------------------------------------------


def black_and_white(scene: Scene) -> np.ndarray:
    return np.repeat((scene.picture @ LUMA)[..., None], 3, axis=-1)


def sepia(scene: Scene) -> np.ndarray:
    return (scene.picture @ LUMA)[..., None] * np.array([1.05, 0.82, 0.56], np.float32) + np.array(
        [0.06, 0.03, 0.0], np.float32
    )


def night(scene: Scene) -> np.ndarray:
    grey = (scene.picture @ LUMA)[..., None]
    return (0.6 * scene.picture + 0.4 * grey) * np.array([0.26, 0.32, 0.55], np.float32) + np.array(
        [0.0, 0.01, 0.07], np.float32
    )


def snow(scene: Scene) -> np.ndarray:
    grey = (scene.picture @ LUMA)[..., None]
    pale = 0.45 * (0.6 * scene.picture + 0.4 * grey) + 0.55 * np.array([0.86, 0.9, 0.95], np.float32)
    return mix(pale, np.ones(3, np.float32), _flakes(scene.grid))


def negative(scene: Scene) -> np.ndarray:
    return 1.0 - scene.picture


def pencil(scene: Scene) -> np.ndarray:
    """Dark lines on white where brightness or colour changes; the lines' width is 1/40 of the shorter side."""
    step = max(1, round(min(scene.grid.width, scene.grid.height) / 64))
    picture = scene.picture
    padded = np.pad(picture, ((0, 0), (step, step), (step, step), (0, 0)), mode="edge")
    across = padded[:, step:-step, 2 * step :] - padded[:, step:-step, : -2 * step]
    down = padded[:, 2 * step :, step:-step] - padded[:, : -2 * step, step:-step]
    edge = np.sqrt((across**2 + down**2).mean(axis=-1))
    return np.repeat(np.clip(0.97 - 2.4 * edge, 0.08, 1.0)[..., None], 3, axis=-1)


def posterise(scene: Scene) -> np.ndarray:
    """Three levels a channel."""
    return np.round(scene.picture * 2.0) / 2.0


@cache
def _flakes(grid: Grid) -> np.ndarray:
    """How white each pixel is made by falling flakes, (F, H, W) in 0..1: the same fall for every clip."""
    rng = np.random.default_rng(2026)
    places, speeds = rng.uniform(0, 1, (28, 2)), rng.uniform(0.02, 0.035, 28)
    wide, high = grid.extent
    white = np.zeros(grid.x.shape, np.float32)
    for (px, py), speed in zip(places, speeds, strict=True):
        fall = (py + speed * grid.frame) % 1.0
        distance = np.hypot(grid.x - px * wide, grid.y - fall * high)
        white = np.maximum(white, np.clip((0.026 - distance) / grid.pixel + 0.5, 0.0, 1.0))
    return white


STYLE_OF: dict[str, Callable[[Scene], np.ndarray]] = {
    "black-and-white": black_and_white,
    "sepia": sepia,
    "night": night,
    "snow": snow,
    "negative": negative,
    "pencil": pencil,
    "posterise": posterise,
}


# -- looks -----------------------------------------------------------------------------------------------------


def look(scene: Scene, kind: str, rng: np.random.Generator) -> Edit:
    """A look of some strength, half of the time the plain one; its slots have the words for it, and 'strength'."""
    choices: tuple[Strength, ...] = ("slight", "plain", "plain", "strong")
    strength = choices[int(rng.integers(4))]
    slots = {name: str(rng.choice(words)) for name, words in STRENGTHS[strength].items()}
    if kind == "tint":
        slots["colour"] = str(rng.choice(list(TINTS)))
        frames = tint(scene.picture, AMOUNTS[strength], slots["colour"])
    else:
        frames = LOOKS[kind](scene.picture, AMOUNTS[strength])
    target = to_bytes(frames)
    return Edit(kind, target, np.ones(target.shape[:3], bool), None, {**slots, "strength": strength})


def two_looks(scene: Scene, rng: np.random.Generator, held_out: bool) -> Edit:
    """Two looks of plain strength, the second on the result of the first. Held-out pairs are in no training clip."""
    pairs = [pair for pair in PAIRS if is_held_out(pair) == held_out]
    first, second = pairs[int(rng.integers(len(pairs)))]
    target = to_bytes(one_after_another(scene.picture, (first, second), AMOUNTS["plain"]))
    slots = {"first": ADJECTIVES[first], "second": ADJECTIVES[second]}
    return Edit("two-looks", target, np.ones(target.shape[:3], bool), None, slots)


# -- backgrounds, things and references ------------------------------------------------------------------------


def _foreground(scene: Scene) -> np.ndarray:
    """How much of each pixel the things cover, (F, H, W)."""
    covered = np.zeros(scene.grid.x.shape, np.float32)
    for thing in scene.things:
        covered = np.maximum(covered, scene.covered(thing))
    return covered


def _on_ground(
    scene: Scene, kind: str, ground: np.ndarray, reference: np.ndarray | None, slots: dict[str, str]
) -> Edit:
    target = scene.compose(ground, scene.things)
    return Edit(kind, to_bytes(target), _foreground(scene) < 1.0, reference, slots)


def named_ground(rng: np.random.Generator) -> tuple[str, Paint]:
    """A background that words can describe: (its words, its paint)."""
    first, second = (str(name) for name in rng.choice(list(PALETTE), 2, replace=False))
    while np.abs(rgb(first) - rgb(second)).max() < 0.35:
        second = str(rng.choice(list(PALETTE)))
    look = int(rng.integers(3))
    if look == 0:
        return f"plain {first}", Plain(rgb(first))
    if look == 1:  # upright stripes, three to the shorter side
        return f"{first} and {second} stripes", Stripes(rgb(first), rgb(second), 0.0, 0.4, start=0.2)
    article = "an" if first[0] in "aeiou" else "a"
    return f"{article} {first} to {second} gradient", Gradient(rgb(first), rgb(second), np.pi / 2, 1.0)


def _visible(scene: Scene, ground: np.ndarray) -> bool:
    """Whether every thing of the scene can be told from a new ground."""
    return all(stands_out(thing.colours[0], ground, scene.covered(thing)) for thing in scene.things)


def background(scene: Scene, rng: np.random.Generator, held_out: bool) -> Edit:
    for _ in range(40):
        words, paint = named_ground(rng)
        ground = paint(scene.grid.x, scene.grid.y)
        if _visible(scene, ground) and np.abs(ground - scene.bare).mean() > 0.12:
            break
    return _on_ground(scene, "background", ground, None, {"ground": words})


def reference_background(scene: Scene, rng: np.random.Generator, held_out: bool) -> Edit:
    """The reference picture is the new background itself; it stands still."""
    for _ in range(40):
        _, paint = random_ground(rng, held_out)
        ground = paint(scene.grid.x, scene.grid.y)
        if _visible(scene, ground) and np.abs(ground - scene.bare).mean() > 0.12:
            break
    return _on_ground(scene, "reference-background", ground, to_bytes(ground[0]), {})


def _other_colour(scene: Scene, thing: Thing, rng: np.random.Generator) -> str:
    """The name of a colour that differs from the thing's, from the ground's and from other things'."""
    taken = {other.name for other in scene.things}
    names = [str(name) for name in rng.permutation(list(PALETTE)) if name not in taken]
    covered = scene.covered(thing)
    apart = [name for name in names if np.abs(rgb(name) - thing.colours[0]).max() > 0.3]
    return next((name for name in apart if stands_out(rgb(name), scene.bare, covered)), apart[0])


def change(scene: Scene, rng: np.random.Generator, held_out: bool) -> Edit:
    thing = scene.things[0]
    name = _other_colour(scene, thing, rng)
    new = replace(thing, name=name, colours=rgb(name)[None])
    target = to_bytes(scene.compose(scene.bare, (new, *scene.things[1:])))
    return Edit("change", target, scene.covered(thing) > 0.0, None, {"object": thing.words, "colour": name})


def remove(scene: Scene, rng: np.random.Generator, held_out: bool) -> Edit:
    thing = scene.things[0]
    target = to_bytes(scene.compose(scene.bare, scene.things[1:]))
    return Edit("remove", target, scene.covered(thing) > 0.0, None, {"object": thing.words})


def add(scene: Scene, rng: np.random.Generator, held_out: bool) -> Edit:
    """A thing that stands still in a corner, over all others."""
    wide, high = scene.grid.extent
    edge = ADDED_RADIUS * 1.15
    free = [shape for shape in SHAPES if all(shape != thing.shape for thing in scene.things)]
    for _ in range(40):
        place = str(rng.choice(list(PLACES)))
        right, bottom = PLACES[place]
        centre = (edge + right * (wide - 2 * edge), edge + bottom * (high - 2 * edge))
        shape, name = str(rng.choice(free)), str(rng.choice(list(PALETTE)))
        thing = Thing(shape, name, rgb(name)[None], centre, (0.0, 0.0), ADDED_RADIUS)
        covered = scene.covered(thing)
        if stands_out(rgb(name), scene.picture, covered):
            break
    target = to_bytes(thing.over(scene.picture, scene.grid))
    return Edit("add", target, covered > 0.0, None, {"object": thing.words, "place": place})


def reference_subject(scene: Scene, rng: np.random.Generator, held_out: bool) -> Edit:
    """The reference picture shows another thing on white; it takes the place of the first one and its motion."""
    old = scene.things[0]
    for _ in range(40):
        first, second = (str(name) for name in rng.choice(list(PALETTE), 2, replace=False))
        striped = bool(rng.integers(2))
        colours = np.stack([rgb(first), rgb(second)]) if striped else rgb(first)[None]
        new = replace(old, shape=str(rng.choice(SHAPES)), name=first, colours=colours)
        covered = np.maximum(scene.covered(new), scene.covered(old))
        differs = np.abs(colours - old.colours[0]).max(axis=1).min() > 0.3
        if differs and first != "white" and all(stands_out(colour, scene.bare, covered) for colour in colours):
            break
    target = to_bytes(scene.compose(scene.bare, (new, *scene.things[1:])))
    grid = Grid(scene.grid.width, scene.grid.height, 1)
    wide, high = grid.extent
    shown = replace(new, start=(wide / 2, high / 2), velocity=(0.0, 0.0), radius=0.36)
    picture = to_bytes(shown.over(np.ones((1, grid.height, grid.width, 3), np.float32), grid))[0]
    return Edit("reference-subject", target, covered > 0.0, picture, {"object": old.words})


EDIT_OF: dict[str, Callable[[Scene, np.random.Generator, bool], Edit]] = {
    "background": background,
    "change": change,
    "remove": remove,
    "add": add,
    "reference-background": reference_background,
    "reference-subject": reference_subject,
}
