"""Where finished frames go: a video file, a GIF, a picture, a folder. All write to a temporary path."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np

from kiwi_cli.errors import MediaError
from kiwi_cli.video import gif
from kiwi_cli.video.clip import Clip
from kiwi_cli.video.codecs import FORMATS, Container, Encoding, colour_options, quieten
from kiwi_cli.video.colour import FromRgb, output_colour
from kiwi_cli.video.decode import Frame
from kiwi_cli.video.failures import WRITE_ERRORS, trial_folder, writing
from kiwi_cli.video.geometry import Size
from kiwi_cli.video.metadata import output_tags
from kiwi_cli.video.pictures import JPEG_COMMENT, Details, merge, read_details, save_picture
from kiwi_cli.video.resize import scale
from kiwi_cli.video.samples import Samples
from kiwi_cli.video.sequences import write_record
from kiwi_cli.video.sound import Cut, TrackPlan
from kiwi_cli.video.streams import OtherPlan, Streams

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
    keeps_alpha: bool = False
    sound: tuple[TrackPlan, ...] = ()
    others: tuple[OtherPlan, ...] = ()
    quality: str | int | None = None

    @property
    def deep(self) -> bool:
        """Whether pictures are handed over with 16 bits a channel, in the clip's own terms."""
        takes = self.encoding is not None or self.container in ("png", "folder")
        return takes and self.clip.is_deep and not self.clip.has_alpha


class Sink(Protocol):
    """Takes frames in order. `finish` makes the file whole; `close` alone leaves it to be thrown away."""

    notices: list[str]

    def add(self, rgb: np.ndarray, frame: Frame, time: Fraction) -> None:
        """Take (H, W, 3) uint8, or uint16 when the target is deep; of another size than the target's, it is scaled.

        `frame` is the source's frame, `time` seconds on the output's timeline.
        """

    def finish(self) -> None: ...

    def close(self) -> None: ...


