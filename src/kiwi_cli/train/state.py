"""The whole state of a run on disk: safetensors and JSON, no pickle, and never half a state.

    OUT/states/step-00001500/  state.json, {weights,optimiser,random}.safetensors, ema.safetensors with an average
    OUT/states/latest          the name of the newest

A state is written into a hidden folder, synchronised to the disk and renamed; then `latest` is exchanged the same way.
Whatever stops it in between, a kill or a full disk, the last whole state is still there and still the latest.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kiwi_cli.base.text import format_bytes
from kiwi_cli.errors import CheckpointError, KiwiError
from kiwi_cli.train.sharding import like
from kiwi_cli.weights.files import torch_dtype
from kiwi_cli.weights.tensorfile import ITEM_BYTES, Entry, read_header, write_file

FORMAT = 1
STATES, LATEST, PARTIAL = "states", "latest", ".partial-"
RESUME_HINT = "resume with the settings the run began with, or start anew with another --out"

Tensors = dict[str, torch.Tensor]


@dataclass
class State:
    """A run between two optimiser steps.

    Attributes:
        step: optimiser steps done.
        stage: of the run.
        weights: parameter name -> trained weights.
        optimiser: 'parameter name/field' -> what the optimiser keeps for it ('exp_avg', 'exp_avg_sq', 'step').
        ema: parameter name -> fp32 average, empty without one. ema_updates: how many it has taken in.
        random: process and generator ('0.cpu', '0.cuda') -> state of its random numbers, uint8.
        config: the run's settings, for the person and to say what is different on resuming.
    """

    step: int
    stage: str
    weights: Tensors
    optimiser: Tensors = field(default_factory=dict)
    ema: Tensors = field(default_factory=dict)
    ema_updates: int = 0
    random: Tensors = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def save_state(out: Path, state: State, keep: int = 2) -> Path:
    """Write a state and make it the latest; delete older ones beyond `keep`.

    Args:
        out: the run's folder.

    Returns:
        The state's folder.

    Raises:
        KiwiError: it could not be written (a full disk, no rights), and which state is the last whole one.
    """
    folder = out / STATES
    final = folder / f"step-{state.step:08d}"
    partial = folder / f"{PARTIAL}{final.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name, tensors in _files(state).items():
            write_file(partial / f"{name}.safetensors", [_entry(key, value) for key, value in tensors.items()])
        (partial / "state.json").write_text(json.dumps(_facts(state), indent=1) + "\n", encoding="utf-8")
        for path in (*partial.iterdir(), partial):
            _sync(path)
        if final.exists():  # the same step saved again
            _discard(final)
        partial.rename(final)
        _sync(folder)
        _point(folder, final.name)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        last = find_latest(out)
        raise KiwiError(
            f"the state of step {state.step} could not be saved in '{folder}': {error.strerror or error}; "
            + (f"the last whole state is '{last.name}'" if last else "there is no whole state yet"),
            f"make room ({format_bytes(_size(state))} a state), then go on with --resume",
        ) from error
    _prune(folder, final, keep)
    return final


def _files(state: State) -> dict[str, Tensors]:
    files = {"weights": state.weights, "optimiser": state.optimiser, "random": state.random}
    return {**files, "ema": state.ema} if state.ema else files


def _facts(state: State) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "step": state.step,
        "stage": state.stage,
        "ema_updates": state.ema_updates,
        "parameters": {name: list(value.shape) for name, value in state.weights.items()},
        "config": state.config,
    }


def _size(state: State) -> int:
    return sum(value.numel() * value.element_size() for part in _files(state).values() for value in part.values())


_NAMES = {torch_dtype(name): name for name in ITEM_BYTES}


def _entry(key: str, tensor: torch.Tensor) -> Entry:
    def pieces() -> list[memoryview]:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        values: Any = flat.view(torch.uint8).numpy() if flat.numel() else b""
        return [memoryview(values)]

    return Entry(key, _NAMES[tensor.dtype], tuple(tensor.shape), pieces)


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _point(folder: Path, name: str) -> None:
    partial = folder / f"{PARTIAL}{LATEST}"
    partial.write_text(name + "\n", encoding="utf-8")
    _sync(partial)
    partial.replace(folder / LATEST)
    _sync(folder)


def _whole(folder: Path) -> list[Path]:
    """States that were renamed into place, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())


