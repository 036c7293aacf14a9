"""What the person sees: stdout is data, stderr is talk.

Progress and notes go to stderr, as an animation on a terminal and as a plain line now and then elsewhere.
`NO_COLOR` and `TERM=dumb` are respected by rich. Nothing else in the package prints.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from kiwi_cli.base.events import WINDOWS, Stages, Transfer
from kiwi_cli.base.text import count, folded, format_seconds, width_of
from kiwi_cli.errors import KiwiError

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

PLAIN_INTERVAL = 10.0  # seconds between progress lines off a terminal


class Console:
    """One per command; what work says of itself (`base.events.Events`) is shown here.

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
        return sys.stderr is not None and sys.stderr.isatty() and not self.quiet

    def result(self, text: str, data: dict[str, Any]) -> None:
        """The command's outcome on stdout: `text`, or `data` as one JSON object with `--json`."""
        _report(_json(data) if self.as_json else text, utf8=self.as_json)

    def page(self) -> None:
        """A page of stdout begins: on a terminal in place of the last one, elsewhere after an empty line."""
        if self.as_json:
            return
        redraws = sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        _report("\x1b[H\x1b[2J" if redraws else "", utf8=False)

    def data(self, line: str) -> None:
        """A line of output on stdout; silent with `--json`, which owns stdout."""
        if not self.as_json:
            _report(line)

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
        """A line of talk, wrapped at words on a terminal. One that is gone, or is closed, must not end the work."""
        if stream is None:
            return
        with suppress(OSError, ValueError):
            stream.write(folded(text.encode("utf-8", "backslashreplace").decode(), width_of(stream)) + "\n")
            stream.flush()

    @contextmanager
    def stages(self, labels: dict[str, str]) -> Iterator[Stages]:
        """Progress of a job in stages; `labels` says what each is called, in order."""
        if not self.animated:
            yield PlainStages(self, labels)
            return
        from rich.console import Console as RichConsole
        from rich.progress import Progress

        with Progress(*columns(), console=RichConsole(stderr=True)) as progress:
            yield RichStages(progress, labels)

    @contextmanager
    def transfer(self, label: str, total: int) -> Iterator[Transfer]:
        """Progress of `total` bytes that are fetched, checked or written."""
        from kiwi_cli.cli.transfer import PlainTransfer, rich_transfer

        if not self.animated:
            yield PlainTransfer(label, total, self.note, PLAIN_INTERVAL)
            return
        with rich_transfer(label, total) as transfer:
            yield transfer


