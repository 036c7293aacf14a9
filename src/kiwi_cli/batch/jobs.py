"""Jobs by their ids, and the folder that the workers of a run share. Nothing here knows what a job does.

OUT/.kiwi-batch/
  run.json       what the run is of, and the version of kiwi that began it; never changed
  lists/         lists of jobs, named by a hash of what is in them; `current` names the last one that was begun
  journal/       a file of JSON lines for each worker: what was done, what failed (records.py)
  claims/        files that say who is at which job (claims.py); empty between runs
  parts/         a folder for each job that is being worked at, for its files; empty between runs
  workers/       a file for each worker that is at work: its heartbeat (heartbeat.py); empty between runs
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from kiwi_cli.base.failures import writing_hint
from kiwi_cli.base.version import __version__
from kiwi_cli.base.whole import publish, write_text
from kiwi_cli.errors import KiwiError, UsageError

STATE = ".kiwi-batch"
FORMAT = 1
_PIECE = 1 << 14  # bytes
_WHOLE = 1 << 18


@dataclass(frozen=True)
class Job:
    """One piece of work.

    Attributes:
        id: a hash of what decides the result.
        label: what a person calls it.
        work: what the work function has to know, as plain values of JSON.
        output: the name of its first file in the run's folder ('a.mp4', 'day/a.mp4'), others lie beside it; None: it
            leaves no file.
        replace: whether files of those names are replaced.
    """

    id: str
    label: str
    work: dict[str, Any] = field(default_factory=dict)
    output: str | None = None
    replace: bool = False

    @property
    def beside(self) -> PurePosixPath:
        """The folder of its files, seen from the run's."""
        return PurePosixPath(self.output or "").parent


class Unable(Exception):
    """Raised by work that no job of this worker will come through: its model cannot be loaded, its device is gone.

    The worker ends; the job is left to others. `args[0]` is the error behind it.
    """


def job_id(*parts: Any) -> str:
    """A hash of plain values, 32 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def sketch(path: Path) -> str:
    """Stands for a file's contents, or for a folder's: sizes, names, and three pieces of each file; small ones whole.

    Raises:
        OSError: it cannot be read, or is no file: a pipe or a device would be waited for.
    """
    if not path.is_dir() and path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a file")
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]:
        with file.open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            digest.update(f"{file.name}\0{size}\0".encode("utf-8", "surrogateescape") if file != path else b"%d" % size)
            for at in (0, (size - _PIECE) // 2, size - _PIECE) if size > _WHOLE else (0,):
                opened.seek(at)
                digest.update(opened.read(_PIECE if size > _WHOLE else _WHOLE))
    return digest.hexdigest()


class JobStore:
    """The folder of a run, as this machine sees it.

    Args:
        out: the folder that results go to.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.root = out, out / STATE
        names = ("journal", "claims", "parts", "workers", "lists")
        self.journal, self.claims, self.parts, self.workers, self.lists = (self.root / name for name in names)

    def begin(self, kind: str) -> None:
        """Make the folder, or go on with the one that is there.

        Args:
            kind: what the jobs are: 'edits', 'rows'.

        Raises:
            UsageError: it holds a run of something else, or of another version of kiwi.
            KiwiError: it cannot be made.
        """
        try:
            for folder in (self.journal, self.claims, self.parts, self.workers, self.lists):
                folder.mkdir(parents=True, exist_ok=True)
            if not (self.root / "run.json").exists():
                self._name(kind)
        except OSError as error:
            raise KiwiError(f"cannot write in '{self.out}': {error.strerror or error}", writing_hint(error)) from error
        found = self.identity()
        if found["kind"] != kind:
            raise UsageError(f"'{self.out}' holds a run of {found['kind']}, not of {kind}", "pass another folder")
        if found["kiwi"] != __version__:
            raise UsageError(
                f"the run in '{self.out}' was begun by kiwi {found['kiwi']}, this is kiwi {__version__}: "
                "their results may differ",
                f"go on with kiwi {found['kiwi']}, or begin in another folder",
            )

    def _name(self, kind: str) -> None:
        part = self.root / f".run.{os.getpid()}.json"
        part.write_text(json.dumps({"format": FORMAT, "kind": kind, "kiwi": __version__}) + "\n", encoding="utf-8")
        try:
            publish(part, self.root / "run.json")
        except FileExistsError:  # another worker was faster: what it says is compared below
            part.unlink()

    def identity(self) -> dict[str, Any]:
        """What the run is of.

        Raises:
            UsageError: there is none in the folder, or one that cannot be read.
        """
        try:
            found = json.loads((self.root / "run.json").read_text(encoding="utf-8"))
            if found["format"] != FORMAT:
                raise UsageError(f"the run in '{self.out}' is of another version of kiwi", "use that version")
            return {key: str(found[key]) for key in ("kind", "kiwi")}
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(f"no run in '{self.out}'", "pass the folder that was given with --out-dir") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"'{self.root / 'run.json'}' cannot be read: {error}", "restore it") from None

    def write_jobs(self, jobs: Sequence[Job]) -> Path:
        """The file of a list of jobs, which is written, and is the run's current one from now on.

        Raises:
            KiwiError: it cannot be written.
        """
        text = "".join(f"{json.dumps(asdict(job), ensure_ascii=False)}\n" for job in jobs)
        name = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        path = self.lists / f"{name}.jsonl"
        try:
            if not path.exists():
                write_text(path, text)
            write_text(self.root / "current", f"{path.name}\n")
        except OSError as error:
            raise KiwiError(f"cannot write '{path}': {error.strerror or error}", writing_hint(error)) from error
        return path

    def current_labels(self) -> dict[str, str]:
        """Id -> label of the jobs of the current list; none before a first one was begun.

        Raises:
            UsageError: it is missing or damaged.
        """
        try:
            name = (self.root / "current").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return {}
        path = self.lists / Path(name).name
        with _reading(path):
            return {str(values["id"]): str(values["label"]) for values in _objects(path)}

    def known(self) -> set[str]:
        """The ids of all jobs that this run ever had: files of their names are its own."""
        return {job.id for path in self.lists.glob("[!.]*.jsonl") for job in read_jobs(path)}


def read_jobs(path: Path) -> list[Job]:
    """A list of jobs from its file.

    Raises:
        UsageError: it is missing or damaged.
    """
    with _reading(path):
        return [Job(**values) for values in _objects(path)]


def _objects(path: Path) -> list[dict[str, Any]]:
    """What the lines of a file are, read at once, which takes half the time."""
    found: list[dict[str, Any]] = json.loads(b"[" + b",".join(path.read_bytes().splitlines()) + b"]")
    return found


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"the list of jobs '{path}' cannot be read: {error}", "begin again with the table") from None
