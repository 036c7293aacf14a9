"""LoRA files: read in every key style that is about, and merged into the weights.

    diffusers      transformer.blocks.0.attn1.to_q.lora_A.weight
    original Wan   blocks.0.self_attn.q.lora_A.default.weight, with or without pipe.dit.
    ComfyUI        diffusion_model.blocks.0.self_attn.q.lora_down.weight, with .alpha, .diff and .diff_b
    kohya          lora_unet_blocks_0_self_attn_q.lora_down.weight

and of the language model, as kiwi's own training writes them: mllm_encoder.qwen.language_model.layers.0... or, in raw
training names, mllm.model.model.language_model.layers.0...

Merging costs nothing per step, works under every memory mode and quantisation that comes after it, and is exact in
fp32: all differences are summed in fp32 and rounded once. A file that fits only in part is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi_cli.errors import CheckpointError, NoSuchModelError, UsageError
from kiwi_cli.weights import keys
from kiwi_cli.weights.files import TensorFiles
from kiwi_cli.weights.layout import PICKLE_HINT, PICKLES
from kiwi_cli.weights.lora_scale import Scales, read_scales

if TYPE_CHECKING:
    import torch

    from kiwi_cli.weights.fetch import Access

PREFIXES = ("base_model.model.", "pipe.", "transformer.", "diffusion_model.", "model.", "dit.", "unet.")
ENCODER = "mllm_encoder."
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")

OTHER_KINDS = (
    # a pattern of keys, what they are
    (r"\.lokr_", "a LoKr"),
    (r"\.hada_w", "a LoHa"),
    (r"\.(lora_magnitude_vector|dora_scale)", "a DoRA"),
    (r"\.oft_|\.boft_", "an OFT"),
    (r"\.ia3_|\.on_input", "an IA3"),
    (r"\.vera_lambda", "a VeRA"),
    (r"\.(lora_mid|lora_embedding_[AB])", "a LoRA with a third factor or of an embedding"),
    (r"^(lora_te\d?_|text_encoders?(_\d)?\.|conditioner\.|t5\.|clip\.)", "a LoRA of a text encoder"),
    (r"\.lora_[AB](\.[^.]+)?\.bias$|\.bias$", "a LoRA with biases"),
    (r"\.(w_norm|b_norm)$", "a LyCORIS of norms"),
)
"""Kinds of small files beside plain LoRAs: none of them is read."""

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
    if path.is_dir() or not is_hub_id(spec.source):
        hint = "pass a .safetensors file that is there, or owner/name or owner/name/FILE.safetensors on the Hub"
        raise NoSuchModelError(f"LoRA not found: '{spec.source}'", hint)
    parts = spec.source.split("/")
    from kiwi_cli.weights.fetch import fetch_one

    return fetch_one("/".join(parts[:2]), "/".join(parts[2:]) or None, access)


def is_hub_id(source: str) -> bool:
    """Whether a LoRA that is no file here has the form owner/name or owner/name/.../FILE.safetensors.

    What begins with a folder that is here is a path, and a file needs an owner and a name before it.
    """
    parts = source.split("/")
    if source[:1] in ("/", ".", "~") or not all(parts) or Path(parts[0]).is_dir():
        return False
    return len(parts) >= 3 if source.endswith((".safetensors", *PICKLES)) else len(parts) == 2


def apply(
    transformer: torch.nn.Module,
    specs: Sequence[LoraSpec],
    access: Access,
    encoder: torch.nn.Module | None = None,
) -> list[Applied]:
    """What each LoRA changed: they are merged into modules that hold plain weights, wherever those are.

    Every file is checked before the first weight is changed.

    Args:
        transformer: its parameters under diffusers' names; changed in place.
        specs: in any order; their differences add up.
        encoder: the instruction encoder; changed in place too. None refuses LoRAs of the language model.

    Raises:
        CheckpointError: a file that is missing or broken, of another kind, or of which nothing, or only part, fits; or
            weights that are no numbers, or too large for the model's precision.
    """
    targets = dict(transformer.named_parameters())
    if encoder is not None:
        targets |= {f"{ENCODER}{name}": value for name, value in encoder.named_parameters()}
    aliases = aliases_of(targets)
    plans, found = [], []
    for spec in specs:
        path = locate(spec, access)
        files = TensorFiles.open_file(path)
        matched, unused = match(files, aliases, {name: tuple(value.shape) for name, value in targets.items()})
        found.append((path, len(unused)))
        scales = read_scales(path)
        plans.append((spec, files, {name: (delta, scale_of(files, delta, scales)) for name, delta in matched.items()}))
    merged = {}
    for name in dict.fromkeys(name for _, _, matched in plans for name in matched):
        old = targets[name].data
        sum_ = old.to("cpu", dtype=_float32())
        for spec, files, scaled in plans:
            if name in scaled:
                difference = _difference(files, *scaled[name])
                if not bool(difference.isfinite().all()):
                    raise CheckpointError(
                        f"the LoRA '{files.label}' holds values that are not finite (NaN or Inf), for '{name}'",
                        "its training diverged, or the file is damaged; leave it out",
                    )
                sum_ = sum_ + difference.reshape(old.shape) * spec.weight
        # A new tensor, not in place: the old one may be a view of the checkpoint's file.
        merged[name] = sum_.to(old.device, old.dtype)
        if not bool(merged[name].isfinite().all()):
            precision = str(old.dtype).removeprefix("torch.")
            labels = " and ".join(f"'{files.label}'" for _, files, matched in plans if name in matched)
            raise CheckpointError(
                f"with the LoRA {labels} the weight '{name}' does not fit into {precision}",
                "give it less weight, as in FILE:0.5, or use --dtype float32",
            )
    for name, value in merged.items():
        targets[name].data = value
    return [
        Applied(spec, path, len(matched), unused)
        for (spec, _, matched), (path, unused) in zip(plans, found, strict=True)
    ]


def match(
    files: Any, aliases: dict[str, str], shapes: dict[str, tuple[int, ...]]
) -> tuple[dict[str, Delta], list[str]]:
    """A file's keys -> the parameters they change; and the modules it has that nothing reads.

    Args:
        files: `TensorFiles`, or what has the same `infos`, `shapes`, `label` and `tensor`.

    Raises:
        CheckpointError: another kind of file, keys that are no LoRA's, modules that are not there, halves, or
            shapes that do not fit.
    """
    modules: dict[str, Delta] = {}
    strange: list[str] = []
    for key in files.infos:
        found = keys.lora_key(key)
        kind = _other_kind(key)
        if kind is not None:
            raise CheckpointError(
                f"the LoRA '{files.label}' is {kind} ('{key}'), which is not read", "use a plain LoRA, or merge it"
            )
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


def _other_kind(key: str) -> str | None:
    """What a key belongs to when that is no plain LoRA; None for all others."""
    return next((what for pattern, what in OTHER_KINDS if re.search(pattern, key)), None)


def _plain(module: str) -> str:
    """A module's name without what trainers and programs put in front of it."""
    encoders = module.removeprefix("base_model.model.").removeprefix("pipe.")
    if encoders.startswith("mllm."):
        part, name = keys.raw_key(encoders) or ("", "")
        return f"{ENCODER}qwen.language_model.{name.removeprefix('model.')}" if part == "qwen" else module
    if encoders.startswith(ENCODER):
        return encoders
    while prefix := next((prefix for prefix in PREFIXES if module.startswith(prefix)), ""):
        module = module.removeprefix(prefix)
    for prefix in FLAT_PREFIXES:
        module = module.removeprefix(prefix)
    return module


