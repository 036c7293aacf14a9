"""Whether an instruction is one that a small model understands, as which of its sentences, and which are nearest.

By words: those that every instruction has ("please make the whole clip ...") say nothing; of the others, nearly all
must be words that the model knows from one kind of edit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from kiwi_cli.base.sentences import READ, alike, nearest, parts, reversed_by, strength, taken_by, telling

Sentences = Mapping[str, Sequence[str]]
"""Kind of edit -> instructions that a model was trained with; '{slots}' stand for any words."""

KNOWN = 0.8  # of the telling words: below it, something else is asked for too
SHOWN = 0.5  # where a picture shows what is meant, and words may name what is on it
MOST = 3  # instructions that are named
MEASURES = frozenset(["less", "more"])
"""Words that say nothing of what is meant when they are all that two sentences share."""
AND = re.compile(r",|;|&|\+|\b(?:and|but)(?: also)?(?: then)?\b|\bthen\b")


@dataclass(frozen=True)
class Match:
    """What was found for an instruction.

    Attributes:
        understood: whether it is of one of the kinds. kind: the most likely of these, '' where it is not.
        instruction: as it was given. texts: of each of the kinds, what it was compared with.
        other: the kind that it is of where that is one of those that the model is not good for, else ''.
        told: the sentence of that kind and strength that is nearest to it, of those the model was trained with; the
            instruction itself where it is one of them, or where the kind has none without slots.
        steps: what is told for each of the edits that it asks for, where it asks for several and each is understood.
    """

    understood: bool
    instruction: str
    texts: tuple[tuple[str, ...], ...]
    kind: str = ""
    other: str = ""
    told: str = ""
    steps: tuple[str, ...] = ()

    @cached_property
    def nearest(self) -> tuple[str, ...]:
        """The most similar instructions that are understood: at most three, each of another kind, the nearest first.

        None where no telling word is in them, nor one like it, or where it is of a kind that the model is not good for.
        """
        if self.other:
            return ()
        text = re.sub(r"\bb\s*(&|and|/)\s*w\b", "black white", self.instruction.lower())  # in no sentence
        reverses, said = reversed_by(text), telling(text)
        gone = taken_by(text)
        there = [
            [one for one in texts if reversed_by(one) == reverses and taken_by(one) <= gone] for texts in self.texts
        ]
        known = frozenset().union(*(telling(one) for texts in there for one in texts)) - reverses
        near = said & known or frozenset(like for word in said - reverses for like in alike(word, known))
        as_strong = [[one for one in texts if strength(one) == strength(text)] or texts for texts in there]
        found = [nearest(self.instruction, near | reverses, texts) for texts in as_strong]
        found = [(likeness, one) for likeness, one in found if (near - MEASURES) & parts(one)[1]]
        found.sort(key=lambda one: one[0], reverse=True)
        return tuple(dict.fromkeys(one for _, one in found))[:MOST]


def match(instruction: str, sentences: Sentences, kinds: Iterable[str], known: float = KNOWN) -> Match:
    """How an instruction fits the kinds of edit that a model is good for.

    Args:
        sentences: of every kind that it was trained with, other kinds among them.
        kinds: those it is good for.
        known: share of the telling words that one kind must know.
    """
    said = telling(instruction)
    cover = {kind: _cover(instruction, texts) for kind, texts in sentences.items()}
    good = [kind for kind in kinds if kind in sentences]
    best = max((cover[kind] for kind in good), default=0.0)
    others = [kind for kind in sentences if kind not in good]
    other = max(others, key=lambda kind: (cover[kind], *nearest(instruction, said, sentences[kind])[0]), default="")
    texts = {kind: tuple(text for text in sentences[kind] if "{" not in text) for kind in good}
    likely = [kind for kind in good if cover[kind] == best]
    if best < known or best < cover.get(other, 0.0):
        of_other = cover.get(other, 0.0) >= max(best, known)
        steps = _steps(instruction, sentences, good, known)
        return Match(False, instruction, tuple(texts.values()), other=other if of_other else "", steps=steps)
    found = {kind: nearest(instruction, said, texts[kind])[0] for kind in likely}
    kind = max(likely, key=lambda kind: found[kind])
    shared = found[kind][0]
    if 0 < shared < 1 and [one[0] for one in found.values()].count(shared) > 1:  # "white balance": warmer, or cooler?
        return Match(False, instruction, tuple(texts.values()))
    return Match(True, instruction, tuple(texts.values()), kind, told=_told(instruction, texts[kind]))


def _steps(instruction: str, sentences: Sentences, kinds: Sequence[str], known: float) -> tuple[str, ...]:
    """What is told for each part of 'brighter and warmer', if all are understood, and as different kinds."""
    asked = [part.strip() for part in AND.split(instruction[:READ]) if part.strip()]
    found = [match(part, sentences, kinds, known) for part in asked] if len(asked) > 1 else []
    different = len({one.kind for one in found}) == len(found)
    return tuple(one.told for one in found) if different and all(one.understood for one in found) else ()


def _told(instruction: str, texts: Sequence[str]) -> str:
    """The sentence among them that is as strong, where one is, and nearest."""
    if instruction in texts or not texts:
        return instruction
    of_strength = [[text for text in texts if strength(text) == how] for how in (strength(instruction), "")]
    return nearest(instruction, telling(instruction), of_strength[0] or of_strength[1] or texts)[1]


def _cover(instruction: str, texts: Sequence[str]) -> float:
    """The share of telling words that a kind knows.

    One with slots must have a sentence of that form, and a single word must be a sentence's only one: "make it day"
    asks for no snowy day. What reverses it must be a sentence's, with something else of that, and what it is to become
    must be something that a sentence makes of things.
    """
    said, reverses = telling(instruction), reversed_by(instruction)
    if not said:
        return 0.0
    if any("{" in text for text in texts):
        fixed = [telling(re.sub(r"\{\w+\}", "", text)) for text in texts]
        return max((1.0 for words in fixed if words and words <= said), default=0.0)
    if len(said) == 1:
        return float(said in [telling(text) for text in texts])
    turned = [telling(text) - reverses for text in texts if reversed_by(text) == reverses] if reverses else []
    if reverses and not any(0 < len(words) <= 2 * len(said & words) for words in turned):
        return 0.0
    usual = texts if taken_by(instruction) else [text for text in texts if not taken_by(text)]
    before, after = parts(instruction)
    ends = [parts(text)[1] for text in usual]
    if not any(2 * len(after & end) >= len(end) for end in ends if end):
        return 0.0
    made = frozenset().union(*ends)
    known = (after & made) | (before & frozenset().union(*map(telling, usual)))
    return len(known) / len(said)
