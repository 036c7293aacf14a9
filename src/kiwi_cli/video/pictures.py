"""Pictures in (PNG, JPEG, WebP, BMP, PPM, TIFF, JPEG 2000) and out (the first three), with what they carry."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

from kiwi_cli.errors import MediaError
from kiwi_cli.video.clip import MAX_DIMENSION, MAX_TOTAL_PIXELS
from kiwi_cli.video.failures import reading
from kiwi_cli.video.png import decode_png16, png_depth, write_png
from kiwi_cli.video.straight import straight

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# Pillow calls JPEGs of several pictures MPO, and shows the first
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF", "JPEG2000")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB")  # 8 bits a channel, or less
JPEG_COMMENT = 65_000  # bytes: a JPEG segment holds 65,533
_ORIENTATION = 0x0112  # EXIF tag
_EXIF_DESCRIPTION = 0x010E  # EXIF ImageDescription
_RGB = b"RGB "  # an ICC profile's colour space
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
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
    details: Details


@dataclass(frozen=True)
class Details:
    """What a picture file holds beside its pixels. `dpi`: pixels an inch, across and down (upright)."""

    icc_profile: bytes | None = None
    exif: bytes | None = None
    text: dict[str, str] = field(default_factory=dict)
    dpi: tuple[float, float] | None = None
    xmp: bytes | None = None


def sniff(head: bytes) -> bool:
    """True when a file's first 16 bytes are those of a picture: PNG, JPEG, WebP, BMP, PPM, TIFF or JPEG 2000."""
    if head.startswith(_MAGIC):
        return True
    if head[:2] in (b"P5", b"P6") and head[2:3].isspace():
        return True
    return (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or (head[:2] == b"BM" and head[6:10] == bytes(4))


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
            depth = png_depth(path)
            if depth != 16 and image.mode not in _MODES:
                raise MediaError(
                    f"more than 8 bits a channel in a {image.format}: '{path}' ({image.mode})",
                    "convert it to a 16-bit PNG first",
                )
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                kind = "several pages" if image.format == "TIFF" else "animated picture"
                raise MediaError(f"{kind}: '{path}' ({image.format})", "convert it to a GIF or a video first")
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            return PictureHeader(
                format="JPEG" if image.format == "MPO" else str(image.format),
                size=(height, width) if turned else (width, height),
                stored_size=(width, height),
                bit_depth=16 if depth == 16 else 8,
                has_alpha=image.has_transparency_data,
                mode=image.mode,
                text=_text(image),
            )


def read_picture(path: Path) -> Picture:
    """Decode a picture: upright, RGB or RGBA, 16 bits where the file has 16.

    Grey and CMYK pictures with a colour profile go through it to sRGB, because the profile describes no RGB.
    """
    header = read_header(path)
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path, formats=_FORMATS) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
            profile = image.info.get("icc_profile")
            foreign = profile if profile and _space_of(profile) != _RGB else None
            if header.bit_depth == 16:
                pixels = _turn(decode_png16(path), orientation)
                if foreign:
                    pixels = _from_grey(pixels, foreign)
            else:
                upright = ImageOps.exif_transpose(image) if orientation != 1 else image
                mode = "RGBA" if header.has_alpha else "RGB"
                if foreign:
                    upright = _through_profile(upright, foreign, mode)
                pixels = np.asarray(upright if upright.mode == mode else upright.convert(mode))
            details = _details(image)  # last: it changes what the picture says of itself
    return Picture(np.ascontiguousarray(pixels), details)


def read_details(path: Path) -> Details:
    """What a picture file holds beside its pixels, without decoding them."""
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path, formats=_FORMATS) as image:
            return _details(image)


def seen(pixels: np.ndarray, keeps_alpha: bool) -> np.ndarray:
    """The model's view, (H, W, 3) uint8: straight colours where the result keeps the transparency, else on white.

    Args:
        pixels: (H, W, 3 or 4), uint8 or uint16.
    """
    return straight(eight_bits(pixels)) if keeps_alpha and pixels.shape[-1] == 4 else flatten(pixels)


