"""Instructions in many wordings: what a person might type for each kind of edit.

A wording is drawn from its kind's templates, then written as people write: with a capital or without, with a full
stop or without, in British or American spelling. Templates are split once and for all into those for training and
a held-out tenth (`phrases.py`, `phrases_local.py`); the way of writing is no part of the split.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np

from kiwi_cli.errors import UsageError
from kiwi_cli.synth import phrases, phrases_local
from kiwi_cli.synth.looks import TINTS
from kiwi_cli.synth.phrases import Wordings
from kiwi_cli.synth.phrases_looks import ADJECTIVES, LOOK_WORDINGS, STRENGTHS

Split = Literal["seen", "held-out"]
SPLITS: tuple[Split, ...] = get_args(Split)

WORDINGS: Mapping[str, Wordings] = MappingProxyType(
    {
        "black-and-white": phrases.BLACK_AND_WHITE,
        "sepia": phrases.SEPIA,
        "night": phrases.NIGHT,
        "snow": phrases.SNOW,
        "negative": phrases.NEGATIVE,
        "pencil": phrases.PENCIL,
        "posterise": phrases.POSTERISE,
        "background": phrases_local.BACKGROUND,
        "change": phrases_local.CHANGE,
        "remove": phrases_local.REMOVE,
        "add": phrases_local.ADD,
        "reference-background": phrases_local.REFERENCE_BACKGROUND,
        "reference-subject": phrases_local.REFERENCE_SUBJECT,
        **LOOK_WORDINGS,
    }
)
LOOK_KINDS: tuple[str, ...] = tuple(LOOK_WORDINGS)
KINDS: tuple[str, ...] = tuple(kind for kind in WORDINGS if kind not in LOOK_WORDINGS)
"""The thirteen kinds of a drawn scene that are made where none are named."""
EVERY_KIND: tuple[str, ...] = (*KINDS, *LOOK_KINDS)
SLOTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **dict.fromkeys(EVERY_KIND, ()),
        "background": ("ground",),
        "change": ("object", "colour"),
        "remove": ("object",),
        "add": ("object", "place"),
        "reference-subject": ("object",),
        "tint": ("colour",),
        "two-looks": ("first", "second"),
    }
)
AMERICAN = (("olour", "olor"), ("osteris", "osteriz"), ("grey", "gray"), ("Grey", "Gray"), ("centre", "center"))
SHORT = ("make it ", "give it ")
"""How those begin that a model's sentences have slight and strong."""
CAPITAL, STOP, AMERICAN_SPELLING = 0.5, 0.35, 0.3  # how often a wording is written so


def seen_wordings() -> dict[str, list[str]]:
    """Kind of edit -> what a model is trained with: as a checkpoint holds it in `understands.json`.

    Templates, those of looks without a word of strength; then the shortest of these, slight and strong. What they name
    goes through all of it: colours of a tint, two looks of those that there are (pairs that a model is shown in no
    training among them: each word is known).
    """
    found = {kind: list(WORDINGS[kind].seen) for kind in KINDS}
    for kind in LOOK_KINDS:
        found[kind] = [fill(text, _named(number)) for number, text in enumerate(WORDINGS[kind].seen)]
        short = [text for text in WORDINGS[kind].seen if text.startswith(SHORT)] if kind != "two-looks" else []
        for strength in ("slight", "strong"):
            for number, text in enumerate(short):
                every = [{"colour": colour} for colour in TINTS] if text == "make it {how}{colour}" else [{}]
                found[kind] += [fill(text, _named(number) | _strength(strength, number) | name) for name in every]
    return found


def _strength(name: str, number: int) -> dict[str, str]:
    """The slots of that strength, another word in each of a row."""
    return {slot: words[number % len(words)] for slot, words in STRENGTHS[name].items()}


def _named(number: int) -> dict[str, str]:
    """The slots of a look's template, another name in each of a row."""
    colours, names = list(TINTS), list(ADJECTIVES.values())
    return {
        "how": "",
        "more": "",
        "so": "",
        "colour": colours[number % len(colours)],
        "first": names[number % len(names)],
        "second": names[(number + 5) % len(names)],  # no two that undo each other
    }


def wording(kind: str, slots: Mapping[str, str], rng: np.random.Generator, split: Split = "seen") -> str:
    """One instruction of a kind.

    Args:
        kind: one of `EVERY_KIND`.
        slots: what the kind's templates name (`SLOTS`), as a noun phrase without an article ("red ball"); more are
            ignored. Those of a look's strength (`phrases_looks.STRENGTHS`) may be left out.
        rng: four draws are taken from it, whatever the kind.
        split: which templates to draw from.

    Returns:
        A sentence. American spelling, where it falls to it, extends to the slots.

    Raises:
        UsageError: no such kind, or a slot is missing.
    """
    if kind not in WORDINGS:
        raise UsageError(f"there is no kind of edit '{kind}'", f"the kinds are {', '.join(EVERY_KIND)}")
    missing = [name for name in SLOTS[kind] if not slots.get(name)]
    if missing:
        raise UsageError(f"an instruction of kind '{kind}' needs '{missing[0]}'", f"give slots['{missing[0]}']")
    templates = WORDINGS[kind].seen if split == "seen" else WORDINGS[kind].held_out
    template = templates[int(rng.integers(len(templates)))]
    capital, stop, american = (rng.random(3) < (CAPITAL, STOP, AMERICAN_SPELLING)).tolist()
    return written(fill(template, {"how": "", "more": "", "so": "", **slots}), capital, stop, american)


def fill(template: str, slots: Mapping[str, str]) -> str:
    """A template with its slots filled and the article before a slot put right: "a {object}" to "an orange ball"."""

    def slot(match: re.Match[str]) -> str:
        article, name = match.group(1) or "", slots[match.group(2)]
        return (("an " if name[0].lower() in "aeiou" else "a ") if article else "") + name

    return re.sub(r"(\ba )?\{(\w+)\}", slot, template)


def written(text: str, capital: bool, stop: bool, american: bool) -> str:
    """The text as somebody types it: first letter large, a full stop (or a question's own mark), spelling."""
    question = text.endswith("?")
    text = text.removesuffix("?")
    if american:
        for british, other in AMERICAN:
            text = text.replace(british, other)
    if capital:
        text = text[0].upper() + text[1:]
    return text + (("?" if question else ".") if stop else "")
