"""What work tells whoever asked for it: notes, warnings, the progress of stages, and bytes as they come.

Everything below the command line speaks to `Events`. The command line's `Console` shows them; `SILENT` is for callers
that want none; a test or a page brings its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

WINDOWS = "windows"
"""What a clip that is edited in windows reports beside its stages: (WINDOWS, how many are done, of how many)."""


class Stages:
    """Receives (stage, done, total) as work goes on, and keeps each stage's seconds; stages may take turns."""

    def __init__(self, labels: dict[str, str]) -> None:
        self.labels = labels
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == WINDOWS:  # no stage: it takes no time of its own
            self.show_windows(done, total)
            return
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
        self.show(stage, done, total, self.seconds[stage])

    def show(self, stage: str, done: int, total: int, elapsed: float) -> None:
        """Draw one advance; shows nothing unless a subclass does."""

    def show_windows(self, done: int, total: int) -> None:
        """Draw how many windows of a clip are done; shows nothing unless a subclass does."""


class Transfer:
    """Counts the bytes of a transfer, from any thread.

    Attributes:
        done: bytes so far. total: bytes in all.
        last_sign: time.monotonic() of the last byte.
    """

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total = label, total
        self.done = 0
        self.last_sign = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, count: float) -> None:
        """Add bytes; a retry takes its own back with a negative count."""
        with self._lock:
            self.done += int(count)
            self.last_sign = time.monotonic()
            self.show(min(max(self.done, 0), self.total))

    def touch(self) -> None:
        """A sign of life without bytes: hashing, or a file that is complete."""
        self.last_sign = time.monotonic()

    def idle(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self.last_sign

    def show(self, shown: int) -> None:
        """Draw one advance to `shown` bytes, never more than `total`; shows nothing unless a subclass does."""


class Events(Protocol):
    """Whoever is told of work as it goes on."""

    def note(self, message: str) -> None:
        """Something the person may want to know."""

    def warn(self, message: str) -> None:
        """Something that is not as asked for."""

    def stages(self, labels: dict[str, str]) -> AbstractContextManager[Stages]:
        """Progress of a job in stages; `labels` says what each is called, in order."""
        ...

    def transfer(self, label: str, total: int) -> AbstractContextManager[Transfer]:
        """Progress of `total` bytes that are fetched, checked or written."""
        ...


class Silent:
    """Events that nobody is told of."""

    def note(self, message: str) -> None:
        pass

    def warn(self, message: str) -> None:
        pass

    @contextmanager
    def stages(self, labels: dict[str, str]) -> Iterator[Stages]:
        yield Stages(labels)

    @contextmanager
    def transfer(self, label: str, total: int) -> Iterator[Transfer]:
        yield Transfer(label, total)


SILENT: Events = Silent()
