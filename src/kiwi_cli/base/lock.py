"""Folders and outputs that one run at a time may write: locks that die with their process, and say whose they are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kiwi_cli.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows has none: there the file only says whose the folder is
    fcntl = None  # type: ignore[assignment]

NAME = ".kiwi-run"


@contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """The folder is this process's until the block ends; it is made if need be.

    Args:
        what: what the other run is doing, for the error.

    Raises:
        UsageError: another process has it, with its number and its machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _holding(folder / NAME, f"{what} in '{folder}'", "--out"):
        yield


@contextmanager
def claimed(output: Path) -> Iterator[None]:
    """An output's name is this process's until the block ends: its files are all of one run. Nothing lies beside it.

    Raises:
        UsageError: another process of this machine writes it.
    """
    name = hashlib.sha256(os.fsencode(output.absolute().parent.resolve() / output.name)).hexdigest()[:32]
    owner = os.getuid() if hasattr(os, "getuid") else ""
    folder = Path(tempfile.gettempdir()) / f"kiwi-{owner}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        mine = fcntl is not None and folder.stat().st_uid == owner and not folder.is_symlink()
    except OSError:
        mine = False
    if not mine:  # no place for locks: then publishing with a look is all there is
        yield
        return
    with _holding(folder / name, f"writing '{output}'", "--output"):
        yield


@contextmanager
def _holding(path: Path, what: str, option: str) -> Iterator[None]:
    handle = _open(path)
    try:
        if handle is None:
            raise _taken(path, what, option)
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
    finally:
        if handle is not None:
            path.unlink(missing_ok=True)  # while it is locked: whoever opens it later gets a new one
            os.close(handle)


def check_free(folder: Path, what: str) -> None:
    """Refuse a folder that another process holds now; nothing is made.

    Raises:
        UsageError: as `held`.
    """
    path = folder / NAME
    if not path.is_file():
        return
    handle = _open(path, make=False)
    if handle is None and path.is_file():
        raise _taken(path, f"{what} in '{folder}'", "--out")
    if handle is not None:
        os.close(handle)


def _open(path: Path, make: bool = True) -> int | None:
    """The file, opened and locked; None when another process has it locked."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | (os.O_CREAT if make else 0), 0o644)
        except FileNotFoundError:
            return None
        if fcntl is None:
            return handle
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError:  # a disk without locks
            return handle
        with contextlib.suppress(OSError):
            if os.stat(path).st_ino == os.fstat(handle).st_ino:  # noqa: PTH116
                return handle
        os.close(handle)  # the one before ended in between and took its file along


def _taken(path: Path, what: str, option: str) -> UsageError:
    owner = ""
    with contextlib.suppress(OSError, ValueError, TypeError):
        said = json.loads(path.read_text(encoding="utf-8"))
        owner = f" (process {int(said['pid'])} on {str(said['host'])[:60]})"
    return UsageError(f"another run is {what}{owner}", f"wait for it, or choose another {option}")
