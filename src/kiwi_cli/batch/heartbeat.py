"""Workers that are at work: a file of each that keeps changing, and how others see that one stands still.

No clock of another machine is asked. Whoever watches takes the time, by its own clock, since the file last changed.
On one machine the file's lock says at once that its worker is gone.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has none: there the lease alone tells
    fcntl = None  # type: ignore[assignment]

LEASE = 60.0  # seconds
BEATS = 6  # of a lease, at least
MOST = 3.0  # seconds between two: whoever watches wants to see how far a job is
_SIZE = 2048  # bytes: always written whole, so that nothing of an older one is left


def machine() -> str:
    """This machine since it was started: whoever has the same can see each other's locks."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot}"


def new_name() -> str:
    """A worker's name: its machine, its process, and something that no other has."""
    host = re.sub(r"[^a-z0-9]+", "-", socket.gethostname().lower()).strip("-")[:24] or "worker"
    return f"{host}-{os.getpid()}-{secrets.token_hex(3)}"


class Heartbeat:
    """A worker's own file, rewritten by a thread of its own until it is closed.

    Args:
        folder: of the run's workers. lease: seconds without a change after which its job is another's.
    """

    def __init__(self, folder: Path, name: str, lease: float) -> None:
        self.path, self.lease = folder / f"{name}.json", lease
        self._said: dict[str, Any] = {"machine": machine(), "pid": os.getpid(), "lease": lease}
        self._count, self._begun = 0, time.monotonic()
        self._handle = self._open()
        self._end = threading.Event()
        self._lock = threading.Lock()
        self.beat()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._thread.start()

    def _open(self) -> int:
        part = self.path.with_name(f".{self.path.name}")
        handle = os.open(part, os.O_RDWR | os.O_CREAT, 0o644)
        if fcntl is not None:
            with suppress(OSError):  # a disk without locks
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.rename(self.path)  # locked already: nobody takes it for one that has ended
        return handle

    def say(self, **words: Any) -> None:
        """What is to be told from the next beat on."""
        with self._lock:
            self._said.update(words)

    def beat(self) -> None:
        with self._lock:
            self._count += 1
            said = self._said | {"beat": self._count, "up": round(time.monotonic() - self._begun, 3)}
            text = json.dumps(said).encode()[: _SIZE - 1]
            with suppress(OSError):  # a disk that is full, or away for a while: whoever watches draws the conclusion
                os.pwrite(self._handle, text.ljust(_SIZE - 1) + b"\n", 0)
                os.fsync(self._handle)

    def _go_on(self) -> None:
        while not self._end.wait(min(self.lease / BEATS, MOST)):
            self.beat()

    def come_back(self) -> None:
        """Be seen again under the same name."""
        with self._lock:
            os.close(self._handle)
            self._handle = self._open()
        self.beat()

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        self.path.unlink(missing_ok=True)
        os.close(self._handle)


class Watch:
    """What one process sees of the others' heartbeats."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._machine = machine()
        self._seen: dict[str, tuple[bytes, float]] = {}

    def is_gone(self, worker: str) -> bool:
        """Whether a worker has ended, or has stood still for its lease while this process watched."""
        path = self.folder / f"{worker}.json"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return True
        except OSError:  # the disk is away for a while: nothing can be said
            return False
        now = time.monotonic()
        before, since = self._seen.get(worker, (b"", now))
        if data != before:
            self._seen[worker] = data, now
            since = now
        said = parsed(data)
        return self._has_ended(path, said) or now - since >= float(said.get("lease", LEASE))

    def _has_ended(self, path: Path, said: dict[str, Any]) -> bool:
        """Whether a worker of this machine has let its lock go."""
        if fcntl is None or said.get("machine") != self._machine:
            return False
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return True
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def workers(self) -> dict[str, dict[str, Any]]:
        """Worker -> what it last said, with `gone` as this process sees it."""
        found = {}
        for path in sorted(self.folder.glob("*.json")):
            with suppress(OSError):
                found[path.stem] = parsed(path.read_bytes()) | {"gone": self.is_gone(path.stem)}
        return found

    def forget(self, worker: str) -> None:
        """Remove the file of a worker that is gone."""
        (self.folder / f"{worker}.json").unlink(missing_ok=True)
        self._seen.pop(worker, None)


def parsed(data: bytes) -> dict[str, Any]:
    """What a heartbeat says; nothing of one that was caught while it was written."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
