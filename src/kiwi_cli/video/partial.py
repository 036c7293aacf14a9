"""Folders that are worked in until a run ends, beside outputs and among the temporary files, and what killed runs left.

A folder holds a lock file that its run keeps locked. The lock dies with the run, however that ends, so that the next
run to the same folder can tell what was left behind from what another run is still writing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none: nothing is cleaned there
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".kiwi-partial"
_LOCK = ".kiwi-lock"
_held: dict[Path, int] = {}  # of this process: folder -> open lock file


def partial_folder(path: Path) -> Path:
    """A new hidden folder beside `path`. Those that killed runs left beside it are removed.

    Raises:
        OSError: it cannot be made.
    """
    folder = path.absolute().parent
    _clean(folder)
    # 40 characters of the name, but never more bytes than a file name holds
    stem = path.stem[:40].encode()[:100].decode("utf-8", "ignore")
    made = Path(tempfile.mkdtemp(prefix=f".{stem}-", suffix=SUFFIX, dir=folder))
    if fcntl is not None:
        try:
            _hold(made)
        except OSError:
            shutil.rmtree(made, ignore_errors=True)
            raise
    return made


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new hidden folder among the temporary files, until the block ends. Those of killed runs are removed.

    Raises:
        OSError: it cannot be made.
    """
    made = partial_folder(Path(tempfile.gettempdir()) / "kiwi")
    try:
        yield made
    finally:
        remove_partial(made)


def _hold(folder: Path) -> None:
    """Lock a folder of this process; its lock file gets its name when it is locked, so that none takes it for left."""
    new = folder / f"{_LOCK}-new"
    handle = os.open(new, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(folder / _LOCK)
    except OSError:
        os.close(handle)
        raise
    _held[folder] = handle


def remove_partial(folder: Path) -> None:
    """Remove a folder of `partial_folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    handle = _held.pop(folder, None)
    if handle is not None:
        os.close(handle)


def _clean(folder: Path) -> None:
    """Remove folders whose run is gone: named like ours, ours by their lock file, and no longer locked."""
    if fcntl is None:
        return
    for left in folder.glob(f".*{SUFFIX}"):
        lock = left / _LOCK
        if left.is_symlink() or not left.is_dir() or lock.is_symlink() or not lock.is_file():
            continue
        with contextlib.suppress(OSError):  # still locked, or somebody else's: it stays
            handle = os.open(lock, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(handle)
