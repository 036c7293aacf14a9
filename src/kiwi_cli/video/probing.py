"""`probe`: what an input is, before its frames are read."""

from __future__ import annotations

import itertools
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from kiwi_cli.errors import MediaError
from kiwi_cli.video.clip import AudioTrack, Clip, Colour
from kiwi_cli.video.colour import colour_of, has_alpha
from kiwi_cli.video.decode import orientation
from kiwi_cli.video.failures import READ_ERRORS, reading, reason
from kiwi_cli.video.geometry import Size
from kiwi_cli.video.integrity import is_cut_off
from kiwi_cli.video.opening import check_input, open_media, picture_stream
from kiwi_cli.video.pictures import read_header, sniff
from kiwi_cli.video.sequences import FALLBACK_FPS, numbered_pictures, sequence_fps

_SCAN_BYTES = 1 << 30  # files up to this are read through once to count frames and find their times
_MAX_FRAMES = 5_000_000  # 23 hours at 60 frames a second
_SRGB = Colour(matrix="rgb", full_range=True, range_tag=2)
# A phone's photographs look like an MP4 whose video is the tiles of the picture.
_PHOTOS = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypheim", b"ftypavif")
_CUT_OFF_HINT = "copy or download it again, or pass --allow-truncated to use what can be read"


def probe(path: str | os.PathLike[str], *, allow_truncated: bool = False) -> Clip:
    """Describe a video, a picture or a folder of numbered pictures.

    The first frame is decoded, so that a file that cannot be read fails here. Videos up to 1 GB are read
    through (not decoded) to count the frames and find their times.

    Args:
        allow_truncated: take what can be read of a file that is cut off.

    Raises:
        UsageError: the path does not exist.
        MediaError: it cannot be read, has no picture, is cut off, or its numbering has a gap.
    """
    source = Path(path)
    if source.is_dir():
        return _probe_sequence(source)
    check_input(source)
    with reading(source), source.open("rb") as file:
        head = file.read(16)
    if head[4:12] in _PHOTOS:
        raise MediaError(f"HEIC and AVIF pictures are not read: '{source}'", "convert it to JPEG or PNG first")
    if sniff(head) and not _is_apng(source, head):
        return _probe_picture(source, allow_truncated)
    return _probe_video(source, allow_truncated)


def _probe_picture(path: Path, allow_truncated: bool) -> Clip:
    header = read_header(path)
    return Clip(
        path=path,
        kind="image",
        width=header.size[0],
        height=header.size[1],
        storage_size=Size(*header.stored_size),
        frame_count=1,
        fps=FALLBACK_FPS,
        duration=1 / FALLBACK_FPS,
        container=header.format,
        codec=header.format.lower(),
        pixel_format=header.mode.lower(),
        bit_depth=header.bit_depth,
        has_alpha=header.has_alpha,
        colour=_SRGB,
        metadata=header.text,
        time_base=1 / FALLBACK_FPS,
        files=(path,),
        allow_truncated=allow_truncated,
    )


def _probe_sequence(folder: Path) -> Clip:
    files = numbered_pictures(folder)
    header = read_header(files[0])
    fps, assumed = sequence_fps(folder)
    notice = f"a folder has no frame rate: {fps} frames a second are assumed for '{folder}'"
    return Clip(
        path=folder,
        kind="sequence",
        width=header.size[0],
        height=header.size[1],
        storage_size=Size(*header.stored_size),
        frame_count=len(files),
        fps=fps,
        duration=len(files) / fps,
        container="sequence",
        codec=header.format.lower(),
        pixel_format=header.mode.lower(),
        bit_depth=header.bit_depth,
        has_alpha=header.has_alpha,
        colour=_SRGB,
        metadata=header.text,
        time_base=1 / fps,
        files=tuple(files),
        notices=(notice,) if assumed else (),
    )


