"""Which encoder, pixel format and settings make which file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Literal

import av

from kiwi_cli.base.choices import codec_name
from kiwi_cli.base.hardware import has_avx512
from kiwi_cli.errors import UsageError
from kiwi_cli.video.clip import Colour
from kiwi_cli.video.formats import grid_of, planar_name
from kiwi_cli.video.geometry import Size
from kiwi_cli.video.siting import name_of

Container = Literal["mp4", "mov", "mkv", "webm", "gif", "png", "jpeg", "webp", "folder"]
CONTAINERS: dict[str, Container] = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "mkv",
    ".webm": "webm",
    ".gif": "gif",
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    "": "folder",
}
FORMATS = {"mp4": "mp4", "mov": "mov", "mkv": "matroska", "webm": "webm", "gif": "gif"}  # muxers

# The first is the default. H.264 is what plays everywhere; WebM takes only VP9 and AV1.
CODECS: dict[str, tuple[str, ...]] = {
    "mp4": ("h264", "hevc", "av1", "vp9"),
    "mov": ("h264", "hevc", "prores"),
    "mkv": ("h264", "hevc", "vp9", "av1", "prores", "ffv1"),
    "webm": ("vp9", "av1"),
}
SOFTWARE = {
    "h264": "libx264",
    "hevc": "libx265",
    "vp9": "libvpx-vp9",
    "av1": "libsvtav1",
    "prores": "prores_ks",
    "ffv1": "ffv1",
}
HARDWARE = tuple(
    f"{codec}_{kind}" for kind in ("nvenc", "videotoolbox", "qsv", "vaapi", "amf") for codec in ("h264", "hevc", "av1")
)

QUALITIES = ("low", "medium", "high", "lossless")
# Constant rate factors of low, medium, high: about equal to the eye across codecs.
_CRF = {
    "h264": (28, 23, 17),
    "hevc": (30, 25, 19),
    "vp9": (40, 31, 22),
    "av1": (45, 34, 24),
}
_MAX_CRF = {"h264": 51, "hevc": 51, "vp9": 63, "av1": 63}
_SHARES = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0", (1, 2): "4:4:0", (4, 1): "4:1:1", (4, 4): "4:1:0"}
_PRORES_PROFILE = {"low": "1", "medium": "2", "high": "3", "lossless": "3"}  # LT, standard, HQ


@dataclass(frozen=True)
class Encoding:
    """An encoder's name and settings. `rgb`: it stores RGB, so there is no colour conversion."""

    codec: str
    encoder: str
    pixel_format: str
    options: dict[str, str]
    rgb: bool = False
    notices: tuple[str, ...] = ()


def _taken_by(codec: str) -> list[str]:
    """The extensions of containers that take a codec."""
    return [f".{container}" for container, codecs in CODECS.items() if codec in codecs]


def choose_encoding(
    container: Container,
    codec: str | None,
    quality: str | int | None,
    size: Size,
    colour: Colour,
    bit_depth: int = 8,
    source_format: str = "yuv420p",
) -> Encoding:
    """The encoder for a video file.

    Args:
        codec: a name of `CODECS`, or what people call it, one of `HARDWARE`, or None for the container's default.
        quality: a name of `QUALITIES`, a constant rate factor, or None ('high').
        size: of the written picture, pixels. H.264 and HEVC cannot hold an odd side in 4:2:0, whose
            cropping moves in steps of two; those are written as 4:4:4, which VLC, mpv, Chrome and Firefox
            play and phones and QuickTime do not.
        source_format: the clip's pixel format: FFV1 keeps it, and what the others cannot keep of it is said.

    Raises:
        UsageError: the container does not take the codec, or the quality is not understood.
    """
    known = CODECS[container]
    wanted = codec_name(codec) if codec else known[0]
    name = wanted.split("_")[0]
    if wanted not in SOFTWARE and wanted not in HARDWARE:
        raise UsageError(f"unknown codec: {codec!r}", f"use {', '.join(known)} in .{container}")
    if name not in known:
        raise UsageError(
            f"codec {wanted!r} does not go into .{container}",
            f"use {', '.join(known)} there; for {name}, write to {', '.join(_taken_by(name))}",
        )
    notices: list[str] = []
    encoder = SOFTWARE[name]
    if wanted in HARDWARE:
        if quality != "lossless" and _even(size) and opens(wanted):
            encoder = wanted
        else:
            notices.append(f"{wanted} cannot be used here: {encoder} encodes instead")
    level = _level(name, quality)
    if level == "lossless":
        return _lossless(name, size, tuple(notices), bit_depth)
    if not _even(size) and name == "av1":
        raise UsageError(f"AV1 cannot be written at {size}: the encoder takes even sides", "pass --codec vp9 or h264")
    if encoder in HARDWARE:
        pixel_format, options = "yuv420p", _hardware_options(encoder, _crf(name, level))
    else:
        pixel_format, options = _pixel_format(name, bit_depth, source_format, colour), _software_options(name, level)
    if not _even(size) and name in ("h264", "hevc"):
        pixel_format = pixel_format.replace("420", "444")
        notices.append(
            f"{size} has an odd side, which 4:2:0 {name.upper()} cannot hold: written as 4:4:4, which phones "
            "and QuickTime do not play (a .webm, or --codec vp9, holds it in 4:2:0)"
        )
    notices += _losses(name, pixel_format, bit_depth, source_format, colour)
    rgb = pixel_format.startswith(("gbr", "bgr", "rgb"))
    return Encoding(name, encoder, pixel_format, options, rgb, tuple(notices))


