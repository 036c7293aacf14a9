"""What this machine has, and whether an edit would run on it. Each check stands alone and never raises."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from kiwi_cli.base import hardware
from kiwi_cli.base.text import count, format_bytes
from kiwi_cli.engine import estimate
from kiwi_cli.errors import CheckpointError
from kiwi_cli.model import shape
from kiwi_cli.video import Size, available_codecs
from kiwi_cli.weights import embedded, parameter_count
from kiwi_cli.weights.cache import default_root, free_bytes
from kiwi_cli.weights.catalog import DEFAULT_EDIT, VARIANTS, Variant
from kiwi_cli.weights.settings import read_settings

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "huggingface_hub", "safetensors", "av")
MIN_PYTHON = (3, 10)
OLD_GPU = (8, 0)  # compute capability: below it there is no bfloat16 arithmetic
FULL = (Size(1280, 704), 81)  # what the models are made for
PATIENCE = 120  # seconds for an import in a process of its own
SPARE_DISK = 2_000_000_000  # bytes an edit may write

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """One finding. `hint`: what to do about it; `data`: the same for programs."""

    name: str
    state: State
    text: str
    hint: str = ""
    data: dict[str, Any] = field(default_factory=dict)


def examine(cached: Mapping[str, str]) -> list[Check]:
    """Every check, in the order in which a failure explains the next.

    Args:
        cached: model -> 'yes', 'partly' or 'no': whether its files are here.
    """
    checks = [check_python(), check_packages()]
    torchvision = check_torchvision()
    imported = check_import(torchvision)
    checks += [torchvision, imported]
    device = check_device() if imported.state != "failed" else Check("device", "failed", "not known without torch")
    checks += [device, check_memory(), check_disk(cached), check_codecs(), *check_models(cached, device)]
    return checks


def usable(checks: list[Check]) -> bool:
    """Whether `kiwi edit` could run here."""
    return all(check.state != "failed" for check in checks)


def check_python() -> Check:
    """The interpreter."""
    data = {"version": platform.python_version(), "executable": sys.executable, "platform": platform.platform()}
    text = f"{data['version']} ({platform.system()} {platform.machine()})"
    if sys.version_info[:2] < MIN_PYTHON:
        return Check("python", "failed", text, "kiwi needs Python 3.10 or newer", data)
    return Check("python", "ok", text, "", data)


def check_packages() -> Check:
    """Versions as installed; nothing is imported."""
    versions = {name: hardware.version_of(name) for name in PACKAGES}
    missing = [name for name, found in versions.items() if found is None]
    if missing:
        return Check(
            "packages", "failed", f"missing: {', '.join(missing)}", "install kiwi again: pip install .", versions
        )
    return Check("packages", "ok", ", ".join(f"{name} {found}" for name, found in versions.items()), "", versions)


def check_torchvision() -> Check:
    """A torchvision built for another torch breaks the import of transformers and diffusers with misleading words.

    It is imported in a process of its own, so that nothing here breaks.
    """
    if importlib.util.find_spec("torchvision") is None:
        return Check("torchvision", "ok", "not installed, and not needed", "", {"version": None})
    found = hardware.version_of("torchvision") or "of unknown version"
    problem = import_problem("torchvision")
    if problem is None:
        return Check("torchvision", "ok", f"{found}, not needed", "", {"version": found})
    hint = "kiwi does not need it: pip uninstall torchvision"
    return Check("torchvision", "warning", f"{found} is broken: {problem}", hint, {"version": found, "error": problem})


def check_import(torchvision: Check) -> Check:
    """That the pipeline's own imports work."""
    problem = import_problem("kiwi_cli.engine.pipeline")
    if problem is None:
        return Check("imports", "ok", "torch, transformers and diffusers load")
    hint = torchvision.hint or "install kiwi again in a new virtual environment: pip install ."
    return Check("imports", "failed", f"the model's code cannot be imported: {problem}", hint, {"error": problem})


