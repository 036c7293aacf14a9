"""A run: stage after stage over the rows that are left, by any number of workers; then the verdicts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kiwi_cli.batch.crew import Crew, work_off
from kiwi_cli.batch.editors import ending_the_worker, memory_given_back
from kiwi_cli.batch.heartbeat import LEASE
from kiwi_cli.batch.jobs import Job, JobStore
from kiwi_cli.batch.records import Records, reopen
from kiwi_cli.batch.serve import Order
from kiwi_cli.batch.shard import part_of
from kiwi_cli.batch.worker import Place, Told
from kiwi_cli.data.reference.duplicates import nearest_kept
from kiwi_cli.data.reference.files import Files, Stage, Unusable, job_of, read_figures
from kiwi_cli.data.reference.recipe import STAGES, Recipe
from kiwi_cli.data.reference.triplets import BadTriplet, Triplet
from kiwi_cli.data.reference.verdicts import verdict
from kiwi_cli.errors import MediaError, UsageError

KIND = "rows for references"
MAKER = "kiwi_cli.data.reference.running:make_work"


@dataclass(frozen=True)
class Going:
    """How the stages are gone through.

    Attributes:
        stages: those that may work; figures of others are used as far as they are there.
        shard: (i, n), the i-th of n parts.
        maker: what makes the work function of a process (`batch.serve.Order`).
    """

    crew: Crew = field(default_factory=Crew)
    stages: tuple[str, ...] = STAGES
    shard: tuple[int, int] | None = None
    lease: float = LEASE
    retry_failed: bool = False
    device: str = "auto"
    maker: str = MAKER


@dataclass
class Standing:
    """Where each row is.

    Attributes:
        rows: that passed everything so far, in the table's order.
        dropped: key -> (stage, reason). bad: rows of the table that could not go in.
        waiting: stage -> how many rows wait for it. failed: label -> why, of rows that can be tried again.
        ran: stage -> rows that it worked on now.
        nearest: key -> (key of the row that is nearest, cosine).
    """

    rows: list[Triplet] = field(default_factory=list)
    dropped: dict[str, tuple[str, str]] = field(default_factory=dict)
    bad: list[BadTriplet] = field(default_factory=list)
    waiting: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    ran: dict[str, int] = field(default_factory=dict)
    nearest: dict[str, tuple[str, float]] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether no row waits or failed: what is left can be written."""
        return not self.waiting and not self.failed


def go_through(
    out: Path, rows: Sequence[Triplet | BadTriplet], recipe: Recipe, going: Going, told: Told | None = None
) -> tuple[Standing, list[str]]:
    """Run what is not done, and say where every row is; what is done is never run again.

    Returns:
        where the rows are, and which workers could not go on, in words.

    Raises:
        KiwiError: as the batch engine. KeyboardInterrupt: what is done is kept.
    """
    store, standing, troubles = JobStore(out), Standing(), []
    store.begin(KIND)
    standing.bad = [row for row in rows if isinstance(row, BadTriplet)]
    left = part_of([row for row in rows if isinstance(row, Triplet)], going.shard)
    for stage in STAGES:
        jobs = {row.key: job_of(stage, row, recipe) for row in left}
        if stage in going.stages and jobs:
            more, ran = _work_off(store, list(jobs.values()), recipe, going, told)
            troubles += more
            if ran:
                standing.ran[stage] = ran
        left = _judged(out, stage, left, jobs, recipe, standing)
    standing.rows = _without_duplicates(out, left, recipe, standing) if going.shard is None else left
    return standing, troubles


def _work_off(
    store: JobStore, jobs: list[Job], recipe: Recipe, going: Going, told: Told | None
) -> tuple[list[str], int]:
    """Let the workers do what has no figures yet; which could not go on, and how many rows were done."""
    records = Records(store.journal)
    records.refresh()  # before the files are looked at: what is in the journal has its files
    todo = [job for job in jobs if read_figures(store.out, *_named(job), job.id) is None]
    if not todo:
        return [], 0
    again = [job.id for job in todo if records.is_done(job.id)]  # their files are gone, or another recipe's
    again += [job.id for job in todo if going.retry_failed and records.failure(job.id) is not None]
    reopen(store, again)
    todo = [Job(job.id, job.label, job.work, job.output, replace=True) for job in todo]
    settings = {"out": str(store.out.absolute()), "recipe": recipe.as_plain(), "device": going.device}
    order = Order.of(store, todo, going.maker, settings, going.lease)
    tally, troubles = work_off(order, todo, going.crew, told)
    return troubles, tally.made


