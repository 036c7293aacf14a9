"""Progress of a long transfer in bytes: one bar with speed and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kiwi_cli.console import PLAIN_INTERVAL, Console, format_bytes, format_seconds


class Transfer:
    """Counts bytes from any thread.

    Attributes:
        done: bytes so far; never more than `total` in what is shown.
        last_sign: time.monotonic() of the last byte.
    """

    def __init__(self, console: Console | None, label: str, total: int) -> None:
        self.console, self.label, self.total = console, label, total
        self.done = 0
        self.last_sign = self._began = self._said = time.monotonic()
        self._lock = threading.Lock()
        self._bar: Any = None
        self._task: Any = None

    def advance(self, count: float) -> None:
        """Add bytes; a retry takes its own back with a negative count."""
        with self._lock:
            self.done += int(count)
            self.last_sign = now = time.monotonic()
            shown = min(max(self.done, 0), self.total)
            if self._bar is not None:
                self._bar.update(self._task, completed=shown)
            elif self.console is not None and now - self._said >= PLAIN_INTERVAL:
                self._said = now
                self.console.note(self._line(shown, now - self._began))

    def touch(self) -> None:
        """A sign of life without bytes: hashing, or a file that is complete."""
        self.last_sign = time.monotonic()

    def idle(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self.last_sign

    def _line(self, shown: int, elapsed: float) -> str:
        speed = shown / elapsed if elapsed else 0.0
        left = f", about {format_seconds((self.total - shown) / speed)} left" if speed else ""
        return f"{self.label}: {format_bytes(shown)} of {format_bytes(self.total)}, {format_bytes(speed)}/s{left}"


@contextmanager
def transfer(console: Console | None, label: str, total: int) -> Iterator[Transfer]:
    """One overall bar for `total` bytes, or plain lines; nothing without a console."""
    counter = Transfer(console, label, total)
    if console is None or not console.animated:
        yield counter
        return
    from rich.console import Console as RichConsole
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.table import Column

    def one_line(**more: Any) -> Column:
        return Column(no_wrap=True, **more)

    columns = (  # 80 characters wide at most
        TextColumn("{task.description}", table_column=one_line(max_width=24, overflow="ellipsis")),
        BarColumn(bar_width=14),
        DownloadColumn(table_column=one_line()),
        TransferSpeedColumn(table_column=one_line()),
        TimeRemainingColumn(compact=True, table_column=one_line()),
        TextColumn("left", table_column=one_line()),
    )
    with Progress(*columns, console=RichConsole(stderr=True)) as bar:
        counter._bar, counter._task = bar, bar.add_task(label, total=total)
        yield counter
