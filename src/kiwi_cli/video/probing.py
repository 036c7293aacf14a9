"""`probe`: what an input is, before its frames are read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from kiwi_cli.errors import MediaError
from kiwi_cli.video.clip import AudioTrack, Clip, Colour, OtherStream
from kiwi_cli.video.colour import colour_of, has_alpha, unread_matrix
from kiwi_cli.video.decode import orientation
from kiwi_cli.video.failures import READ_ERRORS, reading
from kiwi_cli.video.foreign import HEAD, refuse_foreign
from kiwi_cli.video.geometry import Size
from kiwi_cli.video.integrity import is_cut_off, is_encrypted, is_motion_jpeg
from kiwi_cli.video.opening import check_input, open_media, picture_stream
from kiwi_cli.video.pictures import read_header, sniff
from kiwi_cli.video.scan import timing
from kiwi_cli.video.sequences import FALLBACK_FPS, numbered_pictures, sequence_fps

_SRGB = Colour(matrix="rgb", full_range=True, range_tag=2)
# side data that describes the pictures as they were -> its row in `keeping.TABLE`
SIDE_DATA = {
    "A53_CC": "closed captions in the picture",
    "DYNAMIC_HDR_PLUS": "dynamic HDR metadata",
    "DOVI_METADATA": "dynamic HDR metadata",
    "SPHERICAL": "spherical and stereoscopic marks",
    "STEREO3D": "spherical and stereoscopic marks",
}
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
        head = file.read(HEAD)
    refuse_foreign(source, head)
    if sniff(head) and not _is_apng(source, head) and not is_motion_jpeg(source):
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
        first = _first_frame(container, stream, path, allow_truncated)
        context = stream.codec_context
        turned, mirrored = orientation(first)
        width, height = first.width, first.height
        if turned % 180:
            width, height = height, width
        aspect = _pixel_aspect(stream)
        time_base = stream.time_base or Fraction(1, 90_000)
        rate = _usable_rate(stream.average_rate) or _usable_rate(stream.guessed_rate)
        if unread := unread_matrix(first):
            raise MediaError(f"'{path}' has its colours in {unread}, which is not read", "convert it to BT.709 first")
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
            "has_alpha": has_alpha(first.format) and _is_see_through(first, path),
            "chapters": tuple(container.chapters()),
            "hidden_alpha": stream.metadata.get("alpha_mode") == "1",
            "interlaced": first.interlaced_frame,
            "colour": colour_of(first, stream, first.height),
            "other_streams": tuple(_others(container, stream)),
            "side_data": tuple(kind for name, kind in SIDE_DATA.items() if first.side_data.get(name) is not None),
            "metadata": dict(container.metadata),
            "time_base": time_base,
            "allow_truncated": allow_truncated,
        }
        facts |= timing(path, container, stream, first, rate)
        facts["audio"] = tuple(_audio(container, facts["start"]))
    return _checked(path, facts, allow_truncated, cut_off)


def _checked(path: Path, facts: dict[str, Any], allow_truncated: bool, cut_off: bool) -> Clip:
    missing = facts.pop("missing")
    if missing and not allow_truncated:
        raise MediaError(f"the file is cut off or damaged: '{path}', {missing}", _CUT_OFF_HINT)
    hidden_alpha = facts.pop("hidden_alpha")
    notices = list(facts["damage"])
    if hidden_alpha and not facts["has_alpha"]:
        notices.append("the clip's transparency cannot be read: its pixels are taken as they are")
    if facts["colour"].is_hdr:
        notices.append(
            "the clip is HDR: the model sees it tone-mapped to SDR (ITU-R BT.2446 A), and what it edits is mapped back"
        )
    if cut_off or missing:
        notices.append(f"the file is cut off: what can be read of it is used ({facts['frame_count']} frames)")
    if facts["interlaced"]:
        notices.append("the clip is interlaced: its fields are not separated, and the result is progressive")
    return Clip(**facts, notices=tuple(notices))


def _first_frame(container: Any, stream: Any, path: Path, allow_truncated: bool) -> av.VideoFrame:
    for packet in container.demux(stream):
        try:
            if packet.has_sidedata("encryption_info"):  # now and then noise decodes without an error
                raise _encrypted(path)
            frames = packet.decode()
        except READ_ERRORS as error:
            if is_encrypted(path):
                raise _encrypted(path) from error
            if allow_truncated:
                continue
            raise
        for frame in frames:
            return frame
    raise MediaError(f"no picture can be decoded from '{path}'", "check that the file plays elsewhere")


def _encrypted(path: Path) -> MediaError:
    return MediaError(f"the file is encrypted: '{path}'", "decrypt it first, or pass a copy without protection (DRM)")


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
                disposition=int(stream.disposition),
            )
        )
    return tracks


def _others(container: Any, picture: Any) -> Iterator[OtherStream]:
    """The streams beside the picture and the sound."""
    cover = av.stream.Disposition.attached_pic
    for stream in container.streams:
        context = stream.codec_context
        kind = stream.type
        if stream.index == picture.index:
            continue
        if kind == "audio":
            if context is not None and context.sample_rate and context.channels:
                continue
        elif kind == "video" and stream.disposition & cover:
            kind = "cover"
        codec = context.name if context is not None else ""
        yield OtherStream(stream.index, kind, codec, stream.language, int(stream.disposition))


def _is_see_through(first: av.VideoFrame, path: Path) -> bool:
    """Whether frames with an alpha channel use it. GIF and APNG always have one, so that all are looked at; in a
    video it is there because somebody wanted it."""
    if not _uses_alpha(first):
        with open_media(path) as container:
            if container.format.name not in ("gif", "apng"):
                return True
            return any(_uses_alpha(frame) for frame in container.decode(picture_stream(container, path)))
    return True


def _uses_alpha(frame: av.VideoFrame) -> bool:
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
