"""Progress of a long transfer in bytes: one bar with speed and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kiwi_cli.base.events import Transfer
from kiwi_cli.base.text import format_bytes, format_seconds


class PlainTransfer(Transfer):
    """A line every `interval` seconds, by `say`."""

    def __init__(self, label: str, total: int, say: Callable[[str], None], interval: float) -> None:
        super().__init__(label, total)
        self.say, self.interval = say, interval
        self._began = self._said = time.monotonic()

    def show(self, shown: int) -> None:
        now = time.monotonic()
        if now - self._said >= self.interval:
            self._said = now
            self.say(self._line(shown, now - self._began))

    def _line(self, shown: int, elapsed: float) -> str:
        speed = shown / elapsed if elapsed else 0.0
        left = f", about {format_seconds((self.total - shown) / speed)} left" if speed else ""
        return f"{self.label}: {format_bytes(shown)} of {format_bytes(self.total)}, {format_bytes(speed)}/s{left}"


class RichTransfer(Transfer):
    """A bar on a terminal."""

    def __init__(self, label: str, total: int, bar: Any) -> None:
        super().__init__(label, total)
        self.bar, self.task = bar, bar.add_task(label, total=total)

    def show(self, shown: int) -> None:
        self.bar.update(self.task, completed=shown)


@contextmanager
def rich_transfer(label: str, total: int) -> Iterator[RichTransfer]:
    """One overall bar for `total` bytes, 80 characters wide at most."""
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

    columns = (
        TextColumn("{task.description}", markup=False, table_column=one_line(max_width=24, overflow="ellipsis")),
        BarColumn(bar_width=14),
        DownloadColumn(table_column=one_line()),
        TransferSpeedColumn(table_column=one_line()),
        TimeRemainingColumn(compact=True, table_column=one_line()),
        TextColumn("left", table_column=one_line()),
    )
    with Progress(*columns, console=RichConsole(stderr=True)) as bar:
        yield RichTransfer(label, total, bar)
