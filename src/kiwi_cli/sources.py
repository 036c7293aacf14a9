"""The files an edit is made from, besides the frames: reference pictures, and what identifies every input later."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from kiwi_cli.errors import CheckpointError, MediaError, UsageError

if TYPE_CHECKING:
    from PIL import Image

MAX_REFERENCE_PIXELS = 64_000_000
_PIECE = 1 << 20  # bytes


def open_reference(path: Path) -> Image.Image:
    """A reference picture, upright, transparent parts white.

    Raises:
        UsageError: not found. MediaError: not a picture that can be read.
    """
    from PIL import Image, ImageOps

    from kiwi_cli.pictures import flatten_alpha

    if not path.is_file():
        raise UsageError(f"reference image not found: '{path}'", "pass an existing image with --ref PATH")
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_REFERENCE_PIXELS:
                raise MediaError(f"reference image is too large: '{path}' ({image.width}x{image.height})", "shrink it")
            return flatten_alpha(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(f"cannot read the reference image '{path}': {error}", "pass a PNG, JPEG or WebP") from error


def hash_path(path: Path) -> str:
    """sha256 of a file; of a folder of pictures, of their names and contents in order.

    Raises:
        UsageError: not found. MediaError: not readable.
    """
    digest = hashlib.sha256()
    try:
        if path.is_dir():
            from kiwi_cli.video.sequences import numbered_pictures

            for picture in numbered_pictures(path):
                digest.update(f"{picture.name}\0".encode())
                _feed(digest, picture)
        else:
            _feed(digest, path)
    except FileNotFoundError:
        raise UsageError(f"not found: '{path}'", "pass the path of an existing file") from None
    except OSError as error:
        raise MediaError(f"cannot read '{path}': {error.strerror}", "check the file's permissions") from error
    return digest.hexdigest()


def fingerprint(folder: Path) -> str:
    """Stands for a checkpoint folder: its files' names and sizes, its configs, and both ends of its weight files.

    Reading 19 GB to hash them would take longer than many an edit; weights that differ differ at their ends too.

    Raises:
        CheckpointError: a file cannot be read.
    """
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


def _feed(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(_PIECE):
            digest.update(block)
