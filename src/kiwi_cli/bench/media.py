"""Clips in and out as the benchmarks want them: results at the working size, and frames for judges to look at."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from kiwi_cli.base.whole import whole_file
from kiwi_cli.errors import MediaError
from kiwi_cli.video import Size, probe, read_frames, select
from kiwi_cli.video.plain import write_mp4

if TYPE_CHECKING:
    import numpy as np

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
CRF = "16"  # of x264: no visible loss; the released script's quality setting loses more


def floor_size(width: int, height: int, max_pixels: int, multiple: int) -> Size:
    """The published runs' size: shrunk to `max_pixels` if larger, both sides cut down to the multiple."""
    scale = min(1.0, math.sqrt(max_pixels / (width * height)))
    return Size(*(max(int(side * scale) // multiple, 1) * multiple for side in (width, height)))


def write_clip(path: Path, chunks: Iterable[np.ndarray], fps: Fraction, size: Size, note: str = "") -> int:
    """Write (f, H, W, 3) uint8 chunks as H.264, or one frame as PNG by the path's extension.

    The file appears under its name when it is whole. Returns the number of frames.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, synced=True) as part:
        if path.suffix != ".png":
            count = write_mp4(part, chunks, fps, size, CRF, note)
            if not count:
                raise MediaError(f"no frames came out for '{path.name}'", "this is a fault in kiwi")
            return count
        from PIL import Image

        frame = next(iter(chunks))[0]
        Image.fromarray(frame).save(part)
        return 1


def clip_frames(path: Path, count: int | None = None, max_side: int | None = None) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 of a clip or picture, spread evenly over it when `count` is given.

    Args:
        count: at most this many.
        max_side: shrink to this many pixels on the longer side.
    """
    clip = probe(path)
    wanted = None
    if count is not None and count < clip.frame_count:
        wanted = {round(k * (clip.frame_count - 1) / max(count - 1, 1)) for k in range(count)}
    size = None
    if max_side is not None and max(clip.display_size) > max_side:
        scale = max_side / max(clip.display_size)
        size = Size(*(max(round(side * scale), 1) for side in clip.display_size))
    for number, frame in enumerate(read_frames(clip, select(clip), size=size)):
        if wanted is None or number in wanted:
            yield frame.rgb


def seconds_of(path: Path) -> float:
    """Length of a clip; 0 for a picture."""
    clip = probe(path)
    return float(clip.duration) if clip.kind == "video" else 0.0


def sampled_count(path: Path, per_second: float, most: int) -> int:
    """How many frames to show of a clip at a rate: at least one, at most `most`."""
    return max(1, min(most, math.ceil(seconds_of(path) * per_second)))


def jpeg(frame: np.ndarray, quality: int = 90) -> bytes:
    """A frame (H, W, 3) uint8 as a JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