def _pixel_format(name: str, bit_depth: int, source_format: str, colour: Colour) -> str:
    """What an encoder in software stores: FFV1 what the clip stores, ProRes 4:2:2, the others 4:2:0."""
    deep = bit_depth > 8
    if name == "ffv1":
        own = planar_name(source_format)
        if colour.matrix == "rgb":
            return _rgb_format(bit_depth)
        grid = grid_of(source_format)
        if own is not None and grid is not None and not grid.gray and own in _ffv1_formats():
            return own
        return "yuv444p16le" if bit_depth > 10 else "yuv444p10le" if deep else "yuv444p"
    if name == "prores":
        return "yuv422p10le"
    return "yuv420p10le" if deep and name in ("hevc", "av1") else "yuv420p"


def _losses(name: str, pixel_format: str, bit_depth: int, source_format: str, colour: Colour) -> list[str]:
    """What the encoder's format does not hold of the clip's, in words."""
    notices = []
    target, source = grid_of(pixel_format), grid_of(source_format)
    if target is None:
        return []
    if bit_depth > target.depth:
        others = "ffv1 keeps them" if target.depth > 8 or bit_depth > 10 else "hevc, av1 or prores keep 10"
        notices.append(f"{bit_depth} bits a sample become {target.depth} (--codec {others})")
    if source is not None and not source.gray and _finer(source.factors, target.factors):
        kept = "--codec ffv1 in a .mkv keeps it"
        notices.append(f"{_SHARES[source.factors]} colour becomes {_SHARES[target.factors]} ({kept})")
    if colour.full_range and colour.matrix != "rgb" and name == "prores":
        notices.append("full range becomes limited: ProRes has no full range")
    if (colour.mastering or colour.light) and name not in ("hevc", "av1"):
        notices.append("not kept: the HDR mastering display and light levels (--codec hevc or av1 keeps them)")
    return notices


def _finer(source: tuple[int, int], target: tuple[int, int]) -> bool:
    return source[0] < target[0] or source[1] < target[1]


def _rgb_format(bit_depth: int) -> str:
    return "bgr0" if bit_depth <= 8 else next(f"gbrp{n}le" for n in (9, 10, 12, 14, 16) if n >= bit_depth)


@cache
def _ffv1_formats() -> frozenset[str]:
    return frozenset(kind.name for kind in av.Codec("ffv1", "w").video_formats or ())


def colour_options(colour: Colour, encoding: Encoding) -> dict[str, str]:
    """Encoder options that carry what a frame's tags cannot: the chroma's place, and HDR's two records.

    The encoding's own options of the same name are in them.
    """
    options = {}
    grid = grid_of(encoding.pixel_format)
    if grid is not None and grid.factors != (1, 1) and encoding.encoder not in HARDWARE:
        options["chroma_sample_location"] = name_of(colour.siting)
    if encoding.encoder == "libx265" and (colour.mastering or colour.light):
        words = [encoding.options["x265-params"], "hdr10=1"]
        if colour.mastering:
            rx, ry, gx, gy, bx, by, wx, wy, low, high = colour.mastering
            points = [round(value * 50_000) for value in (gx, gy, bx, by, rx, ry, wx, wy)]
            words.append(
                "master-display=G({},{})B({},{})R({},{})WP({},{})".format(*points)
                + f"L({round(high * 10_000)},{round(low * 10_000)})"
            )
        if colour.light:
            words.append("max-cll={},{}".format(*colour.light))
        options["x265-params"] = ":".join(words)
    if encoding.encoder == "libsvtav1" and (colour.mastering or colour.light):
        words = []
        if colour.mastering:
            said = "mastering-display=G({2},{3})B({4},{5})R({0},{1})WP({6},{7})L({9},{8})"
            words.append(said.format(*(f"{float(value):.5f}" for value in colour.mastering)))
        if colour.light:
            words.append("content-light={},{}".format(*colour.light))
        options["svtav1-params"] = ":".join(words)
    return options


