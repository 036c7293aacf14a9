"""Talk on a narrow terminal: between words, and what is to be copied stays whole."""

from __future__ import annotations

import pytest

from kiwi_cli.base.text import folded

LONG = "of 10,000 files some were not opened in 9.0 s: what is wrong with them is said when it is their turn"


def test_words_stay_whole_and_none_is_lost() -> None:
    lines = folded(LONG, 40).split("\n")
    assert max(map(len, lines)) <= 40 and " ".join(lines) == LONG


@pytest.mark.parametrize(
    "line",
    [
        "next: kiwi edit bunny.mp4 'make it snowy' --duration 1 --model tiny --device cpu",
        "hint: run `kiwi doctor`, which says what is missing on this machine and why",
        "error: input not found: '/data/my  clips/a name with spaces in it.mp4', which was asked for",
    ],
)
def test_what_is_to_be_copied_is_not_broken(line: str) -> None:
    assert folded(line, 40) == line


def test_an_apostrophe_is_no_quote() -> None:
    text = "a clip's own sound isn't changed, and what the model's frames are is said in 'notes' below"
    assert len(folded(text, 40).split("\n")) == 3
