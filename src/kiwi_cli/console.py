"""What the person sees: stdout is data, stderr is talk.

Progress and notes go to stderr, as an animation on a terminal and as a plain line now and then elsewhere.
`NO_COLOR` and `TERM=dumb` are respected by rich. Nothing else in the package prints.
"""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

PLAIN_INTERVAL = 10.0  # seconds between progress lines off a terminal


class Console:
    """One per command.

    Args:
        quiet: only errors and warnings on stderr.
        as_json: stdout gets one JSON object, by `result`, and nothing else.
        verbose: also `detail` lines.
    """

    def __init__(self, quiet: bool = False, as_json: bool = False, verbose: bool = False) -> None:
        self.quiet, self.as_json, self.verbose = quiet, as_json, verbose

    @property
    def animated(self) -> bool:
        """Whether stderr is a terminal that can redraw a line."""
        return sys.stderr.isatty() and not self.quiet

    def result(self, text: str, data: dict[str, Any]) -> None:
        """The command's outcome on stdout: `text`, or `data` as one JSON object with `--json`."""
        self._write(sys.stdout, json.dumps(data, ensure_ascii=False) if self.as_json else text)

    def data(self, line: str) -> None:
        """A line of output on stdout; silent with `--json`, which owns stdout."""
        if not self.as_json:
            self._write(sys.stdout, line)

    def note(self, message: str) -> None:
        """Something the person may want to know."""
        if not self.quiet:
            self._write(sys.stderr, message)

    def detail(self, message: str) -> None:
        """Something for `-v`."""
        if self.verbose:
            self._write(sys.stderr, message)

    def warn(self, message: str) -> None:
        """Something that is not as asked for; also with `-q`."""
        self._write(sys.stderr, f"warning: {message}")

    def error(self, message: str, hint: str = "") -> None:
        """The house form of a failure."""
        self._write(sys.stderr, f"error: {message}" + (f"\n\nhint: {hint}" if hint else ""))

    @staticmethod
    def _write(stream: Any, text: str) -> None:
        stream.write(text + "\n")
        stream.flush()

    @contextmanager
    def stages(self, labels: dict[str, str]) -> Iterator[Stages]:
        """Progress of a job in stages; `labels` says what each is called, in order."""
        if not self.animated:
            yield PlainStages(self, labels)
            return
        from rich.console import Console as RichConsole
        from rich.progress import Progress

        with Progress(*_columns(), console=RichConsole(stderr=True)) as progress:
            yield RichStages(progress, labels)


def _columns() -> tuple[Any, ...]:
    """The label, the bar, the count where there is something to count, and the time it took or will take."""
    from rich.progress import BarColumn, ProgressColumn, TextColumn
    from rich.text import Text

    class Count(ProgressColumn):
        def render(self, task: Any) -> Text:
            counted = task.total is not None and task.total > 1
            return Text(f"{task.completed:.0f}/{task.total:.0f}" if counted else "", justify="right")

    class Time(ProgressColumn):
        def render(self, task: Any) -> Text:
            took = format_seconds((task.finished_time if task.finished else task.elapsed) or 0.0)
            left = None if task.finished else task.time_remaining
            return Text(took if left is None else f"{took}, {format_seconds(left)} left")

    return TextColumn("{task.description:<21}"), BarColumn(24), Count(), Time()


class Stages:
    """Receives (stage, done, total) as work goes on, and keeps each stage's seconds; stages may take turns."""

    def __init__(self, labels: dict[str, str]) -> None:
        self.labels = labels
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
        self.show(stage, done, total, self.seconds[stage])

    def show(self, stage: str, done: int, total: int, elapsed: float) -> None:
        """Draw one advance; the subclasses differ here."""


class PlainStages(Stages):
    """Plain lines, for logs and pipes: the end of each stage, and one every ten seconds within it."""

    def __init__(self, console: Console, labels: dict[str, str]) -> None:
        super().__init__(labels)
        self.console = console
        self._said = time.perf_counter()

    def show(self, stage: str, done: int, total: int, elapsed: float) -> None:
        now = time.perf_counter()
        label = self.labels.get(stage, stage)
        if done >= total:
            self.console.note(f"{label}: done in {format_seconds(elapsed)}")
        elif now - self._said >= PLAIN_INTERVAL:
            left = elapsed / done * (total - done) if done else 0.0
            self.console.note(f"{label}: {done} of {total}, about {format_seconds(left)} left")
        else:
            return
        self._said = now


class RichStages(Stages):
    """A bar for each stage, on a terminal."""

    def __init__(self, progress: RichProgress, labels: dict[str, str]) -> None:
        super().__init__(labels)
        self.progress = progress
        self.tasks: dict[str, Any] = {}

    def show(self, stage: str, done: int, total: int, elapsed: float) -> None:
        if stage not in self.tasks:
            self.tasks[stage] = self.progress.add_task(self.labels.get(stage, stage), total=None)
        # A stage in one piece has a bar that moves until it is done: there is nothing to count.
        known = total > 1 or done >= total
        self.progress.update(self.tasks[stage], completed=done, total=total if known else None)


def format_seconds(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def aligned(rows: Iterable[tuple[str, Any]], label: int) -> str:
    """Labels and values in two columns; on a terminal, values are wrapped at its width below themselves.

    Args:
        label: width of the first column.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    lines = []
    for name, value in rows:
        text = f"{name:<{label}}{value}"
        if width > 2 * label and len(text) > width:
            text = textwrap.fill(text, width, subsequent_indent=" " * label, break_on_hyphens=False)
        lines.append(text)
    return "\n".join(lines)


def count(number: int, noun: str) -> str:
    """1 frame, 81 frames."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_bytes(count: float) -> str:
    """Decimal units, as disks and the Hub count: 812 B, 3.1 MB, 19.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