def _json(data: dict[str, Any]) -> str:
    """One line of JSON; letters as they are, unless a file's name holds bytes that are no letters."""
    text = json.dumps(data, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(data)
    return text


def _report(text: str, utf8: bool = False) -> None:
    """A line on stdout, in the stream's own encoding or in UTF-8, which JSON always is.

    The work is done when this is called: letters that the encoding lacks are written as escapes, names of files as the
    bytes they are, and a stdout that was closed on purpose is no failure.

    Raises:
        KiwiError: it cannot be written. BrokenPipeError: the reader is gone.
    """
    stream = sys.stdout
    if stream is None or getattr(stream, "closed", False):
        return
    encoding = "utf-8" if utf8 else (stream.encoding or "utf-8")
    try:
        data = f"{text}\n".encode(encoding, "surrogateescape")
    except UnicodeEncodeError:
        data = f"{text}\n".encode(encoding, "backslashreplace")
    try:
        stream.flush()
        if hasattr(stream, "buffer"):
            stream.buffer.write(data)
            stream.buffer.flush()
        else:
            stream.write(data.decode(encoding))
            stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 (nothing may flush to it again)
        raise KiwiError(
            f"the work is done, but its report cannot be written to stdout: {error.strerror or error}",
            f"it was: {text[:300]}",
        ) from error


def columns() -> tuple[Any, ...]:
    """The label, the bar, the count where there is something to count, and the time it took or will take."""
    from rich.progress import BarColumn, ProgressColumn, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Count(ProgressColumn):
        def render(self, task: Any) -> Text:
            if "windows" in task.fields:
                return Text(task.fields["step"], justify="right")
            counted = task.total is not None and task.total > 1
            return Text(f"{task.completed:.0f}/{task.total:.0f}" if counted else "", justify="right")

    class Time(ProgressColumn):
        def render(self, task: Any) -> Text:
            if "windows" in task.fields:
                return Text(task.fields["windows"].times())
            took = format_seconds((task.finished_time if task.finished else task.elapsed) or 0.0)
            left = None if task.finished else task.time_remaining
            return Text(took if left is None else f"{took}, {format_seconds(left)} left")

    # Where the terminal is narrow the bar gives way, not the words.
    label = TextColumn("{task.description:<21}", markup=False)  # a clip may be called "[/b].mp4"
    return label, BarColumn(24), Count(Column(no_wrap=True)), Time(Column(no_wrap=True))


class WindowClock:
    """How far a clip is that is edited in windows: which one is in work, how long all took, how long the rest will.

    Args:
        now: seconds of some clock.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._begin = self._mark = now()
        self.done = self.total = 0

    def at(self, done: int, total: int) -> None:
        """`done` of `total` windows are done."""
        self._mark, self.done, self.total = self._now(), done, total

    @property
    def over(self) -> bool:
        """Whether the last one is done."""
        return self.done >= self.total

    @property
    def name(self) -> str:
        """'window 8/17'; '17 windows' when all are done."""
        return count(self.total, "window") if self.over else f"window {self.done + 1}/{self.total}"

    def times(self) -> str:
        """'32 s, 24 s left', by the pace of the windows that are done; without the rest while none is."""
        if self.over:
            return format_seconds(self._mark - self._begin)
        took = self._now() - self._begin
        if not self.done:
            return format_seconds(took)
        left = max((self._mark - self._begin) / self.done * self.total - took, 0.0)
        return f"{format_seconds(took)}, {format_seconds(left)} left"


class PlainStages(Stages):
    """Plain lines, for logs and pipes: the end of each stage, and one every ten seconds within it."""

    def __init__(self, console: Console, labels: dict[str, str]) -> None:
        super().__init__(labels)
        self.console = console
        self._said = time.perf_counter()
        self._windows: WindowClock | None = None

    def show_windows(self, done: int, total: int) -> None:
        self._windows = self._windows or WindowClock()
        self._windows.at(done, total)
        if self._windows.over:
            self.console.note(f"{self._windows.name}: done in {self._windows.times()}")
            self._windows = None

    def show(self, stage: str, done: int, total: int, elapsed: float) -> None:
        now = time.perf_counter()
        if self._windows is not None:  # one line for all, not one for each stage
            if now - self._said >= PLAIN_INTERVAL:
                self.console.note(f"{self._windows.name}, {self._windows.times()}")
                self._said = now
            return
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
    """A bar for each stage, on a terminal; one for all windows of a clip."""

    def __init__(self, progress: RichProgress, labels: dict[str, str]) -> None:
        super().__init__(labels)
        self.progress = progress
        self.tasks: dict[str, Any] = {}
        self._windows: WindowClock | None = None

    def show_windows(self, done: int, total: int) -> None:
        if self._windows is None:
            self._windows = WindowClock()
            self.tasks[WINDOWS] = self.progress.add_task("", total=None, windows=self._windows, step="")
        self._windows.at(done, total)
        self.progress.update(self.tasks[WINDOWS], description=self._windows.name, completed=done, total=total, step="")

    def show(self, stage: str, done: int, total: int, elapsed: float) -> None:
        if self._windows is not None:
            each = total // max(self._windows.total, 1)  # what is counted within a window
            step = f"{done - self._windows.done * each}/{each}" if each > 1 else ""
            self.progress.update(self.tasks[WINDOWS], step=step)
            return
        if stage not in self.tasks:
            self.tasks[stage] = self.progress.add_task(self.labels.get(stage, stage), total=None)
        # A stage in one piece has a bar that moves until it is done: there is nothing to count.
        known = total > 1 or done >= total
        self.progress.update(self.tasks[stage], completed=done, total=total if known else None)
