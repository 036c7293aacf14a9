"""Is a file cut off? Read from its outermost boxes, without decoding anything.

Half-copied and half-downloaded files open and play for a while. The sizes in the file's own frame (ISO boxes,
the Matroska segment, RIFF) say how long the file should be.
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import BinaryIO

_TAIL = 1 << 20  # bytes of padding that may lie behind a GIF
# top-level boxes of ISO/IEC 14496-12, QuickTime and DASH
_BOXES = re.compile(rb"ftyp|moov|mdat|free|skip|wide|pnot|udta|uuid|moof|mfra|sidx|ssix|styp|meta|prft|emsg|pdin|imda")
_LOOKED_AT = 16 << 20  # bytes at either end of a file
_MAX_BOXES = 10_000  # top-level boxes looked at; a fragmented file of an hour has about 3,600


def is_cut_off(path: Path) -> bool:
    """True when the file ends before its own headers say it does. False when that cannot be told."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):
            return _iso_end(file, size) > size
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _matroska_end(file) > size
        if head[:4] == b"RIFF":
            length = struct.unpack("<I", head[4:8])[0]
            # written to a pipe, the size could not be filled in
            return length not in (0, 0xFFFFFFFF) and length + 8 > size + 1
        if head[:3] == b"GIF":
            file.seek(max(size - _TAIL, 0))
            return b"\x3b" not in file.read().rstrip(b"\0")[-16:]
    return False


def _iso_end(file: BinaryIO, size: int) -> int:
    """Where the last top-level box of an MP4 or MOV file ends, in bytes."""
    position = 0
    for _ in range(_MAX_BOXES):
        file.seek(position)
        header = file.read(16)
        if len(header) < 8:
            return position + 8 if header.strip(b"\0") else position
        if position and not _BOXES.fullmatch(header[4:8]):  # what programs put behind the file
            return position
        length = struct.unpack(">I", header[:4])[0]
        if length == 1 and len(header) == 16:
            length = struct.unpack(">Q", header[8:])[0]
        if length == 0:  # to the end of the file
            return size
        if length < 8:  # trailing bytes that are no box
            return position
        position += length
        if position >= size:
            return position
    return position


def _matroska_end(file: BinaryIO) -> int:
    """Where the Matroska segment ends, in bytes; 0 when its size is not given (a live recording)."""
    file.seek(4)
    header_size, known = _vint(file)
    if not known or header_size > 1 << 20:
        return 0
    file.seek(header_size, os.SEEK_CUR)
    if file.read(4) != b"\x18\x53\x80\x67":
        return 0
    segment_size, known = _vint(file)
    return file.tell() + segment_size if known else 0


def _vint(file: BinaryIO) -> tuple[int, bool]:
    """An EBML number, and whether it is a number rather than 'unknown' (all ones)."""
    first = file.read(1)
    if not first or first[0] == 0:
        return 0, False
    length = 9 - first[0].bit_length()
    raw = bytes([first[0] & ((1 << (8 - length)) - 1)]) + file.read(length - 1)
    value = int.from_bytes(raw, "big")
    return value, value != (1 << (7 * length)) - 1


def is_encrypted(path: Path) -> bool:
    """True when an MP4 says that its picture is encrypted (ISO/IEC 23001-7)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(12)[4:8] not in (b"ftyp", b"moov", b"styp"):
            return False
        file.seek(0)
        data = file.read(_LOOKED_AT)
        file.seek(max(size - _LOOKED_AT, 0))
        data += file.read()
    return b"encv" in data and b"sinf" in data


def is_motion_jpeg(path: Path) -> bool:
    """True when a JPEG file holds one picture after the other, without saying that they are views of one."""
    with path.open("rb") as file:
        if file.read(3) != b"\xff\xd8\xff":
            return False
        file.seek(0)
        data = file.read(_LOOKED_AT)
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:
        length = struct.unpack(">H", data[position + 2 : position + 4])[0]
        if data[position + 1] == 0xE2 and data[position + 4 : position + 8] == b"MPF\0":
            return False  # a phone's picture with a second one behind it
        position += 2 + length
    end = data.find(b"\xff\xd9", position)
    return end >= 0 and data[end + 2 : end + 5] == b"\xff\xd8\xff"
