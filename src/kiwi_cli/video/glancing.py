"""A first look at a clip, for tables of thousands: is it sound? `probe` takes ten times as long and tells all of it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

from kiwi_cli.errors import KiwiError
from kiwi_cli.video.colour import unread_matrix
from kiwi_cli.video.failures import READ_ERRORS
from kiwi_cli.video.foreign import HEAD, refuse_foreign
from kiwi_cli.video.integrity import is_cut_off
from kiwi_cli.video.opening import check_dimensions, check_input, open_media, picture_stream

_ISO, _MATROSKA = b"ftyp", b"\x1a\x45\xdf\xa3"
# Others are left to `probe`, and so is transparency.
_FORMATS = {"yuvj420p", *(f"yuv{chroma}p{depth}" for chroma in ("420", "422", "444") for depth in ("", "10le"))}
_UNDECODED = {"codec_whitelist": "none"}  # opening decodes some packets, for properties that are not asked for here
_ROUGHLY = {"skip_idct": "all", "skip_loop_filter": "all"}  # the picture is thrown away
_MARGIN = 1  # seconds: pictures are stored in another order than they are shown in


def glance(path: Path) -> Fraction | None:
    """How many seconds a sound clip lasts at least; None where only `probe` can tell whether it is sound.

    Of MP4, MOV, Matroska and WebM. The file's own sizes are compared with it, its first packet is decoded, and its
    packets are counted: by the index where it has one, which must lie within the file. What `probe` refuses gets None;
    where it also decodes one to three packets more, which frames that are stored out of order need, the edit does.
    """
    try:
        check_input(path)
        with path.open("rb") as file:
            head = file.read(HEAD)
        refuse_foreign(path, head)
        if (head[4:8] != _ISO and not head.startswith(_MATROSKA)) or is_cut_off(path):
            return None
        with open_media(path, _UNDECODED) as container:
            return _least(container, picture_stream(container, path), path)
    except (KiwiError, *READ_ERRORS):  # `probe` finds words for it
        return None


def _least(container: Any, stream: Any, path: Path) -> Fraction | None:
    context = stream.codec_context
    context.options = {**context.options, **_ROUGHLY}
    context.thread_count = 1
    first = next((packet for packet in container.demux(stream) if packet.size), None)
    if first is None or first.pts is None:
        return None
    # Waiting for the frame would decode as many packets as the stream reorders, which takes twice as long.
    frames = context.decode(first) or context.decode(None)
    if not frames or frames[0].format.name not in _FORMATS or unread_matrix(frames[0]) is not None:
        return None
    check_dimensions(frames[0].width, frames[0].height, path)
    if not all(_is_within(other, container.size) for other in container.streams):
        return None
    times = _indexed(stream) or {first.pts, *_counted(container, stream)}
    promised = stream.frames if stream.frames <= container.size else 0
    if len(times) < promised:
        return None
    return max(Fraction(max(times) - max(first.pts, 0)) * (stream.time_base or 0) - _MARGIN, Fraction(0))


def _indexed(stream: Any) -> set[int]:
    """Times of the packets by an index that holds all of them; else none."""
    entries = stream.index_entries
    return {entry.timestamp for entry in entries if entry.size} if len(entries) == stream.frames else set()


def _is_within(stream: Any, size: int) -> bool:
    """Whether a file of `size` bytes can hold all that a stream's index promises."""
    entries = getattr(stream, "index_entries", ())
    return all(entry.size >= 0 and entry.pos + entry.size <= size for entry in entries)


def _counted(container: Any, stream: Any) -> set[int]:
    """Times of the packets behind the first, by reading the file through."""
    mine = (packet for packet in container.demux(*container.streams) if packet.stream is stream and packet.size)
    return {packet.pts for packet in mine if packet.pts is not None and not packet.is_discard}
