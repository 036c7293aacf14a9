"""Where the files of an edit lie, and how a path is written down."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kiwi_cli.editing.request import EditRequest
from kiwi_cli.engine.kept_latents import SUFFIX
from kiwi_cli.video import Clip


def model_name(name: str, base: Path) -> str:
    """A model as it is recorded: a folder relative to `base`, anything else as it is."""
    path = Path(name).expanduser()
    return relative(path, base) if name and path.exists() else name


def relative(path: Path, base: Path) -> str:
    """A path seen from the output's folder, with forward slashes."""
    try:
        return Path(os.path.relpath(path.absolute(), base)).as_posix()
    except ValueError:  # another drive
        return path.absolute().as_posix()


def sidecar_of(output: Path) -> Path:
    """Where an output's settings lie beside it: 'clip-edited.mp4.json'."""
    named = output if output.name else output.resolve()  # '.' has none
    return Path(f"{named}.json")


def latents_of(output: Path) -> Path:
    """Where an output's latents are kept beside it: 'clip-edited.mp4.latents.safetensors'."""
    named = output if output.name else output.resolve()  # '.' has none
    return Path(f"{named}{SUFFIX}")


def default_output(clip: Clip) -> Path:
    """Beside the input, of the same kind."""
    return clip.path.with_name(name_like(clip.path, clip.kind, "-edited"))


def name_like(path: Path, kind: str, more: str = "") -> str:
    """The name of a result of the same kind as its input, with `more` after the stem.

    Args:
        kind: of the clip: 'video', 'image' or 'sequence'.
    """
    if kind == "sequence":
        return path.name + more
    known: Sequence[str] = (".mp4", ".mov", ".mkv", ".webm", ".gif", ".png", ".jpg", ".jpeg", ".webp")
    suffix = path.suffix.lower()
    if suffix not in known:
        suffix = ".png" if kind == "image" else ".mp4"
    return f"{path.stem}{more}{suffix}"


def numbered(request: EditRequest, output: Path) -> Path:
    """`output`, or 'clip-edited-2.mp4' and so on where a file that the request would write is there already.

    With `overwrite`, the name has no number.
    """
    tried, number = output, 1
    while not request.overwrite and any(_taken(path) for path in (tried, *_beside(request, tried).values())):
        number += 1
        tried = output.with_name(f"{output.stem}-{number}{output.suffix}")
    return tried


def _taken(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def extras_of(request: EditRequest, output: Path) -> dict[str, Path]:
    """What else is written, by kind."""
    extras = _beside(request, output)
    if request.sampling.calibrate_cache is not None:
        extras["ratios"] = request.sampling.calibrate_cache
    return extras


def _beside(request: EditRequest, output: Path) -> dict[str, Path]:
    """What else is written under names that come from the output's."""
    if request.previewing.asked:
        return {"preview": output.with_name(f"{output.stem}-{request.previewing.name}.png")}
    extras = {}
    if request.compare is not None:
        extras["comparison"] = output.with_name(f"{output.stem}-compare{output.suffix}")
    if request.sheet:
        extras["sheet"] = output.with_name(f"{output.stem}-sheet.png")
    if request.sidecar:
        extras["sidecar"] = sidecar_of(output)
    if request.keep_latents:
        extras["latents"] = latents_of(output)
    return extras
