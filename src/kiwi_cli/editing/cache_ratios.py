"""The ratios of step cache `mag` as a file: measured once in an exact edit, good for the model they name. No torch.

They are the magnitudes of what the blocks add at each step, relative to the step before, and belong to a model's
weights: a file says which ones, and is refused with any others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiwi_cli.base.identity import fingerprint, hash_file, matches
from kiwi_cli.base.version import __version__
from kiwi_cli.editing import paths, record
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.engine.choice import SOLVERS
from kiwi_cli.errors import CheckpointError, MediaError, UsageError
from kiwi_cli.weights import lora
from kiwi_cli.weights.fetch import Access

FORMAT = 1
MAX_BYTES = 1 << 20
MAX_STEPS = 10_000
LARGEST = 100.0
"""A ratio beyond it, or below its inverse, is none: from one step to the next they stay within a few times of 1."""

HINT = "measure them on this model: the same edit with --calibrate-cache RATIOS.json instead of --cache"


@dataclass(frozen=True)
class Ratios:
    """What a file holds.

    Attributes:
        values: one for each step. solver, shift: of the schedule they were measured with.
        model: its name. identity: what its weights are, as `identity` gives it.
    """

    values: tuple[float, ...]
    solver: str
    shift: float
    model: str
    identity: dict[str, Any]

    @property
    def steps(self) -> int:
        return len(self.values)


def read(path: Path) -> Ratios:
    """Ratios from a file.

    Raises:
        UsageError: there is no such file. CheckpointError: it cannot be read, or holds something else.
    """
    if not path.is_file():
        raise UsageError(f"file of cache ratios not found: '{path}'", HINT)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"'{path}' is too large to hold cache ratios", HINT)
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise MediaError(f"cannot read '{path}': {error.strerror}", "check the file's permissions") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"'{path}' holds no cache ratios: {_short(error)}", HINT) from error
    if not isinstance(found, dict) or found.get("cache") != "mag":
        raise CheckpointError(f"'{path}' holds no cache ratios", HINT)
    if found.get("format") != FORMAT:
        raise CheckpointError(f"'{path}' has format {_short(found.get('format'))}, this kiwi reads {FORMAT}", HINT)
    try:
        values = check(found["ratios"])
        solver, shift, model = found["solver"], found["shift"], found["model"]
        own = {name: found[name] for name in ("checkpoint", "loras", "gguf")}
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"the cache ratios in '{path}' are damaged: {_short(error)}", HINT) from error
    fits = solver in SOLVERS and isinstance(model, str) and _is_number(shift) and 0 < shift < 1000
    if not fits or found.get("steps") != len(values):
        raise CheckpointError(f"the cache ratios in '{path}' are damaged: settings that do not fit", HINT)
    return Ratios(values, solver, float(shift), model, own)


def check(values: Any) -> tuple[float, ...]:
    """A list of plausible ratios, as numbers.

    Raises:
        ValueError: what is wrong.
    """
    if not isinstance(values, list) or not 0 < len(values) <= MAX_STEPS:
        raise ValueError(f"ratios are a list of 1 to {MAX_STEPS} numbers")
    for step, value in enumerate(values, start=1):
        if not _is_number(value) or not 1 / LARGEST <= value <= LARGEST:
            raise ValueError(f"step {step} has ratio {_short(value)}")
    return tuple(float(value) for value in values)


def write(path: Path, values: Sequence[float], request: EditRequest, folder: Path, settings: dict[str, Any]) -> None:
    """Write measured ratios, whole or not at all.

    Args:
        folder: the model's. settings: of the edit they were measured in, with its `shift`.

    Raises:
        CheckpointError: a model whose ratios make no sense. MediaError: the file cannot be written.
    """
    try:
        plausible = check(list(values))
    except ValueError as error:
        raise CheckpointError(f"the ratios that were measured are of no use: {error}", "use --cache easy") from error
    base = path.absolute().parent
    about = {name: settings[name] for name in ("revision", "steps", "solver", "shift", "frames", "size", "quantize")}
    model = paths.model_name(request.choice.model, base)
    head = {"kiwi": __version__, "format": FORMAT, "cache": "mag", "model": model}
    record.write_sidecar(path, head | identity(folder, request) | about | {"ratios": list(plausible)})


def check_new(path: Path, overwrite: bool, taken: Path) -> None:
    """Refuse a place that ratios cannot be written to, before any work is done. taken: another file's place.

    Raises:
        UsageError: no .json file, one that is there, one that holds something else, or no such folder.
    """
    if path.suffix != ".json":
        raise UsageError(f"cache ratios are a .json file, not '{path}'", "pass another --calibrate-cache")
    if path.absolute() == taken.absolute():
        raise UsageError(f"that is where the output's settings belong: '{path}'", "pass another --calibrate-cache")
    if path.exists():
        if not overwrite:
            raise UsageError(f"output exists: '{path}'", "pass --overwrite, or another --calibrate-cache")
        try:
            read(path)
        except (UsageError, CheckpointError):
            raise UsageError(f"not replaced, for it holds no cache ratios: '{path}'", "pass another name") from None
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"no such folder: '{folder}'", f"create it first: mkdir -p '{folder}'")


def identity(folder: Path, request: EditRequest) -> dict[str, Any]:
    """What a request's weights are: the checkpoint's fingerprint, the LoRAs merged into it, the GGUF file.

    The sha256 of a LoRA that is not on this machine yet is None.
    """
    loras = [lora.LoraSpec.parse(text) for text in request.choice.loras]
    return {
        "checkpoint": fingerprint(folder),
        "loras": [{"sha256": _digest(spec), "weight": spec.weight} for spec in loras],
        "gguf": None if request.choice.gguf is None else hash_file(request.choice.gguf),
    }


def for_request(request: EditRequest, folder: Path | None, steps: int) -> tuple[Ratios, list[str]]:
    """The ratios a request names, if they are its model's, and what a person should know of them.

    Args:
        folder: the model's; None while it is not on this machine: then that is not looked at.

    Raises:
        UsageError, CheckpointError: as `read`, and ratios of another model.
    """
    path = request.sampling.cache_ratios
    assert path is not None
    found = read(path)
    if folder is not None:
        own = identity(folder, request)
        # A LoRA that has to be fetched first is compared once it is here.
        known = [entry["sha256"] is not None for entry in own["loras"]]
        pairs = list(zip(own["loras"], found.identity["loras"], known, strict=False)) if _same_count(own, found) else []
        for what, same in (
            ("another model", matches(folder, str(found.identity["checkpoint"]))),
            ("another GGUF file", own["gguf"] == found.identity["gguf"]),
            ("other LoRAs", _same_count(own, found) and all(mine == its for mine, its, here in pairs if here)),
        ):
            if not same:
                raise CheckpointError(f"the cache ratios in '{path}' were measured with {what} ('{found.model}')", HINT)
    notes = []
    if found.steps != steps:
        notes.append(f"the cache's ratios were measured at {found.steps} steps, not {steps}: the nearest are used")
    if found.solver != request.sampling.solver:
        notes.append(f"the cache's ratios were measured with solver {found.solver}, not {request.sampling.solver}")
    return found, notes


def _same_count(own: dict[str, Any], found: Ratios) -> bool:
    theirs = found.identity["loras"]
    return isinstance(theirs, list) and len(theirs) == len(own["loras"])


def _digest(spec: lora.LoraSpec) -> str | None:
    try:
        return hash_file(lora.locate(spec, Access(download=False)))
    except CheckpointError:
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _short(value: object) -> str:
    """A value of a hostile file, for a line of text."""
    text = str(value) if isinstance(value, (Exception, str)) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
