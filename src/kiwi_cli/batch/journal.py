"""Append-only JSON lines that survive being cut off: one line is one fact, on the disk when `append` returns."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kiwi_cli.errors import UsageError


class Journal:
    """A file of JSON lines that one process at a time appends to; its threads may share it.

    Args:
        folder: of the run. stem: 'edits', 'judgements' or 'metrics'.
        shard: (i, n); each shard has a file of its own, so that processes never share one.

    Raises:
        UsageError: another process has it open.
    """

    def __init__(self, folder: Path, stem: str, shard: tuple[int, int] | None = None) -> None:
        name = stem if shard is None or shard[1] == 1 else f"{stem}.{shard[0]}-of-{shard[1]}"
        self.path = folder / f"{name}.jsonl"
        self._lock = threading.Lock()
        self._file = self.path.open("ab")
        try:
            _lock_file(self._file)
        except OSError:
            self._file.close()
            raise UsageError(
                f"another process is writing '{self.path}'", "wait for it, or give each process its own --shard"
            ) from None
        self._mend()

    def append(self, record: dict[str, Any], sync: bool = True) -> None:
        """Write one line and wait until it is on the disk; without `sync`, until other processes can read it."""
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            if sync:
                os.fsync(self._file.fileno())

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let other processes have the file."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _mend(self) -> None:
        """End a line that was cut off, so that the next one stands alone. Nothing is removed."""
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    self._file.write(b"\n")
                    self._file.flush()


def read_lines(folder: Path, stem: str) -> Iterator[dict[str, Any]]:
    """Every whole record of a run's journals of that name, in order; broken lines are passed over."""
    for path in sorted(folder.glob(f"{stem}*.jsonl")):
        yield from records_in(path.read_bytes().splitlines())


def records_in(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    """The records of whole lines; broken ones are passed over."""
    with suppress(ValueError):  # all at once, which takes half the time; not if one of them is broken
        found = json.loads(b"[" + b",".join(lines) + b"]")
        if len(found) == len(lines):
            return [record for record in found if isinstance(record, dict)]
    records = []
    for line in lines:
        with suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


def _lock_file(file: Any) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: no lock; the shards' own files still keep processes apart
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
