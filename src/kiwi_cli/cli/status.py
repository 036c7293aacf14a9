"""`kiwi status`: how a run of many clips stands, from any terminal that sees its folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kiwi_cli.base.text import aligned, count, format_seconds
from kiwi_cli.cli import options
from kiwi_cli.cli.console import Console
from kiwi_cli.cli.root import app
from kiwi_cli.errors import EXIT_INTERRUPTED, KiwiError, UsageError

if TYPE_CHECKING:
    from kiwi_cli.batch.status import Status, WorkerStatus

LABEL = 12
SHOWN = 10
"""Failures that are shown; `--json` has all."""


@app.command()
def status(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="The folder given with --out-dir, or a benchmark's.", show_default=False, readable=False
        ),
    ],
    *,
    watch: Annotated[
        bool, options.flag("--watch", help="Again every few seconds, until all is done or failed.")
    ] = False,
    every: Annotated[float, typer.Option("--every", help="Seconds between looks.", metavar="SECONDS")] = 5.0,
    as_json: options.AsJson = False,
) -> None:
    """How many clips of a run are done, how fast it goes, what each worker is at, and what failed.

    Examples:

      kiwi status out

      kiwi status out --watch

      kiwi status out --json
    """
    if not every > 0:
        raise UsageError(f"--every is more than 0 seconds, not {every:g}", "5 will do for most")
    from kiwi_cli.batch.status import Reader

    console = Console(as_json=as_json)
    reader = Reader(run)
    found = reader.read()
    try:
        console.result(text(found), found.as_plain())
        while watch and not found.is_over:
            time.sleep(every)
            found = reader.read()
            console.page()
            console.result(text(found), found.as_plain())
    except KeyboardInterrupt:
        raise KiwiError(
            f"interrupted; {found.done} of {found.jobs} are done, and whoever works at the rest goes on",
            exit_code=EXIT_INTERRUPTED,
        ) from None


def text(status: Status) -> str:
    """A status for reading."""
    counts = [f"{status.done} of {status.jobs} done"]
    counts += [f"{status.failed} failed"] if status.failed else []
    counts += [f"{status.running} at work, {status.waiting} waiting"] if not status.is_over else []
    rows = [(status.kind, ", ".join(counts))]
    if status.per_minute is not None and not status.is_over:
        left = f", about {format_seconds(status.seconds_left)} left" if status.seconds_left is not None else ""
        rows.append(("rate", f"{status.per_minute:.3g} a minute{left}"))
    rows += [("worker", _worker(each)) for each in status.workers]
    rows += [("failed", f"'{name}': {why}") for name, why in list(status.failures.items())[:SHOWN]]
    if len(status.failures) > SHOWN:
        rows.append(("", f"... and {len(status.failures) - SHOWN} more: --json"))
    return aligned(rows, LABEL)


def _worker(worker: WorkerStatus) -> str:
    from kiwi_cli.cli.batch_view import at_work

    place = f"{worker.name}" + (f" on {worker.device}" if worker.device else "")
    settled = f"{count(worker.settled, 'job')} settled"
    if worker.state == "gone":
        return f"{place}: gone; {settled}"
    if worker.job is None:
        return f"{place}: waiting; {settled}"
    since = f", for {format_seconds(worker.seconds)}" if worker.seconds is not None else ""
    return f"{place}: at {at_work(worker.job, worker.stage, worker.done, worker.total)}{since}; {settled}"
