"""Where the figures without a judge are kept: a journal of the run, one line for each item and result."""

from __future__ import annotations

from typing import Any

from kiwi_cli.batch.journal import read_lines
from kiwi_cli.bench.judges.base import hash_media
from kiwi_cli.bench.report.aggregate import mean
from kiwi_cli.bench.run import Run

STEM = "metrics"


def read_metrics(run: Run) -> dict[str, dict[str, float]]:
    """Item id -> figure -> value, of results that are still the ones measured."""
    latest: dict[str, dict[str, Any]] = {}
    for record in read_lines(run.folder, STEM):
        if isinstance(record.get("values"), dict):
            latest.setdefault(str(record["item"]), {}).update(record)
    by_id = {item.id: item for item in run.items}
    found = {}
    for name, record in latest.items():
        path = run.edited(by_id[name]) if name in by_id else None
        if path is not None and path.is_file() and hash_media(path) == record.get("edited"):
            found[name] = {key: float(value) for key, value in record["values"].items()}
    return found


def average_metrics(run: Run) -> list[dict[str, Any]]:
    """Each figure's mean over the items that have it, by name."""
    columns: dict[str, list[float]] = {}
    for values in read_metrics(run).values():
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    return [
        {"name": name, "value": round(mean(values) or 0.0, 4), "scored": len(values), "of": len(run.items)}
        for name, values in sorted(columns.items())
    ]