def _probe_video(path: Path, allow_truncated: bool) -> Clip:
    cut_off = is_cut_off(path)
    if cut_off and not allow_truncated:
        raise MediaError(f"the file is cut off: '{path}'", _CUT_OFF_HINT)
    with open_media(path) as container:
        stream = picture_stream(container, path)
        first = _first_frame(container, stream, path)
        context = stream.codec_context
        turned, mirrored = orientation(first)
        width, height = first.width, first.height
        if turned % 180:
            width, height = height, width
        aspect = _pixel_aspect(stream)
        time_base = stream.time_base or Fraction(1, 90_000)
        rate = _usable_rate(stream.average_rate) or _usable_rate(stream.guessed_rate)
        facts: dict[str, Any] = {
            "path": path,
            "kind": "video",
            "width": width,
            "height": height,
            "storage_size": Size(first.width, first.height),
            "container": container.format.name,
            "codec": context.codec.canonical_name,
            "pixel_format": first.format.name,
            "bit_depth": max((c.bits for c in first.format.components), default=8),
            "pixel_aspect": 1 / aspect if turned % 180 else aspect,
            "rotation": turned,
            "mirrored": mirrored,
            "has_alpha": has_alpha(first.format) and _is_see_through(first),
            "chapters": tuple(container.chapters()),
            "hidden_alpha": stream.metadata.get("alpha_mode") == "1",
            "interlaced": first.interlaced_frame,
            "colour": colour_of(first, stream, first.height),
            "other_streams": tuple(s.type for s in container.streams if s.type not in ("video", "audio")),
            "metadata": dict(container.metadata),
            "time_base": time_base,
            "allow_truncated": allow_truncated,
        }
        facts |= _timing(container, stream, first, rate, time_base)
        facts["audio"] = tuple(_audio(container, facts["start"]))
    return _checked(path, facts, allow_truncated, cut_off)


def _checked(path: Path, facts: dict[str, Any], allow_truncated: bool, cut_off: bool) -> Clip:
    missing = facts.pop("missing")
    if missing and not allow_truncated:
        raise MediaError(f"the file is cut off or damaged: '{path}', {missing}", _CUT_OFF_HINT)
    hidden_alpha = facts.pop("hidden_alpha")
    notices = []
    if hidden_alpha and not facts["has_alpha"]:
        notices.append("the clip's transparency cannot be read: its pixels are taken as they are")
    if facts["colour"].is_hdr:
        notices.append("the clip is HDR: the model sees its stored values, and the result keeps its tags")
    if cut_off or missing:
        notices.append(f"the file is cut off: what can be read of it is used ({facts['frame_count']} frames)")
    if facts["interlaced"]:
        notices.append("the clip is interlaced: its fields are not separated, and the result is progressive")
    return Clip(**facts, notices=tuple(notices))


def _first_frame(container: Any, stream: Any, path: Path) -> av.VideoFrame:
    for packet in container.demux(stream):
        for frame in packet.decode():
            return frame
    raise MediaError(f"no picture can be decoded from '{path}'", "check that the file plays elsewhere")


