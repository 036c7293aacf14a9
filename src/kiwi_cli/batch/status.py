"""How a run stands, read from its folder by anyone who can see it: counts, rate, workers, failures."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kiwi_cli.batch.heartbeat import Watch
from kiwi_cli.batch.jobs import JobStore
from kiwi_cli.batch.records import Records


@dataclass(frozen=True)
class WorkerStatus:
    """A worker with a heartbeat.

    Attributes:
        machine: its host. job, stage, done, total: what it is at. seconds: for how long, by its own clock.
        settled: jobs. state: 'at work', 'waiting', or 'gone' as far as it can be told from here.
    """

    name: str
    machine: str
    device: str | None
    job: str | None
    stage: str | None
    done: int | None
    total: int | None
    seconds: float | None
    settled: int
    state: str


@dataclass(frozen=True)
class Status:
    """A run as it stands.

    Attributes:
        jobs: of the list that was begun last; of them done, failed, running and waiting.
        per_minute: jobs that the workers that are here settle in a minute; None before a first one.
        seconds_left: by that rate; None when it is not known.
        failures: what failed -> why.
    """

    folder: str
    kind: str
    kiwi: str
    jobs: int
    done: int
    failed: int
    running: int
    waiting: int
    per_minute: float | None
    seconds_left: float | None
    workers: list[WorkerStatus] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        return self.done + self.failed == self.jobs

    def as_plain(self) -> dict[str, Any]:
        return asdict(self)


@contextmanager
def _no_collector() -> Iterator[None]:
    """No looks for circles among what is read, which has none: they would take a fifth of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class Reader:
    """Reads a run's status, again and again; each time only what is new.

    Raises:
        UsageError: no run in the folder.
    """

    def __init__(self, out: Path) -> None:
        self.store = JobStore(out)
        self.identity = self.store.identity()
        self.records = Records(self.store.journal)
        self.watch = Watch(self.store.workers)
        self._current: str | None = None
        self._jobs: dict[str, str] = {}  # id -> label

    def read(self) -> Status:
        """The run as it stands now."""
        with _no_collector():
            self._again()
            self.records.refresh()
        done = len(self.records.done() & self._jobs.keys())
        ever, failure = self.records.failed(), self.records.failure
        failures = {name: why for id, name in self._jobs.items() if id in ever and (why := failure(id)) is not None}
        workers = [self._worker(name, said) for name, said in self.watch.workers().items()]
        running = sum(worker.state == "at work" for worker in workers)
        left = len(self._jobs) - done - len(failures)
        rate = self._per_second({worker.name for worker in workers if worker.state != "gone"})
        return Status(
            str(self.store.out),
            self.identity["kind"],
            self.identity["kiwi"],
            len(self._jobs),
            done,
            len(failures),
            min(running, left),
            max(0, left - running),
            rate and round(60 * rate, 3),
            round(left / rate, 1) if rate else None,
            workers,
            failures,
        )

    def _again(self) -> None:
        """The list of jobs, when another one was begun."""
        path = self.store.root / "current"
        name = path.read_text(encoding="utf-8") if path.exists() else ""
        if name != self._current:
            self._current, self._jobs = name, self.store.current_labels()

    def _per_second(self, here: set[str]) -> float | None:
        """What the workers that are here settle together; each is timed by its own clock."""
        paces = [self.records.pace[name] for name in here if name in self.records.pace]
        rate = sum(count / at for count, at in paces if at > 0)
        return rate or None

    def _worker(self, name: str, said: dict[str, Any]) -> WorkerStatus:
        job, up, since = said.get("job"), said.get("up"), said.get("since")
        state = "gone" if said["gone"] else "at work" if job else "waiting"
        return WorkerStatus(
            name,
            str(said.get("machine", "")).partition(" ")[0],
            said.get("device"),
            job,
            said.get("stage"),
            said.get("stage_done"),
            said.get("stage_total"),
            round(up - since, 1) if job and up is not None and since is not None else None,
            self.records.pace.get(name, (0, 0.0))[0],
            state,
        )
