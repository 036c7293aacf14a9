"""What the journals of a run say: which jobs are done, which failed. Read as they grow, in any order.

A line is one fact. `{"id", "state": "done" | "failed", "claim", ...}` is the outcome of a job that a worker claimed,
`{"state": "void", "claims": [...]}` takes outcomes back: failures that are to be tried again, results that are gone.
No two files are in an order, so nothing here depends on one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kiwi_cli.batch.heartbeat import new_name
from kiwi_cli.batch.jobs import Job, JobStore
from kiwi_cli.batch.journal import Journal, records_in


class Tail:
    """Whole lines of a folder's journals, each once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, int] = {}  # name -> bytes

    def new(self) -> Iterator[dict[str, Any]]:
        """The records since the last call. A line that is not whole yet waits; one that never was is passed over."""
        for path in sorted(self.folder.glob("*.jsonl")):
            # Opened each time: on a network's disk that is what asks the server for what others have written.
            with path.open("rb") as file:
                begin = self._read.get(path.name, 0)
                file.seek(begin)
                data = file.read()
            whole = data.rfind(b"\n") + 1
            self._read[path.name] = begin + whole
            yield from records_in(data[:whole].splitlines())


class Records:
    """What is settled.

    Attributes:
        begun: worker -> what it said when it began.
        pace: worker -> how many jobs it settled, and when the last one, in seconds by its own clock since it began.

    Args:
        keep: outcomes are kept whole, for `outcomes`. heard: called with each as it is read.
    """

    def __init__(self, folder: Path, keep: bool = False, heard: Callable[[dict[str, Any]], None] | None = None) -> None:
        self._tail, self._keep, self._heard = Tail(folder), keep, heard
        self._void: set[str] = set()
        self._done: dict[str, tuple[str, ...]] = {}  # id -> claims; small, for there may be many jobs
        self._failed: dict[str, dict[str, str]] = {}  # id -> claim -> reason
        self._kept: dict[str, dict[str, Any]] = {}
        self.begun: dict[str, dict[str, Any]] = {}
        self.pace: dict[str, tuple[int, float]] = {}

    def refresh(self) -> list[str]:
        """Read what is new.

        Returns:
            the jobs that it is about.
        """
        about = []
        for record in self._tail.new():
            self.take(record)
            if isinstance(record.get("id"), str):
                about.append(record["id"])
        return about

    def take(self, record: dict[str, Any]) -> None:
        """Add one record."""
        state, claim, id = record.get("state"), record.get("claim"), record.get("id")
        if state == "void":
            self._void.update(record.get("claims", ()))
        elif state == "begun" and isinstance(record.get("worker"), str):
            self.begun[record["worker"]] = record
        elif isinstance(id, str) and isinstance(claim, str) and state in ("done", "failed"):
            worker, at = record.get("worker"), record.get("at")
            if isinstance(worker, str) and isinstance(at, (int, float)):
                count, last = self.pace.get(worker, (0, 0.0))
                self.pace[worker] = count + 1, max(last, float(at))
            if state == "done":
                claims = self._done.get(id, ())
                self._done[id] = claims if claim in claims else (*claims, claim)
            else:
                self._failed.setdefault(id, {})[claim] = str(record.get("reason", ""))
            if self._heard is not None:
                self._heard(record)
            if self._keep:
                self._kept[f"{id} {claim}"] = record

    def is_done(self, id: str) -> bool:
        claims = self._done.get(id)
        return claims is not None and not (self._void and self._void.issuperset(claims))

    def done(self) -> set[str]:
        """The ids of all jobs that are done."""
        return {id for id in self._done if self.is_done(id)} if self._void else set(self._done)

    def failed(self) -> set[str]:
        """The ids of all jobs that ever failed; `failure` says whether that still counts."""
        return set(self._failed)

    def failure(self, id: str) -> str | None:
        """Why a job failed; None of one that did not, or was done after all."""
        if id not in self._failed or self.is_done(id):
            return None
        reasons = [why for claim, why in self._failed[id].items() if claim not in self._void]
        return reasons[-1] if reasons else None

    def is_settled(self, id: str) -> bool:
        return self.is_done(id) or self.failure(id) is not None

    def has(self, id: str, claim: str) -> bool:
        """Whether that claim's outcome is written down."""
        return claim in self._done.get(id, ()) or claim in self._failed.get(id, {})

    def claims(self, id: str) -> list[str]:
        """Of all outcomes of a job that count: what a void line takes back."""
        found = [*self._done.get(id, ()), *self._failed.get(id, ())]
        return [claim for claim in found if claim not in self._void]

    def outcomes(self, id: str) -> list[dict[str, Any]]:
        """The records of a job that count, those that were done first; needs `keep`."""
        kept = [self._kept[f"{id} {claim}"] for claim in self.claims(id)]
        return sorted(kept, key=lambda record: record["state"] != "done")


class Waiting:
    """The jobs of a list that are neither done nor failed, by id, in their order."""

    def __init__(self, jobs: Sequence[Job], records: Records) -> None:
        self.all, self.records = jobs, records
        self.jobs = {job.id: job for job in jobs}
        self.failed = 0
        records.refresh()
        self._strike(list(self.jobs))

    def refresh(self) -> bool:
        """Read what is settled by now; whether any of these jobs is that was not."""
        before = len(self.jobs)
        self._strike(self.records.refresh())
        return len(self.jobs) < before

    def _strike(self, ids: Sequence[str]) -> None:
        for id in ids:
            if id in self.jobs and self.records.is_settled(id):
                del self.jobs[id]
                self.failed += not self.records.is_done(id)

    @property
    def counts(self) -> tuple[int, int, int]:
        """(done, failed, all)"""
        return len(self.all) - len(self.jobs) - self.failed, self.failed, len(self.all)


def reopen(store: JobStore, ids: Sequence[str]) -> int:
    """Take back all outcomes of these jobs, so that they are done again; how many had one."""
    records = Records(store.journal)
    records.refresh()
    found = {id: claims for id in ids if (claims := records.claims(id))}
    if found:
        with Journal(store.journal, f"{new_name()}-asked") as journal:
            journal.append({"state": "void", "claims": [claim for claims in found.values() for claim in claims]})
    return len(found)


@dataclass
class Tally:
    """What became of a list of jobs.

    Attributes:
        done: of them. made: by this worker, or this command's. failures: id -> reason. left: neither.
        lost: how many of its jobs this worker lost to others.
    """

    done: int = 0
    made: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    left: int = 0
    lost: int = 0

    @classmethod
    def of(cls, jobs: Sequence[Job], records: Records, **more: int) -> Tally:
        done = sum(records.is_done(job.id) for job in jobs)
        failures = {job.id: why for job in jobs if (why := records.failure(job.id)) is not None}
        return cls(done, failures=failures, left=len(jobs) - done - len(failures), **more)
