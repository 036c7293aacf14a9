"""What identifies a file, a folder or a checkpoint later: hashes of what is in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from kiwi_cli.errors import CheckpointError, MediaError, UsageError

_PIECE = 1 << 20  # bytes
_SAMPLE = 1 << 12
_WHOLE = 1 << 26
_LONGEST_HEADER = 1 << 24


def hash_file(path: Path) -> str:
    """sha256 of a file.

    Raises:
        UsageError: not found. MediaError: not readable.
    """
    digest = hashlib.sha256()
    with _reading(path):
        _feed(digest, path)
    return digest.hexdigest()


def hash_folder(path: Path, files: Iterable[Path]) -> str:
    """sha256 of a folder: of the names and contents of `files`, in that order.

    Raises:
        UsageError: not found. MediaError: not readable.
    """
    digest = hashlib.sha256()
    with _reading(path):
        for file in files:
            digest.update(f"{file.name}\0".encode())
            _feed(digest, file)
    return digest.hexdigest()


def fingerprint(folder: Path) -> str:
    """Stands for a checkpoint folder in records: every file's name and size, files up to 64 MB whole, and of larger
    ones three samples of each tensor.

    Reading 19 GB to hash them would take longer than many an edit. What a fine-tune changes are whole tensors, and that
    is always noticed; a single value that was altered in a large file may not be: `kiwi download --verify` hashes all.

    Raises:
        CheckpointError: a file cannot be read.
    """
    return _sampled(folder, _WHOLE)


def matches(folder: Path, recorded: str) -> bool:
    """Whether a folder is the one that a record holds a fingerprint of; of the earlier kind too, 64 digits long.

    Raises:
        CheckpointError: a file cannot be read.
    """
    return recorded == (_of_ends(folder) if len(recorded) == 64 else fingerprint(folder))


def _of_ends(folder: Path) -> str:
    """The earlier fingerprint: names and sizes, configs, and both ends of the weights' files."""
    digest = hashlib.sha256()
    try:
        for path in sorted(folder.rglob("*")):
            if path.suffix not in (".json", ".safetensors") or not path.is_file():
                continue
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
            with path.open("rb") as file:
                digest.update(file.read(_PIECE))
                if size > _PIECE:
                    file.seek(max(size - _PIECE, _PIECE))
                    digest.update(file.read(_PIECE))
    except OSError as error:
        raise CheckpointError(f"cannot read '{folder}': {error.strerror}", "check its permissions") from error
    return digest.hexdigest()


def sampled(folder: Path) -> str:
    """Stands for a checkpoint: every file's name and size, the small ones whole, and samples of every tensor.

    A fine-tune may leave any part of the weights as it was, also both ends of their file; what it changes are whole
    tensors. Three pieces of each are read: some thousand short reads, where hashing 19 GB would take a minute.

    Raises:
        CheckpointError: a file cannot be read.
    """
    return _sampled(folder, _PIECE)


def _sampled(folder: Path, whole: int) -> str:
    """Of the folder's files; those of at most `whole` bytes are read to the end."""
    digest = hashlib.sha256()
    try:
        for path in sorted(folder.rglob("*")):
            if path.suffix not in (".json", ".safetensors", ".txt", ".model", ".jinja") or not path.is_file():
                continue
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            _feed_samples(digest, path, whole)
    except OSError as error:
        raise CheckpointError(f"cannot read '{folder}': {error.strerror}", "check its permissions") from error
    return digest.hexdigest()[:32]


def sampled_file(path: Path) -> str:
    """Stands for one file's contents, as `sampled` reads them: its size, and samples of every tensor.

    Raises:
        CheckpointError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        _feed_samples(digest, path)
    except OSError as error:
        raise CheckpointError(f"cannot read '{path}': {error.strerror}", "check its permissions") from error
    return digest.hexdigest()[:32]


def _feed_samples(digest: hashlib._Hash, path: Path, whole: int = _PIECE) -> None:
    size = path.stat().st_size
    digest.update(f"{size}\0".encode())
    if size <= whole:
        _feed(digest, path)
        return
    with path.open("rb") as file:
        for start, stop in _samples(file, size):
            file.seek(start)
            digest.update(file.read(stop - start))


def _samples(file: BinaryIO, size: int) -> list[tuple[int, int]]:
    """The pieces of a large file to be read: of safetensors the header, and three of each tensor."""
    begin = 8 + int.from_bytes(file.read(8), "little")
    spans = [(0, size)]
    if begin <= size:
        try:
            header = json.loads(file.read(begin - 8)) if begin <= _LONGEST_HEADER else {}
            spans = [tuple(begin + int(at) for at in e["data_offsets"]) for k, e in header.items() if k[:2] != "__"]  # type: ignore[misc]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            spans = [(0, size)]
    pieces = [(0, min(begin, _PIECE))]
    for start, stop in sorted(spans):
        for at in (start, (start + stop - _SAMPLE) // 2, stop - _SAMPLE):
            pieces.append((max(start, at), min(stop, max(start, at) + _SAMPLE)))
    return pieces


def _feed(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(_PIECE):
            digest.update(block)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UsageError(f"not found: '{path}'", "pass the path of an existing file") from None
    except OSError as error:
        raise MediaError(f"cannot read '{path}': {error.strerror}", "check the file's permissions") from error