def _float32() -> torch.dtype:
    import torch

    return torch.float32


def aliases_of(targets: dict[str, Any]) -> dict[str, str]:
    """Every name a parameter goes by -> its own: diffusers', original, and both with underscores."""
    aliases = {}
    for name in targets:
        for alias in {name, name if name.startswith(ENCODER) else keys.original_dit_key(name)}:
            aliases[alias] = name
            module, _, leaf = alias.rpartition(".")
            if leaf in ("weight", "bias"):
                aliases[f"{module.replace('.', '_')}.{leaf}"] = name
    return aliases


def _fits(files: Any, delta: Delta, shape: tuple[int, ...]) -> bool:
    shapes = {role: files.shapes[key] for role, key in delta.items()}
    if "diff" in shapes or "diff_b" in shapes:
        return len(shapes) == 1 and math.prod(*shapes.values()) == math.prod(shape)
    if not {"down", "up"} <= set(shapes) or len(shapes["down"]) < 2 or len(shapes["up"]) < 2:
        return False
    down, up = shapes["down"], shapes["up"]
    return down[0] == math.prod(up[1:]) and up[0] == shape[0] and math.prod(down[1:]) == math.prod(shape[1:])


def scale_of(files: Any, delta: Delta, scales: Scales) -> float:
    """What the product of a module's factors is multiplied with: by its alpha, else by what the file says."""
    if "down" not in delta:
        return 1.0
    rank = files.shapes[delta["down"]][0]
    if "alpha" in delta:
        return float(files.tensor(delta["alpha"]).reshape(-1)[0]) / rank
    module = _said(delta["down"])
    if scales.rank_of(module) not in (None, rank):
        raise CheckpointError(
            f"the LoRA '{files.label}' says rank {scales.rank_of(module):g} for '{module}' and holds rank {rank}",
            "save it again with PEFT or diffusers",
        )
    return scales.of(module, rank)


def _said(key: str) -> str:
    """A module's name as the settings of a LoRA speak of it: without the part's name and PEFT's prefix."""
    module = (keys.lora_key(key) or ("",))[0].removeprefix("base_model.model.")
    return module.removeprefix("transformer.").removeprefix("diffusion_model.")


def _difference(files: TensorFiles, delta: Delta, scale: float) -> Any:
    """The change of one parameter in fp32, for a weight of 1."""
    for whole in ("diff", "diff_b"):
        if whole in delta:
            return files.tensor(delta[whole]).float()
    down, up = files.tensor(delta["down"]).float().flatten(1), files.tensor(delta["up"]).float().flatten(1)
    return up @ down * scale
