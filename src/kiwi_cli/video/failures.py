"""From the media libraries' exceptions to errors for the person."""

from __future__ import annotations

import errno
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import av
from PIL import Image

from kiwi_cli.errors import KiwiError, MediaError
from kiwi_cli.video.partial import scratch_folder

# What PyAV and Pillow raise for broken data: decoders written in Python stumble in many ways. MemoryError comes
# from a header that asks for an absurd buffer.
READ_ERRORS = (
    av.FFmpegError,
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    MemoryError,
    ArithmeticError,
    LookupError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
PLACE = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EROFS,
    errno.ENXIO,
    errno.EIO,
)
"""What FFmpeg passes on when the place is at fault; with other numbers it speaks of codecs."""
WRITE_ERRORS = (av.FFmpegError, OSError, ValueError, MemoryError)
NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextmanager
def reading(path: Path, hint: str = "check that the file plays elsewhere") -> Iterator[None]:
    """Turn whatever a library raises while reading `path` into a MediaError."""
    try:
        yield
    except KiwiError:
        raise
    except READ_ERRORS as error:
        # FFmpeg also says "operation not permitted" of broken data
        if isinstance(error, PermissionError) and not isinstance(error, av.FFmpegError):
            raise MediaError(f"not allowed to read: '{path}'", "check the file's permissions") from error
        raise MediaError(f"cannot read '{path}': {reason(error)}", hint) from error


@contextmanager
def writing(
    path: Path, elsewhere: str = "write elsewhere with --output", hint: str = "try another --codec or container"
) -> Iterator[None]:
    """Turn whatever a library raises while writing `path` into a MediaError.

    Args:
        elsewhere: how another place is chosen. hint: what to do when the place is not the reason.
    """
    try:
        yield
    except KiwiError:
        raise
    except WRITE_ERRORS as error:
        if getattr(error, "errno", None) in NO_SPACE:
            raise MediaError(f"no space left to write '{path}'", f"free some space, or {elsewhere}") from error
        if isinstance(error, PermissionError):
            raise MediaError(f"not allowed to write '{path}'", elsewhere) from error
        if isinstance(error, OSError) and _of_place(error):
            why, hint = _place(path, error, elsewhere)
            raise MediaError(f"cannot write '{path}': {why}", hint) from error
        raise MediaError(f"cannot write '{path}': {reason(error)}", hint) from error


def _of_place(error: OSError) -> bool:
    """Whether a failure to write is due to the disk or the folder, not to what is written; Pillow's have no number."""
    return error.errno in PLACE if isinstance(error, av.FFmpegError) else error.errno in errno.errorcode


def _place(path: Path, error: OSError, elsewhere: str) -> tuple[str, str]:
    """What is wrong with the place, and what to do."""
    folder = path.absolute().parent
    if error.errno == errno.ENOENT:  # of a folder that is there the system says so too, if it takes no files: /proc
        why = f"the folder '{folder}' takes no files" if folder.is_dir() else f"no such folder: '{folder}'"
        return why, elsewhere
    if error.errno == errno.EROFS:
        return "the disk is read-only", elsewhere
    if error.errno == errno.ENAMETOOLONG:
        return "the name is too long", "choose a shorter name"
    return reason(error), elsewhere


@contextmanager
def trial_folder() -> Iterator[Path]:
    """A folder for a trial of what will be written; it goes with what is in it.

    Raises:
        MediaError: there is no room for it: that says nothing about what was tried.
    """
    hint = "free some space there, or set TMPDIR to another folder"
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(scratch_folder())
        except OSError as error:
            raise MediaError(f"no place for temporary files: {reason(error)}", hint) from error
        try:
            yield folder
        except WRITE_ERRORS as error:
            if getattr(error, "errno", None) not in NO_SPACE:
                raise
            raise MediaError(f"no space left for temporary files in '{folder.parent}'", hint) from error


def reason(error: BaseException) -> str:
    """The library's own words, short and on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200].rstrip(".").lower()
