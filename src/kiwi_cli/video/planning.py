"""Decided before the first frame: may the output be written, in what form, and what is lost on the way."""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from kiwi_cli.errors import MediaError, UsageError
from kiwi_cli.video.clip import Clip
from kiwi_cli.video.codecs import CONTAINERS, Container, choose_encoding
from kiwi_cli.video.geometry import Size
from kiwi_cli.video.pictures import PICTURE_SUFFIXES
from kiwi_cli.video.sequences import RECORD
from kiwi_cli.video.sinks import Target
from kiwi_cli.video.sound import Cut, plan_sound
from kiwi_cli.video.timeline import Chooser, Span, frame_times

# Codecs that carry the pixel aspect themselves; elsewhere in Matroska the muxer would have to.
_KEEP_ASPECT = ("h264", "hevc", "prores")
_PICTURES = ("png", "jpeg", "webp")


def container_of(path: str | os.PathLike[str]) -> Container:
    """The container that an output path names by its extension; no extension is a folder.

    Raises:
        UsageError: the extension is not one that kiwi writes.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in CONTAINERS:
        raise UsageError(
            f"output format not known: '{path}'", f"end it in {', '.join(s for s in CONTAINERS if s)}, or in none"
        )
    return CONTAINERS[suffix]


def check_output(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse an output that cannot be written, before any work is done.

    Raises:
        UsageError: it exists, or its extension is not known.
        MediaError: its folder is missing or cannot be written to.
    """
    output = Path(path)
    container = container_of(output)
    if not output.name:
        raise UsageError(f"output is not a file name: '{path}'", "pass a file name with --output")
    if output.exists() or output.is_symlink():
        if not overwrite:
            raise UsageError(f"output exists: '{output}'", "pass --overwrite, or another --output")
        if output.is_dir() != (container == "folder"):
            raise UsageError(f"output is of another kind: '{output}'", "pass another --output")
        if container == "folder" and not all(_is_frame(entry) for entry in output.iterdir()):
            # Replacing a folder deletes what is in it.
            raise UsageError(f"the folder holds more than frames: '{output}'", "pass a new folder with --output")
    folder = output.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"no such folder: '{folder}'", f"create it first: mkdir -p '{folder}'")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MediaError(f"not allowed to write in '{folder}'", "write to another folder with --output")


def plan_target(
    path: Path,
    clip: Clip,
    span: Span,
    keep_rest: bool,
    size: Size,
    codec: str | None,
    quality: str | int | None,
    sound: bool,
    metadata: dict[str, str],
) -> tuple[Target, list[str]]:
    """What is written, and what the person should know about it."""
    container = container_of(path)
    notices: list[str] = []
    whole = span.whole or keep_rest
    frames = clip.frame_count if keep_rest else span.source_frames
    if container in _PICTURES and frames > 1:
        raise UsageError(
            f"a picture holds one frame, '{path}' would hold {frames}", "write to .mp4, or pass --frames 1"
        )
    aspect = clip.pixel_aspect
    encoding = None
    if container in ("mp4", "mov", "mkv", "webm"):
        encoding = choose_encoding(container, codec, quality, size, clip.colour, clip.bit_depth)
        notices += encoding.notices
    elif codec is not None:
        raise UsageError(f"a {container} has no codec to choose: '{codec}'", "leave --codec out")
    tracks, said = plan_sound(clip, container, sound)
    notices += said
    if clip.chapters and not whole:
        notices.append("not kept: the chapters of the whole clip")
    if clip.other_streams:
        notices.append(f"not kept: {', '.join(sorted(set(clip.other_streams)))} streams")
    if clip.has_alpha and (encoding is not None or container in ("gif", "jpeg")):
        notices.append(f"transparent parts become white: .{container} is written without transparency")
    if aspect != 1 and container not in ("mp4", "mov") and not (encoding and encoding.codec in _KEEP_ASPECT):
        square = Size(max(round(size.width * aspect), 1), size.height)
        notices.append(
            f"pixels become square: .{container} is written as {square} instead of {size} with pixel aspect {aspect}"
        )
        size, aspect = square, Fraction(1)
        if encoding is not None:
            encoding = choose_encoding(container, codec, quality, size, clip.colour, clip.bit_depth)
    cut = Cut()
    if not whole:
        first, last = _bounds(clip, span)
        reaches_end = last >= clip.duration - Fraction(1, 1000)
        cut = Cut(first, None if reaches_end else last)
    elif encoding is not None and tracks:
        earliest = min(plan.track.start for plan in tracks)
        # Codecs settle for some 20 ms before the first sound; more than that is sound before the picture.
        cut = Cut(lead=-earliest if earliest < -Fraction(1, 20) else Fraction(0))
    return Target(clip, container, size, aspect, cut, dict(metadata), encoding, tracks, quality), notices


def begin_at(target: Target, first: Fraction) -> Target:
    """The target with the cut moved to the first frame's true time, where that was only estimated before."""
    if target.cut.begin is None or target.clip.timestamps is not None:
        return target
    end = None if target.cut.end is None else target.cut.end + first - target.cut.begin
    return replace(target, cut=replace(target.cut, begin=first, end=end))


def _bounds(clip: Clip, span: Span) -> tuple[Fraction, Fraction]:
    """Seconds from the clip's first picture: the beginning of the span's first frame, the end of its last."""
    chooser = Chooser(span)
    inside = [(time, length) for time, length in frame_times(clip) if chooser(time, length).inside]
    if not inside:
        return span.start, span.end if span.end is not None else clip.duration
    return inside[0][0], inside[-1][0] + inside[-1][1]


def _is_frame(entry: Path) -> bool:
    return entry.name == RECORD or (entry.suffix.lower() in PICTURE_SUFFIXES and entry.is_file())
