"""Requests as plain values of JSON and back: for lists of jobs, and for processes that are started with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kiwi_cli.base.option import rows
from kiwi_cli.editing.request import EditRequest

TABLE = rows(EditRequest)
_FORMS = {name: (row.default, "many" if row.many else "path" if row.is_path else "") for name, row in TABLE.items()}
"""Of each option its default, and whether it is several values or a path: asked for thousands of requests."""


def values_of(request: EditRequest) -> dict[str, Any]:
    """The values of all options, wherever they belong."""
    found = {**vars(request)}
    for part in (request.choice, request.sampling, request.windowing, request.previewing):
        found |= vars(part)
    return {name: found[name] for name in TABLE}


def as_plain(request: EditRequest) -> dict[str, Any]:
    """The options of a request that are not as by default."""
    values = {}
    for name, value in values_of(request).items():
        default, form = _FORMS[name]
        if value is not default and value != default:
            several, path = form == "many", form == "path" and value
            values[name] = [str(each) for each in value] if several else str(value) if path else value
    return values


def from_plain(values: dict[str, Any]) -> EditRequest:
    """The request that `as_plain` was given."""
    read: dict[str, Any] = {}
    for name, value in values.items():
        row = TABLE[name]
        kind: Any = Path if row.is_path else lambda each: each
        read[name] = tuple(map(kind, value)) if row.many else kind(value) if value is not None else None
    return EditRequest.of(**read)
