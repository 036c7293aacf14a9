"""The instructions: enough of them, split for good, every slot named, and English."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from kiwi_cli.errors import UsageError
from kiwi_cli.synth.wordings import EVERY_KIND, KINDS, SLOTS, SPLITS, WORDINGS, fill, wording, written

FILLING = {"ground": "a red to blue gradient", "object": "orange ball", "colour": "azure", "place": "top left corner"}


def words(template: str) -> set[str]:
    return set(re.findall(r"[a-z{}']+", template.lower()))


def plain(template: str) -> str:
    return " ".join(re.sub(r"[^a-z{} ]", "", template.lower()).split())


def test_the_kinds_are_the_thirteen_in_their_order() -> None:
    styles = ["black-and-white", "sepia", "night", "snow", "negative", "pencil", "posterise"]
    others = ["background", "change", "remove", "add", "reference-background", "reference-subject"]
    assert [*styles, *others] == list(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_there_are_sixty_or_more_and_a_tenth_is_kept_back(kind: str) -> None:
    seen, held_out = WORDINGS[kind]
    assert len(seen) + len(held_out) >= 60 and len(seen) >= 50
    assert len(held_out) >= 6
    assert abs(len(held_out) - (len(seen) + len(held_out)) / 10) <= 1


def test_no_two_templates_are_the_same_but_for_capitals_and_marks() -> None:
    every = Counter(plain(template) for both in WORDINGS.values() for half in both for template in half)
    assert [template for template, number in every.items() if number > 1] == []


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_wordings_combine_words_that_training_has(kind: str) -> None:
    known = set().union(*map(words, WORDINGS[kind].seen))
    assert {template: words(template) - known for template in WORDINGS[kind].held_out if words(template) - known} == {}


@pytest.mark.parametrize("kind", KINDS)
def test_every_template_names_what_its_kind_names_once(kind: str) -> None:
    for template in WORDINGS[kind].seen + WORDINGS[kind].held_out:
        assert sorted(re.findall(r"\{(\w+)\}", template)) == sorted(SLOTS[kind]), template


@pytest.mark.parametrize("kind", KINDS)
def test_no_slot_is_left_open_and_no_article_is_doubled_or_wrong(kind: str) -> None:
    for template in WORDINGS[kind].seen + WORDINGS[kind].held_out:
        text = fill(template, FILLING)
        assert "{" not in text and "}" not in text
        assert all(FILLING[name] in text for name in SLOTS[kind])
        assert not re.search(r"\ba (a|an|the|[aeio])", text), text  # "a" before a vowel
        assert not re.search(r"\b(an|the|one|new) (a|an) ", text), text
        assert "  " not in text and text == text.strip()


def test_articles_follow_the_filling() -> None:
    assert fill("add a {object} here", {"object": "red ball"}) == "add a red ball here"
    assert fill("add a {object} here", {"object": "orange ball"}) == "add an orange ball here"
    assert fill("add the {object}", {"object": "orange ball"}) == "add the orange ball"


def test_it_is_written_as_people_write() -> None:
    assert written("colour it grey", capital=True, stop=True, american=True) == "Color it gray."
    assert written("posterise the centre", capital=False, stop=False, american=True) == "posterize the center"
    assert written("could you do it?", capital=True, stop=True, american=False) == "Could you do it?"
    assert written("could you do it?", capital=False, stop=False, american=False) == "could you do it"


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", KINDS)
def test_draws_stay_in_their_split_and_reach_all_of_it(kind: str, split: str) -> None:
    rng = np.random.default_rng(0)
    half = WORDINGS[kind].seen if split == "seen" else WORDINGS[kind].held_out
    allowed = {plain(written(fill(template, FILLING), False, False, True)) for template in half}
    drawn = {
        plain(written(wording(kind, FILLING, rng, split).rstrip("?."), False, False, True))  # type: ignore[arg-type]
        for _ in range(15 * len(half))
    }
    assert drawn == allowed


def test_the_same_draws_make_the_same_words_and_capitals_and_stops_vary() -> None:
    def texts(seed: int) -> list[str]:
        rng = np.random.default_rng(seed)
        return [wording("remove", FILLING, rng) for _ in range(100)]

    assert texts(1) == texts(1) != texts(2)
    capitals, stops = sum(text[0].isupper() for text in texts(1)), sum(text[-1] in ".?" for text in texts(1))
    assert 30 < capitals < 75 and 15 < stops < 55


def test_a_kind_or_slot_that_is_not_there_is_named() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError, match="no kind of edit 'melt'"):
        wording("melt", {}, rng)
    with pytest.raises(UsageError, match="'change' needs 'colour'"):
        wording("change", {"object": "red ball"}, rng)


def test_no_sentence_is_of_two_kinds() -> None:
    """What is asked for in the same words cannot be told apart: "make it moonlit" was night and moonlight."""
    owners: dict[str, set[str]] = {}
    for kind in EVERY_KIND:
        for template in (*WORDINGS[kind].seen, *WORDINGS[kind].held_out):
            owners.setdefault(plain(re.sub(r"\{(how|more|so)\}", "", template)), set()).add(kind)
    assert not {sentence: kinds for sentence, kinds in owners.items() if len(kinds) > 1}
