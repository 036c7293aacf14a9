"""How an output was made: the settings it carries, how they are found again, and the request they came from.

Paths are kept relative to the output's folder, so that a project can be moved as a whole and the file does not
give away whose disk it was made on. Every input is identified by its sha256.
"""

from __future__ import annotations

import json
import os
from dataclasses import MISSING, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi_cli.base.identity import hash_file, hash_folder, matches
from kiwi_cli.base.option import Option, Row, rows
from kiwi_cli.base.version import __version__
from kiwi_cli.base.whole import write_text
from kiwi_cli.editing.parts import Part
from kiwi_cli.editing.paths import model_name, relative, sidecar_of
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.editing.windowing import MAX_FRAMES
from kiwi_cli.editors.registry import kind_of
from kiwi_cli.errors import KiwiError, MediaError, UsageError
from kiwi_cli.video import read_metadata
from kiwi_cli.weights.catalog import find_variant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kiwi_cli.editing.plan import EditPlan
    from kiwi_cli.editors.base import Identity
    from kiwi_cli.video import Clip, Damage
    from kiwi_cli.weights.lora import Applied

FORMAT = 1
MAX_RECORD = 1 << 20  # bytes
RECORDED = [row for row in rows(EditRequest).values() if row.record is not None]
LORA = rows(EditRequest)["loras"]
FILES = {"input": "source", "references": "reference", "gguf": "GGUF file", "cache_ratios": "file of cache ratios"}
"""What the files are called in words."""
OWN_SIZE = "at "
"""How `worked` begins when the model's own size was taken."""
CHANGED_HINT = "restore it, or make the edit with what is there now: --allow-changed"


def describe(plan: EditPlan, identity: Identity, frames: int, damage: Damage | None = None) -> dict[str, Any]:
    """The settings of one edit. Every option that changes the result is in them.

    Args:
        identity: of the editor. frames: as counted while reading. damage: as far as it is known.
    """
    base = (plan.home or plan.output.parent).absolute()
    # Of an editor that was handed over, what it is and not what was asked for.
    request = replace(plan.request, choice=replace(identity.choice, model=plan.request.choice.model))
    asked = {str(row.record): _written(row, request[row.name], base) for row in RECORDED}
    really = {
        "revision": plan.found.commit,
        "loras": [_lora(applied, base) for applied in identity.loras],
        "steps": plan.steps if "steps" in kind_of(request.choice).uses(request.choice) else None,
        "size": str(plan.size),
        "dtype": identity.dtype,
        "detail": plan.detail,
    }
    settings = {
        "kiwi": __version__,
        "format": FORMAT,
        "model": asked["model"],
        "checkpoint": identity.checkpoint,
        "instruction": plan.told(request),
        **asked,
        **really,
        "frames": frames,
        **({"parts": [part.data for part in request.parts]} if request.parts else {}),
        "worked": _worked(plan),
        "device": identity.device,
    }
    note_damage(settings, plan.clip, damage.lines if damage is not None else [])
    return settings


def note_damage(settings: dict[str, Any], clip: Clip, found: Sequence[str]) -> None:
    """Put into the settings what a damaged clip lacks; `found`: what was seen while its frames were read."""
    if clip.damage or found:
        settings["damaged"] = [*clip.damage, *found]


def _written(row: Row, value: Any, base: Path) -> Any:
    """An option's value as it is recorded."""
    if row.name == "model":
        return model_name(value, base)
    if row.name == "mask":
        return _mask(value, base)
    if row.is_path and row.many:
        return [_file(path, base) for path in value]
    return _file(value, base) if row.is_path and value is not None else value


def _worked(plan: EditPlan) -> str | None:
    """How a model with a size and a length of its own worked on the clip, in words; None for any other."""
    parts = []
    if plan.settings.pixels is not None and plan.request.size is None:
        parts.append(f"{OWN_SIZE}{plan.size}, scaled to {plan.clip.size}")
    if plan.in_windows is not None:
        parts.append(f"in {plan.in_windows}")
    return "; ".join(parts) or None


def _hash(path: Path) -> str:
    """sha256 of a file; of a folder of pictures, of their names and contents in order."""
    if not path.is_dir():
        return hash_file(path)
    from kiwi_cli.video.sequences import numbered_pictures

    return hash_folder(path, numbered_pictures(path))


def _file(path: Path, base: Path) -> dict[str, str]:
    return {"path": relative(path, base), "sha256": _hash(path)}


def _mask(spec: str | None, base: Path) -> dict[str, str | None] | None:
    if spec is None:
        return None
    path = Path(spec)
    if not path.exists():
        return {"path": spec, "sha256": None}  # a rectangle
    return {"path": relative(path, base), "sha256": _hash(path)}


def _lora(applied: Applied, base: Path) -> dict[str, Any]:
    source = applied.spec.source
    path = Path(source).expanduser()
    return {
        "source": relative(path, base) if path.is_file() else source,
        "weight": applied.spec.weight,
        "sha256": _hash(applied.path),
    }