def import_problem(module: str) -> str | None:
    """Why a module cannot be imported, in the last line of what Python says; None when it can."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import {module}"], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1][:200] if lines else f"it ended with code {done.returncode}"


def check_device() -> Check:
    """What torch can compute on, beside what the driver says is there."""
    import torch

    cards = hardware.gpus()
    if torch.cuda.is_available():
        found: list[dict[str, Any]] = []
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            capability = torch.cuda.get_device_capability(index)
            name = torch.cuda.get_device_name(index)
            found.append({"name": name, "total": total, "free": free, "capability": list(capability)})
        driver = cards[0].driver if cards else "?"
        text = "; ".join(
            f"{gpu['name']}, {format_bytes(gpu['total'])}, {format_bytes(gpu['free'])} free" for gpu in found
        )
        data: dict[str, Any] = {"kind": "cuda", "gpus": found, "driver": driver, "cuda": torch.version.cuda}
        text = f"{text}; driver {driver}, CUDA {torch.version.cuda}"
        if tuple(found[0]["capability"]) < OLD_GPU:
            return Check("device", "warning", text, "this GPU has no bfloat16: pass --dtype float16", data)
        return Check("device", "ok", text, "", data)
    if torch.backends.mps.is_available():
        return Check("device", "warning", "Apple GPU (mps)", "not tried with the released models", {"kind": "mps"})
    data = {"kind": "cpu", "threads": torch.get_num_threads(), "driver_gpus": [asdict(card) for card in cards]}
    if cards:
        text = f"{cards[0].name} is there (driver {cards[0].driver}), but torch {torch.__version__} cannot use it"
        hint = "install a torch built for CUDA, no newer than the driver: see pytorch.org"
        return Check("device", "failed", text, hint, data)
    text = f"no GPU; the CPU has {count(data['threads'], 'thread')}"
    return Check("device", "failed", text, "use a machine with a GPU, or insist with --device cpu (hours a clip)", data)


def check_memory() -> Check:
    """Main memory."""
    has = hardware.memory()
    if has is None:
        return Check("memory", "warning", "this system does not say how much there is")
    total, free = has
    return Check(
        "memory", "ok", f"{format_bytes(total)}, {format_bytes(free)} free", "", {"total": total, "free": free}
    )


def check_disk(cached: Mapping[str, str]) -> Check:
    """Room for the default model, where it is not here yet, and for what an edit writes."""
    try:
        root, here = default_root(), Path.cwd()
    except FileNotFoundError:
        return Check("disk", "warning", "the folder that this runs in was deleted", "change to another: cd", {})
    data: dict[str, Any] = {"cache": str(root), "cache_free": free_bytes(root), "free": free_bytes(here)}
    text = f"{format_bytes(data['free'])} free here, {format_bytes(data['cache_free'])} free for models in '{root}'"
    default = next(variant for variant in VARIANTS if variant.name == DEFAULT_EDIT)
    if cached.get(DEFAULT_EDIT) != "yes" and data["cache_free"] < (default.bytes or 0):
        need = format_bytes(default.bytes or 0)
        return Check("disk", "failed", f"{text}; '{DEFAULT_EDIT}' takes {need}", "set HF_HOME to a larger disk", data)
    if data["free"] < SPARE_DISK:
        return Check("disk", "warning", text, "a long result may not fit: write elsewhere with --output", data)
    return Check("disk", "ok", text, "", data)


def check_codecs() -> Check:
    """Encoders that open."""
    found = available_codecs()
    opened = [name for name, there in found.items() if there]
    if not found.get("libx264"):
        return Check(
            "codecs", "failed", ", ".join(opened), "PyAV without H.264: pip install --force-reinstall av", found
        )
    return Check("codecs", "ok", ", ".join(opened), "", found)


def check_models(cached: Mapping[str, str], device: Check) -> list[Check]:
    """Which models are here, and how each would run on this machine's device."""
    room = _room(device)
    size, frames = FULL
    checks = []
    for variant in VARIANTS:
        if variant.kind == "embedded":
            checks.append(check_embedded(variant))
            continue
        references = 0 if "edit" in variant.tasks else 1
        found = estimate.estimate(shape.RELEASED_5B, size, frames, references, 50)
        placement = None if room is None else found.place(room)
        where = {"yes": "here", "partly": "here in part", "no": "not here"}[cached.get(variant.name, "no")]
        data = {
            "cached": cached.get(variant.name, "no"),
            "memory": placement.level.name if placement else None,
            "needs": found.levels,
        }
        if room is None:
            text, state = f"{where}; needs a GPU", "warning"
        elif placement is None:
            text = f"{where}; {frames} frames at {size} do not fit into {format_bytes(room)}"
            state = "failed" if variant.name == DEFAULT_EDIT else "warning"
        else:
            text = (
                f"{where}; --memory {placement.level.name}, about {format_bytes(placement.peak)} at {size} (estimate)"
            )
            state = "ok"
        checks.append(Check(f"model {variant.name}", state, text, "", data))  # type: ignore[arg-type]
    return checks


def check_embedded(variant: Variant) -> Check:
    """A model in the package: whether it is there and whole. It runs on any device."""
    name = f"model {variant.name}"
    found = embedded.find(variant)
    if found is None:
        return Check(name, "warning", "not in this installation", "", {"cached": "no"})
    data: dict[str, Any] = {"cached": "yes", "path": str(found)}
    try:
        parameters, settings = parameter_count(found), read_settings(found)
    except CheckpointError as error:
        return Check(name, "warning", f"broken: {error.message}", "install kiwi again: pip install .", data)
    data |= {"parameters": parameters, "offers": list(settings.offers)}
    offers = f"; good for: {settings.good_for}" if settings.offers else ""
    return Check(name, "ok", f"here, part of kiwi itself; runs on the CPU{offers}", "", data)


def runs_anyway(checks: list[Check]) -> str | None:
    """The name of an embedded model that works here although the machine is not fit for the others; None if none."""
    found = {check.name: check.state for check in checks}
    excused = {"device", "disk", *(f"model {variant.name}" for variant in VARIANTS)}
    if any(state == "failed" for name, state in found.items() if name not in excused):
        return None
    own = (variant.name for variant in VARIANTS if variant.kind == "embedded")
    return next((name for name in own if found.get(f"model {name}") == "ok"), None)


def _room(device: Check) -> int | None:
    """Free bytes on the device that would be used; None without a GPU."""
    if device.data.get("kind") != "cuda":
        return None
    return int(device.data["gpus"][0]["free"])
