"""Looks: each a function of the frame with an amount, none like another, asked for in enough words."""

from __future__ import annotations

import itertools
import re
from functools import cache

import numpy as np
import pytest

from kiwi_cli.base.sentences import strength as strength_of
from kiwi_cli.synth.edits import PAIRS, STYLE_OF, is_held_out, make_edit
from kiwi_cli.synth.looks import AMOUNTS, LOOKS, LUMA, TINTS, tint
from kiwi_cli.synth.natural import natural_scene
from kiwi_cli.synth.phrases_looks import ADJECTIVES, STRENGTHS
from kiwi_cli.synth.scenes import make_scene, to_bytes
from kiwi_cli.synth.wordings import EVERY_KIND, KINDS, LOOK_KINDS, SPLITS, WORDINGS, fill, seen_wordings, wording
from kiwi_cli.synth.writer import ON_ANYTHING, Settings, quadruplets

SCENES = 6


def looks() -> dict[str, object]:
    tints = {f"tint {colour}": lambda frames, amount, colour=colour: tint(frames, amount, colour) for colour in TINTS}
    return {**LOOKS, **tints}


@cache
def picture(number: int) -> np.ndarray:
    scene = natural_scene if number % 2 else make_scene
    return scene(number, 48, 48, 1).picture


@pytest.mark.parametrize("name", looks())
def test_more_of_a_look_is_further_from_the_source(name: str) -> None:
    look = looks()[name]
    for number in range(SCENES):
        source = picture(number)
        before = source.copy()
        steps = [np.clip(look(source, amount), 0, 1) for amount in AMOUNTS.values()]
        assert np.array_equal(source, before)  # nothing is written into what was given
        assert all(step.shape == source.shape and step.dtype == np.float32 for step in steps)
        distances = [float(np.square(step - source).mean()) for step in steps]
        if name != "noir":  # grey at any amount
            assert np.abs(look(source, 0.0) - source).max() < 1e-5
            assert distances == sorted(distances) and distances[0] > 0
        assert np.abs(steps[2] - steps[0]).mean() > 0.002


def test_no_two_looks_are_the_same_nor_like_a_style_or_the_source() -> None:
    """Apart by 26 dB or less over some scenes: the small autoencoder alone costs about as much."""
    errors: dict[tuple[str, str], list[float]] = {}
    for number in range(SCENES):
        scene = make_scene(number, 48, 48, 1)
        made = {name: np.clip(look(scene.picture, AMOUNTS["plain"]), 0, 1) for name, look in looks().items()}
        made |= {name: np.clip(style(scene), 0, 1) for name, style in STYLE_OF.items()}
        made["source"] = scene.picture
        for (first, a), (second, b) in itertools.combinations(made.items(), 2):
            errors.setdefault((first, second), []).append(float(np.square(a - b).mean()))
    near = {pair: -10 * np.log10(np.mean(values)) for pair, values in errors.items()}
    assert {pair: db for pair, db in near.items() if db > 26} == {}


def test_noir_is_grey_and_plain_ones_do_what_their_name_says() -> None:
    for number in range(SCENES):
        source = picture(number)
        noir = LOOKS["noir"](source, AMOUNTS["plain"])
        assert np.abs(noir - noir[..., :1]).max() == 0

        def of(name: str, source: np.ndarray = source) -> np.ndarray:
            return LOOKS[name](source, AMOUNTS["plain"])

        def chroma(frames: np.ndarray) -> float:
            return float(np.abs(frames - (frames @ LUMA)[..., None]).mean())

        assert of("darker").mean() < source.mean() < of("brighter").mean()
        assert of("cooler")[..., 0].mean() < source[..., 0].mean() < of("warmer")[..., 0].mean()
        assert of("warmer")[..., 2].mean() < source[..., 2].mean() < of("cooler")[..., 2].mean()
        assert chroma(of("less-colour")) < chroma(source) < chroma(of("more-colour"))
        assert of("less-contrast").std() < source.std() < of("more-contrast").std()


@pytest.mark.parametrize("kind", LOOK_KINDS)
def test_words(kind: str) -> None:
    """Fifty or more, a tenth held out, of words that training has; the strength's place is in each."""
    seen, held_out = WORDINGS[kind]
    assert len({*seen, *held_out}) == len(seen) + len(held_out) >= 50 or kind == "two-looks"
    assert 0.08 <= len(held_out) / (len(seen) + len(held_out)) <= 0.13

    def words(template: str) -> set[str]:
        return set(re.findall(r"[a-z{}']+", template.lower()))

    known = set().union(*map(words, seen))
    assert [template for template in held_out if words(template) - known] == []
    if kind != "two-looks":
        assert all(len(re.findall(r"\{(how|more|so)\}", template)) == 1 for template in (*seen, *held_out))
    filling = {"colour": "azure", "first": "warmer", "second": "foggy"}
    for strength in STRENGTHS.values():
        for index in range(4):
            slots = {name: texts[index % len(texts)] for name, texts in strength.items()}
            for template in (*seen, *held_out):
                text = fill(template, {**filling, **slots})
                assert "{" not in text and "  " not in text and text == text.strip()


