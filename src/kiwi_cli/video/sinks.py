"""Where finished frames go: a video file, a GIF, a picture, a folder. All write to a temporary path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np

from kiwi_cli.errors import MediaError
from kiwi_cli.video.clip import Clip
from kiwi_cli.video.codecs import FORMATS, Container, Encoding, quieten
from kiwi_cli.video.colour import FromRgb, output_colour
from kiwi_cli.video.decode import Frame
from kiwi_cli.video.geometry import Size
from kiwi_cli.video.metadata import add_gif_comment, output_tags
from kiwi_cli.video.pictures import JPEG_COMMENT, merge, read_picture, save_picture
from kiwi_cli.video.sequences import write_record
from kiwi_cli.video.sound import Cut, Sound, TrackPlan

_MIN_TICKS = 10_000  # ticks a second: sound and picture line up to a tenth of a millisecond
_MAX_TICKS = 1_000_000  # ticks a second: finer clocks do not fit MP4's 32-bit fields over hours


@dataclass(frozen=True)
class Target:
    """What is written: everything a sink needs to know, decided before the first frame."""

    clip: Clip
    container: Container
    size: Size
    pixel_aspect: Fraction
    cut: Cut
    metadata: dict[str, str]
    encoding: Encoding | None = None
    sound: tuple[TrackPlan, ...] = ()
    quality: str | int | None = None


class Sink(Protocol):
    """Takes frames in order. `finish` makes the file whole; `close` alone leaves it to be thrown away."""

    notices: list[str]

    def add(self, rgb: np.ndarray, frame: Frame, time: Fraction) -> None:
        """Take (H, W, 3) uint8. `frame` is the source's frame, `time` seconds on the output's timeline."""

    def finish(self) -> None: ...

    def close(self) -> None: ...


def open_sink(path: Path, target: Target) -> Sink:
    """The sink for `target.container`, writing at `path`."""
    kinds: dict[str, Callable[[Path, Target], Sink]] = {"gif": GifSink, "folder": FolderSink}
    kinds |= {"png": PictureSink, "jpeg": PictureSink, "webp": PictureSink}
    return kinds.get(target.container, VideoSink)(path, target)


class VideoSink:
    """mp4, mov, mkv, webm."""

    def __init__(self, path: Path, target: Target) -> None:
        assert target.encoding is not None
        quieten()
        encoding, clip = target.encoding, target.clip
        self.notices: list[str] = []
        self._target = target
        self._colour = output_colour(clip.colour, encoding.rgb)
        self._convert = FromRgb(self._colour, encoding.pixel_format)
        tags, options = output_tags(clip, target.metadata, target.container)
        self._output = av.open(str(path), "w", format=FORMATS[target.container], container_options=options)
        self._output.metadata.update(tags)
        if clip.chapters and target.cut.begin is None:
            self._output.set_chapters(list(clip.chapters))
        self._tick = _clock(clip)
        stream: Any = self._output.add_stream(
            encoding.encoder,
            rate=clip.fps.limit_denominator(1_001_000),
            options=dict(encoding.options),
            width=target.size.width,
            height=target.size.height,
        )
        stream.pix_fmt = encoding.pixel_format
        stream.time_base = self._tick
        context = stream.codec_context
        context.time_base = self._tick
        if target.pixel_aspect != 1:
            context.sample_aspect_ratio = target.pixel_aspect
        context.colorspace = self._colour.matrix_tag
        context.color_primaries = self._colour.primaries_tag
        context.color_trc = self._colour.transfer_tag
        context.color_range = self._colour.range_tag
        if encoding.codec == "hevc" and target.container in ("mp4", "mov"):
            context.codec_tag = "hvc1"  # QuickTime plays no other kind
        self._stream = stream
        self._durations: dict[int, int] = {}
        self._last_pts = -1
        self._sound: Sound | None = None
        if target.sound:
            self._sound = Sound(clip, target.sound, target.cut, target.container)
            self._sound.attach(self._output)

    def add(self, rgb: np.ndarray, frame: Frame, time: Fraction) -> None:
        if self._sound is not None:
            self._sound.pump(time)
        picture = self._convert(rgb)
        picture.pts = max(round(time / self._tick), self._last_pts + 1)
        picture.time_base = self._tick
        self._last_pts = picture.pts
        self._durations[picture.pts] = max(round(frame.duration / self._tick), 1)
        self._mux(self._stream.encode(picture))

    def finish(self) -> None:
        self._mux(self._stream.encode(None))
        if self._sound is not None:
            self._sound.pump(None)
            self.notices += self._sound.notices
        self._output.close()
        self.close()

    def close(self) -> None:
        if self._sound is not None:
            self._sound.close()
        self._output.close()

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            # Encoders forget durations, and the last one decides how long the clip is.
            packet.duration = self._durations.pop(packet.pts, packet.duration or 0)
            self._output.mux_one(packet)


class GifSink:
    """An animated GIF, with a palette of its own for every frame, so that it streams."""

    def __init__(self, path: Path, target: Target) -> None:
        self.notices: list[str] = []
        self._path, self._target = path, target
        self._output = av.open(str(path), "w", format="gif")
        self._tick = Fraction(1, 100)  # the format's own clock
        stream: Any = self._output.add_stream("gif", rate=target.clip.fps.limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = *target.size, "pal8"
        stream.codec_context.time_base = self._tick
        stream.time_base = self._tick
        self._stream = stream
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=target.size.width, height=target.size.height, format=av.VideoFormat("rgb24"), time_base=self._tick
        )
        split = graph.add("split")
        palette = graph.add("palettegen", "stats_mode=single")
        use = graph.add("paletteuse", "new=1:dither=sierra2_4a")
        source.link_to(split)
        split.link_to(use, 0, 0)
        split.link_to(palette, 1, 0)
        palette.link_to(use, 0, 1)
        use.link_to(graph.add("buffersink"))
        graph.configure()
        self._graph = graph
        self._last = -1

    def add(self, rgb: np.ndarray, frame: Frame, time: Fraction) -> None:
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        picture.pts = max(round(time / self._tick), self._last + 1)
        picture.time_base = self._tick
        self._last = picture.pts
        self._graph.push(picture)
        self._drain()

    def finish(self) -> None:
        self._graph.push(None)
        self._drain()
        self._output.mux(self._stream.encode(None))
        self._output.close()
        add_gif_comment(self._path, self._target.metadata)

    def close(self) -> None:
        self._output.close()

    def _drain(self) -> None:
        while True:
            try:
                picture: Any = self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            self._output.mux(self._stream.encode(picture))


class PictureSink:
    """One picture, at the source's depth and with its transparency, profile and EXIF."""

    def __init__(self, path: Path, target: Target) -> None:
        self.notices: list[str] = []
        self._path, self._target = path, target
        self._written = False

    def add(self, rgb: np.ndarray, frame: Frame, time: Fraction) -> None:
        if self._written:
            raise MediaError(
                "a picture holds one frame, and there are more", "write to a video, or a folder (a path without dot)"
            )
        self._written = True
        target = self._target
        source = read_picture(target.clip.files[frame.number]) if target.clip.files else None
        quality = None if target.quality in (None, "lossless") else _picture_quality(target.quality)
        original = frame.pixels.original()
        if original is not None and original.shape[:2] == rgb.shape[:2]:
            rgb = merge(rgb, original)
        if target.container == "jpeg" and len(target.metadata.get("kiwi", "").encode()) > JPEG_COMMENT:
            self.notices.append("a JPEG has no room for how it was made: write a PNG or WebP to keep that")
        save_picture(
            self._path,
            rgb,
            file_format=target.container.upper(),
            quality=quality,
            icc_profile=source.icc_profile if source else None,
            exif=source.exif if source else None,
            text=(source.text if source else {}) | target.metadata,
        )

    def finish(self) -> None: ...

    def close(self) -> None: ...


