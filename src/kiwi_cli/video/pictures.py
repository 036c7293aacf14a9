"""Pictures (PNG, JPEG, WebP) in and out, with their depth, transparency, profile and text."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageOps

from kiwi_cli.errors import MediaError
from kiwi_cli.video.clip import MAX_DIMENSION, MAX_TOTAL_PIXELS
from kiwi_cli.video.failures import reading

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP")  # Pillow calls JPEGs of several pictures MPO, and shows the first
JPEG_COMMENT = 65_000  # bytes: a JPEG segment holds 65,533
_ORIENTATION = 0x0112  # EXIF tag
_EXIF_DESCRIPTION = 0x010E  # EXIF ImageDescription
_KIWI_PREFIX = "kiwi:"


@dataclass(frozen=True)
class PictureHeader:
    """What a picture's header says. `size` is upright, pixels."""

    format: str
    size: tuple[int, int]
    stored_size: tuple[int, int]
    bit_depth: int
    has_alpha: bool
    mode: str
    text: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """A decoded, upright picture. `pixels`: (H, W, 3 or 4), uint8 or uint16."""

    pixels: np.ndarray
    icc_profile: bytes | None = None
    exif: bytes | None = None
    text: dict[str, str] = field(default_factory=dict)


def sniff(head: bytes) -> bool:
    """True when a file's first bytes are those of a PNG, JPEG or WebP picture."""
    return head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def read_header(path: Path) -> PictureHeader:
    """Size, depth and text of a picture without decoding it.

    Raises:
        MediaError: not readable, animated, or larger than any camera makes.
    """
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about large pictures; the bound below is ours
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            if max(width, height) > MAX_DIMENSION or width * height > MAX_TOTAL_PIXELS:
                raise MediaError(
                    f"picture too large: {width}x{height} in '{path}'", f"at most {MAX_DIMENSION} pixels a side"
                )
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                raise MediaError(f"animated picture: '{path}' ({image.format})", "convert it to a GIF or a video first")
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            return PictureHeader(
                format="JPEG" if image.format == "MPO" else str(image.format),
                size=(height, width) if turned else (width, height),
                stored_size=(width, height),
                bit_depth=16 if _png_depth(path) == 16 else 8,
                has_alpha=image.has_transparency_data,
                mode=image.mode,
                text=_text(image),
            )


def read_picture(path: Path) -> Picture:
    """Decode a picture: upright, RGB or RGBA, 16 bits where the file has 16."""
    header = read_header(path)
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path, formats=_FORMATS) as image:
            icc = image.info.get("icc_profile")
            orientation = image.getexif().get(_ORIENTATION, 1)
            if header.bit_depth == 16:
                pixels = _turn(_decode_png16(path), orientation)
            else:
                upright = ImageOps.exif_transpose(image)
                pixels = np.asarray(upright.convert("RGBA" if header.has_alpha else "RGB"))
            exif = _upright_exif(image)  # last: it changes what the picture says of itself
    return Picture(np.ascontiguousarray(pixels), icc, exif, header.text)