def test_an_edit_says_its_strength_in_its_words() -> None:
    scene = natural_scene(1, 32, 32, 5)
    found = set()
    for seed in range(24):
        rng = np.random.default_rng(seed)
        edit = make_edit(scene, "warmer", rng)
        amount = AMOUNTS[edit.slots["strength"]]
        assert np.array_equal(edit.target, to_bytes(LOOKS["warmer"](scene.picture, amount))) and edit.mask.all()
        text = wording("warmer", edit.slots, rng)
        said = any(word.strip(" ,") in text for words in STRENGTHS[edit.slots["strength"]].values() for word in words)
        assert said
        found.add(edit.slots["strength"])
    assert found == set(AMOUNTS)
    tinted = make_edit(scene, "tint", np.random.default_rng(0))
    assert tinted.slots["colour"] in wording("tint", tinted.slots, np.random.default_rng(0)).lower()


def test_pairs_of_looks_are_held_out_in_either_order() -> None:
    assert all(is_held_out(pair) == is_held_out(pair[::-1]) for pair in PAIRS)
    assert 0.08 < sum(map(is_held_out, PAIRS)) / len(PAIRS) < 0.25
    scene, kind_of = make_scene(1, 32, 32, 1), {adjective: kind for kind, adjective in ADJECTIVES.items()}
    for held_out in (False, True):
        for seed in range(64):
            edit = make_edit(scene, "two-looks", np.random.default_rng(seed), held_out)
            assert is_held_out((kind_of[edit.slots["first"]], kind_of[edit.slots["second"]])) == held_out
            text = wording("two-looks", edit.slots, np.random.default_rng(seed), "held-out" if held_out else "seen")
            assert all(edit.slots[name] in text.lower().replace("color", "colour") for name in ("first", "second"))


def test_natural_scenes_are_of_their_seed_and_move() -> None:
    first, again, other = (natural_scene(seed, 48, 32, 5) for seed in (3, 3, 4))
    assert first.source.shape == (5, 32, 48, 3) and np.array_equal(first.source, again.source)
    assert not np.array_equal(first.source, other.source)
    assert not np.array_equal(first.source, natural_scene(3, 48, 32, 5, held_out=True).source)
    moving = [natural_scene(seed, 48, 32, 5).source for seed in range(12)]
    assert sum(not np.array_equal(clip[0], clip[-1]) for clip in moving) >= 8
    # Many sizes and soft textures: the spectrum falls as photographs' does, about 1 / f.
    powers = [np.abs(np.fft.fft2(natural_scene(seed, 64, 64, 1).picture[0] @ LUMA))[0, 1:24] for seed in range(24)]
    mean = np.mean(powers, axis=0)
    slope = np.polyfit(np.log(np.arange(1, 24)), np.log(mean), 1)[0]
    assert -1.8 < slope < -0.6


def test_rows_of_looks() -> None:
    assert set(ON_ANYTHING) < set(EVERY_KIND) and not set(LOOK_KINDS) & set(KINDS)
    rows = list(quadruplets(Settings(4, kinds=("fog", "noir"), natural=True, splits=SPLITS, seed=1)))
    assert [row.edit.kind for row in rows] == ["fog", "noir"] * 2


def test_things_lie_on_natural_grounds_where_an_edit_is_about_things() -> None:
    """The ground is what is left when they are taken off, and looks of the same rows have none on it."""
    rows = quadruplets(Settings(6, kinds=("remove", "change", "fog"), natural=True, seed=2))
    for row in rows:
        assert row.scene.family == "natural" and bool(row.scene.things) == (row.edit.kind != "fog")
        if row.edit.kind == "remove" and len(row.scene.things) == 1:
            assert np.array_equal(row.edit.target, to_bytes(row.scene.bare))
        outside = ~row.edit.mask
        assert np.array_equal(row.edit.target[outside], row.scene.source[outside])


def _is_of(text: str, template: str) -> bool:
    """Whether a model is trained with that sentence of a look: the template, with words of strength and a colour."""
    usual = {"how": "", "more": "", "so": ""}
    every = [{slot: word} for slots in STRENGTHS.values() for slot, words in slots.items() for word in words]
    return any(fill(template, usual | slot | {"colour": colour}) == text for slot in every for colour in TINTS)


def test_a_checkpoint_holds_sentences_of_looks_not_templates() -> None:
    """A slot in a sentence would make its other words alone an instruction that is understood ("make it {how}red")."""
    known = seen_wordings()
    assert list(known) == list(EVERY_KIND) and all(known[kind] == list(WORDINGS[kind].seen) for kind in KINDS)
    for kind in LOOK_KINDS:
        plain = known[kind][: len(WORDINGS[kind].seen)]
        stronger = known[kind][len(plain) :]
        assert not any(map(strength_of, plain)) and len(plain) == len(WORDINGS[kind].seen)
        assert {strength_of(text) for text in stronger} == ({"slight", "strong"} if kind != "two-looks" else set())
        assert all(any(_is_of(text, template) for template in WORDINGS[kind].seen) for text in stronger)
        assert not any("{" in text or "  " in text for text in known[kind])
    assert all(any(colour in text for text in known["tint"]) for colour in TINTS)
    assert all(any(name in text for text in known["two-looks"]) for name in ADJECTIVES.values())
    assert "make the video brighter and darker" not in known["two-looks"]