# -- finding it again -------------------------------------------------------------------------------------------


def write_sidecar(path: Path, settings: dict[str, Any], overwrite: bool = True) -> None:
    """Write settings as a file, whole or not at all; without `overwrite`, not over one that came to be meanwhile."""
    from kiwi_cli.video.failures import writing

    with writing(path):
        write_text(path, json.dumps(settings, indent=2, ensure_ascii=False) + "\n", replace=overwrite)


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
            f"a copy that another program wrote loses it; '{sidecar.name}' beside it is read too (kiwi edit --sidecar)",
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
        values = {row.name: _read_value(row, settings, base) for row in RECORDED}
        if (settings.get("worked") or "").startswith(OWN_SIZE):
            values["size"] = None  # the model's own, not one that was asked for
        if "detail" not in settings:
            values["detail"] = "model"  # there was no other
        if "windows" not in settings:
            values |= _before_joint_windows(settings, values)
        values["parts"] = tuple(Part.of(each) for each in settings.get("parts", ()))
        return EditRequest.of(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise MediaError(f"the settings are damaged: {error}", "it cannot be made again from them") from error


def _before_joint_windows(settings: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """How a clip was cut when windows were not denoised together: apart, or one window of it in one piece."""
    if "window" in (settings.get("worked") or ""):
        return {"windows": "independent"}
    if settings["frames"] < MAX_FRAMES:
        return {}
    return {"windows": "off", "frames": values["frames"] or MAX_FRAMES}


def _read_value(row: Row, settings: dict[str, Any], base: Path) -> Any:
    """An option's value from what is recorded; one that there was not yet has its default."""
    assert row.record is not None
    if row.record not in settings and row.default is not MISSING:
        return row.default
    value = settings[row.record]
    if row.name == "model":
        return _model(settings, base)
    if row.name == "loras":
        return tuple(f"{_lora_source(entry, base)}:{entry['weight']!r}" for entry in value)
    if row.name == "mask":
        return (
            value if value is None else value["path"] if value["sha256"] is None else str(_found(value["path"], base))
        )
    if row.is_path and row.many:
        return tuple(_found(entry["path"], base) for entry in value)
    return _found(value["path"], base) if row.is_path and value is not None else value


def check_unchanged(settings: dict[str, Any], request: EditRequest, base: Path) -> None:
    """That the inputs which a rerun takes over from the settings are the ones they were recorded with.

    An input that the person replaced is not looked at.

    Raises:
        UsageError: one is missing. MediaError: one has changed.
    """
    was = request_from(settings, base)
    for row in RECORDED:
        if request[row.name] == was[row.name]:
            for path, entry in _recorded_files(row, request[row.name], settings):
                _check(path, entry["sha256"], FILES.get(row.name, row.name), row.option)
    if request.choice.loras == was.choice.loras:
        for entry in settings["loras"]:
            path = Path(_lora_source(entry, base))
            if path.is_file():
                _check(path, entry["sha256"], "LoRA", LORA.option)
    known, folder = settings["checkpoint"], Path(request.choice.model)
    if (
        request.choice.model == was.choice.model
        and folder.is_dir()
        and known is not None
        and not matches(folder, known)
    ):
        raise MediaError(f"the model has changed since: '{folder}'", CHANGED_HINT)


def _recorded_files(row: Row, value: Any, settings: dict[str, Any]) -> list[tuple[Path, dict[str, Any]]]:
    """The files that an option names, with what was recorded of each."""
    entry = settings.get(str(row.record))
    if row.name == "mask":
        return [(Path(value), entry)] if entry is not None and entry["sha256"] is not None else []
    if not row.is_path or not value:
        return []
    return list(zip(value, entry, strict=True)) if row.many else [(value, entry)]  # type: ignore[list-item, arg-type]


def check_same(path: Path, digest: str, name: str) -> None:
    """That a file, named with an option now, is the one that was recorded.

    Raises:
        UsageError: it is not there. MediaError: it is another.
    """
    _check(path, digest, FILES[name], rows(EditRequest)[name].option)


def _check(path: Path, digest: str, what: str, option: Option) -> None:
    try:
        now = _hash(path)
    except KiwiError:
        raise UsageError(
            f"the {what} is not there any more: '{path}'", f"say where it is with {option.flags[-1]} {option.unit}"
        ) from None
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


def _model(settings: dict[str, Any], base: Path) -> str:
    """The recorded model: a path when it was one, else the name, whatever lies beside the output under that name."""
    name = settings["model"]
    path = _found(name, base)
    if not name or not path.exists() or settings["revision"] is not None:
        return str(name)
    if find_variant(name) is not None and path.is_dir() and not matches(path, settings["checkpoint"] or ""):
        return str(name)
    return str(path)


def _lora_source(entry: dict[str, Any], base: Path) -> str:
    """A recorded LoRA: a file when there is one, else the name."""
    path = _found(entry["source"], base)
    return str(path) if path.is_file() else str(entry["source"])
