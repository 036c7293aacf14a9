"""Files that are known and not read: each is named as what it is, with what to make of it first."""

from __future__ import annotations

import re
from pathlib import Path

from kiwi_cli.errors import MediaError

HEAD = 64  # bytes of a file that are looked at
_TO_PNG, _TO_MP4 = "convert it to PNG first", "convert it to MP4 first"
# A phone's photographs look like an MP4 whose video is the tiles of the picture, or one of its two sizes.
_PHOTOS = rb"....ftyp(heic|heix|heim|heis|hevc|hevx|hevm|hevs|mif1|msf1|avif|avis)"
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (_PHOTOS, "a HEIC or AVIF picture", "convert it to JPEG or PNG first"),
    (rb"....ftypcrx |FUJIFILMCCD-RAW", "a camera's raw picture", "develop it to JPEG or PNG first"),
    (rb"\xff\x0a|....JXL ", "a JPEG XL picture", _TO_PNG),
    (rb"\x76\x2f\x31\x01", "an OpenEXR picture", _TO_PNG),
    (rb"SDPX|XPDS", "a DPX picture", _TO_PNG),
    (rb"8BPS|8BPB", "a Photoshop document", _TO_PNG),
    (rb"DDS ", "a texture", _TO_PNG),
    (rb"%PDF", "a PDF document", "convert the page to PNG first"),
    (rb"\s*(<\?xml[^>]*>\s*)?<svg", "an SVG drawing", _TO_PNG),
    (rb"\s*(<!doctype html|<html)", "a web page", "download the clip that it shows"),
    (rb"\xef?\xbb?\xbf?#EXTM3U|ffconcat ", "a playlist", "pass the clip that it names"),
    (rb"PK\x03\x04|Rar!\x1a|7z\xbc\xaf\x27\x1c|\x1f\x8b", "an archive", "unpack it, and pass what is in it"),
)
_MAGIC = [(re.compile(magic, re.DOTALL | re.IGNORECASE), what, hint) for magic, what, hint in _KINDS]
_RAW = ["dng", "nef", "nrw", "cr2", "arw", "srf", "sr2", "orf", "rw2", "pef", "srw", "3fr", "erf", "kdc", "mrw", "x3f"]
_BY_NAME = {
    **dict.fromkeys(_RAW, ("a camera's raw picture", "develop it to JPEG or PNG first")),
    "tga": ("a Targa picture", _TO_PNG),
    "pcx": ("a PCX picture", _TO_PNG),
    "ico": ("an icon", _TO_PNG),
    "yuv": ("raw video without a header", _TO_MP4),
    "rgb": ("raw video without a header", _TO_MP4),
    "braw": ("a camera's raw video", _TO_MP4),
    "r3d": ("a camera's raw video", _TO_MP4),
}
"""Of files that say nothing of themselves, or hold a small picture that is not the one meant."""


def refuse_foreign(path: Path, head: bytes) -> None:
    """Refuse a file of a kind that is not read.

    Args:
        head: its first `HEAD` bytes.

    Raises:
        MediaError: with what it is.
    """
    found = next(((what, hint) for magic, what, hint in _MAGIC if magic.match(head)), None)
    found = found or _BY_NAME.get(path.suffix.lower().removeprefix("."))
    if found is not None:
        raise MediaError(f"{found[0]}, which is not read: '{path}'", found[1])
