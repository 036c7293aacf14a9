"""How a command is told to end: the signals, the time it gets to clean up, and the system's memory used up."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kiwi_cli.errors import EXIT_INTERRUPTED, KiwiError, UsageError

PATIENCE = 2.0  # seconds after an interruption in which another one does not cut the cleaning short

HINTS = {"edit": "use a smaller --size, or fewer frames with --duration", "train": "use a smaller micro_batch"}
HINTS |= {name: HINTS["edit"] for name in ("ref-edit", "rerun")}


def endings() -> tuple[signal.Signals, ...]:
    """The signals that politely end a command (Ctrl-C, kill, a terminal that closes), but for those that whoever
    started it keeps off, as nohup does."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    found = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return tuple(number for number in found if signal.getsignal(number) is not signal.SIG_IGN)


class Ending:
    """Handles the signals of `endings`: an interruption, so that `with` blocks clean up."""

    def __init__(self) -> None:
        self.since: float | None = None

    def install(self) -> None:
        """Take the signals over; the main thread alone may."""
        for number in endings():
            signal.signal(number, self)

    def __call__(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self.since is not None and now - self.since < PATIENCE:
            return  # two at once, as a shell and its terminal send them: the first is being obeyed
        self.since = now
        raise KeyboardInterrupt


@contextmanager
def keeping(what: str) -> Iterator[None]:
    """An interruption of the block says what is kept of the work, and how to go on.

    Args:
        what: such as 'files that are complete are kept'.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KiwiError(
            f"interrupted; {what}", "the same command goes on from there", exit_code=EXIT_INTERRUPTED
        ) from None


def out_of_memory(error: BaseException, command: str) -> tuple[str, str] | None:
    """The message and the hint when this machine's memory was used up; None for any other error."""
    text = str(error)
    signs = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory", "Cannot allocate memory", "bad_alloc")
    if not isinstance(error, MemoryError) and not any(sign in text for sign in signs):
        return None
    return "this machine's memory is used up", HINTS.get(command, "end other programs, or ask for less at once")


def of_a_path(error: BaseException) -> KiwiError | None:
    """The error for the person when the system would not even look at a path that was named; None for any other."""
    name = getattr(error, "filename", None)
    if not isinstance(error, OSError) or not isinstance(name, str | bytes | os.PathLike):
        return None
    name = os.fsdecode(name)
    if error.errno == errno.ENAMETOOLONG:
        longest = max(Path(name).parts, key=len)
        return UsageError(
            f"no such file: the name is too long: '{longest[:40]}...' ({len(os.fsencode(longest))} bytes)",
            "a name has at most 255 bytes; an instruction with spaces goes between quotes",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return KiwiError(f"not allowed to read or write '{name}'", "check the permissions of it and of its folders")
    return None


def check_folder(given: Sequence[str]) -> None:
    """Refuse to work in a folder that was deleted: torch's libraries end the process there. `doctor` tells of it.

    Raises:
        KiwiError: it was.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        if given and not given[0].startswith("-") and given[0] != "doctor":
            raise KiwiError("the folder that this runs in was deleted", "change to another one") from None
