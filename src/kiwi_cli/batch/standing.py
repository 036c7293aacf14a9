"""How the jobs of a list stand before a run begins: what is done, what is to be done again, what is in the way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kiwi_cli.batch.jobs import Job, JobStore, sketch
from kiwi_cli.batch.records import Records, reopen
from kiwi_cli.batch.table import Fault


@dataclass
class Standing:
    """Jobs that a run goes through.

    Attributes:
        jobs: all of them, those that are done too. faults: of those whose output is in the way.
        done: how many are. failed: ids of those that failed before. again: ids of those whose files are gone.
    """

    jobs: list[Job] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    done: int = 0
    failed: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, store: JobStore, jobs: Sequence[Job], overwrite: bool) -> Standing:
        """Look at the journal and at the files; nothing is changed.

        A file that the run wrote and that is as it was written is its job's outcome. One that it wrote before its
        journal was cut is made again. Any other is somebody's own.
        """
        records, known, found = Records(store.journal, keep=True), store.known(), cls()
        records.refresh()
        for job in jobs:
            path = store.out / str(job.output)
            mine = overwrite or job.id in known
            if records.is_done(job.id):
                state = _state(store, job, records.outcomes(job.id)[0])
                if state == "changed" and not overwrite:
                    reason = f"'{path}' is not what this run wrote: it was changed since"
                    found.faults.append(Fault(job.label, reason, "move it away, or pass --overwrite to make it again"))
                    continue
                found.done += state == "there"
                if state != "there":
                    found.again.append(job.id)
            elif os.path.lexists(path) and not mine:
                found.faults.append(
                    Fault(job.label, f"output exists: '{path}'", "pass --overwrite or another --out-dir")
                )
                continue
            elif records.failure(job.id) is not None:
                found.failed.append(job.id)
            found.jobs.append(replace(job, replace=mine))
        return found

    def begin(self, store: JobStore, retry_failed: bool) -> None:
        """Take back what is to be done again."""
        reopen(store, [*self.again, *(self.failed if retry_failed else ())])


def _state(store: JobStore, job: Job, record: dict[str, Any]) -> str:
    """Of the files that a job left: 'there', 'gone' or 'changed'."""
    for name, was in record.get("files", {}).items():
        path = store.out / job.beside / name
        try:
            if sketch(path) != was:
                return "changed"
        except OSError:
            return "gone"
    return "there"
