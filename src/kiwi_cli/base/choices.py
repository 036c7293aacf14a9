"""Names of devices, precisions and codecs, checked by their form: no torch, which takes seconds to import."""

from __future__ import annotations

import re

from kiwi_cli.errors import UsageError

CPU_PARAMETERS = 1_000_000_000
"""Above this many parameters, a CPU must be asked for by name: an edit would take hours."""

DTYPE_NAMES = ("bfloat16", "float16", "float32")
DTYPE_MEANT = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "f16": "float16", "fp32": "float32"}
DEVICE_MEANT = {"gpu": "cuda", "nvidia": "cuda", "metal": "mps", "apple": "mps", "host": "cpu"}

CODEC_MEANT = {
    "h264": ("avc", "avc1", "h.264", "x264", "libx264", "mpeg4avc"),
    "hevc": ("h265", "h.265", "x265", "libx265", "hvc1", "hev1"),
    "vp9": ("vp09", "libvpx", "libvpx-vp9"),
    "av1": ("av01", "av-1", "svtav1", "libsvtav1", "libaom", "libaom-av1"),
    "prores": ("prores_ks", "prores-ks", "apple-prores"),
    "ffv1": ("ffv-1",),
}
"""What people call the codecs: names of the standards, the encoders and the files' tags."""


def codec_name(text: str) -> str:
    """A codec's name as kiwi has it, of one as people type it: 'hevc' for 'H.265' or 'libx265'. Any other as it is."""
    typed = text.strip().lower()
    return next((name for name, meant in CODEC_MEANT.items() if typed == name or typed in meant), typed)


def check_device_name(name: str) -> None:
    """Refuse what is the name of no device, whether or not one is here.

    Raises:
        UsageError: with the name that may be meant.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        meant = DEVICE_MEANT.get(name.lower())
        hint = f"did you mean '{meant}'?" if meant else "use auto, cuda, cuda:N, mps or cpu"
        raise UsageError(f"unknown device: '{name}'", hint)


def check_dtype_name(name: str) -> None:
    """Refuse what is the name of no precision.

    Raises:
        UsageError: with the name that may be meant.
    """
    if name != "auto" and name not in DTYPE_NAMES:
        meant = DTYPE_MEANT.get(name.lower().removeprefix("torch."))
        hint = f"did you mean '{meant}'?" if meant else f"use auto, {', '.join(DTYPE_NAMES)}"
        raise UsageError(f"unknown dtype: '{name}'", hint)
