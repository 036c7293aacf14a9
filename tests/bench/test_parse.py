"""Answers as judges write them."""

from __future__ import annotations

import pytest

from kiwi_cli.bench.judges.parse import parse_scores

NAMES = ("Instruction Compliance", "Consistency & Detail Fidelity", "Visual Quality")
ALL = "Instruction Compliance: 4\nConsistency & Detail Fidelity: 3\nVisual Quality: 5"
GOOD = {
    "plain": "Brief reasoning: fine.\nInstruction Compliance: 4\nConsistency & Detail Fidelity: 3\nVisual Quality: 5",
    "bold": "**Instruction Compliance:** 4\n**Consistency & Detail Fidelity**: 3\n__Visual Quality__ : **5**",
    "bullets": "- Instruction Compliance: 4/5\n* Consistency & Detail Fidelity: 3 / 5\n3. Visual Quality: 5 out of 5",
    "spacing": "  instruction   compliance :  4 \r\nCONSISTENCY AND DETAIL FIDELITY:3\nVisual Quality: 5.0",
    "words after": "Instruction Compliance: 4 (good)\nConsistency & Detail Fidelity: 3.\nVisual Quality: 5 - flawless",
    "heading": "### Instruction Compliance: 4\n> Consistency & Detail Fidelity: [3]\n`Visual Quality: 5`",
    "table": "| Instruction Compliance: 4 |\n| Consistency & Detail Fidelity: 3 |\n| Visual Quality: 5 |",
    "twice the same": ALL + "\nVisual Quality: 5",
    "a number in the reason": "Why: 2 of 3 cats: 1\n" + ALL,
}
BASE = "Instruction Compliance: 4\nConsistency & Detail Fidelity: 3\n"
BAD = {
    "empty": ("", "empty"),
    "none": (None, "empty"),
    "refusal": ("I cannot judge this.", "no score for 'Instruction Compliance'"),
    "missing one": (BASE, "no score for 'Visual Quality'"),
    "zero": (BASE + "Visual Quality: 0", "'Visual Quality: 0'"),
    "six": (BASE + "Visual Quality: 6", "from 1 to 5"),
    "ten": (BASE + "Visual Quality: 10", "from 1 to 5"),
    "half": (BASE + "Visual Quality: 3.5", "whole"),
    "negative": (BASE + "Visual Quality: -4", "whole"),
    "the question repeated": (BASE + "Visual Quality: 1-5.", "whole"),
    "a range": (BASE + "Visual Quality: 3 to 4", "whole"),
    "words": (BASE + "Visual Quality: good", "whole"),
    "two answers": (BASE + "Visual Quality: 4\nVisual Quality: 2", "two different"),
    "of ten": (BASE + "Visual Quality: 4/10", "whole"),
    "no value": (BASE + "Visual Quality:", "whole"),
}


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    assert parse_scores(GOOD[name], NAMES) == (dict(zip(NAMES, (4, 3, 5), strict=True)), "")


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    text, words = BAD[name]
    scores, problem = parse_scores(text, NAMES)
    assert scores is None and words in problem
