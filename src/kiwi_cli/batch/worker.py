"""One worker: it claims jobs of a run one after the other, does them, and writes down what became of them.

    with Worker(store) as worker:
        tally = worker.work_through(jobs, work)

Any number of workers on any machines do this over one folder. The order of what is written makes every job done once,
whenever one of them ends: the files are made in a folder of the claim's own; finishing it fixes the outcome
(claims.py); then the files get their names, the outcome goes into the journal, and only then the claim goes.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from kiwi_cli.base.failures import writing_hint
from kiwi_cli.base.whole import publish
from kiwi_cli.batch.claims import Claim, Claims, LostError
from kiwi_cli.batch.heartbeat import LEASE, Heartbeat, Watch, machine, new_name
from kiwi_cli.batch.jobs import Job, JobStore, Unable, sketch
from kiwi_cli.batch.journal import Journal
from kiwi_cli.batch.records import Records, Tally, Waiting
from kiwi_cli.errors import KiwiError

MOST_TRIES = 3
"""After so many workers ended at a job, it is the job."""
LOOK = 1.0  # seconds between looks at who is gone, and at whether the own job was taken over
SYNC = 0.2  # seconds: outcomes that come faster wait for the disk together
LABEL = 200  # characters of a job's name in a heartbeat


class Place:
    """Where a job is done.

    Args:
        progress: to be called with (stage, done, total) as the job goes on; ends a job that was taken over.
    """

    def __init__(self, folder: Path, progress: Callable[[str, int, int], None]) -> None:
        self._folder, self.progress = folder, progress

    @cached_property
    def folder(self) -> Path:
        """Empty, and the job's own: every file left in it goes to its place in the run's folder."""
        self._folder.mkdir()
        return self._folder


Work = Callable[[Job, Place], dict[str, Any]]
"""Does one job. What it returns, plain values, goes into the journal; what it raises is why the job failed."""


class Told:
    """Is told of a worker's jobs as they come and go; shows nothing unless a subclass does."""

    def began(self, job: Job) -> None:
        """A job was claimed."""

    def advanced(self, job: Job, stage: str, done: int, total: int) -> None:
        """It goes on."""

    def ended(self, job: Job, record: dict[str, Any]) -> None:
        """It is done, or failed, as the journal has it."""

    def settled(self, done: int, failed: int, total: int) -> None:
        """So many of all jobs are done and failed by now, by whomever."""

    def at_work(self, workers: list[dict[str, Any]]) -> None:
        """What the workers of a run in several processes say of themselves (heartbeat.py)."""

    def interrupted(self) -> None:
        """Workers in other processes are told to end, and waited for."""