def _even(size: Size) -> bool:
    return size.width % 2 == 0 and size.height % 2 == 0


def _level(name: str, quality: str | int | None) -> str | int:
    """The quality as one of `QUALITIES` or a number that the codec knows."""
    if quality is None:
        return "high"
    if isinstance(quality, str) and quality in QUALITIES:
        return quality
    try:
        number = int(quality)
    except ValueError:
        number = -1
    if name in _MAX_CRF and 0 <= number <= _MAX_CRF[name]:
        return number
    numbers = f" or 0 to {_MAX_CRF[name]}" if name in _MAX_CRF else ""
    raise UsageError(f"quality not understood: '{quality}'", f"pass --quality {', '.join(QUALITIES)}{numbers}")


def _crf(name: str, level: str | int) -> int:
    return level if isinstance(level, int) else _CRF[name][QUALITIES.index(level)]


def _software_options(name: str, level: str | int) -> dict[str, str]:
    if name == "h264":
        return {"crf": str(_crf(name, level)), "preset": "medium", **steady_x264()}
    if name == "hevc":
        # x265 writes to stderr on its own unless told not to
        return {"crf": str(_crf(name, level)), "preset": "medium", "x265-params": "log-level=none"}
    if name == "vp9":
        return {"crf": str(_crf(name, level)), "b": "0", "row-mt": "1", "cpu-used": "4", "deadline": "good"}
    if name == "av1":
        return {"crf": str(_crf(name, level)), "preset": "8"}
    if name == "prores":
        return {"profile": _PRORES_PROFILE[str(level)], "vendor": "apl0"}
    return {"level": "3", "slicecrc": "1"}  # FFV1 is lossless at every level


def steady_x264() -> dict[str, str]:
    """Options with which x264 writes the same bytes of the same frames, on every processor.

    With AVX-512 its macroblock tree (that of PyAV 18, at widths from 80 to 360) takes what lies in memory behind a
    row: the frames of three files in a hundred were others. AVX2 does not, and takes no longer at these sizes.
    """
    return {"x264-params": "asm=avx2"} if has_avx512() else {}


def _hardware_options(encoder: str, crf: int) -> dict[str, str]:
    if encoder.endswith("_nvenc"):
        return {"rc": "vbr", "cq": str(crf), "b": "0", "preset": "p5"}
    if encoder.endswith("_qsv"):
        return {"global_quality": str(crf)}
    if encoder.endswith("_videotoolbox"):
        return {"q": str(max(1, 100 - 2 * crf))}
    return {"qp": str(crf)}


def _lossless(name: str, size: Size, notices: tuple[str, ...], bit_depth: int) -> Encoding:
    """Every frame comes back bit for bit: the RGB pixels themselves are coded."""
    note = (*notices, "lossless RGB: VLC, mpv and FFmpeg play it, phones and browsers do not")
    if bit_depth > 8 and name != "ffv1":
        note = (*note, f"{bit_depth} bits a sample become 8 (--codec ffv1 keeps them)")
    if name == "h264":
        return Encoding(name, "libx264rgb", "rgb24", {"qp": "0", "preset": "medium"}, True, note)
    if name == "hevc":
        options = {"preset": "medium", "x265-params": "lossless=1:log-level=none"}
        return Encoding(name, "libx265", "gbrp", options, True, note)
    if name == "vp9":
        return Encoding(name, "libvpx-vp9", "gbrp", {"lossless": "1", "row-mt": "1", "cpu-used": "4"}, True, note)
    if name == "ffv1":
        return Encoding(name, "ffv1", _rgb_format(bit_depth), {"level": "3", "slicecrc": "1"}, True, note)
    raise UsageError(f"{name} cannot be lossless", "pass --codec h264, hevc, vp9 or ffv1, or write a folder of PNG")


@cache
def opens(encoder: str) -> bool:
    """True when this machine's encoder of that name really starts."""
    quieten()
    try:
        context = av.CodecContext.create(encoder, "w")
        context.width, context.height = 640, 480  # type: ignore[attr-defined]
        context.pix_fmt = "yuv420p"  # type: ignore[attr-defined]
        context.time_base = Fraction(1, 25)
        context.open()
    except Exception:  # the reasons are as many as drivers
        return False
    return True


def available_codecs() -> dict[str, bool]:
    """Every encoder kiwi knows, and whether it can be used here (for `kiwi doctor`)."""
    here = av.codecs_available
    return {name: name in here for name in SOFTWARE.values()} | {
        name: name in here and opens(name) for name in HARDWARE
    }


def quieten() -> None:
    """Keep SVT-AV1 from writing its settings to stderr."""
    os.environ.setdefault("SVT_LOG", "1")
