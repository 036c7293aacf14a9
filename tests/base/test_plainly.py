"""Everyday instructions in plain words, and which kind of edit the embedded model takes them for."""

from __future__ import annotations

import pytest

from kiwi_cli.base.plainly import plainly
from kiwi_cli.base.understood import match
from kiwi_cli.synth.wordings import seen_wordings
from kiwi_cli.weights.settings import read_settings

from ..conftest import ROOT

TINY = read_settings(ROOT / "src/kiwi_cli/tiny")


@pytest.mark.parametrize(
    ("said", "plain"),
    [
        ("MAKE IT  SNOWY!!", "make it snowy"),
        ("Brighten it up a bit.", "make it brighter a bit"),
        ("please darken the whole clip", "please make the whole clip darker"),
        ("darken it to a blue night", "darken it to a blue night"),
        ("Boost the colors", "give it more colour"),
        ("reduce the contrast", "give it less contrast"),
        ("b&w", "black and white"),
        ("strongly desaturate", "make it strongly less colourful"),
        ("desaturate it completely", "desaturate it completely"),
        ("make it look like the 70s", "make it look like the seventies"),
        ("snow", "make it snowy"),
        ("let the snow fall", "let the snow fall"),
    ],
)
def test_it_is_said_in_plain_words(said: str, plain: str) -> None:
    assert plainly(said) == plain


def test_sentences_that_models_were_trained_with_stay_what_they_are() -> None:
    changed = {
        text for texts in seen_wordings().values() for text in texts if plainly(text) != text.lower().rstrip(" .!?")
    }
    assert all(match(plainly(text), TINY.understands, TINY.offers).kind == kind for kind, text in _offered(changed))
    assert len(changed) < 40, changed


def _offered(changed: set[str]) -> list[tuple[str, str]]:
    return [(kind, text) for kind in TINY.offers for text in TINY.understands[kind] if text in changed]


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("GOLDEN HOUR", "golden-hour"),
        ("cyberpunk vibe", "neon"),
        ("warm it up a bit", "warmer"),
        ("cool it down a little", "cooler"),
        ("lighten it up", "brighter"),
        ("dim it", "darker"),
        ("increase the brightness", "brighter"),
        ("crank up the contrast", "more-contrast"),
        ("reduce the contrast", "less-contrast"),
        ("make colors pop", "more-colour"),
        ("like it was shot underwater", "underwater"),
        ("noir style", "noir"),
        ("turn day into night", "night"),
        ("turn night into day", ""),  # the opposite
        ("tint it red", "tint"),
        ("make it blue", "tint"),
        ("make it day", ""),  # a snowy one is
        ("add sun", ""),  # a winter's is
        ("make it brown", ""),
        ("snow", "snow"),
        ("two dogs", ""),
    ],
)
def test_what_people_type_is_the_kind_that_they_mean(said: str, kind: str) -> None:
    assert match(plainly(said), TINY.understands, TINY.offers).kind == kind
