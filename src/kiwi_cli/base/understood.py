"""Whether an instruction is one that a small model was trained to understand, and the nearest that are.

By words: those that every instruction has ("please make the whole clip ...") say nothing; of the others, nearly all
must be words that the model knows from one kind of edit.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

Sentences = Mapping[str, Sequence[str]]
"""Kind of edit -> instructions that a model was trained with; '{slots}' stand for any words."""

KNOWN = 0.8  # of the telling words: below it, something else is asked for too
SHOWN = 0.5  # where a picture shows what is meant, and words may name what is on it
MOST = 3  # instructions that are named
ALIKE = (
    0.75  # of the letters of two words that begin alike: from here one may be meant by the other, as a slip of the pen
)
LONG = 4  # letters: words of no more are like too many others: "down" and "dawn"
NEGATIONS = frozenset(["don", "except", "excepting", "never", "no", "not", "nothing", "undo", "without"])
"""Words that reverse what is said with them: only sentences that have them are meant."""
ALL_BUT = re.compile(r"\b(?:all|anything|everything) but\b(?! also)")

_FILLERS = (
    "a add all an and are as at be by can change clip convert could do edit everything film footage for frame "
    "frames from get give go has have i image in into is it its kindly let like look looking looks made make "
    "me my of on one photo picture please put render scene shot show so some something that the this to "
    "slightly little bit somewhat subtly much lot far very strongly extremely really just only both but also can "
    "transform turn turned version video want was we whole will with would you your"
)
FILLERS = frozenset(_FILLERS.split())
SPELLINGS = (
    ("grey", "gray"),
    ("colour", "color"),
    ("greyscale", "grayscale"),
    ("erise", "erize"),
    ("orise", "orize"),
    ("lise", "lize"),
)


@dataclass(frozen=True)
class Match:
    """What was found for an instruction.

    Attributes:
        understood: whether it is of one of the kinds. kind: the most likely of these, '' where it is not.
        instruction: as it was given. texts: of each of the kinds, what it was compared with.
        other: the kind that it is of where that is one of those that the model is not good for, else ''.
    """

    understood: bool
    instruction: str
    texts: tuple[tuple[str, ...], ...]
    kind: str = ""
    other: str = ""

    @cached_property
    def nearest(self) -> tuple[str, ...]:
        """The most similar instructions that are understood: at most three, each of another kind, the nearest first.

        None where no telling word is in them, nor one like it, or where it is of a kind that the model is not good for.
        """
        if self.other:
            return ()
        meant = telling(re.sub(r"\bb\s*(&|and|/)\s*w\b", "black white", self.instruction.lower()))  # in no sentence
        known = frozenset().union(*(telling(text) for texts in self.texts for text in texts))
        near = meant & known or {like for word in meant for like in _alike(word, known)}
        reversed_by = meant & NEGATIONS
        there = [[text for text in texts if near & telling(text) >= reversed_by] for texts in self.texts]
        found = [_nearest(self.instruction, frozenset(near), texts) for texts in there]
        found.sort(key=lambda one: one[0], reverse=True)
        return tuple(dict.fromkeys(text for (shared, *_), text in found if shared))[:MOST]


def match(instruction: str, sentences: Sentences, kinds: Iterable[str], known: float = KNOWN) -> Match:
    """How an instruction fits the kinds of edit that a model is good for.

    Args:
        sentences: of every kind that it was trained with, other kinds among them.
        kinds: those it is good for.
        known: share of the telling words that one kind must know.
    """
    said, end = telling(instruction), telling(_end(instruction))
    cover = {kind: _cover(said, texts) for kind, texts in sentences.items()}
    good = [kind for kind in kinds if kind in sentences]
    best = max((cover[kind] for kind in good), default=0.0)
    others = [kind for kind in sentences if kind not in good]
    other = max(others, key=lambda kind: (cover[kind], *_nearest(instruction, said, sentences[kind])[0]), default="")
    texts = {kind: tuple(text for text in sentences[kind] if "{" not in text) for kind in good}
    likely = [kind for kind in good if cover[kind] == best and (not end or not texts[kind] or end & _ends(texts[kind]))]
    if best < known or best < cover.get(other, 0.0) or not likely:
        of_other = cover.get(other, 0.0) >= max(best, known)
        return Match(False, instruction, tuple(texts.values()), other=other if of_other else "")
    kind = max(likely, key=lambda kind: _nearest(instruction, said, texts[kind])[0])
    return Match(True, instruction, tuple(texts.values()), kind)


def _end(text: str) -> str:
    """What it is to become, of an instruction that says so: 'turn night into day' asks for no night."""
    return text.lower().rpartition(" into ")[2] if " into " in text.lower() else ""


@cache
def _ends(texts: tuple[str, ...]) -> frozenset[str]:
    """Telling words of what a kind's sentences ask for."""
    found = []
    for text in texts:
        before, _, after = text.rpartition(" to ")
        found.append(telling(_end(text)) or telling(after) or telling(before))
    return frozenset().union(*found)


@cache
def telling(text: str) -> frozenset[str]:
    """The words of an instruction that say which one it is, in one spelling."""
    found = set()
    for word in re.findall(r"[a-z]+", ALL_BUT.sub("except", text.lower())):
        for british, american in SPELLINGS:
            word = word.replace(british, american)
        if word not in FILLERS:
            found.add(word)
    return frozenset(found)


def _cover(said: frozenset[str], texts: Sequence[str]) -> float:
    """The share of telling words that a kind knows. One with slots must have a sentence of that form, and a single word
    must be a sentence's only one: "make it day" asks for no snowy day."""
    if not said:
        return 0.0
    if any("{" in text for text in texts):
        fixed = [telling(re.sub(r"\{\w+\}", "", text)) for text in texts]
        return max((1.0 for words in fixed if words and words <= said), default=0.0)
    words = [telling(text) for text in texts]
    if len(said) == 1:
        return float(said in words)
    vocabulary = frozenset().union(*words)
    if said & NEGATIONS - vocabulary:
        return 0.0
    return len(said & vocabulary) / len(said)


def _alike(word: str, known: Iterable[str]) -> list[str]:
    """The most similar word there is, if it is similar at all; short words are all alike."""
    begin = [one for one in sorted(known) if len(word) > LONG and one[0] == word[0]]
    return difflib.get_close_matches(word, begin, 1, ALIKE)


def _nearest(instruction: str, said: frozenset[str], texts: Sequence[str]) -> tuple[tuple[float, float, int], str]:
    """How like the most similar text is, and which it is: by telling words, then by letters, then the shortest."""
    if not texts:
        return (0.0, 0.0, 0), ""
    words = {text: telling(text) for text in texts}
    shared = {text: len(said & words[text]) / max(len(said | words[text]), 1) for text in texts}
    most = max(shared.values())

    def likeness(text: str) -> tuple[float, float, int]:
        return shared[text], difflib.SequenceMatcher(None, instruction.lower(), text).ratio(), -len(text)

    best = max((text for text in texts if shared[text] == most), key=likeness)
    return likeness(best), best
