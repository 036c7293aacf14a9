"""A program of the person's, run once: within its time, with an end to what it may print and write, and ended whole."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import IO

from kiwi_cli.base.text import format_bytes, format_seconds
from kiwi_cli.errors import KiwiError, UsageError

POLL = 0.1  # seconds
GRACE = 5.0  # seconds between asking a program to end and ending it
# Reads the number of a group, and waits for a second line. Where its input ends without one, whoever would have written
# it was killed: the group ends as well.
WATCH = f"""read -r group || exit 0
read -r done || {{ kill -s TERM -- "-$group"; sleep {GRACE:.0f}; kill -s KILL -- "-$group"; }}"""
MOST_SAID = 64 << 20  # bytes printed
KEPT = 4096  # bytes of what was printed last
NOTHING = "it printed nothing"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def run_program(words: Sequence[str], output: Path, limit: float, most: int) -> None:
    """Run a program and wait for the file or folder that it is to write.

    It runs in the working folder with no input, as the leader of its own group: whatever it started ends with it, and
    all of it ends with this process, even when that is killed.

    Args:
        words: the program and its arguments.
        output: what it is to write. limit: seconds. most: bytes that `output` may have.

    Raises:
        UsageError: it cannot be started. KiwiError: it failed, took too long, wrote nothing or far too much.
    """
    name = Path(words[0]).name
    with _watcher() as watch:
        process = _started(words)
        watch(process.pid)
        assert process.stdout is not None
        said = _Said(process.stdout)
        try:
            code = _wait(process, said, name, output, limit, most)
        finally:
            _end(process)
            said.close()
    if code:
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with {code}"
        raise KiwiError(f"'{name}' {how}: {said.last or NOTHING}", "run it by hand on one clip")
    if not output.exists():
        raise KiwiError(f"'{name}' ended well but wrote nothing at {{output}}", "check the place of {output}")
    _check_size(output, name, most)


def _started(words: Sequence[str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot start '{words[0]}': {reason}", "pass the path of a program that can be run") from None


@contextlib.contextmanager
def _watcher() -> Iterator[Callable[[int], None]]:
    """A shell in a group of its own that ends a program's group when this process is killed; it is told which."""
    try:
        watcher = subprocess.Popen(
            ["/bin/sh", "-c", WATCH],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:  # no such shell, or no more processes: then a program is on its own after a kill
        yield lambda group: None
        return
    assert watcher.stdin is not None
    pipe = watcher.stdin

    def tell(group: int) -> None:
        with contextlib.suppress(OSError):  # somebody ended the shell
            pipe.write(b"%d\n" % group)
            pipe.flush()

    try:
        yield tell
    finally:
        with contextlib.suppress(OSError):
            watcher.communicate(b"done\n")


def _wait(process: subprocess.Popen[bytes], said: _Said, name: str, output: Path, limit: float, most: int) -> int:
    deadline = monotonic() + limit
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(POLL)
        if monotonic() > deadline:
            raise KiwiError(
                f"'{name}' was not done after {format_seconds(limit)} and was ended: {said.last or NOTHING}",
                "give it longer: --editor-timeout SECONDS",
            )
        if said.count > MOST_SAID:
            raise KiwiError(f"'{name}' printed more than {format_bytes(MOST_SAID)} and was ended", "make it quieter")
        _check_size(output, name, most)


def _check_size(output: Path, name: str, most: int) -> None:
    if _size(output) > most:
        raise KiwiError(
            f"'{name}' wrote more than {format_bytes(most)} for one clip", "its result is far too large for the clip"
        )


def _size(path: Path) -> int:
    """Bytes of a file, or of all files right in a folder; 0 of what is not there, or goes meanwhile."""
    try:
        if path.is_dir():
            return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
        return path.stat().st_size
    except OSError:
        return 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program and all that it started."""
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    if process.poll() is None:
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


class _Said:
    """Reads what a program prints, counts it, and keeps its end.

    Attributes:
        count: bytes so far.
    """

    def __init__(self, pipe: IO[bytes]) -> None:
        self.count, self._pipe, self._kept = 0, pipe, b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while piece := os.read(self._pipe.fileno(), 1 << 16):
                self.count += len(piece)
                self._kept = (self._kept + piece)[-KEPT:]

    def close(self) -> None:
        """Wait for the rest; a process that was left behind and holds the pipe is not waited for."""
        self._thread.join(1.0)
        if not self._thread.is_alive():
            self._pipe.close()

    @property
    def last(self) -> str:
        """The last line that is not empty, without a terminal's colours."""
        text = ESCAPES.sub("", self._kept.decode(errors="replace"))
        lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
        return lines[-1][-300:] if lines else ""
