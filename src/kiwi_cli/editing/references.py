"""Reference pictures, opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kiwi_cli.errors import MediaError, UsageError

if TYPE_CHECKING:
    from PIL import Image

MAX_REFERENCE_PIXELS = 64_000_000


def open_reference(path: Path) -> Image.Image:
    """A reference picture, upright, transparent parts white.

    Raises:
        UsageError: not found, or too narrow for the model. MediaError: not a picture that can be read.
    """
    return _open(path)[0]


def notices(path: Path) -> list[str]:
    """What a person should know of a reference picture, which is opened and checked.

    Raises:
        UsageError, MediaError: as `open_reference`.
    """
    frames = _open(path)[1]
    return [] if frames == 1 else [f"the reference '{path}' has {frames} pictures; the first is used"]


def check_header(path: Path) -> None:
    """Refuse what is no reference picture by its header, which takes no time.

    Raises:
        UsageError, MediaError: as `open_reference`.
    """
    with _opened(path):
        pass


def _open(path: Path) -> tuple[Image.Image, int]:
    from PIL import ImageOps

    from kiwi_cli.model.pictures import flatten_alpha

    with _opened(path) as image:
        # Cameras' JPEGs of several pictures (MPO) hold previews of the one that is meant.
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        return flatten_alpha(ImageOps.exif_transpose(image)), frames


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A picture whose header is read, and whatever is wrong with it in words."""
    from PIL import Image

    from kiwi_cli.model.vision_sizes import MAX_ASPECT

    if not path.is_file():
        raise UsageError(f"reference image not found: '{path}'", "pass an existing image with --ref PATH")
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_REFERENCE_PIXELS:
                raise MediaError(f"{image.width}x{image.height} is too large", "shrink it")
            if max(image.size) > MAX_ASPECT * min(image.size):
                raise UsageError(
                    f"reference image is too narrow: '{path}' ({image.width}x{image.height})",
                    f"crop it: one side may be {MAX_ASPECT} times the other",
                )
            yield image
    except MediaError as error:
        raise MediaError(f"cannot read the reference image '{path}': {error.message}", error.hint) from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(f"cannot read the reference image '{path}': {error}", "pass a PNG, JPEG or WebP") from error