def flatten(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8, transparent parts on white.

    Args:
        pixels: (H, W, 3 or 4), uint8 or uint16.
    """
    view = eight_bits(pixels)
    return view if view.shape[-1] == 3 else on_white(view[..., :3], view[..., 3])


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Straight colours, (H, W, 3) uint8, composited on white. alpha: (H, W), uint8 or uint16."""
    weight = eight_bits(alpha)[..., None].astype(np.uint16)
    return ((rgb * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)


def eight_bits(values: np.ndarray) -> np.ndarray:
    """uint8 or uint16 values as uint8."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8) if values.dtype == np.uint16 else values


def merge(edited: np.ndarray, original: np.ndarray, keeps_alpha: bool = False) -> np.ndarray:
    """An edited frame at the original's depth and with its transparency.

    A pixel that the edit left as the model saw it keeps all the bits of the original, and so does one that is
    invisible in a frame of straight colours.

    Args:
        edited: (H, W, 3) uint8.
        original: (H, W, 3 or 4), uint8 or uint16.
        keeps_alpha: as of `seen`, which made the frame that was edited.
    """
    if original.dtype == np.uint8 and original.shape[-1] == 3:
        return edited
    out = original.copy()
    if keeps_alpha and original.shape[-1] == 4:
        changed = (edited != eight_bits(original[..., :3])).any(-1) & (original[..., 3] > 0)
    else:
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
    details: Details | None = None,
    coding: tuple[int, int] | None = None,
) -> None:
    """Write (H, W, 3 or 4) uint8 or uint16 pixels as 'PNG', 'JPEG' or 'WEBP'.

    Args:
        quality: None is lossless for PNG, 95 without chroma subsampling for JPEG, lossless for WebP.
        coding: primaries and transfer of HDR values; PNG only.
    """
    details = details or Details()
    text = details.text
    if file_format == "PNG":
        with path.open("wb") as file:
            write_png(
                file,
                pixels,
                icc_profile=details.icc_profile,
                exif=details.exif,
                text=text,
                dpi=details.dpi,
                xmp=details.xmp,
                coding=coding,
            )
        return
    pixels = eight_bits(pixels)
    exif = details.exif
    options: dict[str, Any] = {"icc_profile": details.icc_profile} if details.icc_profile else {}
    if details.xmp:
        options["xmp"] = details.xmp
    comment = f"{_KIWI_PREFIX}{text['kiwi']}" if "kiwi" in text else text.get("comment")
    if file_format == "JPEG":
        pixels = flatten(pixels)
        options |= {"quality": quality or 95, "subsampling": 0 if (quality or 95) >= 90 else 2}
        if details.dpi:
            options["dpi"] = tuple(round(value) for value in details.dpi)
        if comment and len(comment.encode()) <= JPEG_COMMENT + len(_KIWI_PREFIX):
            options["comment"] = comment.encode()
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


def _details(image: Image.Image) -> Details:
    """What an open picture holds beside its pixels."""
    turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    profile = image.info.get("icc_profile")
    if profile and _space_of(profile) != _RGB:  # it describes pixels that are not written
        profile = None
    dpi = image.info.get("dpi")
    if dpi is not None:
        across, down = (float(value) for value in dpi)
        dpi = None if not (0 < across < 1e6 and 0 < down < 1e6) else (down, across) if turned else (across, down)
    xmp = image.info.get("xmp", image.info.get("XML:com.adobe.xmp"))
    if isinstance(xmp, str):
        xmp = xmp.encode()
    text = {key: value for key, value in _text(image).items() if key != "XML:com.adobe.xmp"}
    return Details(profile, _upright_exif(image), text, dpi, xmp if isinstance(xmp, bytes) else None)  # EXIF last


def _space_of(profile: bytes) -> bytes:
    """The colour space that an ICC profile describes (ICC.1, bytes 16 to 19)."""
    return profile[16:20]


def _through_profile(image: Image.Image, profile: bytes, mode: str) -> Image.Image:
    """A grey or CMYK picture in sRGB, by its profile; as Pillow converts it where the profile does not fit."""
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    plain = image.convert("L") if image.mode in ("LA", "1", "P", "PA") else image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        found = ImageCms.profileToProfile(plain, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image.convert(mode)
    assert found is not None
    if alpha is not None and mode == "RGBA":
        found.putalpha(alpha)
    return found.convert(mode)


def _from_grey(pixels: np.ndarray, profile: bytes) -> np.ndarray:
    """16-bit grey values, (H, W, 3 or 4) uint16, in sRGB by their profile."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    curve = np.asarray(_through_profile(ramp, profile, "RGB"), np.float64)[0] * 257
    out = pixels.copy()
    for index in range(3):
        out[..., index] = np.interp(pixels[..., index], np.arange(256) * 257, curve[:, index]).round()
    return out


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
