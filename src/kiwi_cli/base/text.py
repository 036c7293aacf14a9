"""Numbers and tables in words, as the person reads them."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable
from typing import Any

WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False, "replace_whitespace": False}


_COPIED = re.compile(r"\b(kiwi|pip|python) [a-z-]|(?<!\w)(['\"])[^'\"\s]*\s[^'\"]*\2(?!\w)")


def format_seconds(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def aligned(rows: Iterable[tuple[str, Any]], label: int) -> str:
    """Labels and values in two columns; on a terminal, values are wrapped at its width below themselves.

    Args:
        label: width of the first column.
    """
    width = shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else 0
    lines = []
    for name, value in rows:
        text = f"{name:<{label}}{value}"
        if width > 2 * label and len(text) > width:
            text = textwrap.fill(text, width, subsequent_indent=" " * label, break_on_hyphens=False)
        lines.append(text)
    return "\n".join(lines)


def folded(text: str, width: int) -> str:
    """Text whose lines end between words, each below its own beginning; a word longer than a line stays whole.

    A line with a command, or with a quoted name that has spaces in it, is left as it is, to be copied whole.

    Args:
        width: letters of a line; 0 leaves the text as it is.
    """
    lines = []
    for line in text.split("\n"):
        indent = " " * (len(line) - len(line.lstrip(" ")))
        more = indent + "  " if indent else ""
        fits = len(line) <= width or width <= 2 * len(more) or _COPIED.search(line) is not None
        lines += [line] if fits else textwrap.wrap(line, width, subsequent_indent=more, **WHOLE_WORDS)
    return "\n".join(lines)


def width_of(stream: Any) -> int:
    """Letters of a line on a terminal; 0 of anything else."""
    try:
        if not stream.isatty():
            return 0
        said = os.environ.get("COLUMNS", "")
        return int(said) if said.isdigit() else os.get_terminal_size(stream.fileno()).columns
    except (AttributeError, OSError, ValueError):
        return 0


def count(number: int, noun: str) -> str:
    """1 frame, 81 frames."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_bytes(count: float) -> str:
    """Decimal units, as disks and the Hub count: 812 B, 3.1 MB, 19.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
