"""The rows that go through: source, target and instruction of each, and what names its files."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiwi_cli.batch.jobs import job_id
from kiwi_cli.data.clips import file_key
from kiwi_cli.data.rows import BadRow, Row, read_rows

KEY = 20  # hexadecimal digits: none is met twice among billions


@dataclass(frozen=True)
class Triplet:
    """One edit without a reference.

    Attributes:
        key: names its files; of what the table says, so that it stays when other rows come.
        iid: its name in what is written. label: 'row 3'.
        source, target, mask: paths; '' of a mask that there is not.
        facts: a hash of its files' sizes and times.
    """

    key: str
    iid: str
    label: str
    source: str
    target: str
    prompt: str
    kind: str
    mask: str
    facts: str

    def as_plain(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class BadTriplet:
    """A row that cannot go in, and why."""

    key: str
    iid: str
    label: str
    reason: str


def read_triplets(table: Path, base: Path | None = None, reverse: bool = False) -> Iterator[Triplet | BadTriplet]:
    """The rows of a table in order.

    Args:
        reverse: as `recipe.Read`.

    Raises:
        UsageError, TableError: as `rows.read_rows`.
    """
    seen: Counter[str] = Counter()
    for row in read_rows(table, base, pictures=False):
        if isinstance(row, BadRow):
            key = job_id("bad", row.label, row.reason)[:KEY]
            yield BadTriplet(key, key, row.label, row.reason)
            continue
        said = [row.names["src_video"], row.names["tgt_video"], row.prompt, row.kind, row.names.get("mask"), reverse]
        name = job_id(said)
        seen[name] += 1  # the same row again is another row: that it is a duplicate is for the last stage to say
        key = job_id(name, seen[name])[:KEY]
        yield _triplet(row, key, reverse)


def _triplet(row: Row, key: str, reverse: bool) -> Triplet | BadTriplet:
    iid = row.iid or key
    prompt = row.reverse_prompt if reverse else row.prompt
    if reverse and not prompt:
        return BadTriplet(key, iid, row.label, "no reverse_prompt: nothing says how the target becomes the source")
    if (wrong := unreadable(prompt)) is not None:
        return BadTriplet(key, iid, row.label, wrong)
    source, target = (row.target, row.source) if reverse else (row.source, row.target)
    try:
        facts = [file_key(path, "") for path in (source, target, row.mask) if path is not None]
    except OSError as error:
        return BadTriplet(key, iid, row.label, f"cannot read '{error.filename}': {error.strerror or error}")
    mask = str(row.mask.absolute()) if row.mask is not None else ""
    files = (str(source.absolute()), str(target.absolute()))
    return Triplet(key, iid, row.label, *files, prompt, row.kind, mask, job_id(facts))


def unreadable(prompt: str) -> str | None:
    """Why an instruction cannot be read, or None."""
    odd = [char for char in prompt if char == "\ufffd" or (unicodedata.category(char) == "Cc" and char not in "\n\t")]
    if odd:
        return f"the prompt cannot be read: it holds {odd[0]!r}, so it was decoded wrongly"
    if sum(char.isalpha() for char in prompt) < 2:
        return f"the prompt has no words: '{prompt[:40]}'"
    return None
