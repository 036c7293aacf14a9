"""Stored frames, one at a time, with their times: what the reader and the writer both walk over."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import av
import numpy as np

from kiwi_cli.errors import MediaError
from kiwi_cli.video.clip import Clip
from kiwi_cli.video.colour import ToRgb
from kiwi_cli.video.failures import READ_ERRORS, reason
from kiwi_cli.video.opening import check_dimensions, open_media, picture_stream
from kiwi_cli.video.pictures import flatten, read_picture
from kiwi_cli.video.timeline import Choice, Chooser, Span, frame_times

_SEEK_FROM = 4  # seconds: nearer than this, decoding from the start is as fast and always exact


class Pixels(Protocol):
    """A decoded frame whose pixels are only converted when somebody asks for them."""

    def rgb(self) -> np.ndarray:
        """(H, W, 3) uint8, upright, transparent parts on white: the model's view."""

    def original(self) -> np.ndarray | None:
        """(H, W, 3 or 4) uint8 or uint16 where the source holds more than `rgb` shows, else None."""


class Frame(NamedTuple):
    """A frame of the clip. `time` and `duration` are seconds from the clip's first picture."""

    pixels: Pixels
    time: Fraction
    duration: Fraction
    number: int


class VideoPixels:
    """A frame as the decoder left it."""

    def __init__(self, frame: av.VideoFrame, clip: Clip, to_rgb: ToRgb) -> None:
        self._frame, self._clip, self._to_rgb = frame, clip, to_rgb
        self._cached: np.ndarray | None = None

    def rgb(self) -> np.ndarray:
        if self._cached is None:
            stored = self._to_rgb(self._frame, "rgba" if self._clip.has_alpha else "rgb24")
            self._cached = upright(flatten(stored), self._clip.rotation, self._clip.mirrored)
        return self._cached

    def original(self) -> np.ndarray | None:
        if not self._clip.has_alpha:
            return None
        return upright(self._to_rgb(self._frame, "rgba"), self._clip.rotation, self._clip.mirrored)


class PicturePixels:
    """A picture, decoded when first looked at."""

    def __init__(self, path: Path, clip: Clip) -> None:
        self._path, self._clip = path, clip
        self._cached: np.ndarray | None = None

    def _pixels(self) -> np.ndarray:
        if self._cached is None:
            self._cached = read_picture(self._path).pixels
            height, width = self._cached.shape[:2]
            if (width, height) != self._clip.size:
                raise MediaError(
                    f"'{self._path.name}' is {width}x{height}, the pictures before it {self._clip.size}",
                    "all pictures of a sequence have one size",
                )
        return self._cached

    def rgb(self) -> np.ndarray:
        return flatten(self._pixels())

    def original(self) -> np.ndarray | None:
        pixels = self._pixels()
        return pixels if pixels.dtype == np.uint16 or pixels.shape[-1] == 4 else None


def upright(pixels: np.ndarray, rotation: int, mirrored: bool) -> np.ndarray:
    """Mirror (H, W, C) pixels if told, then turn them clockwise by a multiple of 90 degrees."""
    if mirrored:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(np.rot90(pixels, -rotation // 90)) if mirrored or rotation else pixels


def orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """(degrees clockwise to turn, mirror first) from a frame's display matrix; (0, False) without one."""
    side: Any = frame.side_data.get("DISPLAYMATRIX")
    data = bytes(side) if side is not None else b""
    if len(data) < 36:
        return 0, False
    a, b, _, c, d, _, _, _, _ = struct.unpack("=9i", data[:36])
    # x' = ax + cy, y' = bx + dy (y down). A mirror comes first, so it negates the first column.
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    if abs(a) >= abs(b):
        return (0, mirrored) if a >= 0 else (180, mirrored)
    return (90, mirrored) if b > 0 else (270, mirrored)


def walk(clip: Clip, span: Span, *, everything: bool = False) -> Iterator[tuple[Frame, Choice]]:
    """Frames of the clip in order, with what the span makes of each.

    Args:
        everything: also the frames before and after the span; otherwise decoding starts near the span's
            start and stops at its end.

    Raises:
        MediaError: a frame cannot be decoded (not when the clip was opened with allow_truncated).
    """
    chooser = Chooser(span)
    for frame in frames_of(clip, Fraction(0) if everything else span.start):
        choice = chooser(frame.time, frame.duration)
        if choice.inside or everything:
            yield frame, choice
        elif chooser.finished:
            return


def frames_of(clip: Clip, start: Fraction = Fraction(0)) -> Iterator[Frame]:
    """All frames from the one on screen at `start` (or a few before it)."""
    if clip.kind == "video":
        if start >= _SEEK_FROM:
            found = _video_frames(clip, start)
            first = next(found, None)
            # A missing or wrong index lands past the target: then walk there from the beginning.
            if first is not None and first.time <= start:
                yield first
                yield from found
                return
        yield from _video_frames(clip, Fraction(0))
        return
    for index, (path, (time, duration)) in enumerate(zip(clip.files, frame_times(clip), strict=True)):
        yield Frame(PicturePixels(path, clip), time, duration, index)


def _video_frames(clip: Clip, start: Fraction) -> Iterator[Frame]:
    """Decode with one frame of look-ahead, because a frame lasts until the next begins."""
    to_rgb = ToRgb(clip.colour)
    index = 0
    held: tuple[av.VideoFrame, Fraction] | None = None
    with open_media(clip.path) as container:
        stream = picture_stream(container, clip.path)
        if start:
            container.seek(int((clip.start + start) / stream.time_base), stream=stream, backward=True)
        for frame in _decoded(container, stream, clip):
            time = Fraction(frame.pts or 0) * (frame.time_base or clip.time_base) - clip.start
            time = clip.true_time(time)
            if frame.pts is None or (held is not None and time <= held[1]):
                # No or repeated timestamp: the frame follows the one before on the clip's average rate.
                time = held[1] + 1 / clip.fps if held is not None else Fraction(0)
            if held is not None:
                yield Frame(VideoPixels(held[0], clip, to_rgb), held[1], time - held[1], index)
                index += 1
            elif start:
                index = max(round(time * clip.fps), 0)
            held = frame, time
    if held is not None:
        left = clip.duration - held[1]
        yield Frame(VideoPixels(held[0], clip, to_rgb), held[1], left if left > 0 else 1 / clip.fps, index)


def _decoded(container: Any, stream: Any, clip: Clip) -> Iterator[av.VideoFrame]:
    size: tuple[int, int] | None = None
    try:
        for packet in container.demux(stream):
            for frame in packet.decode():
                check_dimensions(frame.width, frame.height, clip.path)
                size = size or (frame.width, frame.height)
                if (frame.width, frame.height) != size:
                    raise MediaError(
                        f"the picture size changes from {size[0]}x{size[1]} to {frame.width}x{frame.height} "
                        f"within '{clip.path}'",
                        "cut the clip where the size changes",
                    )
                yield frame
    except READ_ERRORS as error:
        if clip.allow_truncated and size is not None:
            return
        raise MediaError(
            f"cannot decode '{clip.path}': {reason(error)}",
            "the file is damaged; pass --allow-truncated to use what can be read",
        ) from error
