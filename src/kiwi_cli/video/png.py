"""PNG files of 16 bits a channel, which Pillow cannot read or write in colour, and of any size in little memory."""

from __future__ import annotations

import io
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np

from kiwi_cli.errors import MediaError

_STRIP = 1 << 22  # samples filtered at a time
_INCH = Fraction(10_000, 254)  # in a metre


def png_bytes(
    pixels: np.ndarray,
    *,
    icc_profile: bytes | None = None,
    exif: bytes | None = None,
    text: dict[str, str] | None = None,
) -> bytes:
    """A PNG file of (H, W, 3 or 4) uint8 or uint16 pixels."""
    file = io.BytesIO()
    write_png(file, pixels, icc_profile=icc_profile, exif=exif, text=text)
    return file.getvalue()


def write_png(
    file: BinaryIO,
    pixels: np.ndarray,
    *,
    icc_profile: bytes | None = None,
    exif: bytes | None = None,
    text: dict[str, str] | None = None,
    dpi: tuple[float, float] | None = None,
    xmp: bytes | None = None,
    coding: tuple[int, int] | None = None,
) -> None:
    """Write (H, W, 3 or 4) uint8 or uint16 pixels, a strip of lines at a time.

    Args:
        dpi: pixels an inch, across and down.
        coding: the primaries and the transfer of HDR values (ITU-T H.273), which go into a cICP chunk.
    """
    height, width, channels = pixels.shape
    depth = 8 * pixels.dtype.itemsize

    def put(name: bytes, data: bytes) -> None:
        file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))

    file.write(b"\x89PNG\r\n\x1a\n")
    put(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, {3: 2, 4: 6}[channels], 0, 0, 0))
    if coding:
        put(b"cICP", bytes([*coding, 0, 1]))
    if icc_profile:
        put(b"iCCP", b"icc\0\0" + zlib.compress(icc_profile))
    if dpi:
        put(b"pHYs", struct.pack(">IIB", *(max(round(value * _INCH), 1) for value in dpi), 1))
    if exif:
        put(b"eXIf", exif.removeprefix(b"Exif\0\0"))
    if xmp:
        put(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    for key, value in (text or {}).items():
        keyword = key.encode("latin-1", "replace")[:79]
        put(b"iTXt", keyword + b"\0\0\0\0\0" + value.encode())
    coder = zlib.compressobj(4)
    lines = max(_STRIP // (width * channels), 1)
    for top in range(0, height, lines):
        data = coder.compress(_filtered(pixels[max(top - 1, 0) : top + lines], top == 0))
        if data:
            put(b"IDAT", data)
    put(b"IDAT", coder.flush())
    put(b"IEND", b"")


def _filtered(pixels: np.ndarray, first: bool) -> bytes:
    """Lines with filter 4 (Paeth), what photographs compress best with; all but the first strip begin with the line
    before, which is not written."""
    height, _, channels = pixels.shape
    depth = pixels.dtype.itemsize
    stored = pixels.astype(">u2").view(np.uint8) if depth == 2 else pixels
    lines = np.ascontiguousarray(stored).reshape(height, -1)
    step = channels * depth
    left = np.zeros_like(lines)
    left[:, step:] = lines[:, :-step]
    up = np.zeros_like(lines)
    up[1:] = lines[:-1]
    corner = np.zeros_like(lines)
    corner[1:, step:] = lines[:-1, :-step]
    a, b, c = left.astype(np.int16), up.astype(np.int16), corner.astype(np.int16)
    to_a, to_b, to_c = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    guess = np.where((to_a <= to_b) & (to_a <= to_c), left, np.where(to_b <= to_c, up, corner))
    rows = np.full((height, lines.shape[1] + 1), 4, np.uint8)
    rows[:, 1:] = lines - guess
    return (rows if first else rows[1:]).tobytes()


def png_depth(path: Path) -> int:
    """Bits a channel of a PNG file; 0 for other files."""
    with path.open("rb") as file:
        head = file.read(26)
    return head[24] if head[:8] == b"\x89PNG\r\n\x1a\n" and head[12:16] == b"IHDR" else 0


def decode_png16(path: Path) -> np.ndarray:
    """(H, W, 3 or 4) uint16, exactly as stored. Pillow reads 16-bit colour as 8."""
    codec = av.CodecContext.create("png", "r")
    frames = [*codec.decode(av.Packet(path.read_bytes())), *codec.decode(None)]
    if not frames:
        raise MediaError(f"cannot read '{path}': no picture in it", "check that the file opens elsewhere")
    frame = frames[0]
    name = frame.format.name
    if name == "gray16be":
        return np.repeat(np.asarray(frame.to_ndarray()).astype(np.uint16)[..., None], 3, axis=-1)
    if name == "ya16be":
        pairs = _plane(frame, 2)
        return np.concatenate([np.repeat(pairs[..., :1], 3, axis=-1), pairs[..., 1:]], axis=-1)
    return _plane(frame, 4 if name == "rgba64be" else 3)


def _plane(frame: av.VideoFrame, channels: int) -> np.ndarray:
    """The packed big-endian 16-bit plane of a frame as (H, W, channels) uint16."""
    plane = frame.planes[0]
    lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: frame.height]
    used = np.ascontiguousarray(lines[:, : frame.width * channels * 2])
    return used.view(">u2").reshape(frame.height, frame.width, channels).astype(np.uint16)
