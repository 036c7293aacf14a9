"""What a person sees of many clips: a line for the run and one for each clip at work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kiwi_cli.base.text import format_seconds
from kiwi_cli.batch.jobs import Job
from kiwi_cli.batch.worker import Told
from kiwi_cli.cli.console import PLAIN_INTERVAL, Console

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

SHOWN = 8
"""Clips at work that a terminal shows at once."""


class View(Told):
    """Plain lines: failures as they come, and how far the run is now and then.

    Args:
        noun: what the jobs are called: 'clips'.
    """

    def __init__(self, console: Console, noun: str) -> None:
        self.console, self.noun = console, noun
        self._begun = self._said = time.monotonic()
        self._first: int | None = None
        self._counts, self._at = (0, 0, 0), ""

    def ended(self, job: Job, record: dict[str, Any]) -> None:
        if record["state"] == "failed":
            self.console.warn(f"'{job.label}': {record['reason']}")
        else:
            self.console.detail(f"'{job.label}': done in {format_seconds(record['seconds'])}")

    def advanced(self, job: Job, stage: str, done: int, total: int) -> None:
        self._at = at_work(job.label, stage, done, total)
        self._say()

    def at_work(self, workers: list[dict[str, Any]]) -> None:
        self._at = ", ".join(words_of(said) for said in workers)
        self._say()

    def settled(self, done: int, failed: int, total: int) -> None:
        if self._first is None:
            self._first = done + failed
        self._counts = done, failed, total
        self._say()

    def interrupted(self) -> None:
        self.console.note("interrupted: waiting for the workers to put their things away")

    def left(self) -> float | None:
        """Seconds that the rest will take, by what was settled while this watched; None when nothing was."""
        done, failed, total = self._counts
        settled = done + failed - (self._first or 0)
        return (time.monotonic() - self._begun) / settled * (total - done - failed) if settled else None

    def _say(self) -> None:
        now = time.monotonic()
        if now - self._said < PLAIN_INTERVAL:
            return
        self._said = now
        done, failed, total = self._counts
        left = self.left()
        words = [f"{done} of {total} {self.noun} done"]
        words += [f"{failed} failed"] if failed else []
        words += [f"about {format_seconds(left)} left"] if left else []
        self.console.note(", ".join(words) + (f"; at {self._at}" if self._at else ""))


class RichView(View):
    """Bars, on a terminal."""

    def __init__(self, console: Console, noun: str, progress: RichProgress) -> None:
        super().__init__(console, noun)
        self.progress = progress
        self.run = progress.add_task(noun, total=None)
        self.clips: dict[str, Any] = {}

    def settled(self, done: int, failed: int, total: int) -> None:
        label = f"{self.noun}, {failed} failed" if failed else self.noun
        self.progress.update(self.run, description=label, completed=done + failed, total=max(total, 2))

    def advanced(self, job: Job, stage: str, done: int, total: int) -> None:
        self._show([{"job": job.label, "stage": stage, "stage_done": done, "stage_total": total}])

    def at_work(self, workers: list[dict[str, Any]]) -> None:
        self._show(workers[:SHOWN])

    def _show(self, workers: list[dict[str, Any]]) -> None:
        """A bar for each, in place of those that were there."""
        shown = {str(said["job"]): said for said in workers}
        for label in set(self.clips) - set(shown):
            self.progress.remove_task(self.clips.pop(label))
        for label, said in shown.items():
            if label not in self.clips:
                self.clips[label] = self.progress.add_task(label, total=None)
            done, total = said.get("stage_done") or 0, said.get("stage_total") or 0
            stage = f"{label[-20:]}: {said.get('stage') or ''}"
            # Not None for what is not counted: a bar would keep the last stage's.
            self.progress.update(self.clips[label], description=stage, completed=done, total=max(total, 1))

    def _say(self) -> None:
        """Bars say it."""


@contextmanager
def view(console: Console, noun: str) -> Iterator[View]:
    """A view for as long as a run takes."""
    if not console.animated:
        yield View(console, noun)
        return
    from rich.console import Console as RichConsole
    from rich.progress import Progress

    from kiwi_cli.cli.console import columns

    with Progress(*columns(), console=RichConsole(stderr=True)) as progress:
        yield RichView(console, noun, progress)


def at_work(label: str, stage: str | None, done: Any, total: Any) -> str:
    """'a.mp4' (denoise, 12 of 50)"""
    counted = f", {done} of {total}" if isinstance(total, int) and total > 1 else ""
    return f"'{label}'" + (f" ({stage}{counted})" if stage else "")


def words_of(said: dict[str, Any]) -> str:
    """What a worker is at, as its heartbeat says."""
    return at_work(str(said["job"]), said.get("stage"), said.get("stage_done"), said.get("stage_total"))