class FolderSink:
    """PNG files in a folder: the exact way out. A sequence keeps its names."""

    def __init__(self, path: Path, target: Target) -> None:
        self.notices: list[str] = []
        self._path, self._target = path, target
        path.mkdir(exist_ok=True)
        self._count = 0

    def add(self, rgb: np.ndarray, frame: Frame, time: Fraction) -> None:
        clip = self._target.clip
        self._count += 1
        name = f"{self._count:06d}"
        icc = None
        if clip.files:
            name = clip.files[frame.number].stem
            icc = read_picture(clip.files[frame.number]).icc_profile
        original = frame.pixels.original()
        if original is not None and original.shape[:2] == rgb.shape[:2]:
            rgb = merge(rgb, original)
        save_picture(self._path / f"{name}.png", rgb, file_format="PNG", icc_profile=icc)

    def finish(self) -> None:
        write_record(self._path, self._target.metadata, self._target.clip.fps)

    def close(self) -> None: ...


def _clock(clip: Clip) -> Fraction:
    """Seconds a tick: the source's own, or a finer one in which its frame rate is exact."""
    if clip.has_coarse_clock:
        numerator = clip.fps.limit_denominator(1_001_000).numerator
        return Fraction(1, numerator * -(-_MIN_TICKS // numerator)) if numerator < _MAX_TICKS else Fraction(1, 90_000)
    return clip.time_base if 1 / clip.time_base <= _MAX_TICKS else Fraction(1, 90_000)


def _picture_quality(quality: str | int | None) -> int:
    """The 0 to 100 scale of JPEG and WebP."""
    if isinstance(quality, str) and not quality.isdigit():
        return {"low": 75, "medium": 88}.get(quality, 95)
    return min(int(quality or 95), 100)
