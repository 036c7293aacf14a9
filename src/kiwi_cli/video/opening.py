"""Opening a video file that may be broken or hostile."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import av

from kiwi_cli.errors import MediaError, UsageError
from kiwi_cli.video.clip import MAX_DIMENSION, MAX_TOTAL_PIXELS
from kiwi_cli.video.failures import reading
from kiwi_cli.video.integrity import is_motion_jpeg

# Only files, and no demuxer that follows names inside a file to other files or addresses (playlists, concat).
_DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,mpegts,mpeg,flv,asf,ogg,ivf,obu,nut,mxf,h264,hevc,"
    "mjpeg,m4v,mpegvideo,yuv4mpegpipe,dv,wav,mp3,aac,flac,aiff,caf"
)
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _DEMUXERS, "max_streams": "1000"}
_UNALIGNED = int(av.codec.context.Flags.unaligned)
_TIMEOUT = 30.0  # seconds for any one read


def check_input(path: Path) -> None:
    """Raises UsageError or MediaError for a path that is missing, no file, empty or unreadable."""
    try:
        info = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"input not found: '{path}'", "pass the path of a video, a picture or a folder") from None
    except (OSError, ValueError) as error:
        raise MediaError(f"cannot read '{path}': {error}", "check the path and its permissions") from error
    if not stat.S_ISREG(info.st_mode):
        hint = "pass a video, a picture or a folder; of a pipe, save what it gives first"
        raise MediaError(f"not a file: '{path}'", hint)
    if info.st_size == 0:
        raise MediaError(f"the file is empty: '{path}'", "copy or download it again")
    if not os.access(path, os.R_OK):
        raise MediaError(f"not allowed to read: '{path}'", "check the file's permissions")


@contextmanager
def open_media(path: Path, options: Mapping[str, str] = MappingProxyType({})) -> Iterator[Any]:
    """An open PyAV input container; library errors become MediaErrors. `options`: more of FFmpeg's own."""
    with reading(path):
        container = av.open(
            os.fspath(path.absolute()),
            mode="r",
            format="mjpeg" if is_motion_jpeg(path) else None,  # FFmpeg takes it for one picture
            options={**_OPTIONS, **options},
            metadata_errors="replace",
            timeout=(_TIMEOUT, _TIMEOUT),
        )
        try:
            yield container
        finally:
            container.close()


def picture_stream(container: Any, path: Path) -> Any:
    """The stream with the moving picture (cover art is passed over).

    Raises:
        MediaError: there is none, or its header asks for more pixels than any camera makes.
    """
    cover = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & cover]
    if not streams:
        if container.streams.audio:
            raise MediaError(f"no picture in '{path}', only sound", "pass a file with a video stream")
        raise MediaError(f"no video in '{path}'", "pass a video, a picture or a folder of numbered pictures")
    stream = streams[0]
    if stream.codec_context is None:
        raise MediaError(f"video codec not known: '{path}'", "convert it to H.264 first")
    width, height = stream.codec_context.width, stream.codec_context.height
    check_dimensions(width, height, path)
    stream.codec_context.options = {"max_pixels": str(MAX_TOTAL_PIXELS)}
    # else columns that the stream crops off its left side come back where their number is no multiple of 32 or 64
    stream.codec_context.flags |= _UNALIGNED
    # Theora's empty packets repeat the picture before: that must have come out by then
    stream.thread_type = "SLICE" if stream.codec_context.codec.canonical_name == "theora" else "AUTO"
    return stream


def check_dimensions(width: int, height: int, path: Path) -> None:
    """Raises MediaError for a frame beyond 16384 pixels a side or 134 megapixels."""
    if max(width, height) > MAX_DIMENSION or width * height > MAX_TOTAL_PIXELS:
        raise MediaError(f"picture too large: {width}x{height} in '{path}'", f"at most {MAX_DIMENSION} pixels a side")
