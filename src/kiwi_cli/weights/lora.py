"""LoRA files for the transformer: read in every key style that is about, and merged into the weights.

    diffusers      transformer.blocks.0.attn1.to_q.lora_A.weight
    original Wan   blocks.0.self_attn.q.lora_A.default.weight, with or without pipe.dit.
    ComfyUI        diffusion_model.blocks.0.self_attn.q.lora_down.weight, with .alpha, .diff and .diff_b
    kohya          lora_unet_blocks_0_self_attn_q.lora_down.weight

Merging costs nothing per step, works under every memory mode and quantisation that comes after it, and is exact in
fp32: all differences are summed in fp32 and rounded once. A file that fits only in part is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi_cli.errors import CheckpointError, UsageError
from kiwi_cli.weights import keys
from kiwi_cli.weights.files import TensorFiles
from kiwi_cli.weights.layout import PICKLE_HINT, PICKLES
from kiwi_cli.weights.tensorfile import read_metadata

if TYPE_CHECKING:
    import torch

    from kiwi_cli.weights.fetch import Access

PREFIXES = ("base_model.model.", "pipe.", "transformer.", "diffusion_model.", "model.", "dit.", "unet.")
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")

Delta = dict[str, str]
"""Role in the LoRA ('down', 'up', 'alpha', 'diff', 'diff_b') -> key in the file."""


@dataclass(frozen=True)
class LoraSpec:
    """What `--lora` was given: FILE or ID, and how much of it."""

    source: str
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> LoraSpec:
        """'FILE', 'FILE:0.8', 'owner/name', 'owner/name/file.safetensors:0.5'.

        Raises:
            UsageError: no source, or a weight that is not a number.
        """
        source, colon, tail = text.rpartition(":")
        if not colon or "/" in tail or "\\" in tail:  # no weight, or a drive's letter
            source, tail = text, "1"
        try:
            weight = float(tail)
        except ValueError:
            weight = math.nan
        if not source or not math.isfinite(weight):
            raise UsageError(f"not a LoRA: '{text}'", "write it as FILE or FILE:WEIGHT, such as style.safetensors:0.8")
        return cls(source, weight)


@dataclass(frozen=True)
class Applied:
    """What one LoRA changed.

    Attributes:
        spec, path: what was asked for and the file it was.
        tensors: weights and biases changed.
        unused: modules of the file that this model does not read (the T5 projection).
    """

    spec: LoraSpec
    path: Path
    tensors: int
    unused: int


def locate(spec: LoraSpec, access: Access) -> Path:
    """The file of a LoRA: as it is, or from the Hub (the only safetensors file of a repository, or one named).

    Raises:
        CheckpointError: not there, a pickle, or a repository with several.
    """
    path = Path(spec.source).expanduser()
    if path.suffix in PICKLES:
        raise CheckpointError(f"the LoRA '{spec.source}' is a pickle", PICKLE_HINT)
    if path.is_file():
        return path
    parts = spec.source.split("/")
    if path.is_dir() or len(parts) < 2 or not all(parts) or path.is_absolute():
        raise CheckpointError(f"LoRA not found: '{spec.source}'", "pass a .safetensors file, or owner/name on the Hub")
    from kiwi_cli.weights.fetch import fetch_one

    return fetch_one("/".join(parts[:2]), "/".join(parts[2:]) or None, access)


def apply(transformer: torch.nn.Module, specs: Sequence[LoraSpec], access: Access) -> list[Applied]:
    """Merge LoRAs into a transformer that holds plain weights, wherever they are.

    Every file is checked before the first weight is changed.

    Args:
        transformer: its parameters under diffusers' names; changed in place.
        specs: in any order; their differences add up.

    Raises:
        CheckpointError: a file that is missing or broken, or of which nothing, or only part, fits.
    """
    targets = dict(transformer.named_parameters())
    aliases = _aliases(targets)
    plans = []
    for spec in specs:
        path = locate(spec, access)
        files = TensorFiles.open_file(path)
        matched, unused = match(files, aliases, {name: tuple(value.shape) for name, value in targets.items()})
        plans.append((spec, path, files, matched, unused))
    scales = {path: _metadata_scale(path) for _, path, _, _, _ in plans}
    for name in dict.fromkeys(name for _, _, _, matched, _ in plans for name in matched):
        old = targets[name].data
        merged = old.to("cpu", dtype=_float32())
        for spec, path, files, matched, _ in plans:
            if name in matched:
                merged = merged + _difference(files, matched[name], scales[path]).reshape(old.shape) * spec.weight
        # A new tensor, not in place: the old one may be a view of the checkpoint's file.
        targets[name].data = merged.to(old.device, old.dtype)
    return [Applied(spec, path, len(matched), len(unused)) for spec, path, _, matched, unused in plans]


def match(
    files: TensorFiles, aliases: dict[str, str], shapes: dict[str, tuple[int, ...]]
) -> tuple[dict[str, Delta], list[str]]:
    """A file's keys -> the parameters they change; and the modules it has that nothing reads.

    Raises:
        CheckpointError: keys that are no LoRA's, modules that are not there, halves, or shapes that do not fit.
    """
    modules: dict[str, Delta] = {}
    strange: list[str] = []
    for key in files.infos:
        found = keys.lora_key(key)
        if found is None:
            strange.append(key)
        else:
            modules.setdefault(found[0], {})[found[1]] = key
    matched: dict[str, Delta] = {}
    unused: list[str] = []
    for module, roles in modules.items():
        plain = _plain(module)
        if (keys.dit_key(plain) or plain).startswith(keys.UNUSED_DIT) or "text_embedding" in plain:
            unused.append(module)
            continue
        weights = {role: key for role, key in roles.items() if role != "diff_b"}
        wanted = [(weights, "weight")] if weights else []
        wanted += [({"diff_b": roles["diff_b"]}, "bias")] if "diff_b" in roles else []
        for delta, leaf in wanted:
            name = aliases.get(f"{plain}.{leaf}") or aliases.get(plain if leaf == "weight" else "")
            if name is None or not _fits(files, delta, shapes[name]):
                strange.append(module)
            else:
                matched[name] = delta
    label = f"the LoRA '{files.label}'"
    if not matched:
        raise CheckpointError(f"{label} has nothing for this model", "it was made for another model; leave it out")
    if strange:
        raise CheckpointError(
            f"{label} fits only in part: {len(strange)} of its modules do not, such as '{strange[0]}'",
            "it was made for another model; leave it out",
        )
    return matched, unused


def _plain(module: str) -> str:
    """A module's name without what trainers and programs put in front of it."""
    while prefix := next((prefix for prefix in PREFIXES if module.startswith(prefix)), ""):
        module = module.removeprefix(prefix)
    for prefix in FLAT_PREFIXES:
        module = module.removeprefix(prefix)
    return module


