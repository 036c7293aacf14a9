"""The ordinary Hub cache on disk, without any network: what is there, whether it is whole, whether it is right.

models--linyq--name/
  refs/main             the commit that a branch or tag meant
  snapshots/<commit>/   the files, as links into blobs/
  blobs/<hash>          sha256 of a large file, git's sha1 of a small one
  kiwi/<commit>.json    ours: what the Hub said of each file, for checking it offline
  kiwi/<commit>-<dtype>/  ours: a raw checkpoint, converted
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kiwi_cli.base.text import format_bytes
from kiwi_cli.base.whole import write_text
from kiwi_cli.errors import CheckpointError
from kiwi_cli.weights.layout import Layout

COMMIT = re.compile(r"[0-9a-f]{40}")
HASH_PIECE = 8 * 2**20


@dataclass(frozen=True)
class HubFile:
    """What the Hub says of one file.

    Attributes:
        path: inside the repository.
        size: bytes.
        sha256: of a large file (LFS or Xet); None for a small one, whose git hash is `blob_id`.
    """

    path: str
    size: int
    sha256: str | None = None
    blob_id: str | None = None

    @property
    def blob(self) -> str | None:
        """Its name among the blobs."""
        return self.sha256 or self.blob_id


@dataclass(frozen=True)
class CachedRepo:
    """One repository's place in a cache."""

    root: Path
    repo: str

    @property
    def folder(self) -> Path:
        """Everything of this repository."""
        return self.root / f"models--{self.repo.replace('/', '--')}"

    def commit(self, revision: str) -> str | None:
        """The commit a revision meant when it was last fetched whole."""
        if COMMIT.fullmatch(revision):
            return revision
        try:
            text = (self.folder / "refs" / revision).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
        return text if COMMIT.fullmatch(text) else None

    def set_commit(self, revision: str, commit: str) -> None:
        """Remember what a branch or tag means; done last, so that it never points at something incomplete."""
        if revision != commit:
            _write_whole(self.folder / "refs" / revision, commit)

    def fetched(self, revision: str) -> float | None:
        """When the Hub was last asked what a branch or tag means (seconds of the epoch); None when it never was."""
        try:
            return (self.folder / "refs" / revision).stat().st_mtime
        except OSError:
            return None

    def snapshot(self, commit: str) -> Path:
        """Where a commit's files are."""
        return self.folder / "snapshots" / commit

    def whole(self, revision: str, layout: Layout) -> Path | None:
        """The snapshot of a revision, if every file the layout needs is in it."""
        commit = self.commit(revision)
        if commit is None or not self.snapshot(commit).is_dir() or layout.missing(self.snapshot(commit)):
            return None
        return self.snapshot(commit)

    def has(self, commit: str, file: HubFile) -> bool:
        """Whether a file need not be transferred again: in the snapshot, or among the blobs of another one."""
        if (self.snapshot(commit) / file.path).exists():
            return True
        return file.blob is not None and (self.folder / "blobs" / file.blob).exists()

    def converted(self, commit: str, dtype: str) -> Path:
        """Where the converted form of a raw checkpoint is or will be."""
        return self.folder / "kiwi" / f"{commit}-{dtype}"

    # -- what the Hub said ----------------------------------------------------------------------------------

    def write_record(self, commit: str, files: Iterable[HubFile]) -> None:
        """Keep what the Hub says of a commit's files, together with what it said before."""
        known = {**self.record(commit), **{file.path: file for file in files}}
        data = {"format": 1, "files": [asdict(known[path]) for path in sorted(known)]}
        _write_whole(self.folder / "kiwi" / f"{commit}.json", json.dumps(data, indent=1))

    def record(self, commit: str) -> dict[str, HubFile]:
        """What was kept of a commit; empty when nothing was, or it cannot be read."""
        try:
            data = json.loads((self.folder / "kiwi" / f"{commit}.json").read_text(encoding="utf-8"))
            return {entry["path"]: HubFile(**entry) for entry in data["files"]}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def set_only(self, commit: str, name: str) -> None:
        """Remember which file was meant when a repository was named without one."""
        _write_whole(self.folder / "kiwi" / f"{commit}.only", name)

    def only(self, commit: str) -> str | None:
        """That file, or None."""
        try:
            return (self.folder / "kiwi" / f"{commit}.only").read_text(encoding="utf-8")
        except (OSError, ValueError):
            return None

    def expected(self, commit: str, names: Iterable[str]) -> list[HubFile]:
        """What the files of a snapshot should be: as recorded, else by the names of the blobs they link to.

        The cache names a blob by its hash, so a snapshot that another program fetched, or that came from a mirror
        without hashes in its listing, can be checked too. A file without any hash has no `blob`.
        """
        record = self.record(commit)
        return [self.with_hash(commit, record.get(name, HubFile(name, -1))) for name in names]

    def with_hash(self, commit: str, file: HubFile) -> HubFile:
        """A file with the hash that its blob is named by, where nothing else says one."""
        if file.blob is not None:
            return file
        name = (self.snapshot(commit) / file.path).resolve().name
        if re.fullmatch(r"[0-9a-f]{64}", name):
            return replace(file, sha256=name)
        return replace(file, blob_id=name) if COMMIT.fullmatch(name) else file

    def listed(self, commit: str) -> list[str]:
        """Files of a snapshot and of its record, as paths inside the repository."""
        snapshot = self.snapshot(commit)
        here = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if not path.is_dir()}
        return sorted(here | set(self.record(commit)))

    # -- checking and removing ------------------------------------------------------------------------------

    def check(self, commit: str, file: HubFile, advance: Callable[[int], None] = lambda _: None) -> str | None:
        """What is wrong with a cached file, or None. Reads all of it, once."""
        path = self.snapshot(commit) / file.path
        try:
            size = path.stat().st_size
        except OSError:
            return "missing"
        if file.size >= 0 and size != file.size:
            return f"has {size} bytes, should have {file.size}"
        digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % size)  # git's way of hashing
        try:
            with path.open("rb") as stream:
                while piece := stream.read(HASH_PIECE):
                    digest.update(piece)
                    advance(len(piece))
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"
        if file.blob is not None and digest.hexdigest() != file.blob:
            return "its contents are not what the Hub said"
        return None

    def discard(self, commit: str, name: str) -> None:
        """Delete a file of a snapshot with the blob it links to, so that it is fetched again."""
        path = self.snapshot(commit) / name
        while path.is_symlink():
            target = Path(os.path.normpath(path.parent / path.readlink()))
            path.unlink()
            path = target
        path.unlink(missing_ok=True)

    def size(self) -> int:
        """Bytes on disk."""
        paths = self.folder.rglob("*") if self.folder.is_dir() else ()
        return sum(path.lstat().st_size for path in paths if path.is_file() and not path.is_symlink())

    def remove(self) -> int:
        """Delete everything of this repository; returns the bytes freed.

        Raises:
            CheckpointError: some of it cannot be deleted.
        """
        before = self.size()
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.root / ".locks" / self.folder.name, ignore_errors=True)
        if self.folder.exists():
            left = self.size()
            what = f"{format_bytes(left)} of {format_bytes(before)} stayed" if left < before else "nothing was deleted"
            raise CheckpointError(
                f"cannot delete '{self.folder}': {what}",
                "check its owner and permissions, and whether the disk is writable",
            )
        return before

    def sweep(self) -> None:
        """Delete what killed downloads left half-written; a file that some process holds locked stays."""
        from filelock import FileLock, Timeout

        for leftover in (self.folder / "blobs").glob("*.incomplete"):
            lock = self.root / ".locks" / self.folder.name / f"{leftover.name.partition('.')[0]}.lock"
            try:
                lock.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(lock, timeout=0):
                    leftover.unlink(missing_ok=True)
            except (Timeout, OSError, NotImplementedError):
                continue


def default_root() -> Path:
    """The Hub's cache: HF_HUB_CACHE, else HF_HOME/hub.

    Raises:
        CheckpointError: there is no home folder.
    """
    from huggingface_hub import constants

    return in_home(constants.HF_HUB_CACHE)


def in_home(path: str) -> Path:
    """The client's path for something below the home folder.

    Raises:
        CheckpointError: there is no home folder, and '~' would become a folder of that name.
    """
    if path.startswith("~"):
        raise CheckpointError(
            "there is no home folder to keep models in: HOME is not set", "set HOME, or HF_HOME to a folder for models"
        )
    return Path(path)


def free_bytes(folder: Path) -> int:
    """Room on the disk that holds, or will hold, a folder."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def _write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
