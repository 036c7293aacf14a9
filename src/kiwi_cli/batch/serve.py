"""A worker wherever it runs: what it has to know, as plain values, and its life from the first job to the last."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kiwi_cli.base.failures import writing_hint
from kiwi_cli.batch.heartbeat import LEASE
from kiwi_cli.batch.jobs import Job, JobStore, read_jobs
from kiwi_cli.batch.records import Tally
from kiwi_cli.batch.worker import Told, Work, Worker
from kiwi_cli.errors import KiwiError


@dataclass(frozen=True)
class Order:
    """What workers are told.

    Attributes:
        out: the run's folder. jobs: the name of a list in it.
        maker: 'package.module:function', called with (settings, device) for the work function; one that has `close` is
            closed at the end.
        settings: plain values of JSON.
        lease: seconds.
    """

    out: str
    jobs: str
    maker: str
    settings: dict[str, Any] = field(default_factory=dict)
    lease: float = LEASE

    @classmethod
    def of(
        cls, store: JobStore, jobs: Sequence[Job], maker: str, settings: dict[str, Any], lease: float = LEASE
    ) -> Order:
        """An order to do jobs, whose list is written."""
        return cls(str(store.out.absolute()), store.write_jobs(jobs).name, maker, settings, lease)

    @property
    def store(self) -> JobStore:
        return JobStore(Path(self.out))

    def read_jobs(self) -> list[Job]:
        return read_jobs(self.store.lists / self.jobs)

    def as_plain(self) -> dict[str, Any]:
        return asdict(self)


def make_work(order: Order, device: str | None) -> Work:
    """The work function of an order, on a device."""
    module, _, name = order.maker.partition(":")
    work: Work = getattr(importlib.import_module(module), name)(order.settings, device)
    return work


def _worker(order: Order, name: str | None, device: str | None) -> Worker:
    try:
        return Worker(order.store, order.lease, name, device=device)
    except OSError as error:
        reason = error.strerror or error
        raise KiwiError(f"cannot write in '{order.store.root}': {reason}", writing_hint(error)) from error


def serve(
    order: Order,
    jobs: Sequence[Job] | None = None,
    *,
    work: Work | None = None,
    device: str | None = None,
    index: int = 0,
    name: str | None = None,
    told: Told | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Tally:
    """Be one of the workers of an order until all its jobs are done or failed.

    Args:
        work: made already; None makes it. device: of this worker; None: what the settings say.
        index: among those that begin together.
        name: of no other worker, ever; None makes one.

    Raises:
        KiwiError: this worker cannot go on. KeyboardInterrupt: nothing is left half.
    """
    work = work or make_work(order, device)
    try:
        with _worker(order, name, device) as worker:
            todo = order.read_jobs() if jobs is None else jobs
            return worker.work_through(todo, work, index=index, told=told, stop=stop)
    finally:
        close = getattr(work, "close", None)
        if close is not None:
            close()