def _named(job: Job) -> tuple[str, str]:
    return job.work["stage"], job.work["row"]["key"]


def _judged(
    out: Path, stage: str, rows: list[Triplet], jobs: dict[str, Job], recipe: Recipe, standing: Standing
) -> list[Triplet]:
    """The rows that pass a stage; the others are put where they belong."""
    records: Records | None = None
    passed = []
    for row in rows:
        job = jobs[row.key]
        figures = read_figures(out, stage, row.key, job.id)
        if figures is None:
            if records is None:
                records = Records(JobStore(out).journal)
                records.refresh()
            why = records.failure(job.id)
            if why is None:
                standing.waiting[stage] = standing.waiting.get(stage, 0) + 1
            else:
                standing.failed[job.label] = why
        elif (reason := verdict(stage, figures, recipe.thresholds)) is not None:
            standing.dropped[row.key] = (stage, reason)
        else:
            passed.append(row)
    return passed


def _without_duplicates(out: Path, rows: list[Triplet], recipe: Recipe, standing: Standing) -> list[Triplet]:
    """The rows that are near no earlier one that is kept."""
    from kiwi_cli.data.reference.files import place_of

    def vectors() -> Iterator[tuple[str, np.ndarray]]:
        for row in rows:
            yield row.key, np.load(out / place_of("deduplicate", row.key, ".npy"), allow_pickle=False)

    index = out / f".nearby-{os.getpid()}.sqlite"
    iids = {row.key: row.iid for row in rows}
    for key, nearest, near in nearest_kept(vectors(), recipe.thresholds.duplicate, index):
        standing.nearest[key] = (nearest, near)
        figures = {"similarity": near, "nearest": iids.get(nearest, "")}
        if nearest and (reason := verdict("deduplicate", figures, recipe.thresholds)) is not None:
            standing.dropped[key] = ("deduplicate", reason)
    return [row for row in rows if row.key not in standing.dropped]


class StageWork:
    """Does a row at a stage; the stage is made, and its model loaded, for the first one and kept."""

    def __init__(self, out: Path, recipe: Recipe, device: str) -> None:
        self.out, self.recipe, self.device = out, recipe, device
        self._stages: dict[str, Stage] = {}

    def __call__(self, job: Job, place: Place) -> dict[str, Any]:
        row = Triplet(**job.work["row"])
        with ending_the_worker():
            stage = self.stage(job.work["stage"])
        files = Files(self.out, row, self.recipe.read, place.folder)
        try:
            with memory_given_back():
                figures = stage.run(row, files)
        except Unusable as error:
            figures = {"unusable": str(error)}
        except (MediaError, UsageError) as error:  # a clip that cannot be read, or two that do not fit
            figures = {"unusable": error.message}
        if "unusable" in figures:
            for left in place.folder.iterdir():
                left.unlink()
        text = json.dumps({"job": job.id, "figures": figures}, ensure_ascii=False, sort_keys=True)
        files.new(".json").write_text(text + "\n", encoding="utf-8")
        return {}

    def stage(self, name: str) -> Stage:
        """The stage of a name.

        Raises:
            KiwiError: its model cannot be had.
        """
        if name not in self._stages:
            self._stages[name] = self._make(name, self.recipe, self.device)
        return self._stages[name]

    @cached_property
    def _make(self) -> Any:
        from kiwi_cli.data.reference.stages import make_stage

        return make_stage

    def close(self) -> None:
        for stage in self._stages.values():
            with suppress(AttributeError):
                stage.close()  # type: ignore[attr-defined]


def make_work(settings: dict[str, Any], device: str | None) -> StageWork:
    """The work function of a process."""
    return StageWork(Path(settings["out"]), Recipe.from_plain(settings["recipe"]), device or settings["device"])