def flatten(pixels: np.ndarray) -> np.ndarray:
    """The model's view: (H, W, 3) uint8, transparent parts on white.

    Args:
        pixels: (H, W, 3 or 4), uint8 or uint16.
    """
    view = pixels
    if view.dtype == np.uint16:
        view = ((view.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if view.shape[-1] == 3:
        return view
    alpha = view[..., 3:].astype(np.uint16)
    return ((view[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def merge(edited: np.ndarray, original: np.ndarray) -> np.ndarray:
    """An edited frame at the original's depth and with its transparency.

    A pixel that the edit left as the model saw it keeps all the bits of the original.

    Args:
        edited: (H, W, 3) uint8.
        original: (H, W, 3 or 4), uint8 or uint16.
    """
    if original.dtype == np.uint8 and original.shape[-1] == 3:
        return edited
    out = original.copy()
    changed = (edited != flatten(original)).any(-1)
    scale = 257 if original.dtype == np.uint16 else 1
    out[..., :3][changed] = edited[changed].astype(original.dtype) * scale
    return out


def save_picture(
    path: Path,
    pixels: np.ndarray,
    *,
    file_format: str,
    quality: int | None = None,
    icc_profile: bytes | None = None,
    exif: bytes | None = None,
    text: dict[str, str] | None = None,
) -> None:
    """Write (H, W, 3 or 4) uint8 or uint16 pixels as 'PNG', 'JPEG' or 'WEBP'.

    `quality` None is lossless for PNG, 95 without chroma subsampling for JPEG, lossless for WebP.
    """
    text = text or {}
    if file_format == "PNG":
        path.write_bytes(png_bytes(pixels, icc_profile=icc_profile, exif=exif, text=text))
        return
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    options: dict[str, Any] = {"icc_profile": icc_profile} if icc_profile else {}
    comment = f"{_KIWI_PREFIX}{text['kiwi']}" if "kiwi" in text else text.get("comment")
    if file_format == "JPEG":
        pixels = flatten(pixels)
        options |= {"quality": quality or 95, "subsampling": 0 if (quality or 95) >= 90 else 2}
        options |= (
            {"comment": comment.encode()}
            if comment and len(comment.encode()) <= JPEG_COMMENT + len(_KIWI_PREFIX)
            else {}
        )
    else:
        options |= {"lossless": True, "exact": True} if quality is None else {"quality": quality}
        tags = Image.Exif()
        if exif:
            tags.load(exif)
        if comment:
            tags[_EXIF_DESCRIPTION] = comment
        exif = tags.tobytes() if len(tags) else None
    if exif:
        options["exif"] = exif
    Image.fromarray(pixels).save(path, format=file_format, **options)


def png_bytes(
    pixels: np.ndarray,
    *,
    icc_profile: bytes | None = None,
    exif: bytes | None = None,
    text: dict[str, str] | None = None,
) -> bytes:
    """A PNG file of (H, W, 3 or 4) uint8 or uint16 pixels. Pillow cannot write 16-bit colour."""
    height, width, channels = pixels.shape
    depth = 8 * pixels.dtype.itemsize
    stored = pixels.astype(">u2").view(np.uint8) if depth == 16 else pixels
    lines = stored.reshape(height, -1)
    # Filter 4 (Paeth) on every line: what photographs compress best with, and one numpy expression for all.
    step = channels * depth // 8
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
    kind = {3: 2, 4: 6}[channels]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))]
    if icc_profile:
        chunks.append((b"iCCP", b"icc\0\0" + zlib.compress(icc_profile)))
    if exif:
        chunks.append((b"eXIf", exif.removeprefix(b"Exif\0\0")))
    for key, value in (text or {}).items():
        keyword = key.encode("latin-1", "replace")[:79]
        chunks.append((b"iTXt", keyword + b"\0\0\0\0\0" + value.encode()))
    chunks += [(b"IDAT", zlib.compress(rows.tobytes(), 4)), (b"IEND", b"")]
    file = io.BytesIO()
    file.write(b"\x89PNG\r\n\x1a\n")
    for name, data in chunks:
        file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
    return file.getvalue()


def _png_depth(path: Path) -> int:
    with path.open("rb") as file:
        head = file.read(26)
    return head[24] if head[:8] == b"\x89PNG\r\n\x1a\n" and head[12:16] == b"IHDR" else 0


def _decode_png16(path: Path) -> np.ndarray:
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


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation (1 to 8) to (H, W, C) pixels."""
    if orientation in (2, 4, 5, 7):
        pixels = pixels[:, ::-1]
    quarter_turns = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.rot90(pixels, quarter_turns)


def _upright_exif(image: Image.Image) -> bytes | None:
    """The picture's EXIF with the orientation taken out, because the pixels are upright now."""
    try:
        tags = image.getexif()
        tags.pop(_ORIENTATION, None)
        return tags.tobytes() if len(tags) else None
    except Exception:  # EXIF blocks are often broken, and never worth failing a picture for
        return None


def _text(image: Image.Image) -> dict[str, str]:
    """The picture's own text entries; 'kiwi' is what `save_picture` was given under that name."""
    found: dict[str, str] = {}
    texts = {str(key): str(value) for key, value in image.info.items() if isinstance(value, str)}
    comment = image.info.get("comment")
    if isinstance(comment, bytes):
        texts["comment"] = comment.decode("utf-8", "replace")
    description = image.getexif().get(_EXIF_DESCRIPTION)
    if isinstance(description, str):
        texts["description"] = description
    for key, value in texts.items():
        if value.startswith(_KIWI_PREFIX):
            found["kiwi"] = value.removeprefix(_KIWI_PREFIX)
        else:
            found[key] = value
    return found
