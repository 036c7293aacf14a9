"""Who is at which job: claims that one worker at a time holds, and that a later one can take away for good.

    claims/ID.1    held by the worker that it names
    claims/ID.2    held by another one, which took it over; or the outcome that the first worker has fixed
    claims/.NAME   of each worker: what its claims are links to

Whatever two workers could want at a time is the next number of a job: to claim, to take over and to finish are each the
making of that one file, which a file system does for one of them only. A worker that was frozen and wakes up finds the
number after its own taken: it cannot finish any more. Numbers of a job go away only when its outcome is in the journal;
so whoever has got one looks there, and gives it back if the job is settled.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kiwi_cli.batch.heartbeat import LEASE


class LostError(Exception):
    """Another worker has taken the job over."""


class Claims:
    """A worker's view of all claims.

    Args:
        folder: of the run's claims. worker: its name, which no other has.
    """

    def __init__(self, folder: Path, worker: str) -> None:
        self.folder, self.worker = folder, worker
        self._taken = 0
        self._mine = folder / f".{worker}"
        self._holders: dict[str, str] = {}
        self._unread: dict[str, float] = {}  # claim -> when it was first found like that
        self.begin()

    def begin(self) -> None:
        """Make what claims are links to, at first and after others took this worker for gone."""
        self._mine.write_text(json.dumps({"worker": self.worker}), encoding="utf-8")

    def workers(self) -> set[str]:
        """The workers that have, or had, something to claim with."""
        return {name[1:].removesuffix(".record") for name in os.listdir(self.folder) if name[0] == "."}  # noqa: PTH208

    def held(self) -> dict[str, int]:
        """Job -> the number of its last claim, which is the one that counts."""
        found: dict[str, int] = {}
        for name in os.listdir(self.folder):  # noqa: PTH208 (called for every job)
            id, _, number = name.rpartition(".")
            if id and number.isdigit():
                found[id] = max(found.get(id, 0), int(number))
        return found

    def holder(self, id: str, number: int) -> str | None:
        """The worker that has a claim; None when it is gone, or being written; '' when nobody can be made out."""
        name = f"{id}.{number}"
        if name not in self._holders:
            if len(self._holders) > 1000:
                self._holders.clear()
            found = self._read(name)
            if found is None:
                return None
            if "worker" not in found:  # cut off, or still being written on a disk without links
                since = self._unread.setdefault(name, time.monotonic())
                return "" if time.monotonic() - since >= LEASE else None
            self._holders[name] = str(found["worker"])
        return self._holders[name]

    def take(self, id: str, after: int = 0) -> Claim | None:
        """A claim of a job that nobody holds, or over the one with the number `after`; None when another was faster.

        Raises:
            FileNotFoundError: others took this worker for gone. OSError: nothing can be written.
        """
        try:
            _publish(self._mine, self.folder / f"{id}.{after + 1}")
        except FileExistsError:
            return None
        self._taken += 1
        return Claim(self, id, after + 1, f"{self.worker}.{self._taken}")

    def close(self) -> None:
        """Nothing more is claimed."""
        self._mine.unlink(missing_ok=True)

    def sweep(self, gone: Iterable[str]) -> None:
        """Remove what workers that are gone had for their claims."""
        for name in gone:
            for left in (self.folder / f".{name}", self.folder / f".{name}.record"):
                left.unlink(missing_ok=True)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / name).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):  # the machine lost its power while it was written
            return {}
        return found if isinstance(found, dict) else {}


class Claim:
    """A job that this worker holds, or held.

    Attributes:
        number: of the claim; what took it from others has more than 1.
        name: of no other claim, ever: what the journal has.
    """

    def __init__(self, claims: Claims, id: str, number: int, name: str) -> None:
        self.claims, self.id, self.number, self.name = claims, id, number, name

    def _path(self, number: int) -> Path:
        return self.claims.folder / f"{self.id}.{number}"

    def is_held(self) -> bool:
        """Whether nobody has taken it over."""
        return not self._path(self.number + 1).exists() and self._path(self.number).exists()

    def fixed(self) -> dict[str, Any] | None:
        """The outcome that an earlier holder has fixed, and did not come to write down."""
        for number in range(self.number, 0, -1):
            found = self.claims._read(f"{self.id}.{number}")
            if found is not None and "line" in found:
                return found
        return None

    def is_fixed(self) -> bool:
        """Whether the outcome is fixed, and it is this claim's."""
        for number in (self.number, self.number + 1):
            found = self.claims._read(f"{self.id}.{number}") or {}
            if found.get("line", {}).get("claim") == self.name:
                return True
        return False

    def finish(self, outcome: dict[str, Any]) -> None:
        """From now on the outcome is this one, whoever writes it down; it has a `line`.

        Raises:
            LostError: the job was taken over; nothing was finished. OSError: it cannot be written.
        """
        part = self.claims.folder / f".{self.claims.worker}.record"
        text = json.dumps({"worker": self.claims.worker, **outcome}, ensure_ascii=False)
        part.write_bytes(text.encode("utf-8", "backslashreplace"))
        try:
            _publish(part, self._path(self.number + 1))
        except FileExistsError:
            raise LostError from None
        finally:
            part.unlink(missing_ok=True)
        self.number += 1

    def release(self) -> None:
        """Let others have the job, which is not settled."""
        self._path(self.number).unlink(missing_ok=True)

    def end(self) -> None:
        """Remove all claims of a job whose outcome is in the journal."""
        for number in range(self.number, 0, -1):
            self._path(number).unlink(missing_ok=True)


def _publish(part: Path, path: Path) -> None:
    """Give a file a second name, which nothing has.

    Raises:
        FileExistsError: something has it. OSError: it cannot be.
    """
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):
        if not part.exists():
            raise
        _copy(part, path)


def _copy(part: Path, path: Path) -> None:
    """The same on a disk without links: a new file, locked away under its name until it is whole."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        os.write(handle, part.read_bytes())
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
