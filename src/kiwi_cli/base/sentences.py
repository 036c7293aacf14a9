"""What an instruction's words say: which edit, how strong, and whether they reverse it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from functools import cache

_FILLERS = (
    "a add all also am an and are as at be both but by can change clip convert could d do edit everything film footage "
    "for frame frames from get give go has have i image in into is it its just kindly let like ll look looking looks "
    "made make making me mind my of on one only over photo picture please pls plz put re render s scene shot show so "
    "some something t take thank thanks that the this thx to transform turn turned u ur version video want was we "
    "whole will with would you your"
)
_SLIGHT = "barely bit faintly gently hint lil little mildly slight slightly somewhat subtle subtly tad tiny touch wee"
_STRONG = "extra extremely far heavily heavy lot much really significantly strong strongly super totally ultra very way"
_GOING = (
    "avoid away clear colorize don except excepting fix keep less lift lose melt minus never no nor not nothing off "
    "out remove repair restore revert rid stop too un undo unlike without"
)
SLIGHT, STRONG = frozenset(_SLIGHT.split()), frozenset(_STRONG.split())
FILLERS = frozenset(_FILLERS.split()) | SLIGHT | STRONG
GOING = frozenset(_GOING.split())
REVERSING = GOING | {"opposite", "opposites"}
"""Words that turn what is said with them round: they belong to a sentence as much as what they stand beside."""
TAKING = GOING | {"before", "drain", "drained", "strip"}
"""Words by which what a sentence names goes: another instruction that names that may mean that it comes."""
SPELLINGS = (
    ("grey", "gray"),
    ("colour", "color"),
    ("erise", "erize"),
    ("orise", "orize"),
    ("lise", "lize"),
)
ALL_BUT = re.compile(r"\b(?:all|anything|everything) but\b(?! also)")
BECOMES = (" into ", " to ", " like ")
"""What something is to become stands after the last of these."""
ALIKE = 0.76  # of the letters of two words that begin alike: from here one may be a slip of the pen for the other
READ = 200  # letters of an instruction that are compared with those of sentences
LONG = 4  # letters: words of no more are like too many others: "down" and "dawn"


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


def reversed_by(text: str) -> frozenset[str]:
    """The words in it that turn round what it says."""
    return telling(text) & REVERSING


def taken_by(text: str) -> frozenset[str]:
    """The words in it by which something goes."""
    return telling(text) & TAKING


@cache
def parts(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """Telling words of what there is and of what it is to become: 'turn night into day' asks for no night.

    All of them are of the second where an instruction does not tell the two apart.
    """
    low = text.lower()
    place, mark = max((low.rfind(mark), mark) for mark in BECOMES)
    after = telling(low[place + len(mark) :]) if place >= 0 else frozenset()
    return (telling(low[:place]), after) if after else (frozenset(), telling(low))


@cache
def strength(text: str) -> str:
    """'slight', 'strong' or '': how much of the edit is asked for."""
    words = frozenset(re.findall(r"[a-z]+", text.lower()))
    return "slight" if words & SLIGHT else "strong" if words & STRONG else ""


def nearest(instruction: str, said: frozenset[str], texts: Sequence[str]) -> tuple[tuple[float, float, int], str]:
    """How like the most similar text is, and which it is: by telling words, then by letters, then the shortest."""
    if not texts:
        return (0.0, 0.0, 0), ""
    words = {text: telling(text) for text in texts}
    shared = {text: len(said & words[text]) / max(len(said | words[text]), 1) for text in texts}
    most = max(shared.values())

    def likeness(text: str) -> tuple[float, float, int]:
        return shared[text], difflib.SequenceMatcher(None, instruction[:READ].lower(), text).ratio(), -len(text)

    best = max((text for text in texts if shared[text] == most), key=likeness)
    return likeness(best), best


def alike(word: str, known: Iterable[str]) -> list[str]:
    """The most similar word there is, if it is similar at all; short words are all alike."""
    near = [one for one in sorted(known) if one[0] == word[0] and abs(len(one) - len(word)) < 2]
    begin = near if len(word) > LONG else []
    return difflib.get_close_matches(word, begin, 1, ALIKE)
