"""The published results: one data file, read as it is, with what each overall is the mean of."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kiwi_cli.bench.report.aggregate import mean

FILE = Path(__file__).with_name("leaderboard.json")


@dataclass(frozen=True)
class Published:
    """One row as a source prints it.

    Attributes:
        averaging: what `overall` is the mean of. columns: category or score -> mean, as printed; may be empty.
        overall: None when it is not known here.
        judge, protocol: '' when the source does not say. state: of a system that cannot be measured any more.
    """

    benchmark: str
    system: str
    params: str
    size: str
    closed: bool
    overall: float | None
    averaging: str
    columns: dict[str, float]
    judge: str
    protocol: str
    source: str
    date: str
    self_reported: bool
    note: str
    state: str = ""


@cache
def published() -> tuple[Published, ...]:
    """Every row, in the file's order."""
    data: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return tuple(Published(**row) for row in data["rows"])


def for_benchmark(name: str) -> list[Published]:
    """A benchmark's rows, the best first; rows of one average together."""
    rows = [row for row in published() if row.benchmark == name]
    kinds = list(dict.fromkeys(row.averaging for row in rows))
    return sorted(rows, key=lambda row: (kinds.index(row.averaging), -(row.overall or 0.0), row.system, row.source))


def recompute(row: Published) -> float | None:
    """The overall from the row's own columns by the averaging it names; None when it does not print them all."""
    match = re.fullmatch(r"mean of (\d+) (categories|columns)", row.averaging)
    if match is None or len(row.columns) != int(match[1]):
        return None
    return mean(list(row.columns.values()))


def agrees(row: Published) -> bool | None:
    """Whether the printed overall is the mean of the printed columns, to the two decimals they are printed with."""
    value = recompute(row)
    if row.overall is None:
        return None
    # Columns are off by up to 0.005 each, so is their mean; the overall is rounded once more.
    return None if value is None else math.fabs(value - row.overall) <= 0.01 + 1e-9
