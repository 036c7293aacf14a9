"""Decided before the first frame: may the output be written, in what form, and what is lost on the way."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from kiwi_cli.errors import MediaError, UsageError
from kiwi_cli.video.clip import Clip
from kiwi_cli.video.codecs import CONTAINERS, Container, choose_encoding
from kiwi_cli.video.failures import writing
from kiwi_cli.video.geometry import Size
from kiwi_cli.video.keeping import fate_of
from kiwi_cli.video.partial import partial_folder, remove_partial
from kiwi_cli.video.pictures import PICTURE_SUFFIXES
from kiwi_cli.video.sequences import RECORD
from kiwi_cli.video.sinks import Target
from kiwi_cli.video.sound import Cut, plan_sound
from kiwi_cli.video.streams import plan_others
from kiwi_cli.video.timeline import Chooser, Span, frame_times

# Codecs that carry the pixel aspect themselves; elsewhere in Matroska the muxer would have to.
_KEEP_ASPECT = ("h264", "hevc", "prores")
_LONGEST_NAME = 255  # bytes, on every file system in use
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


def for_output(clip: Clip, path: str | os.PathLike[str]) -> Clip:
    """The clip as it is to be read for an output: where that keeps transparency, in straight colours."""
    of_sequence = clip.kind == "sequence"  # any of its pictures may have some
    return replace(clip, keeps_alpha=(clip.has_alpha or of_sequence) and _keeps_alpha(container_of(path)))


def _keeps_alpha(container: Container) -> bool:
    return container != "jpeg" and fate_of("transparency", container) == "kept"


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
    if output.name == "-":
        raise UsageError("the result is a file, and is not written to stdout: '-'", "pass a file name with --output")
    if output.exists() and not (output.is_file() or output.is_dir()):
        raise UsageError(f"the output is a pipe or a device: '{output}'", "pass the name of a file with --output")
    if output.exists() or output.is_symlink():
        if not overwrite:
            into = output.is_dir() and container == "folder"
            hint = f"name a file in it: '{output / 'NAME.mp4'}'" if into else "pass --overwrite, or another --output"
            raise UsageError(f"output exists: '{output}'", hint)
        if output.is_dir() != (container == "folder"):
            there, wanted = ("a folder", "a file") if output.is_dir() else ("a file", "a folder")
            raise UsageError(f"'{output}' is {there}, and {wanted} would be written", "pass another --output")
        if container == "folder" and not all(_is_frame(entry) for entry in output.iterdir()):
            # Replacing a folder deletes what is in it.
            raise UsageError(f"the folder holds more than frames: '{output}'", "pass a new folder with --output")
    folder = output.absolute().parent
    if not folder.is_dir():
        in_the_way = next((parent for parent in (folder, *folder.parents) if parent.is_file()), None)
        if in_the_way is not None:
            raise UsageError(f"'{in_the_way}' is a file, and no folder to write in", "pass another --output")
        raise UsageError(f"no such folder: '{folder}'", f"create it first: mkdir -p '{folder}'")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MediaError(f"not allowed to write in '{folder}'", "write to another folder with --output")


def try_place(path: Path) -> None:
    """Make the folder that an output is written in beside it, and remove it again: before hours of work, not after.

    Raises:
        MediaError: the system does not let anything be made there, whatever the permissions say.
    """
    with writing(path):
        remove_partial(partial_folder(path))


def refuse_source(path: Path, sources: Iterable[Path]) -> None:
    """Refuse an output that is one of the files that are read, or lies where replacing it would take one along.

    Names are compared by what they lead to: links, `..` and another spelling of a folder are seen through.

    Raises:
        UsageError: writing `path` would destroy a source.
    """
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise UsageError(
            f"the name is too long for a file: '{path.name[:40]}...' ({len(os.fsencode(path.name))} bytes)",
            f"pass an --output name of at most {_LONGEST_NAME} bytes",
        )
    for source in sources:
        within = source.is_dir() and is_same(path.parent, source) and path.exists()
        if is_same(path, source) or within:
            raise UsageError(f"the output would replace the input: '{path}'", "pass another --output")
        if path.is_dir() and is_same(path, source.parent):
            raise UsageError(f"the output would replace the folder of an input: '{path}'", "pass another --output")


def is_same(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same file or folder, there already or not."""
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there yet
        return one.resolve() == other.resolve()


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
    compared: bool = False,
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
        encoding = choose_encoding(container, codec, quality, size, clip.colour, clip.bit_depth, clip.pixel_format)
        notices += encoding.notices
    elif codec is not None:
        raise UsageError(f"a {container} has no codec to choose: '{codec}'", "leave --codec out")
    tracks, said = plan_sound(clip, container, sound)
    notices += said
    if clip.chapters and not whole:
        notices.append("not kept: the chapters of the whole clip")
    lost = sorted({kind for kind in clip.side_data if fate_of(kind, container) == "dropped"})
    notices += [f"not kept: {kind}" for kind in lost]
    if clip.chapters and fate_of("chapters", container) == "dropped" and whole:
        notices.append(f"not kept: the chapters (.{container} holds none)")
    if clip.variable_rate and fate_of("frame times", container) == "converted":
        notices.append(f"the frames become even: a {container} has one rate, {float(clip.fps):.3g} a second")
    others, said = plan_others(clip, container)
    notices += said
    if clip.has_alpha and not _keeps_alpha(container):
        notices.append(
            f"transparent parts are put on white before the edit: .{container} is written without transparency"
        )
    if aspect != 1 and container not in ("mp4", "mov") and not (encoding and encoding.codec in _KEEP_ASPECT):
        square = Size(max(round(size.width * aspect), 1), size.height)
        notices.append(
            f"pixels become square: .{container} is written as {square} instead of {size} with pixel aspect {aspect}"
        )
        size, aspect = square, Fraction(1)
        if encoding is not None:
            encoding = choose_encoding(container, codec, quality, size, clip.colour, clip.bit_depth, clip.pixel_format)
    cut = Cut()
    if not whole:
        first, last = _bounds(clip, span)
        reaches_end = last >= clip.duration - Fraction(1, 1000)
        cut = Cut(first, None if reaches_end else last)
    elif encoding is not None and tracks:
        earliest = min(plan.track.start for plan in tracks)
        # Codecs settle for some 20 ms before the first sound; more than that is sound before the picture.
        cut = Cut(lead=-earliest if earliest < -Fraction(1, 20) else Fraction(0))
    keeps_alpha = _keeps_alpha(container) and not compared and size == clip.size
    if clip.has_alpha and _keeps_alpha(container) and not keeps_alpha:
        notices.append(f"transparent parts are put on white in {'a comparison' if compared else 'pixels made square'}")
    target = Target(clip, container, size, aspect, cut, dict(metadata), encoding, keeps_alpha, tracks, others, quality)
    return target, notices


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
