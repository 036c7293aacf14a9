"""Instructions against the sentences of any model: what is told, and what of slots, strengths and ties."""

from __future__ import annotations

import pytest

from kiwi_cli.base.understood import match

SENTENCES = {
    "add": ["add a {object}", "put a {object} there"],
    "remove": ["remove the {object}"],
    "warmer": ["make it warmer", "make it slightly warmer", "give it a warmer white balance"],
    "cooler": ["make it cooler", "give it a colder white balance"],
    "softer": ["make it a bit softer"],
}


@pytest.mark.parametrize(
    ("said", "kind", "told"),
    [
        ("please remove the red ball", "remove", "please remove the red ball"),
        ("put a ball there and add a cube", "add", "put a ball there and add a cube"),
        ("warmer", "warmer", "make it warmer"),
        ("a touch warmer", "warmer", "make it slightly warmer"),
        ("much warmer", "warmer", "make it warmer"),  # it has no sentence that is as strong
        ("much cooler", "cooler", "make it cooler"),
        ("softer", "softer", "make it a bit softer"),  # nor a plain one of this
        ("make it slightly warmer", "warmer", "make it slightly warmer"),
    ],
)
def test_what_is_told_is_the_models_own_sentence_where_it_has_one(said: str, kind: str, told: str) -> None:
    found = match(said, SENTENCES, list(SENTENCES))
    assert (found.understood, found.kind, found.told) == (True, kind, told)


def test_what_two_kinds_have_in_common_is_neither() -> None:
    found = match("white balance", SENTENCES, list(SENTENCES))
    assert not found.understood
    assert set(found.nearest) == {"give it a warmer white balance", "give it a colder white balance"}


def test_several_edits_are_steps() -> None:
    found = match("cooler and a bit softer", SENTENCES, list(SENTENCES))
    assert not found.understood and found.steps == ("make it cooler", "make it a bit softer")
