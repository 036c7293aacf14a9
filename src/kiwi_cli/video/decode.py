"""Stored frames, one at a time, with their times: what the reader and the writer both walk over."""

from __future__ import annotations

import itertools
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
from kiwi_cli.video.damage import Damage
from kiwi_cli.video.failures import READ_ERRORS, reason
from kiwi_cli.video.geometry import Box, Framing, Size
from kiwi_cli.video.hdr import from_sdr, to_sdr
from kiwi_cli.video.opening import check_dimensions, open_media, picture_stream
from kiwi_cli.video.pictures import eight_bits, merge, read_picture, seen
from kiwi_cli.video.resize import in_working, to_working
from kiwi_cli.video.samples import Samples, Unpacker
from kiwi_cli.video.scaling import SamplesToRgb
from kiwi_cli.video.scan import Restarts, in_order, shown_packets
from kiwi_cli.video.timeline import Choice, Chooser, Span, frame_times

_SEEK_FROM = 4  # seconds: nearer than this, decoding from the start is as fast and always exact


class Pixels(Protocol):
    """A decoded frame whose pixels are only converted when somebody asks for them."""

    def rgb(self) -> np.ndarray:
        """(H, W, 3) uint8, upright: the model's view. Transparent parts are on white, or as of `Clip.keeps_alpha`."""

    def working(self, place: Framing) -> np.ndarray:
        """(h, w, 3) uint8: `rgb` as it is placed in the working frame."""

    def fine(self) -> np.ndarray:
        """(H, W, 3): `rgb` with 16 bits where the source holds more than 8, uint16; elsewhere `rgb` itself."""

    def original(self) -> np.ndarray | None:
        """(H, W, 3 or 4) uint8 or uint16 where the source holds more than `rgb` shows, else None."""

    def lifted(self, edited: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint16: `edited`, as `rgb` or `fine` is, in the source's terms; its own values where not edited."""

    def samples(self) -> Samples | None:
        """The stored YUV samples, upright; None where there are none."""

    def for_filters(self) -> av.VideoFrame:
        """The stored frame as libavfilter takes it, turned in no way."""


class Frame(NamedTuple):
    """A frame of the clip. `time`, `duration`: seconds from the clip's first picture; `mended`: the decoder filled in
    what is damaged."""

    pixels: Pixels
    time: Fraction
    duration: Fraction
    number: int
    mended: bool = False


class Converters(NamedTuple):
    """What turns a clip's decoded frames into pixels; they keep tables between frames."""

    to_rgb: ToRgb
    scaled: SamplesToRgb
    unpack: Unpacker


class VideoPixels:
    """A frame as the decoder left it."""

    def __init__(self, frame: av.VideoFrame, clip: Clip, convert: Converters) -> None:
        self._frame, self._clip, self._convert = frame, clip, convert
        self._cached: np.ndarray | None = None
        self._deep: np.ndarray | None = None

    def rgb(self) -> np.ndarray:
        if self._cached is None:
            clip = self._clip
            if clip.is_deep:
                stored = self._stored()
                if clip.colour.is_hdr:
                    stored = np.dstack([self._sdr(np.uint8), eight_bits(stored[..., 3:])])  # alpha, if any
                self._cached = seen(stored, clip.keeps_alpha)
            else:
                stored = self._convert.to_rgb(self._frame, "rgba" if clip.has_alpha else "rgb24")
                self._cached = upright(seen(stored, clip.keeps_alpha), clip.rotation, clip.mirrored)
        return self._cached

    def working(self, place: Framing) -> np.ndarray:
        clip, turned = self._clip, bool(self._clip.rotation or self._clip.mirrored)
        if place.source.size != place.target.size and not clip.is_deep and (place.covers_clip or not turned):
            stored = Box(0, 0, self._frame.width, self._frame.height)
            width, height = place.target.size if clip.rotation % 180 == 0 else place.target.size[::-1]
            box = stored if place.covers_clip else place.source
            scaled = self._convert.scaled(self._frame, box, Size(width, height))
            if scaled is not None:
                return in_working(upright(scaled, clip.rotation, clip.mirrored), place)
        return to_working(self.rgb(), place)

    def fine(self) -> np.ndarray:
        if not self._clip.is_deep or self._clip.has_alpha:
            return self.rgb()
        return self._sdr(np.uint16) if self._clip.colour.is_hdr else self._stored()

    def original(self) -> np.ndarray | None:
        if self._clip.is_deep:
            return self._stored()
        if not self._clip.has_alpha:
            return None
        return upright(self._convert.to_rgb(self._frame, "rgba"), self._clip.rotation, self._clip.mirrored)

    def lifted(self, edited: np.ndarray) -> np.ndarray:
        original = self._stored()[..., :3]
        colour, deep = self._clip.colour, edited.dtype == np.uint16
        if deep and not colour.is_hdr:
            return edited
        kept = (edited == (self.fine() if deep else self.rgb())).all(-1)
        if kept.all():
            return original
        if colour.is_hdr:
            out = from_sdr(edited, colour.transfer_tag, colour.primaries_tag, colour.peak)
        else:
            out = edited.astype(np.uint16) * 257
        out[kept] = original[kept]
        return out

    def samples(self) -> Samples | None:
        clip = self._clip
        if clip.has_alpha or clip.colour.matrix == "rgb":
            return None
        return self._convert.unpack(self._frame, clip.rotation, clip.mirrored)

    def for_filters(self) -> av.VideoFrame:
        return self._frame

    def _sdr(self, kind: type[np.uint8 | np.uint16]) -> np.ndarray:
        """(H, W, 3) of an HDR clip as the model sees it, all bits of `kind` used."""
        colour = self._clip.colour
        return to_sdr(self._stored()[..., :3], colour.transfer_tag, colour.primaries_tag, colour.peak, kind)

    def _stored(self) -> np.ndarray:
        """(H, W, 3 or 4) uint16."""
        if self._deep is None:
            clip = self._clip
            stored = self._convert.to_rgb(self._frame, "rgba64le" if clip.has_alpha else "rgb48le")
            self._deep = upright(stored, clip.rotation, clip.mirrored)
        return self._deep


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
        return seen(self._pixels(), self._clip.keeps_alpha)

    def working(self, place: Framing) -> np.ndarray:
        return to_working(self.rgb(), place)

    def fine(self) -> np.ndarray:
        pixels = self._pixels()
        return pixels if pixels.dtype == np.uint16 and pixels.shape[-1] == 3 else self.rgb()

    def original(self) -> np.ndarray | None:
        pixels = self._pixels()
        return pixels if pixels.dtype == np.uint16 or pixels.shape[-1] == 4 else None

    def lifted(self, edited: np.ndarray) -> np.ndarray:
        return edited if edited.dtype == np.uint16 else merge(edited, self._pixels(), self._clip.keeps_alpha)

    def samples(self) -> Samples | None:
        return None

    def for_filters(self) -> av.VideoFrame:
        return av.VideoFrame.from_ndarray(self.rgb(), format="rgb24")


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


def walk(
    clip: Clip, span: Span, *, everything: bool = False, damage: Damage | None = None
) -> Iterator[tuple[Frame, Choice]]:
    """Frames of the clip in order, with what the span makes of each.

    Args:
        everything: also the frames before and after the span; otherwise decoding starts near the span's
            start and stops at its end.
        damage: counts what cannot be decoded, and the frames of these that were mended.

    Raises:
        MediaError: a frame cannot be decoded (not when the clip was opened with allow_truncated).
    """
    chooser, damage = Chooser(span), damage or Damage()
    for frame in frames_of(clip, Fraction(0) if everything else span.start, damage):
        choice = chooser(frame.time, frame.duration)
        if choice.inside or everything:
            if frame.mended:
                damage.mended(frame.time)
            yield frame, choice
        elif chooser.finished:
            return


def frames_of(clip: Clip, start: Fraction = Fraction(0), damage: Damage | None = None) -> Iterator[Frame]:
    """All frames from the one on screen at `start` (or a few before it)."""
    damage = damage or Damage()
    if clip.kind == "video":
        if start >= _SEEK_FROM and not clip.restarts:
            found = _video_frames(clip, start, damage)
            first = next(found, None)
            # A missing or wrong index lands past the target: then walk there from the beginning.
            if first is not None and first.time <= start:
                yield first
                yield from found
                return
            damage.packets = 0
        yield from _video_frames(clip, Fraction(0), damage)
        return
    for index, (path, (time, duration)) in enumerate(zip(clip.files, frame_times(clip), strict=True)):
        yield Frame(PicturePixels(path, clip), time, duration, index)


def _video_frames(clip: Clip, start: Fraction, damage: Damage) -> Iterator[Frame]:
    """Decode with one frame of look-ahead, because a frame lasts until the next begins."""
    convert = Converters(ToRgb(clip.colour), SamplesToRgb(clip.colour), Unpacker(clip.colour))
    index = 0
    held: tuple[av.VideoFrame, Fraction] | None = None
    with open_media(clip.path) as container:
        stream = picture_stream(container, clip.path)
        ordered = in_order(container) and clip.timestamps is not None
        if start:
            if ordered:
                return  # its frames can only be counted from the beginning
            try:
                container.seek(int((clip.start + start) / stream.time_base), stream=stream, backward=True)
            except READ_ERRORS:  # raw streams
                return
        for number, (frame, pts) in enumerate(_decoded(container, stream, clip, damage)):
            time = Fraction(pts or 0) * (frame.time_base or clip.time_base) - clip.start
            if ordered and clip.timestamps is not None and number < len(clip.timestamps) and not damage.packets:
                time, pts = clip.timestamps[number] * clip.time_base, number
            time = clip.true_time(time)
            if pts is None or (held is not None and time <= held[1]):
                # No or repeated timestamp: the frame follows the one before on the clip's average rate.
                time = held[1] + 1 / clip.fps if held is not None else Fraction(0)
            if held is not None:
                yield Frame(VideoPixels(held[0], clip, convert), held[1], time - held[1], index, held[0].is_corrupt)
                index += 1
            elif start:
                index = max(round(time * clip.fps), 0)
            held = frame, time
    if held is not None:
        left = clip.duration - held[1]
        left = left if left > 0 else 1 / clip.fps
        yield Frame(VideoPixels(held[0], clip, convert), held[1], left, index, held[0].is_corrupt)


def _decoded(container: Any, stream: Any, clip: Clip, damage: Damage) -> Iterator[tuple[av.VideoFrame, int | None]]:
    """(frame, its time in ticks)."""
    size: tuple[int, int] | None = None
    latest: av.VideoFrame | None = None
    restarts = Restarts(container, clip.restarts)
    packets = itertools.chain(shown_packets(container, stream), [None])
    while True:
        try:
            packet = next(packets, None)
        except READ_ERRORS as error:
            if clip.allow_truncated and size is not None:
                packet = None
            else:
                raise _undecodable(clip, error) from error
        if packet is not None:
            restarts.adjust(packet, 1 / clip.fps)
            if packet.size == 0:  # the same picture again
                if latest is not None:
                    yield latest, packet.pts
                continue
        try:
            frames = packet.decode() if packet is not None else stream.decode(None)
        except READ_ERRORS as error:
            if not clip.allow_truncated:
                raise _undecodable(clip, error) from error
            damage.packets += 1
            frames = []
        for frame in frames:
            check_dimensions(frame.width, frame.height, clip.path)
            size = size or (frame.width, frame.height)
            if (frame.width, frame.height) != size:
                raise MediaError(
                    f"the picture size changes from {size[0]}x{size[1]} to {frame.width}x{frame.height} "
                    f"within '{clip.path}'",
                    "cut the clip where the size changes",
                )
            latest = frame
            yield frame, frame.pts
        if packet is None:
            return


def _undecodable(clip: Clip, error: BaseException) -> MediaError:
    return MediaError(
        f"cannot decode '{clip.path}': {reason(error)}",
        "the file is damaged; pass --allow-truncated to use what can be read",
    )
