"""Which encoder, pixel format and settings make which file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Literal

import av

from kiwi_cli.errors import UsageError
from kiwi_cli.video.clip import Colour
from kiwi_cli.video.geometry import Size

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


def choose_encoding(
    container: Container,
    codec: str | None,
    quality: str | int | None,
    size: Size,
    colour: Colour,
    bit_depth: int = 8,
) -> Encoding:
    """The encoder for a video file.

    Args:
        codec: a name of `CODECS`, one of `HARDWARE`, or None for the container's default.
        quality: a name of `QUALITIES`, a constant rate factor, or None ('high').
        size: of the written picture, pixels. H.264 and HEVC cannot hold an odd side in 4:2:0, whose
            cropping moves in steps of two; those are written as 4:4:4, which VLC, mpv, Chrome and Firefox
            play and phones and QuickTime do not.

    Raises:
        UsageError: the container does not take the codec, or the quality is not understood.
    """
    known = CODECS[container]
    wanted = codec or known[0]
    name = wanted.split("_")[0]
    if (wanted not in SOFTWARE and wanted not in HARDWARE) or name not in known:
        raise UsageError(f"codec {wanted!r} does not go into .{container}", f"pass --codec {', '.join(known)}")
    notices: list[str] = []
    encoder = SOFTWARE[name]
    if wanted in HARDWARE:
        if quality != "lossless" and _even(size) and opens(wanted):
            encoder = wanted
        else:
            notices.append(f"{wanted} cannot be used here: {encoder} encodes instead")
    level = _level(name, quality)
    if level == "lossless":
        return _lossless(name, size, tuple(notices))
    if encoder in HARDWARE:
        options = _hardware_options(encoder, _crf(name, level))
        return Encoding(name, encoder, "yuv420p", options, notices=tuple(notices))
    deep = bit_depth > 8 and name in ("hevc", "av1", "prores", "ffv1")
    pixel_format = "yuv420p10le" if deep else "yuv420p"
    if name == "prores":
        pixel_format = "yuv422p10le"
    if name == "ffv1":
        pixel_format = "yuv444p10le" if deep else "yuv444p"
    if not _even(size) and name in ("h264", "hevc"):
        pixel_format = pixel_format.replace("420", "444")
        notices.append(
            f"{size} has an odd side, which 4:2:0 {name.upper()} cannot hold: written as 4:4:4, which phones "
            "and QuickTime do not play (a .webm, or --codec vp9, holds it in 4:2:0)"
        )
    if bit_depth > 8 and not deep and name != "prores":
        notices.append(f"{bit_depth} bits a sample become 8 (--codec hevc, av1 or prores keep 10)")
    if not _even(size) and name == "av1":
        raise UsageError(f"AV1 cannot be written at {size}: the encoder takes even sides", "pass --codec vp9 or h264")
    if colour.full_range and colour.matrix != "rgb" and name == "prores":
        notices.append("full range becomes limited: ProRes has no full range")
    return Encoding(name, encoder, pixel_format, _software_options(name, level), notices=tuple(notices))


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
        return {"crf": str(_crf(name, level)), "preset": "medium"}
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


def _hardware_options(encoder: str, crf: int) -> dict[str, str]:
    if encoder.endswith("_nvenc"):
        return {"rc": "vbr", "cq": str(crf), "b": "0", "preset": "p5"}
    if encoder.endswith("_qsv"):
        return {"global_quality": str(crf)}
    if encoder.endswith("_videotoolbox"):
        return {"q": str(max(1, 100 - 2 * crf))}
    return {"qp": str(crf)}


def _lossless(name: str, size: Size, notices: tuple[str, ...]) -> Encoding:
    """Every frame comes back bit for bit: the RGB pixels themselves are coded."""
    note = (*notices, "lossless RGB: VLC, mpv and FFmpeg play it, phones and browsers do not")
    if name == "h264":
        return Encoding(name, "libx264rgb", "rgb24", {"qp": "0", "preset": "medium"}, True, note)
    if name == "hevc":
        options = {"preset": "medium", "x265-params": "lossless=1:log-level=none"}
        return Encoding(name, "libx265", "gbrp", options, True, note)
    if name == "vp9":
        return Encoding(name, "libvpx-vp9", "gbrp", {"lossless": "1", "row-mt": "1", "cpu-used": "4"}, True, note)
    if name == "ffv1":
        return Encoding(name, "ffv1", "bgr0", {"level": "3", "slicecrc": "1"}, True, note)
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
