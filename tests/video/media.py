"""Files to test on, made with PyAV, and one way to push frames through reader and writer."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from kiwi_cli.video import open_writer, read_frames, select

BITS = 8  # the frame number is written into every test frame as eight bright or dark blocks


def picture(number: int, width: int, height: int) -> np.ndarray:
    """(H, W, 3) uint8: smooth saturated colours that move, and the frame number in blocks along the top."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    phase = number * 0.15
    rgb = np.stack(
        [
            128 + 90 * np.sin(2 * np.pi * x / width + phase),
            128 + 90 * np.cos(2 * np.pi * y / height - phase),
            128 + 90 * np.sin(2 * np.pi * (x / width + y / height) + phase),
        ],
        axis=-1,
    )
    rows, step = max(height // 5, 4), width // BITS
    for bit in range(BITS):
        rgb[:rows, bit * step : (bit + 1) * step] = 220 if number >> bit & 1 else 35
    return rgb.round().astype(np.uint8)


def number_of(rgb: np.ndarray) -> int:
    """The frame number that `picture` wrote, read back from a decoded frame."""
    height, width = rgb.shape[:2]
    step, row = width // BITS, max(height // 5, 4) // 2
    return sum(1 << bit for bit in range(BITS) if rgb[row, bit * step + step // 2].mean() > 128)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Decibels between two uint8 arrays."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


@dataclass
class Sound:
    codec: str = "aac"
    layout: str = "stereo"
    seconds: float = 1.0
    rate: int = 48_000


def make_clip(
    path: Path,
    *,
    frames: int = 8,
    size: tuple[int, int] = (96, 64),
    fps: Fraction = Fraction(25),
    times: list[Fraction] | None = None,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    colour: tuple[int, int, int, int] = (2, 2, 2, 0),  # matrix, primaries, transfer, range tags
    pixel_aspect: Fraction = Fraction(1),
    rotation: int = 0,
    sound: Sound | tuple[Sound, ...] = (),
    metadata: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a clip. `times` (seconds) makes a variable rate; `rotation` is degrees counter-clockwise."""
    width, height = size
    tick = Fraction(1, 90_000)
    defaults = {"libx264": {"crf": "10", "preset": "ultrafast", "bf": "2"}}
    defaults["libx265"] = {"crf": "10", "preset": "ultrafast", "x265-params": "log-level=none"}
    defaults["libvpx-vp9"] = {"crf": "10", "b": "0", "cpu-used": "8", "deadline": "realtime"}
    defaults["mjpeg"] = {"q": "2"}
    with av.open(str(path), "w") as container:
        container.metadata.update(metadata or {})
        video = container.add_stream(codec, rate=fps, options=options or defaults.get(codec, {}))
        video.width, video.height, video.pix_fmt = width, height, pixel_format
        if codec in ("mjpeg", "mpeg4", "mpeg2video") or path.suffix == ".avi":
            tick = 1 / fps
        if codec == "mjpeg":
            video.codec_context.qmin, video.codec_context.qmax = 2, 2
        video.codec_context.time_base = tick
        video.time_base = tick
        if pixel_aspect != 1:
            video.codec_context.sample_aspect_ratio = pixel_aspect
        matrix, primaries, transfer, full = colour
        video.codec_context.colorspace = matrix
        video.codec_context.color_primaries = primaries
        video.codec_context.color_trc = transfer
        video.codec_context.color_range = full
        if rotation:
            video.set_display_rotation(rotation)
        tracks = sound if isinstance(sound, tuple) else (sound,)
        streams = []
        for track in tracks:
            stream = container.add_stream(track.codec, rate=track.rate)
            stream.codec_context.layout = track.layout
            streams.append(stream)
        for stream, track in zip(streams, tracks, strict=True):
            add_sound(container, stream, track)
        sws = {1: 1, 5: 5, 6: 5, 9: 9}.get(matrix, 1 if height >= 720 else 5)
        for number in range(frames):
            rgb = av.VideoFrame.from_ndarray(picture(number, width, height), format="rgb24")
            full_range = full == 2 or pixel_format.startswith("yuvj")
            frame = rgb.reformat(
                format=pixel_format,
                src_colorspace=1,
                dst_colorspace=sws,
                src_color_range=2,
                dst_color_range=2 if full_range else 1,
                interpolation="BICUBIC",
            )
            frame.colorspace, frame.color_primaries, frame.color_trc = matrix, primaries, transfer
            frame.color_range = full
            time = times[number] if times else number / fps
            frame.pts, frame.time_base = round(time / tick), tick
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return path


def add_sound(container: av.container.OutputContainer, stream, track: Sound) -> None:
    """A 440 Hz tone that gets louder, so that a shift in time can be heard and measured."""
    total = round(track.seconds * track.rate)
    t = np.arange(total) / track.rate
    wave = (0.8 * np.minimum(t, 1) * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    channels = stream.codec_context.layout.nb_channels
    resampler = av.AudioResampler(
        format=stream.codec_context.format.name, layout=track.layout, rate=track.rate, frame_size=1024
    )
    samples = np.repeat(wave[None], channels, axis=0)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=track.layout)
    frame.sample_rate, frame.pts, frame.time_base = track.rate, 0, Fraction(1, track.rate)
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(stream.encode(part))
    container.mux(stream.encode(None))


def make_sequence(folder: Path, frames: int = 5, size: tuple[int, int] = (48, 32), first: int = 1) -> Path:
    """A folder of numbered 8-bit PNG files."""
    from PIL import Image

    folder.mkdir()
    for number in range(frames):
        Image.fromarray(picture(number, *size)).save(folder / f"{number + first:04d}.png")
    return folder


def run_through(clip, output: Path, span=None, size=None, fit="stretch", chunk=3, edit=None, **options):
    """Read the span, edit it (not at all by default), write it. Returns (frames read, the closed writer)."""
    span = span or select(clip)
    seen: list[np.ndarray] = []
    with open_writer(output, clip, span, size=size, fit=fit, **options) as writer:
        waiting: list[np.ndarray] = []
        for frame in read_frames(clip, span, size=size, fit=fit):
            seen.append(frame.rgb)
            waiting.append(edit(frame.rgb) if edit else frame.rgb)
            if len(waiting) == chunk:
                writer.write(np.stack(waiting))
                waiting = []
        if waiting:
            writer.write(np.stack(waiting))
    return seen, writer


def packets(path: Path, kind: str, index: int = 0) -> list[tuple[Fraction, Fraction]]:
    """(time, duration) of the packets of a stream, in order of time, seconds."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[index]
        found = [
            (p.pts * p.time_base, (p.duration or 0) * p.time_base)
            for p in container.demux(stream)
            if p.size and p.pts is not None
        ]
    return sorted(found)


def samples(path: Path, index: int = 0) -> tuple[np.ndarray, int, Fraction]:
    """(mono float samples, rate, time of the first) of a sound stream as a player hears it."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[index]
        rate = stream.rate
        resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        parts, start = [], None
        for frame in container.decode(stream):
            if start is None:
                start = frame.pts * frame.time_base
            frame.pts = None
            parts += [part.to_ndarray()[0] for part in resampler.resample(frame)]
    return np.concatenate(parts), rate, start