def rehearse(target: Target) -> None:
    """Open the output with the streams it will hold, in a folder that is thrown away.

    Raises:
        MediaError: the encoder does not start, or the container refuses a stream.
    """
    if target.encoding is None:
        return
    where = f"a .{target.container} with {target.encoding.encoder}"
    with writing(Path(where), hint="try another --codec, --quality or container"), trial_folder() as folder:
        sink = VideoSink(folder / "trial", target)
        try:
            sink.begin()
        finally:
            with contextlib.suppress(*WRITE_ERRORS):
                sink.close()


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
        self._colour = output_colour(clip.colour, encoding, target.container)
        self._convert = FromRgb(self._colour, encoding.pixel_format)
        tags, options = output_tags(clip, target.metadata, target.container)
        if target.container == "mkv":
            options["default_mode"] = "passthrough"  # which track plays is the source's choice
        self._output = av.open(str(path), "w", format=FORMATS[target.container], container_options=options)
        self._output.metadata.update(tags)
        if clip.chapters and target.cut.begin is None:
            self._output.set_chapters(list(clip.chapters))
        self._tick = _clock(clip)
        stream: Any = self._output.add_stream(
            encoding.encoder,
            rate=clip.fps.limit_denominator(1_001_000),
            options=encoding.options | colour_options(self._colour, encoding),
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
        self._first_pts = self._last_pts = -1
        self._forgets_times = encoding.encoder == "libx265"
        self._last_dts: int | None = None
        self._end = 0  # ticks: where the last picture ends
        self._by_decoding = target.container in ("mp4", "mov")
        stream.disposition = int(av.stream.Disposition.default)
        self._beside: Streams | None = None
        if target.sound or target.others:
            self._beside = Streams(clip, target.sound, target.others, target.cut, target.container)
            self._beside.attach(self._output)

    def begin(self) -> None:
        """Open the encoders and write the header."""
        self._output.start_encoding()

    def add(self, rgb: np.ndarray, frame: Frame, time: Fraction) -> None:
        if self._beside is not None:
            self._beside.pump(time)
        if rgb.shape[1::-1] == self._target.size:
            picture = self._convert(rgb, *self._own(rgb, frame))
        else:
            picture = self._convert.scaled(rgb, self._target.size)
        picture.pts = max(round(time / self._tick), self._last_pts + 1)
        picture.time_base = self._tick
        self._first_pts = picture.pts if self._first_pts < 0 else self._first_pts
        self._last_pts = picture.pts
        self._durations[picture.pts] = max(round(frame.duration / self._tick), 1)
        self._mux(self._stream.encode(picture))

    def _own(self, rgb: np.ndarray, frame: Frame) -> tuple[Samples | None, np.ndarray | None]:
        """(the source's samples, where the picture is still the source's); nothing when it has another shape."""
        if self._target.encoding is None or self._target.encoding.rgb or rgb.shape[1::-1] != self._target.clip.size:
            return None, None
        samples = frame.pixels.samples()
        if samples is None:
            return None, None
        view = frame.pixels.original() if self._target.deep else frame.pixels.rgb()
        if view is None or rgb is view:
            return samples, np.ones(rgb.shape[:2], bool)
        same = rgb[..., 0] == view[..., 0]  # by channel: three times as fast as over the last axis
        same &= rgb[..., 1] == view[..., 1]
        same &= rgb[..., 2] == view[..., 2]
        return samples, same

    def finish(self) -> None:
        self._mux(self._stream.encode(None), last=True)
        if self._beside is not None:
            self._beside.pump(None)
            self.notices += self._beside.notices
        self._output.close()
        self.close()

    def close(self) -> None:
        if self._beside is not None:
            self._beside.close()
        self._output.close()

    def _mux(self, packets: list[Any], last: bool = False) -> None:
        for index, packet in enumerate(packets):
            # Encoders forget durations, and the last one decides how long the clip is.
            packet.duration = self._durations.pop(packet.pts, packet.duration or 0)
            if self._forgets_times and packet.dts is not None:
                self._last_dts = packet.dts = sane_dts(packet, self._first_pts, self._last_pts, self._last_dts)
            end = packet.pts + packet.duration
            if last and index == len(packets) - 1 and self._by_decoding and self._end - end > packet.duration:
                # The last packet by decoding time, which MP4 goes by, need not be the picture that stays.
                packet.duration = self._end - packet.pts
            self._end = max(self._end, end)
            self._output.mux_one(packet)


def sane_dts(packet: Any, first: int, last: int, before: int | None) -> int:
    """A packet's decoding time, ticks; its presentation time where the decoding time is none.

    Of a clip with fewer frames than it reorders x265 does not set decoding times, and gives what lies in memory: any
    number. Such clips are never reordered.

    Args:
        first, last: presentation times of the first and the latest frame that the encoder was given. before: decoding
            time of the packet before.
    """
    earliest = first - (last - first)  # no frame waits for longer than the clip lasts
    sane = earliest <= packet.dts <= packet.pts and (before is None or packet.dts > before)
    return int(packet.dts if sane else packet.pts)


class GifSink:
    """An animated GIF, with a palette of its own for every frame, so that it streams."""

    def __init__(self, path: Path, target: Target) -> None:
        self.notices: list[str] = []
        self._path, self._target = path, target
        self._output = av.open(str(path), "w", format="gif", container_options={"loop": str(_gif_loop(target.clip))})
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
        self._stays = self._tick  # how long the latest picture is shown, seconds

    def add(self, rgb: np.ndarray, frame: Frame, time: Fraction) -> None:
        rgb = np.ascontiguousarray(scale(rgb, self._target.size))
        picture = av.VideoFrame.from_ndarray(rgb, format="rgb24")
        picture.pts = max(round(time / self._tick), self._last + 1)
        picture.time_base = self._tick
        self._last, self._stays = picture.pts, frame.duration
        self._graph.push(picture)
        self._drain()

    def finish(self) -> None:
        self._graph.push(None)
        self._drain()
        self._output.mux(self._stream.encode(None))
        self._output.close()
        gif.finish(self._path, self._target.metadata, round(self._stays / self._tick))

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
        details = read_details(target.clip.files[frame.number]) if target.clip.files else Details()
        quality = None if target.quality in (None, "lossless") else _picture_quality(target.quality)
        rgb = _with_depth(scale(rgb, self._target.size), frame, target)
        if target.container == "jpeg" and len(target.metadata.get("kiwi", "").encode()) > JPEG_COMMENT:
            self.notices.append("a JPEG has no room for how it was made: write a PNG or WebP to keep that")
        save_picture(
            self._path,
            rgb,
            file_format=target.container.upper(),
            quality=quality,
            details=replace(details, text=details.text | target.metadata),
            coding=_coding(target),
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
        details = Details()
        if clip.files:
            name = clip.files[frame.number].stem if clip.kind == "sequence" else name  # a picture's is no number
            own = read_details(clip.files[frame.number])
            details = replace(own, exif=None, text={})  # the record beside the frames has the text
        rgb = _with_depth(scale(rgb, self._target.size), frame, self._target)
        save_picture(self._path / f"{name}.png", rgb, file_format="PNG", details=details, coding=_coding(self._target))

    def finish(self) -> None:
        write_record(self._path, self._target.metadata, self._target.clip.fps)

    def close(self) -> None: ...


def _coding(target: Target) -> tuple[int, int] | None:
    """Primaries and transfer of HDR values that are written as they are stored."""
    colour = target.clip.colour
    return (colour.primaries_tag, colour.transfer_tag) if target.deep and colour.is_hdr else None


def _gif_loop(clip: Clip) -> int:
    """The muxer's option: -1 plays once, 0 for ever, otherwise so many times more."""
    if clip.container != "gif":
        return 0
    found = gif.loops(clip.path)
    return -1 if found is None else found


def _with_depth(rgb: np.ndarray, frame: Frame, target: Target) -> np.ndarray:
    """The picture with the source's depth and transparency, where it has not got them yet."""
    original = None if rgb.dtype == np.uint16 else frame.pixels.original()
    if original is None or original.shape[:2] != rgb.shape[:2]:
        return rgb
    if original.shape[-1] == 4 and not target.keeps_alpha:
        return rgb  # composited on white: alpha once more would whiten it twice
    return merge(rgb, original, target.clip.keeps_alpha)


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
