"""The judge's words -> numbers. Every expected score must be there and of the scale; else nothing counts."""

from __future__ import annotations

import re
from collections.abc import Sequence

LOWEST, HIGHEST = 1, 5
_MARKUP = re.compile(r"[*_`#>|]+")
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*(?:(?:/|out of)\s*5(?:\.0+)?)?\s*(.*)", re.DOTALL)


def parse_scores(
    text: str | None, names: Sequence[str], scale: tuple[int, int] = (LOWEST, HIGHEST), whole: bool = True
) -> tuple[dict[str, float] | None, str]:
    """Find a score for each name.

    Args:
        scale: lowest and highest. whole: only whole numbers count; they are ints then.

    Bold, headings, bullets, case and spacing do not matter, nor does 'and' for '&'; '4', '4.0' and '4/5' are the same.

    Returns:
        (scores by name, '') or (None, what is wrong).
    """
    if not text or not text.strip():
        return None, "the answer is empty"
    wanted = {_key(name): name for name in names}
    found: dict[str, float] = {}
    for line in text.splitlines():
        head, colon, rest = line.replace("：", ":").partition(":")
        name = wanted.get(_key(head))
        if not colon or name is None:
            continue
        score = _score(rest, scale, whole)
        if score is None:
            return None, f"no {'whole ' if whole else ''}score from {scale[0]} to {scale[1]} in '{_plain(line)[:80]}'"
        if found.get(name, score) != score:
            return None, f"two different scores for '{name}'"
        found[name] = score
    missing = [name for name in names if name not in found]
    if missing:
        return None, "no score for " + ", ".join(f"'{name}'" for name in missing)
    return {name: found[name] for name in names}, ""


def _plain(text: str) -> str:
    return " ".join(_MARKUP.sub(" ", text).split())


def _key(text: str) -> str:
    """A name without what a judge may add: markup, a bullet, a number before it."""
    plain = re.sub(r"^\s*(?:[-+•–]|\(?\d+[.)])\s*", "", _plain(text)).replace("&", "and").casefold()
    return " ".join(plain.split())


def _score(text: str, scale: tuple[int, int], whole: bool) -> float | None:
    match = _NUMBER.fullmatch(_plain(text).strip(" []()"))
    if match is None:
        return None
    value, rest = float(match[1]), match[2]
    # '1-5' and '1 to 5' repeat the question; '4 5' is two answers.
    if re.match(r"(?:[-–—/]|to\b|of\b|out of\b)?\s*\d", rest):
        return None
    if not scale[0] <= value <= scale[1]:
        return None
    return (int(value) if value.is_integer() else None) if whole else value
