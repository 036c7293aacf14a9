"""The media of training rows at training size: read when they are needed, checked pair by pair."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from kiwi_cli.base.text import count
from kiwi_cli.data.keys import digest
from kiwi_cli.data.rows import BadRow, Row
from kiwi_cli.editing.references import MAX_REFERENCE_PIXELS, open_reference
from kiwi_cli.errors import MediaError
from kiwi_cli.model.pictures import flatten_alpha
from kiwi_cli.video.geometry import Size

if TYPE_CHECKING:
    from kiwi_cli.data.latents import Item
    from kiwi_cli.video import Clip

_BLACK, _WHITE = 16, 239
"""Levels of a mask that count as black and white: those of videos and JPEGs are never quite so."""


@dataclass(frozen=True)
class Preparation:
    """How clips are brought to training size.

    Attributes:
        max_pixels: largest area of a frame.
        frames: most frames; the first 4k + 1 are taken.
        multiple: of both sides, the model's (32 for the released ones).
        stride: frames a latent frame stands for (4).
    """

    max_pixels: int
    frames: int
    multiple: int
    stride: int = 4

    def size(self, width: int, height: int) -> Size:
        """Frame size for a clip of that size: at most `max_pixels`, sides floored to the multiple, never enlarged.

        Raises:
            MediaError: a side would be shorter than the multiple.
        """
        scale = max(1.0, math.sqrt(width * height / self.max_pixels))
        # A hair more, so that 1280 / 1.0 is not floored to 1248 by the division's last bit.
        wide, high = (int(side / scale + 1e-6) // self.multiple * self.multiple for side in (width, height))
        if not wide or not high:
            raise MediaError(
                f"{width}x{height} is too small: a side would be under {self.multiple} pixels", "use a larger clip"
            )
        return Size(wide, high)

    def count(self, frames: int) -> int:
        """How many of a clip's frames are taken."""
        return (min(frames, self.frames) - 1) // self.stride * self.stride + 1

    @property
    def key(self) -> list[int]:
        """What the pixels depend on besides the file."""
        return [self.max_pixels, self.frames, self.multiple, self.stride]


def items(rows: Iterable[Row | BadRow], prepare: Preparation) -> Iterator[Item | BadRow]:
    """Rows as `write_cache` takes them: nothing is read until it is known to be needed.

    What stands for a file is its path as the table has it, its size and the time it was changed: copying a data set
    with its times keeps its cache, and a file that was written again is encoded again.
    """
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            yield _item(row, prepare)
        except OSError as error:
            yield BadRow(row.label, f"cannot read '{error.filename}': {error.strerror or error}")


def _item(row: Row, prepare: Preparation) -> Item:
    from kiwi_cli.data.latents import Item

    # One reading serves source and target; it is forgotten with the item.
    pair = cache(lambda: load_pair(row.source, row.target, prepare))
    reference, mask, names = row.reference, row.mask, row.names
    extra: dict[str, Any] = {}
    if isinstance(reference, bytes):
        extra["reference"] = cache(lambda: picture_of(reference))
        extra["reference_key"] = hashlib.blake2b(reference, digest_size=16).hexdigest()
    elif reference is not None:
        extra["reference"] = cache(lambda: open_reference(reference))
        extra["reference_key"] = file_key(reference, names["ref_image"])
    if mask is not None:
        extra["mask"] = lambda: load_mask(mask, row.target, prepare)
        extra["mask_key"] = digest(file_key(mask, names["mask"]), prepare.key)
    return Item(
        source=lambda: pair()[0],
        target=lambda: pair()[1],
        prompt=row.prompt,
        kind=row.kind,
        split=row.split,  # type: ignore[arg-type]
        source_key=digest(file_key(row.source, names["src_video"]), prepare.key),
        target_key=digest(file_key(row.target, names["tgt_video"]), prepare.key),
        group=names["src_video"],
        label=row.label,
        **extra,
    )


def file_key(path: Path, name: str) -> str:
    """Stands for a file, or a folder of pictures.

    Args:
        name: as the table has it.

    Raises:
        OSError: it is gone.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    facts = [(file.name, info.st_size, info.st_mtime_ns) for file in files for info in [file.stat()]]
    return digest(name, facts)


def load_pair(source: Path, target: Path, prepare: Preparation) -> tuple[np.ndarray, np.ndarray]:
    """Source and target as (F, H, W, 3) uint8 of one shape.

    Raises:
        MediaError, UsageError: one cannot be read, or they differ in size, or in length within the frames used.
    """
    from kiwi_cli.video import probe

    clips = {"source": probe(source), "target": probe(target)}
    sizes = {clip.display_size for clip in clips.values()}
    if len(sizes) > 1:
        raise MediaError(
            f"the source '{source}' is {clips['source'].display_size}, "
            f"the target '{target}' {clips['target'].display_size}",
            "scale them to one size",
        )
    size = prepare.size(*sizes.pop())
    found = {name: _read(clip, prepare.frames, size) for name, clip in clips.items()}
    lengths = {name: len(frames) for name, frames in found.items()}
    if lengths["source"] != lengths["target"]:
        raise MediaError(
            f"the source '{source}' has {_length(clips['source'], lengths['source'], prepare)}, "
            f"the target '{target}' {_length(clips['target'], lengths['target'], prepare)}",
            "cut them to one length",
        )
    used = prepare.count(lengths["source"])
    return found["source"][:used], found["target"][:used]


def load_mask(mask: Path, target: Path, prepare: Preparation) -> np.ndarray:
    """A mask as (F, H, W) uint8, 255 where the edit is; a picture holds for all frames.

    Raises:
        MediaError, UsageError: it cannot be read, has another size than the target, or is shorter.
    """
    from kiwi_cli.video import probe

    clip, shown = probe(target), probe(mask)
    if shown.display_size != clip.display_size:
        raise MediaError(
            f"the mask '{mask}' is {shown.display_size}, the target '{target}' {clip.display_size}",
            "scale the mask to the clip",
        )
    used = prepare.count(clip.frame_count)
    frames = _read(shown, used, prepare.size(*clip.display_size))
    if shown.kind == "image":
        frames = np.repeat(frames[:1], used, axis=0)
    if len(frames) < used:
        raise MediaError(f"the mask '{mask}' has {count(len(frames), 'frame')} for {used}", "make it as long")
    levels = np.interp(np.arange(256), [_BLACK, _WHITE], [0, 255]).round().astype(np.uint8)
    return np.stack([levels[np.asarray(Image.fromarray(frame).convert("L"))] for frame in frames])


def picture_of(data: bytes) -> Image.Image:
    """A picture from its file's bytes, upright, transparent parts white.

    Raises:
        MediaError: not a picture that can be read.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_REFERENCE_PIXELS:
                raise MediaError(f"the reference is too large: {image.width}x{image.height}", "shrink it")
            return flatten_alpha(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(f"cannot read the reference's {len(data)} bytes: {error}", "store a PNG or JPEG") from error


def _read(clip: Clip, frames: int, size: Size) -> np.ndarray:
    """The first frames at that size, the middle of the picture where the shapes differ."""
    from kiwi_cli.video import read_frames

    return np.stack([frame.rgb for frame in read_frames(clip, count=frames, size=size, fit="crop")])


def _length(clip: Clip, read: int, prepare: Preparation) -> str:
    """'80 frames', 'at least 81 frames'."""
    return f"{'at least ' if read == prepare.frames and clip.frame_count > read else ''}{count(read, 'frame')}"
