"""What decides an editor's results, as one fingerprint: its words, and the contents of the files that they name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from kiwi_cli.base.identity import hash_file, sampled_file

LENGTH = 32  # characters


def digest_of(words: str, paths: Iterable[Path]) -> str:
    """A fingerprint of words, and of what files and folders hold. Tensors are sampled, all other files read whole.

    Raises:
        UsageError, MediaError, CheckpointError: one cannot be read.
    """
    digest = hashlib.sha256(words.encode())
    for path in paths:
        for name, file in _files(path):
            contents = sampled_file(file) if file.suffix == ".safetensors" else hash_file(file)
            digest.update(f"\0{name}\0{contents}".encode())
    return digest.hexdigest()[:LENGTH]


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """A file, or all files of a folder but hidden and compiled ones, each with its name in there."""
    if not path.is_dir():
        yield path.name, path
        return
    for file in sorted(path.rglob("*")):
        parts = file.relative_to(path).parts
        if file.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in parts):
            yield "/".join(parts), file
