"""Scenes and edits: the same from the same seed, exact, visible, and split."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from typing import Any

import numpy as np
import pytest

from kiwi_cli.synth import edits
from kiwi_cli.synth.edits import LOCAL, STYLES, Edit, make_edit
from kiwi_cli.synth.scenes import Scene, make_scene
from kiwi_cli.synth.textures import HELD_OUT, HELD_OUT_HUES, SEEN, random_ground
from kiwi_cli.synth.wordings import KINDS, SLOTS

GROUNDS = ("background", "reference-background")


@cache
def samples(kind: str, held_out: bool = False, count: int = 25) -> list[tuple[Scene, Edit]]:
    scenes = (make_scene(seed, 64, 64, 5, held_out) for seed in range(count))
    return [(scene, make_edit(scene, kind, np.random.default_rng(n), held_out)) for n, scene in enumerate(scenes)]


def difference(scene: Scene, edit: Edit) -> np.ndarray:
    """(F, H, W): the largest difference of a channel, in 0..1."""
    return np.abs(scene.source.astype(np.int16) - edit.target).max(axis=-1) / 255.0


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_makes_the_same_pixels_and_another_makes_others(kind: str) -> None:
    def made(seed: int) -> tuple[Scene, Edit]:
        scene = make_scene(seed, 48, 32, 5)
        return scene, make_edit(scene, kind, np.random.default_rng(seed))

    (first, edit), (again, same), (other, another) = made(3), made(3), made(4)
    assert np.array_equal(first.source, again.source) and np.array_equal(edit.target, same.target)
    assert np.array_equal(edit.mask, same.mask) and edit.slots == same.slots
    if edit.reference is not None:
        assert same.reference is not None and np.array_equal(edit.reference, same.reference)
    assert not np.array_equal(first.source, other.source) and not np.array_equal(edit.target, another.target)


@pytest.mark.parametrize("size", [(64, 64), (33, 47), (71, 32)])
@pytest.mark.parametrize("frames", [1, 5, 17])
def test_every_kind_at_any_size_and_length(size: tuple[int, int], frames: int) -> None:
    width, height = size
    scene = make_scene(width + frames, width, height, frames)
    assert scene.source.shape == (frames, height, width, 3) and scene.source.dtype == np.uint8
    for kind in KINDS:
        edit = make_edit(scene, kind, np.random.default_rng(frames))
        assert edit.kind == kind
        assert edit.target.shape == scene.source.shape and edit.target.dtype == np.uint8
        assert edit.mask.shape == (frames, height, width) and edit.mask.dtype == bool
        assert (edit.reference is not None) == kind.startswith("reference-")
        if edit.reference is not None:
            assert edit.reference.ndim == 3 and edit.reference.dtype == np.uint8
        assert set(edit.slots) == set(SLOTS[kind])


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("kind", [*LOCAL, *GROUNDS])
def test_outside_the_mask_nothing_changes_by_a_bit(kind: str, held_out: bool) -> None:
    for scene, edit in samples(kind, held_out):
        assert not edit.mask.all()
        assert difference(scene, edit)[~edit.mask].max() == 0.0


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_inside_the_mask_the_change_is_to_be_seen(kind: str, held_out: bool) -> None:
    for scene, edit in samples(kind, held_out):
        mean = float(np.sqrt(((scene.source / 255.0 - edit.target / 255.0)[edit.mask] ** 2).mean()))
        assert mean > (0.05 if kind in STYLES else 0.15)
        share = edit.mask.mean(axis=(1, 2))
        assert (share > (0.5 if kind in (*STYLES, *GROUNDS) else 0.015)).all()  # in every frame


@pytest.mark.parametrize("held_out", [False, True])
def test_things_stand_out_stay_in_the_frame_and_move(held_out: bool) -> None:
    moved = 0
    for seed in range(40):
        scene = make_scene(seed, 64, 64, 9, held_out)
        assert 1 <= len(scene.things) <= 2
        assert len({thing.shape for thing in scene.things}) == len({t.name for t in scene.things}) == len(scene.things)
        for thing in scene.things:
            covered = scene.covered(thing) > 0.5
            assert covered.mean(axis=(1, 2)).min() > 0.01
            distance = np.sqrt(((scene.picture - scene.bare) ** 2).mean(axis=-1))[covered]
            assert np.median(distance) > 0.2 and distance.mean() > 0.2
            moved += not np.array_equal(covered[0], covered[-1])
    assert moved > 40  # nearly all of them


def test_what_the_words_name_is_in_the_picture() -> None:
    for scene, edit in samples("remove"):
        first = scene.things[0]
        assert edit.slots == {"object": first.words}
        assert np.array_equal(
            edit.target[edit.mask], edits.to_bytes(scene.compose(scene.bare, scene.things[1:]))[edit.mask]
        )
    for scene, edit in samples("change"):
        assert edit.slots["object"] == scene.things[0].words and edit.slots["colour"] not in edit.slots["object"]
    for scene, edit in samples("add"):
        right, bottom = edits.PLACES[edit.slots["place"]]
        y, x = (axis.mean() for axis in np.nonzero(edit.mask[0]))
        assert (x > 32) == bool(right) and (y > 32) == bool(bottom)
        assert edit.slots["object"] not in [thing.words for thing in scene.things]


def test_references_show_what_the_target_has() -> None:
    for _, edit in samples("reference-background"):
        assert edit.reference is not None
        clean = ~np.array([difference_of(frame, edit.reference) for frame in edit.target])
        assert (clean == edit.mask).mean() > 0.9  # all but the rims of things
    for _, edit in samples("reference-subject"):
        assert edit.reference is not None
        shown = edit.reference[(edit.reference < 235).any(axis=-1)].astype(np.float32).mean(axis=0)
        assert (edit.reference[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()  # on white
        inside = edit.target[edit.mask].astype(np.float32)
        assert np.abs(inside - shown).max(axis=-1).min() < 60  # its colours are in the target


def difference_of(frame: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(H, W) bool: where a frame is not the reference."""
    return np.abs(frame.astype(np.int16) - reference).max(axis=-1) > 0


