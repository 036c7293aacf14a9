"""How an output was made: the settings it carries, how they are found again, and the request they came from.

Paths are kept relative to the output's folder, so that a project can be moved as a whole and the file does not
give away whose disk it was made on. Every input is identified by its sha256.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi_cli import __version__
from kiwi_cli.errors import KiwiError, MediaError, UsageError
from kiwi_cli.request import EditRequest
from kiwi_cli.sources import fingerprint, hash_path
from kiwi_cli.video import read_metadata

if TYPE_CHECKING:
    from kiwi_cli.editplan import EditPlan
    from kiwi_cli.weights.lora import Applied

FORMAT = 1
MAX_RECORD = 1 << 20  # bytes
CHANGED_HINT = "restore it, or make the edit with what is there now: --allow-changed"


def describe(
    work: EditPlan, folder: Path | None, frames: int, dtype: str, device: str, loras: Sequence[Applied] = ()
) -> dict[str, Any]:
    """The settings of one edit. Every option that changes the result is in them.

    Args:
        folder: the checkpoint's, or None when a loaded model was handed over.
        frames: as counted while reading.
    """
    request = work.request
    base = work.output.absolute().parent
    return {
        "kiwi": __version__,
        "format": FORMAT,
        "model": model_name(request.model, base),
        "revision": work.commit,
        "checkpoint": fingerprint(folder) if folder is not None else None,
        "loras": [_lora(applied, base) for applied in loras],
        "instruction": request.prompt,
        "typed": request.instruction,
        "task": request.task,
        "raw": request.raw,
        "input": _file(request.input, base),
        "references": [_file(path, base) for path in request.references],
        "mask": _mask(request.mask, base),
        "feather": request.feather,
        "seed": request.seed,
        "steps": work.steps,
        "solver": request.solver,
        "cache": request.cache,
        "cache_threshold": request.cache_threshold,
        "cache_ratios": _file(request.cache_ratios, base) if request.cache_ratios is not None else None,
        "start": request.start,
        "duration": request.duration,
        "max_frames": request.frames,
        "frames": frames,
        "fps": request.fps,
        "size": str(work.size),
        "worked": _worked(work),
        "fit": request.fit,
        "keep_rest": request.keep_rest,
        "codec": request.codec,
        "quality": request.quality,
        "sound": request.sound,
        "allow_truncated": request.allow_truncated,
        "memory": request.memory,
        "gguf": _file(request.gguf, base) if request.gguf is not None else None,
        "quantize": request.quantize,
        "attention": request.attention,
        "compile": request.compile,
        "dtype": dtype,
        "device": device,
    }


def _worked(work: EditPlan) -> str | None:
    """How a model with a size and a length of its own worked on the clip, in words; None for any other."""
    parts = []
    if work.settings.pixels is not None and work.request.size is None:
        parts.append(f"at {work.size}, scaled to {work.clip.size}")
    if work.windows is not None:
        parts.append(f"in {work.windows}")
    return "; ".join(parts) or None


def model_name(name: str, base: Path) -> str:
    """A model as it is recorded: a folder relative to `base`, anything else as it is."""
    path = Path(name).expanduser()
    return relative(path, base) if path.exists() else name


def relative(path: Path, base: Path) -> str:
    """A path seen from the output's folder, with forward slashes."""
    try:
        return Path(os.path.relpath(path.absolute(), base)).as_posix()
    except ValueError:  # another drive
        return path.absolute().as_posix()


def _file(path: Path, base: Path) -> dict[str, str]:
    return {"path": relative(path, base), "sha256": hash_path(path)}


def _mask(spec: str | None, base: Path) -> dict[str, str | None] | None:
    if spec is None:
        return None
    path = Path(spec)
    if not path.exists():
        return {"path": spec, "sha256": None}  # a rectangle
    return {"path": relative(path, base), "sha256": hash_path(path)}


def _lora(applied: Applied, base: Path) -> dict[str, Any]:
    source = applied.spec.source
    path = Path(source).expanduser()
    return {
        "source": relative(path, base) if path.is_file() else source,
        "weight": applied.spec.weight,
        "sha256": hash_path(applied.path),
    }


# -- finding it again -------------------------------------------------------------------------------------------


def sidecar_of(output: Path) -> Path:
    """Where an output's settings lie beside it: 'clip-edited.mp4.json'."""
    return output.with_name(output.name + ".json")


def write_sidecar(path: Path, settings: dict[str, Any]) -> None:
    """Write settings as a file, whole or not at all."""
    from kiwi_cli.video.failures import writing

    temporary = path.with_name(f".{path.name[:40]}.kiwi-partial")
    with writing(path):
        try:
            temporary.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def read_settings(output: Path) -> tuple[dict[str, Any], Path]:
    """The settings an output carries, or its sidecar does, and the file they were found in.

    Args:
        output: a result of kiwi, or a sidecar itself.

    Raises:
        UsageError: not found. MediaError: it carries none, or not ones this version understands.
    """
    sidecar = output if output.suffix == ".json" and output.is_file() else sidecar_of(output)
    text, found = "", output
    if sidecar.is_file():
        text, found = _read(sidecar), sidecar
    else:
        text = read_metadata(output).get("kiwi", "")
    if not text:
        raise MediaError(
            f"nothing in '{output}' says how it was made",
            f"a copy that another program wrote loses it; '{sidecar.name}' beside it is read too (--sidecar)",
        )
    try:
        settings = json.loads(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict) or "instruction" not in settings:
        raise MediaError(f"the settings in '{found}' are damaged", "it cannot be known how this was made")
    return settings, found


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_RECORD:
            raise MediaError(f"not settings of kiwi: '{path}'", "pass an output of kiwi")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MediaError(f"cannot read '{path}': {error}", "check the file") from error


