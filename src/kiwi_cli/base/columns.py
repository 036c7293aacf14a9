"""What was meant by the first line of a table whose columns are not the ones that are looked for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def column_hint(found: Sequence[str], known: Iterable[str], meant: Mapping[str, str] | None = None) -> str | None:
    """What to do about a table's columns; None when nothing is likely.

    Args:
        found: the names that the table has, as they were read. known: those that there are. meant: other words for
            some of them.
    """
    names, known = [name.strip().lower() for name in found], list(known)
    for separator, word in SEPARATORS.items():
        parts = [part.strip(" \"'").lower() for name in names for part in name.split(separator)]
        if any(separator in name for name in names) and any(part in known for part in parts):
            return f"its columns are separated by {word}: save it with commas"
    for name in names:
        if meant and name in meant:
            return f"did you mean '{meant[name]}' by '{name}'?"
        if name not in known and (close := difflib.get_close_matches(name.replace(" ", "_"), known, 1, 0.65)):
            return f"did you mean '{close[0]}' by '{name}'?"
    return None