def _timing(container: Any, stream: Any, first: Any, rate: Fraction | None, time_base: Fraction) -> dict[str, Any]:
    """Frame count, rate, duration and start, read through the file where that is cheap."""
    start = Fraction(first.pts or 0) * first.time_base
    length = Fraction(stream.duration) * time_base if stream.duration else None
    if length is None and container.duration:
        length = Fraction(container.duration, av.time_base)
    if container.size > _SCAN_BYTES:
        fps = rate or Fraction(25)
        count = stream.frames or max(int((length or 0) * fps), 1)
        return {
            "start": start,
            "fps": fps,
            "frame_count": count,
            "frame_count_exact": bool(stream.frames),
            "duration": length or count / fps,
            "missing": "",
        }
    pts, last_duration, error = _scan(container, stream)
    if len(pts) < 2:
        fps = rate or Fraction(25)
        duration = last_duration * time_base or length or 1 / fps
        if duration <= 0 or duration > 3600:
            duration = 1 / fps
        return {
            "start": start,
            "fps": 1 / duration if rate is None else fps,
            "frame_count": 1,
            "duration": duration,
            "timestamps": (0,),
            "missing": error or _shortfall(stream.frames, len(pts)),
        }
    times = tuple(value - pts[0] for value in pts)
    average = Fraction(len(times) - 1) / (times[-1] * time_base)
    fps = rate if rate is not None and abs(rate - average) < average / 100 else average
    steps = [b - a for a, b in itertools.pairwise(times)]
    # Containers round times to their tick, so that even rates wobble by one.
    variable = max(steps) - min(steps) > 2 or any(
        abs(t * time_base - i / average) > max(2 * time_base, 1 / average / 20) for i, t in enumerate(times)
    )
    if not variable and time_base >= Fraction(1, 1000):
        last_duration = 0  # as rounded as the times are
    last = last_duration * time_base if 0 < last_duration * time_base < 3600 else 1 / fps
    return {
        "start": pts[0] * time_base,
        "fps": fps,
        "frame_count": len(times),
        "duration": times[-1] * time_base + last if last_duration else len(times) / fps,
        "timestamps": times,
        "variable_rate": variable,
        "missing": error or _shortfall(stream.frames, len(pts)),
    }


def _scan(container: Any, stream: Any) -> tuple[list[int], int, str]:
    """(sorted timestamps of shown frames, the last one's duration in ticks, what went wrong)."""
    container.seek(0)
    shown: dict[int, int] = {}
    previous = None
    try:
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            pts = packet.pts if packet.pts is not None else packet.dts
            if pts is None:
                pts = 0 if previous is None else previous + (packet.duration or 1)
            shown[pts] = packet.duration or 0
            previous = pts
            if len(shown) > _MAX_FRAMES:
                return sorted(shown), 0, f"more than {_MAX_FRAMES} frames"
    except READ_ERRORS as error:
        return sorted(shown), 0, reason(error)
    ordered = sorted(shown)
    return ordered, shown[ordered[-1]] if ordered else 0, ""


def _shortfall(promised: int, found: int) -> str:
    """What to say when the header promises clearly more frames than are there (edit lists hide a few)."""
    return f"{found} of {promised} frames are there" if found < promised * 0.5 else ""


def _audio(container: Any, picture_start: Fraction) -> list[AudioTrack]:
    tracks = []
    for stream in container.streams.audio:
        context = stream.codec_context
        if context is None or not context.sample_rate or not context.channels:
            continue
        begin = Fraction(stream.start_time or 0) * stream.time_base - picture_start
        duration = Fraction(stream.duration) * stream.time_base if stream.duration else None
        if duration is None and container.duration:
            duration = Fraction(container.duration, av.time_base)
        tracks.append(
            AudioTrack(
                index=stream.index,
                codec=context.name,
                channels=context.channels,
                layout=context.layout.name,
                rate=context.sample_rate,
                start=begin,
                duration=duration,
                language=stream.language,
            )
        )
    return tracks


def _is_see_through(frame: av.VideoFrame) -> bool:
    """Whether a frame with an alpha channel uses it: GIF frames always have one."""
    return bool((frame.to_ndarray(format="rgba")[..., 3] < 255).any())


def _pixel_aspect(stream: Any) -> Fraction:
    aspect = stream.sample_aspect_ratio
    if not aspect or not Fraction(1, 20) < aspect < 20:  # 0 is 'not said'; the rest is a broken header
        return Fraction(1)
    return Fraction(aspect)


def _usable_rate(rate: Fraction | None) -> Fraction | None:
    return Fraction(rate) if rate and Fraction(1, 3600) <= rate <= 1000 else None


def _is_apng(path: Path, head: bytes) -> bool:
    if not head.startswith(b"\x89PNG"):
        return False
    with path.open("rb") as file:
        return b"acTL" in file.read(4096)