def request_from(settings: dict[str, Any], base: Path) -> EditRequest:
    """The request that settings were recorded from, with paths seen from `base`, the output's folder.

    Raises:
        MediaError: settings of a later version, or with something missing.
    """
    if settings.get("format") != FORMAT:
        raise MediaError(
            f"these settings have format {settings.get('format')}, this kiwi reads {FORMAT}",
            f"they were written by kiwi {settings.get('kiwi')}: use that version",
        )
    try:
        mask = settings["mask"]
        return EditRequest(
            input=_found(settings["input"]["path"], base),
            instruction=settings["typed"],
            references=tuple(_found(entry["path"], base) for entry in settings["references"]),
            model=_model(settings["model"], base),
            revision=settings["revision"],
            loras=tuple(f"{_model(entry['source'], base)}:{entry['weight']:g}" for entry in settings["loras"]),
            task=settings["task"],
            raw=settings["raw"],
            steps=settings["steps"],
            solver=settings["solver"],
            cache=settings["cache"],
            cache_threshold=settings["cache_threshold"],
            cache_ratios=_found(settings["cache_ratios"]["path"], base) if settings.get("cache_ratios") else None,
            seed=settings["seed"],
            start=settings["start"],
            duration=settings["duration"],
            frames=settings["max_frames"],
            size=settings["size"],
            fit=settings["fit"],
            fps=settings["fps"],
            mask=None if mask is None else mask["path"] if mask["sha256"] is None else str(_found(mask["path"], base)),
            feather=settings["feather"],
            keep_rest=settings["keep_rest"],
            codec=settings["codec"],
            quality=settings["quality"],
            sound=settings["sound"],
            allow_truncated=settings["allow_truncated"],
            memory=settings["memory"],
            gguf=_found(settings["gguf"]["path"], base) if settings["gguf"] else None,
            quantize=settings["quantize"],
            attention=settings["attention"],
            compile=settings["compile"],
            dtype=settings["dtype"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise MediaError(f"the settings are damaged: {error}", "it cannot be made again from them") from error


def check_unchanged(settings: dict[str, Any], request: EditRequest, base: Path) -> None:
    """That the inputs which a rerun takes over from the settings are the ones they were recorded with.

    An input that the person replaced is not looked at.

    Raises:
        UsageError: one is missing. MediaError: one has changed.
    """
    was = request_from(settings, base)
    if request.input == was.input:
        _check(request.input, settings["input"]["sha256"], "source", "--input PATH")
    if request.references == was.references:
        for path, entry in zip(request.references, settings["references"], strict=True):
            _check(path, entry["sha256"], "reference", "--ref PATH")
    mask = settings["mask"]
    if mask is not None and mask["sha256"] is not None and request.mask == was.mask:
        _check(Path(str(request.mask)), mask["sha256"], "mask", "--mask PATH")
    if request.gguf is not None and request.gguf == was.gguf:
        _check(request.gguf, settings["gguf"]["sha256"], "GGUF file", "--gguf FILE")
    if request.cache_ratios is not None and request.cache_ratios == was.cache_ratios:
        digest = settings["cache_ratios"]["sha256"]
        _check(request.cache_ratios, digest, "file of cache ratios", "--cache-ratios FILE")
    if request.loras == was.loras:
        for entry in settings["loras"]:
            path = Path(_model(entry["source"], base))
            if path.is_file():
                _check(path, entry["sha256"], "LoRA", "--lora FILE")
    known, folder = settings["checkpoint"], Path(request.model)
    if request.model == was.model and folder.is_dir() and known is not None and fingerprint(folder) != known:
        raise MediaError(f"the model has changed since: '{folder}'", CHANGED_HINT)


def _check(path: Path, digest: str, what: str, option: str) -> None:
    try:
        now = hash_path(path)
    except KiwiError:
        raise UsageError(f"the {what} is not there any more: '{path}'", f"say where it is with {option}") from None
    if now != digest:
        raise MediaError(f"the {what} has changed since: '{path}' (sha256 {now[:12]}, was {digest[:12]})", CHANGED_HINT)


def _found(path: str, base: Path) -> Path:
    """A recorded path from here: relative to the working folder where that is shorter to read."""
    whole = Path(os.path.normpath(base / path))
    try:
        inside = whole.relative_to(Path.cwd())
    except ValueError:
        return whole
    return inside


def _model(name: str, base: Path) -> str:
    """A recorded model or LoRA: a path when there is something at it, else the name."""
    path = _found(name, base)
    return str(path) if path.exists() else name