def _float32() -> torch.dtype:
    import torch

    return torch.float32


def _aliases(targets: dict[str, Any]) -> dict[str, str]:
    """Every name a parameter goes by -> its own: diffusers', original, and both with underscores."""
    aliases = {}
    for name in targets:
        for alias in (name, keys.original_dit_key(name)):
            aliases[alias] = name
            module, _, leaf = alias.rpartition(".")
            if leaf in ("weight", "bias"):
                aliases[f"{module.replace('.', '_')}.{leaf}"] = name
    return aliases


def _fits(files: TensorFiles, delta: Delta, shape: tuple[int, ...]) -> bool:
    shapes = {role: files.shapes[key] for role, key in delta.items()}
    if "diff" in shapes or "diff_b" in shapes:
        return len(shapes) == 1 and math.prod(*shapes.values()) == math.prod(shape)
    if not {"down", "up"} <= set(shapes) or len(shapes["down"]) < 2 or len(shapes["up"]) < 2:
        return False
    down, up = shapes["down"], shapes["up"]
    return down[0] == math.prod(up[1:]) and up[0] == shape[0] and math.prod(down[1:]) == math.prod(shape[1:])


def _difference(files: TensorFiles, delta: Delta, scale: float | None) -> Any:
    """The change of one parameter in fp32, for a weight of 1."""
    for whole in ("diff", "diff_b"):
        if whole in delta:
            return files.tensor(delta[whole]).float()
    down, up = files.tensor(delta["down"]).float().flatten(1), files.tensor(delta["up"]).float().flatten(1)
    rank = down.shape[0]
    if "alpha" in delta:
        return up @ down * (float(files.tensor(delta["alpha"]).reshape(-1)[0]) / rank)
    return up @ down * (scale if scale is not None else 1.0)


def _metadata_scale(path: Path) -> float | None:
    """alpha / rank as diffusers writes it into a file's header; None when it does not say."""
    try:
        said = json.loads(read_metadata(path).get("lora_adapter_metadata", "{}"))
        alpha = next(value for key, value in said.items() if key.split(".")[-1] == "lora_alpha")
        rank = next(value for key, value in said.items() if key.split(".")[-1] == "r")
        return float(alpha) / float(rank)
    except (ValueError, TypeError, AttributeError, StopIteration, ZeroDivisionError):
        return None
