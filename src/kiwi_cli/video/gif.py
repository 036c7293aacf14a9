"""The blocks of a GIF file: its comments, how often it plays, how long its last picture stays."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_COMMENT = b"\x21\xfe"
_CONTROL = b"\x21\xf9"
_LOOP = b"\x21\xff\x0bNETSCAPE2.0"
_LONGEST = 65_535  # hundredths of a second


class _Block(NamedTuple):
    """A block's first two bytes, where it begins and ends, and the data of its sub-blocks."""

    kind: bytes
    begin: int
    end: int
    data: bytes


def comments(data: bytes) -> dict[str, str]:
    """The texts of a GIF's comment blocks: 'key:value', or 'comment' for one without a key."""
    found: dict[str, str] = {}
    for block in _blocks(data):
        if block.kind == _COMMENT:
            key, _, value = block.data.decode("utf-8", "replace").partition(":")
            found |= {key.lower(): value} if value else {"comment": key}
    return found


def loops(path: Path) -> int | None:
    """How often a GIF begins again: 0 for ever, None when it plays once."""
    for block in _blocks(path.read_bytes()):
        if block.data[:11] == _LOOP[3:] and len(block.data) >= 14:
            return int(struct.unpack("<H", block.data[12:14])[0])
    return None


def finish(path: Path, text: dict[str, str], last: int) -> None:
    """Put texts into comment blocks before the first picture, and set how long the last one stays.

    Args:
        last: hundredths of a second.
    """
    data = bytearray(path.read_bytes())
    first, control = None, None
    for block in _blocks(bytes(data)):
        if block.kind == _CONTROL:
            control = block.begin
        if first is None and block.kind != _LOOP[:2]:
            first = block.begin
    if control is not None:
        struct.pack_into("<H", data, control + 4, min(max(last, 1), _LONGEST))
    added = b"".join(_block(f"{key}:{value}".encode()) for key, value in text.items())
    if added and first is not None:
        data[first:first] = added
    path.write_bytes(data)


def _block(data: bytes) -> bytes:
    parts = [data[i : i + 255] for i in range(0, len(data), 255)]
    return _COMMENT + b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


def _blocks(data: bytes) -> Iterator[_Block]:
    """The blocks between header and end. Stops where the file is broken."""
    if len(data) < 13:
        return
    position = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    while position + 1 < len(data) and data[position] != 0x3B:
        begin, kind = position, data[position : position + 2]
        if data[position] == 0x2C and position + 9 < len(data):  # an image: its palette, then its data
            flags = data[position + 9]
            position += 11 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
        elif data[position] == 0x21:
            position += 2
        else:
            return
        parts = []
        while position < len(data) and data[position]:
            if kind[0] == 0x21:
                parts.append(data[position + 1 : position + 1 + data[position]])
            position += 1 + data[position]
        position += 1
        yield _Block(kind, begin, position, b"".join(parts))
