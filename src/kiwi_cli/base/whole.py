"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def publish(part: Path, path: Path) -> None:
    """Give a finished file or folder its name, unless something has that name: looked at and taken in one step.

    Raises:
        FileExistsError: something has it; `part` is as it was. OSError: it cannot be moved there.
    """
    if part.is_dir():
        if path.exists() or path.is_symlink():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        try:
            part.rename(path)  # over a folder that came in between, if that is empty; over no other thing
        except (NotADirectoryError, FileExistsError, PermissionError):
            raise
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        return
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # a disk without links: the name is taken with an empty file first
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        part.replace(path)
    else:
        part.unlink()


def publish_beside(part: Path, path: Path) -> Path | None:
    """Give a finished file or folder its name; where something has taken that meanwhile, `NAME-2` or the next free.

    Returns:
        None, or the other name: nothing that was made is thrown away, and nothing that is there replaced.
    """
    for number in itertools.count(1):
        name = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            publish(part, name)
        except FileExistsError:
            continue
        return None if number == 1 else name
    raise AssertionError


@contextmanager
def whole_file(path: Path, synced: bool = False, replace: bool = True) -> Iterator[Path]:
    """A place beside `path` to write to, of the same extension.

    What was written there becomes `path` when the block ends well; otherwise it goes, and an older `path` stays.

    Args:
        synced: the disk has it before it gets its name.
        replace: False leaves an older `path`, and raises FileExistsError.
    """
    part = path.with_name(f".{path.stem[:40]}.{os.getpid()}.kiwi-partial{path.suffix}")
    try:
        yield part
        if synced:
            with part.open("rb") as file:
                os.fsync(file.fileno())
        if replace:
            part.replace(path)
        else:
            publish(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str, replace: bool = True) -> None:
    """Write a text file, whole or not at all; `replace` as in `whole_file`."""
    with whole_file(path, replace=replace) as part:
        part.write_text(text, encoding="utf-8")
