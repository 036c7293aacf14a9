"""Requests as plain values of JSON and back: for lists of jobs, and for processes that are started with one."""

from __future__ import annotations

from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from kiwi_cli.base.option import rows
from kiwi_cli.editing.request import EditRequest

TABLE = rows(EditRequest)


def values_of(request: EditRequest) -> dict[str, Any]:
    """The values of all options, wherever they belong."""
    own = vars(request)
    nested = [vars(part) for part in own.values() if is_dataclass(part)]
    found = {name: value for part in (own, *nested) for name, value in part.items()}
    return {name: found[name] for name in TABLE}


def as_plain(request: EditRequest) -> dict[str, Any]:
    """The options of a request that are not as by default."""
    values = {}
    for name, value in values_of(request).items():
        row = TABLE[name]
        if value != row.default:
            values[name] = [str(each) for each in value] if row.many else str(value) if row.is_path and value else value
    return values


def from_plain(values: dict[str, Any]) -> EditRequest:
    """The request that `as_plain` was given."""
    read: dict[str, Any] = {}
    for name, value in values.items():
        row = TABLE[name]
        kind: Any = Path if row.is_path else lambda each: each
        read[name] = tuple(map(kind, value)) if row.many else kind(value) if value is not None else None
    return EditRequest.of(**read)
