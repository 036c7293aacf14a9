"""What judging will cost, roughly, before it starts; what it did cost is counted from the answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kiwi_cli.bench.media import PICTURES, seconds_of
from kiwi_cli.bench.run import Run
from kiwi_cli.bench.suites.items import Item
from kiwi_cli.errors import KiwiError, UsageError

# Dollars a million tokens in and out, as listed by the service in 2026; --price gives others.
PRICES = {"gemini-2.5-pro": (1.25, 10.0), "gemini-3-flash-preview": (0.5, 3.0)}

FRAME_TOKENS = 258  # a frame of a clip, or a picture, for Gemini at its default resolution
SECOND_TOKENS = 290  # a second of a clip: one frame, its time and its sound
RUBRIC_TOKENS = 700
ANSWER_TOKENS = 1800  # mostly thoughts, which are charged as output
SAMPLE = 12  # clips measured for the estimate


def parse_price(text: str) -> tuple[float, float]:
    """'1.25/10' -> dollars a million tokens in and out.

    Raises:
        UsageError: not understood.
    """
    first, slash, second = text.partition("/")
    try:
        price = (float(first), float(second))
    except ValueError:
        price = (-1.0, -1.0)
    if not slash or min(price) < 0:
        raise UsageError(f"price not understood: '{text}'", "pass dollars a million tokens in and out: --price 1.25/10")
    return price


def estimate_tokens(run: Run, items: Sequence[Item]) -> tuple[int, int]:
    """Tokens in and out for judging items, from the lengths of a few of their clips."""
    if not items:
        return 0, 0
    some = items[:: max(1, len(items) // SAMPLE)][:SAMPLE]
    total = 0.0
    for item in some:
        paths = [run.source(item), run.edited(item), run.reference(item)]
        total += RUBRIC_TOKENS + sum(_tokens(path) for path in paths if path is not None)
    return round(total / len(some) * len(items)), ANSWER_TOKENS * len(items)


def _tokens(path: Path) -> float:
    if path.suffix.lower() in PICTURES:
        return FRAME_TOKENS
    try:
        return max(1.0, seconds_of(path)) * SECOND_TOKENS if path.is_file() else 5 * SECOND_TOKENS
    except KiwiError:
        return 5 * SECOND_TOKENS


def dollars(model: str, tokens: tuple[int, int], price: tuple[float, float] | None = None) -> float | None:
    """What tokens cost; None when the model's price is not known."""
    price = price or PRICES.get(model)
    if price is None:
        return None
    return (tokens[0] * price[0] + tokens[1] * price[1]) / 1e6