def _prune(folder: Path, newest: Path, keep: int) -> None:
    others = [path for path in _whole(folder) if path != newest]
    for path in others[: max(len(others) - (keep - 1), 0)]:
        _discard(path)


def _discard(path: Path) -> None:
    """Delete a state; renamed first, so that one which is half deleted does not look like one."""
    doomed = path.with_name(f"{PARTIAL}old-{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def clear_partial(out: Path) -> list[str]:
    """Delete what saves that were cut off left behind; their names, to be said."""
    found = sorted((out / STATES).glob(f"{PARTIAL}*"))
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return [path.name.removeprefix(PARTIAL) for path in found]


def find_latest(out: Path) -> Path | None:
    """The newest whole state of a run: the one `latest` names, else the one with the highest step."""
    folder = out / STATES
    try:
        named = folder / (folder / LATEST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        named = folder
    whole = _whole(folder)
    return named if named in whole else (whole[-1] if whole else None)


def read_state(folder: Path) -> State:
    """Read a state back, to the CPU.

    Raises:
        CheckpointError: files that are missing, damaged, or of another version.
    """
    path = folder / "state.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise CheckpointError(f"'{path}' has format {facts['format']}, not {FORMAT}", "use the kiwi that wrote it")
        state = State(int(facts["step"]), str(facts["stage"]), {}, config=dict(facts["config"]))
        state.ema_updates = int(facts["ema_updates"])
        names = set(facts["parameters"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read the state '{path}': {error}", "resume from another state") from error
    for name in ("weights", "optimiser", "random"):
        setattr(state, name, _read(folder / f"{name}.safetensors"))
    if (folder / "ema.safetensors").is_file():
        state.ema = _read(folder / "ema.safetensors")
    if names != set(state.weights):
        raise CheckpointError(f"'{folder}' does not hold the weights its state.json names", "resume from another state")
    return state


def _read(path: Path) -> Tensors:
    from safetensors.torch import load_file

    read_header(path)  # damaged files end here, in words
    return load_file(path)


def check_fit(state: State, stage: str, parameters: Mapping[str, torch.Tensor]) -> None:
    """That a state belongs to this stage and to a model of this width, trained in the same parts.

    Raises:
        CheckpointError: it does not, with the first names and shapes that differ.
    """
    if state.stage != stage:
        raise CheckpointError(f"the state is of stage '{state.stage}', not '{stage}'", RESUME_HINT)
    wanted = {name: tuple(value.shape) for name, value in parameters.items()}
    found = {name: tuple(value.shape) for name, value in state.weights.items()}
    differences = [
        *(
            f"'{name}' is {found[name]}, not {shape}"
            for name, shape in wanted.items()
            if found.get(name, shape) != shape
        ),
        *(f"'{name}' {shape} is missing in it" for name, shape in wanted.items() if name not in found),
        *(f"'{name}' {shape} is not trained now" for name, shape in found.items() if name not in wanted),
    ]
    if differences:
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise CheckpointError(
            f"the state does not fit the model that is trained: {'; '.join(differences[:3])}{more}", RESUME_HINT
        )


def changed_settings(state: State, config: Mapping[str, Any]) -> list[str]:
    """Settings that are not as they were when the state was saved: 'seed 1 (was 0)'."""
    before, now = _flat(state.config), _flat(config)
    return [
        f"{key} {now.get(key)!r} (was {before.get(key)!r})"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]


def _flat(tree: Any, where: str = "") -> dict[str, Any]:
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else None
    if items is None:
        return {where: tree}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= _flat(value, f"{where}.{key}" if where else str(key))
    return flat


# -- a torch optimiser's state, by parameter name -----------------------------------------------------------------


def optimiser_tensors(optimiser: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]) -> Tensors:
    """What the optimiser keeps, as 'parameter name/field' -> tensor; parameters without any yet are left out."""
    tensors: Tensors = {}
    for name, parameter in parameters.items():
        for key, value in optimiser.state.get(parameter, {}).items():
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"the optimiser keeps a {type(value).__name__} as '{key}', which is not saved")
            tensors[f"{name}/{key}"] = value
    return tensors


def restore_optimiser(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter], tensors: Mapping[str, torch.Tensor]
) -> None:
    """The reverse; moments go to their parameter's device, AdamW's step counter stays on the CPU where it keeps it."""
    optimiser.state.clear()
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        optimiser.state[parameter][entry] = (value if entry == "step" else like(value, parameter)).clone()