def test_held_out_scenes_are_no_training_scenes() -> None:
    for seed in range(20):
        assert not np.array_equal(make_scene(seed, 32, 32, 1).source, make_scene(seed, 32, 32, 1, True).source)


def colours_of(paint: Any) -> Iterator[np.ndarray]:
    """The colours that a texture was given."""
    for field in fields(paint):
        value = getattr(paint, field.name)
        if (
            isinstance(value, np.ndarray)
            and value.shape[-1] == 3
            and field.name in ("first", "second", "colour", "colours", "base")
        ):
            yield from value.reshape(-1, 3)


def kept_back(colour: np.ndarray) -> bool:
    """Whether its hue lies within a held-out band (its edges are left to rounding)."""
    hue = colorsys.rgb_to_hsv(*map(float, colour))[0]
    return any(low + 1e-4 < hue < high - 1e-4 for low, high in HELD_OUT_HUES)


def test_held_out_textures_and_hues_never_occur_in_the_seen_split() -> None:
    rng = np.random.default_rng(5)
    seen = [random_ground(rng) for _ in range(600)] + [
        (scene.family, scene.ground) for scene in (make_scene(seed, 32, 32, 1) for seed in range(60))
    ]
    assert {family for family, _ in seen} == set(SEEN)
    assert not any(kept_back(colour) for _, paint in seen for colour in colours_of(paint))
    held = [random_ground(rng, held_out=True) for _ in range(200)]
    assert {family for family, _ in held} == {*SEEN, *HELD_OUT} and not {*SEEN} & {*HELD_OUT}
    assert all(any(kept_back(colour) for colour in colours_of(paint)) for _, paint in held)


def test_references_of_the_seen_split_have_no_held_out_texture(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def ground(rng: np.random.Generator, held_out: bool = False) -> Any:
        asked.append(held_out)
        return random_ground(rng, held_out)

    monkeypatch.setattr(edits, "random_ground", ground)
    for held_out in (False, True):
        asked.clear()
        make_edit(make_scene(1, 32, 32, 1, held_out), "reference-background", np.random.default_rng(0), held_out)
        assert set(asked) == {held_out}