class Worker:
    """One of a run's workers.

    Args:
        store: of the run, begun.
        lease: seconds; when this worker shows no sign of life for so long, others do its job.
        name: of no other worker, ever.
        about: more that its heartbeat and the journal say of it: its device.
    """

    def __init__(self, store: JobStore, lease: float = LEASE, name: str | None = None, **about: Any) -> None:
        self.store, self.name = store, name or new_name()
        self.records, self.watch = Records(store.journal), Watch(store.workers)
        self.heart = Heartbeat(store.workers, self.name, lease)  # first: what has none belongs to nobody
        self.heart.say(**about)
        self.claims = Claims(store.claims, self.name)
        self._begun, self._looked, self._synced = time.monotonic(), -LOOK, time.monotonic()
        self._pause = min(0.5, lease / 10)
        self._written: list[tuple[Claim, Path]] = []
        self._made, self._lost = 0, 0
        self._waiting = Waiting((), self.records)
        self._journal: Journal | None = None  # of one that settles a job: others leave no trace
        self._about = about

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End as a worker; what it had finished is written down."""
        try:
            with suppress(OSError):
                self._settle()
        finally:
            self.claims.close()
            if self._journal is not None:
                self._journal.close()
            self.heart.close()

    def work_through(
        self,
        jobs: Sequence[Job],
        work: Work,
        *,
        index: int = 0,
        told: Told | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Tally:
        """Do jobs until each of the list is done or failed, by this worker or another.

        Args:
            index: of this one among workers that begin together, so that they do not all want the same job.
            stop: asked between two jobs.

        Raises:
            KiwiError: this worker cannot go on; what the others do is theirs. KeyboardInterrupt: nothing is left half.
        """
        told, self._waiting = told or Told(), Waiting(jobs, self.records)
        try:
            while self._waiting.jobs and not stop():
                told.settled(*self._waiting.counts)
                self._step(work, index, told)
            self._settle()
            self._waiting.refresh()
            self.sweep()
        except OSError as error:
            raise KiwiError(
                f"the run's state in '{self.store.root}' cannot be written: {error.strerror or error}",
                writing_hint(error),
            ) from error
        told.settled(*self._waiting.counts)
        return Tally.of(jobs, self.records, made=self._made, lost=self._lost)

    def _step(self, work: Work, index: int, told: Told) -> None:
        """Claim a job and do it, or wait a little."""
        try:
            claim = self._of_the_gone(self._waiting.jobs) or self._of_the_free(index)
        except FileNotFoundError:  # it was frozen for so long that others took it for gone
            self.heart.come_back()
            self.claims.begin()
            return
        if claim is not None:
            self._waiting.refresh()  # what its last holder wrote down before it let the job go
            self._go_on(claim, self._waiting.jobs.get(claim.id), work, told)
            return
        self._settle()
        if not self._waiting.refresh():
            time.sleep(self._pause)

    # -- claiming -------------------------------------------------------------------------------------------

    def _of_the_free(self, index: int) -> Claim | None:
        """A job that nobody is at: the first, or with an index one of the next."""
        held, spare = self.claims.held(), None
        for id in self._waiting.jobs:
            if id in held:
                continue
            if index > 0:
                index -= 1
                spare = spare or id
            elif (claim := self.claims.take(id)) is not None:
                return claim
        return self.claims.take(spare) if spare is not None else None

    def _of_the_gone(self, jobs: Container[str] | None) -> Claim | None:
        """One of the jobs whose worker is gone; looked for now and then. None: any job, at once."""
        now = time.monotonic()
        if jobs is not None and now - self._looked < min(LOOK, self._pause):
            return None
        self._looked = now
        self.watch.workers()  # each is timed from the first look on
        for id, number in self.claims.held().items():
            if jobs is not None and id not in jobs:
                continue
            holder = self.claims.holder(id, number)
            if holder not in (None, self.name) and self.watch.is_gone(str(holder)):
                claim = self.claims.take(id, after=number)
                if claim is not None:
                    return claim
        return None

    # -- doing ----------------------------------------------------------------------------------------------

    def _go_on(self, claim: Claim, job: Job | None, work: Work | None, told: Told) -> None:
        """What is to be done with a claim: all of the job, its end, or nothing. None of `job`: it is settled."""
        fixed = claim.fixed() if claim.number > 1 else None
        if fixed is not None:
            with suppress(LostError):
                self._write_down(claim, fixed)
        elif job is not None and work is not None:
            self._do(job, claim, work, told)
        else:
            claim.end()

    def _do(self, job: Job, claim: Claim, work: Work, told: Told) -> None:
        begin = time.monotonic()
        self.heart.say(job=job.label[:LABEL], id=job.id, stage=None, since=round(begin - self._begun, 3))
        told.began(job)
        folder = self.store.parts / claim.name
        try:
            outcome = self._outcome(job, claim, folder, work, told)
            now = time.monotonic()
            line = {"id": job.id, "label": job.label, "claim": claim.name, "worker": self.name, **outcome}
            line |= {"seconds": round(now - begin, 3), "at": round(now - self._begun, 5)}
            fixed = {"line": line, "folder": claim.name, "beside": str(job.beside), "replace": job.replace}
            claim.finish(fixed)
            self._waiting.refresh()
            if self.records.is_settled(job.id):  # while this one was frozen: its numbers were free again
                claim.end()
                raise LostError
            line = self._write_down(claim, fixed)
            self._waiting.refresh()
            self._made += line["state"] == "done"
            told.ended(job, line)
        except LostError:
            self._lost += 1
        finally:
            if not claim.is_fixed():
                shutil.rmtree(folder, ignore_errors=True)
                if claim.is_held():
                    claim.release()
            self.heart.say(job=None, id=None, stage=None)

    def _outcome(self, job: Job, claim: Claim, folder: Path, work: Work, told: Told) -> dict[str, Any]:
        """What the work gave, or why it failed."""
        looked = time.monotonic()

        def progress(stage: str, done: int, total: int) -> None:
            nonlocal looked
            self.heart.say(stage=stage, stage_done=done, stage_total=total)
            told.advanced(job, stage, done, total)
            now = time.monotonic()
            if now - looked >= LOOK:
                looked = now
                if not claim.is_held():
                    raise LostError

        if claim.number > MOST_TRIES:
            return {"state": "failed", "reason": f"{claim.number - 1} workers ended while they were at it"}
        try:
            result = work(job, Place(folder, progress))
            self.heart.say(stage="put on the disk", stage_done=None, stage_total=None)
            parts = sorted(folder.iterdir()) if folder.is_dir() else []
            return {"state": "done", "files": {path.name: _synced(path) for path in parts}, "result": result}
        except Unable as error:
            raise error.args[0] from None
        except Exception as error:  # one bad job never ends a run, whatever is wrong with it
            if not claim.is_held():
                raise LostError from error
            shutil.rmtree(folder, ignore_errors=True)
            return {"state": "failed", "reason": reason_of(error)}

    def _write_down(self, claim: Claim, fixed: dict[str, Any]) -> dict[str, Any]:
        """Give a fixed outcome's files their names and its line to the journal, as far as that is not done."""
        line = fixed["line"]
        if not self.records.has(line["id"], line["claim"]):
            if line["state"] == "done" and line["files"]:
                try:
                    self._publish(fixed)
                except FileExistsError as error:
                    reason = f"output exists: '{error.filename2 or error.filename}' came while the job was worked at"
                    line = {**line, "state": "failed", "reason": reason}
                except FileNotFoundError as error:
                    reason = f"made, but lost before it had its name: {error.args[0]}"
                    line = {**line, "state": "failed", "reason": reason}
            if not claim.is_held():
                raise LostError
            if self._journal is None:
                self._journal = Journal(self.store.journal, self.name)
                begun = {"state": "begun", "worker": self.name, "machine": machine(), "time": round(time.time(), 3)}
                self._journal.append(begun | self._about, sync=False)
            self._journal.append(line, sync=False)
        self._written.append((claim, self.store.parts / fixed["folder"]))
        if time.monotonic() - self._synced >= SYNC:
            self._settle()
        return line

    def _publish(self, fixed: dict[str, Any]) -> None:
        """Move the files of an outcome to their places; what is there already was moved by an earlier holder.

        Raises:
            FileExistsError: something else is there. FileNotFoundError: one is nowhere.
        """
        folder, target = self.store.parts / fixed["folder"], self.store.out / fixed["beside"]
        parts = sorted(folder.iterdir()) if folder.is_dir() else []
        if parts:
            target.mkdir(parents=True, exist_ok=True)
        lost = [name for name in fixed["line"]["files"] if not ((folder / name).exists() or (target / name).exists())]
        if lost:
            raise FileNotFoundError(f"'{lost[0]}'")
        for part in parts:
            path = target / part.name
            if fixed["replace"]:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                part.replace(path)
                continue
            try:
                publish(part, path)
            except FileExistsError:
                if not path.samefile(part):  # the same: somebody ended between its two names
                    raise
                part.unlink()

    def _settle(self) -> None:
        """Let the claims go whose outcomes are in the journal, once the disk has them."""
        self._synced = time.monotonic()
        if self._written:
            if self._journal is not None:
                self._journal.sync()
            for claim, folder in self._written:
                if folder.is_dir():
                    shutil.rmtree(folder, ignore_errors=True)
                claim.end()
            self._written = []

    def sweep(self) -> None:
        """Remove what workers that are gone have left; jobs they were at are open again."""
        while (claim := self._of_the_gone(None)) is not None:
            self._go_on(claim, None, None, Told())
        self._settle()
        names = {*self.watch.workers(), *self.claims.workers()}
        names |= {path.name.rpartition(".")[0] for path in self.store.parts.iterdir()}
        gone = [name for name in names - {self.name} if self.watch.is_gone(name)]
        self.claims.sweep(gone)
        for name in gone:
            for left in self.store.parts.glob(f"{name}.*"):
                shutil.rmtree(left, ignore_errors=True)
            self.watch.forget(name)


def reason_of(error: BaseException) -> str:
    """Why a job failed, in a line."""
    return error.message if isinstance(error, KiwiError) else f"{type(error).__name__}: {error}"


def _synced(path: Path) -> str:
    """What stands for a file that is on the disk now."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    return sketch(path)
