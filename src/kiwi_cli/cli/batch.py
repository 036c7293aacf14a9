"""`kiwi batch`, and `kiwi edit` with several clips: a table or a list -> jobs -> workers -> a summary."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kiwi_cli.base import processes
from kiwi_cli.base.option import INPUTS, rows
from kiwi_cli.base.text import count, format_seconds
from kiwi_cli.cli import options, sharing
from kiwi_cli.cli.console import Console
from kiwi_cli.cli.root import app
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.errors import EXIT_INTERRUPTED, KiwiError, UsageError

if TYPE_CHECKING:
    from kiwi_cli.batch.records import Tally
    from kiwi_cli.batch.table import Asked, Fault

LISTED = 20
"""Faults and failures that are listed; `kiwi status` has all failures."""
NOT_OF_ROWS = ("input", "instruction", "output", "calibrate_cache", "preview", "seeds")
COLUMNS = [row for name, row in rows(EditRequest).items() if name not in NOT_OF_ROWS]
"""What holds for every row that does not say otherwise."""


@dataclass(frozen=True)
class Batch:
    """What a person asks for beside the edits.

    Attributes:
        values: options of all edits. shard: as typed; None: as the scheduler says.
    """

    out: Path
    values: dict[str, Any]
    workers: int | None = None
    gpus: str | None = None
    ray: str | None = None
    shard: str | None = None
    lease: float = 60.0
    retry_failed: bool = False
    skip_bad: bool = False
    dry_run: bool = False


@app.command()
@options.takes(row.but(default=None) if row.name == "model" else row for row in COLUMNS)
def batch(
    jobs: Annotated[
        Path,
        typer.Argument(
            metavar="JOBS",
            help="A table, .csv or .jsonl: input, instruction, reference, output, and any option as a column.",
            show_default=False,
            readable=False,
        ),
    ],
    *,
    out_dir: Annotated[
        Path,
        typer.Option(
            "--out-dir", help="Folder of the results; the run's state lies in it.", metavar="DIR", show_default=False
        ),
    ],
    base: Annotated[Path | None, sharing.base(INPUTS)] = None,
    workers: sharing.Workers = None,
    gpus: sharing.Gpus = None,
    ray: Annotated[
        str | None,
        sharing.ray(
            "Actors on a Ray cluster, one for each GPU: its address, or none for one here. Needs the extra 'ray'.",
            "[ADDRESS]",
        ),
    ] = None,
    shard: Annotated[
        str | None, sharing.shard("Only the i-th of n parts. Default: what SLURM or SkyPilot says; 1/1 for all.")
    ] = None,
    lease: sharing.Lease = 60.0,
    retry_failed: sharing.RetryFailed = False,
    skip_bad: sharing.SkipBad = False,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    **values: Any,
) -> None:
    """Edit many clips: a row of a table each, with one model a worker. What is done is not done again.

    The same command goes on where it stopped, and may run on any number of machines over one folder at a time.

    Examples:

      kiwi batch jobs.csv --out-dir out

      kiwi batch jobs.csv --out-dir out --gpus all --retry-failed

      kiwi batch jobs.jsonl --out-dir /shared/out --steps 30 --ray auto
    """
    console = Console(quiet, as_json, verbose)
    asked_for = Batch(
        out_dir, options.gathered(values), workers, gpus, ray, shard, lease, retry_failed, skip_bad, dry_run
    )
    _check(asked_for)
    from kiwi_cli.batch.table import read_table

    sharing.check_base(base)
    perform(*read_table(jobs, base), asked_for, console)


def _check(batch: Batch) -> None:
    """Refuse what needs no file to be refused."""
    from kiwi_cli.batch.crew import Crew

    Crew(batch.workers, batch.gpus, batch.ray).check()
    if processes.team_size() > 1:
        raise UsageError("torchrun is for one clip on several GPUs", "for many clips pass --gpus all, without torchrun")
    if not 1 <= batch.lease <= 86400:
        raise UsageError(f"--lease is from 1 second to a day, not {batch.lease:g}", "60 will do for most")
    if batch.out.exists() and not batch.out.is_dir():
        raise UsageError(f"not a folder: '{batch.out}'", "pass a folder with --out-dir")


def perform(asked: Sequence[Asked], faults: Sequence[Fault], batch: Batch, console: Console) -> None:
    """Check all edits, do what is not done, and say what became of them.

    Raises:
        KiwiError: edits that cannot be used, that failed, or are left.
    """
    _check(batch)
    from kiwi_cli.batch.jobs import JobStore
    from kiwi_cli.batch.planning import Planner
    from kiwi_cli.batch.shard import parse_shard, part_of, shard_of_scheduler
    from kiwi_cli.batch.standing import Standing

    store = JobStore(batch.out)
    overwrite = bool(batch.values.get("overwrite"))
    rows = {fault.where for fault in faults if not fault.of_table}
    console.note(f"checking {count(len(asked) + len(rows), 'edit')}")
    begin = time.monotonic()
    values = {name: value for name, value in batch.values.items() if name not in ("output", "overwrite")}
    planner = Planner(batch.out, values, console, fetch=not batch.dry_run)
    planned = planner.plan(asked, faults)
    standing = Standing.of(store, planned.jobs, overwrite)
    bad = [*planned.faults, *standing.faults]
    for warning in [*planned.warnings, *_cautions(planned.cautions)]:
        console.warn(warning)
    if bad and not (batch.skip_bad and standing.jobs and not any(fault.of_table for fault in bad)):
        raise UsageError(listed(bad), _hint(bad, len(standing.jobs)))
    for fault in bad:
        console.warn(f"left out: {fault.where}: {fault.reason}")
    jobs = standing.jobs
    shard, who = (parse_shard(batch.shard), None) if batch.shard else shard_of_scheduler() or (None, None)
    if shard is not None:
        jobs = part_of(jobs, shard)
        console.note(
            f"part {shard[0]} of {shard[1]}" + (f", as {who} says" if who else "") + f": {count(len(jobs), 'clip')}"
        )
    console.note(
        f"{count(len(standing.jobs), 'clip')} in '{batch.out}', {standing.done} done already"
        + (f", {len(standing.failed)} failed before" if standing.failed else "")
        + f"; checked in {format_seconds(time.monotonic() - begin)}"
    )
    if batch.dry_run:
        _say_plan(console, batch, standing, bad, planned.missing)
        return
    planner.admit()
    store.begin("edits")
    standing.begin(store, batch.retry_failed)
    began = time.monotonic()
    tally = _work(batch, jobs, store, console)
    _conclude(batch, tally, jobs, bad, time.monotonic() - began, console)


def _hint(bad: Sequence[Fault], good: int) -> str:
    hints = {fault.hint for fault in bad}
    if len(hints) == 1 and bad[0].hint:
        return bad[0].hint
    if any(fault.of_table for fault in bad):
        return "mend the first line of the table, and the others"
    return f"mend them, or go on with the other {good}: --skip-bad" if good else "mend them"


def _say_plan(console: Console, batch: Batch, standing: Any, bad: Sequence[Fault], missing: Sequence[str]) -> None:
    for model in missing:
        console.note(f"'{model}' has to be fetched first")
    again = len(standing.failed) if batch.retry_failed else 0
    todo = len(standing.jobs) - standing.done - len(standing.failed) + again
    data = {
        "dry_run": True,
        "out": str(batch.out),
        "jobs": len(standing.jobs),
        "done": standing.done,
        "failed_before": len(standing.failed),
        "to_do": todo,
        "bad": [f"{fault.where}: {fault.reason}" for fault in bad],
    }
    console.result(f"{count(todo, 'clip')} to edit, {standing.done} done, in '{batch.out}'", data)


def _work(batch: Batch, jobs: Sequence[Any], store: Any, console: Console) -> Tally:
    """Let the workers do it; an interruption says what is left."""
    from kiwi_cli.batch.crew import Crew, work_off
    from kiwi_cli.batch.edits import MAKER, EditWork
    from kiwi_cli.batch.records import Records, Tally
    from kiwi_cli.batch.serve import Order
    from kiwi_cli.cli.batch_view import view

    crew = Crew(batch.workers, batch.gpus, batch.ray)
    order = Order.of(store, jobs, MAKER, {"out": str(batch.out.absolute())}, batch.lease)
    try:
        with view(console, "clips") as told:
            tally, troubles = work_off(order, jobs, crew, told, EditWork(batch.out.absolute(), events=console))
    except KeyboardInterrupt:
        records = Records(store.journal)
        records.refresh()
        tally = Tally.of(jobs, records)
        raise KiwiError(
            f"interrupted; {tally.done} of {len(jobs)} clips are done, {tally.left} are left",
            "the same command goes on from there",
            exit_code=EXIT_INTERRUPTED,
        ) from None
    for trouble in troubles:
        console.warn(f"a worker ended early, {trouble}")
    return tally


def _conclude(
    batch: Batch, tally: Tally, jobs: Sequence[Any], bad: Sequence[Fault], seconds: float, console: Console
) -> None:
    names = {job.id: job.label for job in jobs}
    failures = {names[id]: reason for id, reason in tally.failures.items()}
    each = f", {format_seconds(seconds / tally.made)} each" if tally.made else ""
    console.note(
        f"{tally.done} of {count(len(jobs), 'clip')} done; {tally.made} now, in {format_seconds(seconds)}{each}"
    )
    data = {
        "out": str(batch.out),
        "jobs": len(jobs),
        "done": tally.done,
        "made": tally.made,
        "failures": failures,
        "left": tally.left,
        "bad": [f"{fault.where}: {fault.reason}" for fault in bad],
        "seconds": round(seconds, 3),
    }
    console.result(str(batch.out), data)
    if tally.left:
        raise KiwiError(f"{count(tally.left, 'clip')} of {len(jobs)} left: no worker could go on", "run it again")
    if failures:
        name, reason = next(iter(failures.items()))
        raise KiwiError(
            f"{len(failures)} of {count(len(jobs), 'clip')} failed; '{name}': {reason}",
            f"kiwi status '{batch.out}' lists them; --retry-failed tries them again",
        )
    if bad:
        raise KiwiError(
            f"{count(len(bad), 'edit')} left out; {bad[0].where}: {bad[0].reason}", "mend them and run it again"
        )


def listed(bad: Sequence[Fault]) -> str:
    """Every fault in one message, those of one reason together."""
    groups: dict[str, list[str]] = {}
    for fault in bad:
        more = f" ({fault.hint})" if fault.of_table and len(bad) > 1 else ""
        groups.setdefault(fault.reason + more, []).append(fault.where)
    lines = [f"{_places(places)}: {reason}" for reason, places in groups.items()]
    if len(lines) == 1:
        return lines[0]
    rest = [f"... and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    edits = count(len({fault.where for fault in bad}), "edit")
    what = "the table" if any(fault.of_table for fault in bad) else edits
    return "\n  ".join([f"{what} cannot be used; nothing was begun", *lines[:LISTED], *rest])


def _cautions(cautions: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each, with where it is of; no more than can be read."""
    lines = [f"{_places(places)}: {line}" for line, places in cautions.items()]
    rest = [f"... and {len(lines) - LISTED} more such warnings"] if len(lines) > LISTED else []
    return lines[:LISTED] + rest


def _places(places: Sequence[str]) -> str:
    shown = ", ".join(places[:3])
    return f"{shown} and {len(places) - 3} more" if len(places) > 3 else shown
