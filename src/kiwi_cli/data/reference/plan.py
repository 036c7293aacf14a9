"""What a run has before it: rows at each stage, how long they took so far, and which models it has to have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiwi_cli.batch.jobs import JobStore
from kiwi_cli.batch.records import Tail
from kiwi_cli.data.reference.files import job_of, read_figures
from kiwi_cli.data.reference.recipe import STAGES, Recipe
from kiwi_cli.data.reference.triplets import BadTriplet, Triplet
from kiwi_cli.data.reference.verdicts import verdict


@dataclass(frozen=True)
class StagePlan:
    """A stage before it works.

    Attributes:
        done: rows that have its figures. passed: of these. open: rows that may come to it: each that was not dropped.
        seconds: a row took on average in this folder, by the workers' own clocks; None where none was measured.
    """

    name: str
    done: int
    passed: int
    open: int
    seconds: float | None

    @property
    def left(self) -> float | None:
        """Seconds for the open rows by one worker, at most: some of them will be dropped before."""
        return 0.0 if not self.open else None if self.seconds is None else self.open * self.seconds


def plan(out: Path, rows: Sequence[Triplet | BadTriplet], recipe: Recipe) -> list[StagePlan]:
    """Each stage as it stands; nothing is written, no clip is read."""
    left = [row for row in rows if isinstance(row, Triplet)]
    rates, plans = measured(out), []
    for stage in STAGES:
        done = passed = 0
        going = []
        for row in left:
            figures = read_figures(out, stage, row.key, job_of(stage, row, recipe).id)
            done += figures is not None
            if figures is None or verdict(stage, figures, recipe.thresholds) is None:
                passed += figures is not None
                going.append(row)
        plans.append(StagePlan(stage, done, passed, len(left) - done, rates.get(stage)))
        left = going
    return plans


def measured(out: Path) -> dict[str, float]:
    """Stage -> seconds a row took on average, as a run's journals say; loading a model is in the first."""
    sums: dict[str, list[float]] = {}
    folder = JobStore(out).journal
    for record in Tail(folder).new() if folder.is_dir() else ():
        seconds: Any = record.get("seconds")
        if record.get("state") == "done" and isinstance(seconds, (int, float)):
            sums.setdefault(str(record.get("label")).partition(",")[0], []).append(float(seconds))
    return {stage: sum(values) / len(values) for stage, values in sums.items() if stage in STAGES}
