"""The three stages: which parameters each trains, and how the ones that no base model has begin.

| stage | trained |
|---|---|
| alignment | image queries, connector, LoRA on the language model; the transformer frozen, no source latents |
| instruction | and the video queries, the whole transformer, the source embedder |
| reference | and the reference queries, their connector, the reference embedder |

Released training code and scripts (showlab/Kiwi-Edit at 223572d).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kiwi_cli.errors import UsageError

LANGUAGE_MODEL = "mllm_encoder.qwen.language_model."
_LORA = re.compile(r"\.lora_[AB]\.")

GROUPS: dict[str, tuple[str, ...]] = {
    "image_queries": ("mllm_encoder.image_queries",),
    "video_queries": ("mllm_encoder.video_queries",),
    "ref_queries": ("mllm_encoder.ref_queries",),
    "connector": ("mllm_encoder.connector.",),
    "ref_connector": ("mllm_encoder.ref_connector.",),
    "language_model": (LANGUAGE_MODEL,),
    "transformer": ("transformer.",),
    "source_embedder": ("source_embedder.",),
    "ref_embedder": ("ref_embedder.",),
}
"""Group -> beginnings of parameters' names. The vision tower is in none: its features are cached."""

LORA_GROUPS = {"language_model_lora": LANGUAGE_MODEL, "transformer_lora": "transformer."}
"""Group -> where its LoRA sits."""

_LAYERS = {  # of a LoRA: (attention, and with 'all' the feed-forward layers too)
    "language_model_lora": (("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")),
    "transformer_lora": (("to_q", "to_k", "to_v", "to_out.0"), ("ffn.net.0.proj", "ffn.net.2")),
}


@dataclass(frozen=True)
class Stage:
    """One stage of the released recipe.

    Attributes:
        groups: what it trains. new: groups that no base model has and no earlier stage trained.
        uses_source: whether source latents condition the transformer.
    """

    groups: tuple[str, ...]
    new: tuple[str, ...]
    uses_source: bool = True


_FIRST = ("image_queries", "connector")
_SECOND = ("video_queries", "source_embedder")
_THIRD = ("ref_queries", "ref_connector", "ref_embedder")

STAGES: dict[str, Stage] = {
    "alignment": Stage((*_FIRST, "language_model_lora"), _FIRST, uses_source=False),
    "instruction": Stage((*_FIRST, *_SECOND, "language_model_lora", "transformer"), _SECOND),
    "reference": Stage((*_FIRST, *_SECOND, *_THIRD, "language_model_lora", "transformer"), _THIRD),
}

NEW = {group: GROUPS[group] for stage in STAGES.values() for group in stage.new}
"""Groups that no base model has."""


def apply_stage(
    model: Any,
    stage: str,
    *,
    groups: Iterable[str] = (),
    freeze: Iterable[str] = (),
    lora: Mapping[str, Any] | None = None,
) -> dict[str, nn.Parameter]:
    """Say what is trained: LoRAs are put in, and exactly the trained parameters require gradients.

    Args:
        model: a `KiwiTrainModel`; changed in place.
        stage: a name of `STAGES`.
        groups: train these instead of the stage's own: names of `GROUPS` and `LORA_GROUPS`.
        freeze: names, or beginnings of names, of parameters that stay as they are.
        lora: group of `LORA_GROUPS` -> its settings (`rank`, `alpha`, `layers`: 'attention' or 'all'); a group
            without settings, or with rank 0, has no LoRA.

    Returns:
        name -> parameter, of the trained ones.

    Raises:
        UsageError: an unknown group, or a name in `freeze` that fits nothing.
    """
    wanted = tuple(groups) or STAGES[stage].groups
    known = (*GROUPS, *LORA_GROUPS)
    for group in wanted:
        if group not in known:
            raise UsageError(f"unknown group of parameters '{group}'", f"the groups are {', '.join(known)}")
    model.uses_source = STAGES[stage].uses_source
    model.requires_grad_(False)
    settings = {group: value for group, value in (lora or {}).items() if value.rank > 0}
    for group, setting in settings.items():
        if group in wanted:
            add_lora(model, group, setting.rank, setting.alpha or setting.rank, setting.layers)
    beginnings = [start for group in wanted for start in GROUPS.get(group, ())]
    adapters = [LORA_GROUPS[group] for group in wanted if group in settings]
    frozen = tuple(freeze)
    for name, parameter in model.named_parameters():
        if _LORA.search(name):
            trained = name.startswith(tuple(adapters))
        else:
            trained = name.startswith(tuple(beginnings))
        parameter.requires_grad_(trained and not name.startswith(frozen))
    for start in frozen:
        if not any(name.startswith(start) for name, _ in model.named_parameters()):
            raise UsageError(f"no parameter's name begins with '{start}'", "see `kiwi train --dry-run` for the parts")
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def add_lora(model: nn.Module, group: str, rank: int, alpha: float, layers: str) -> None:
    """Put a LoRA on the language model's or the transformer's layers, by PEFT: `...q_proj.lora_A.default.weight`.

    Raises:
        UsageError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UsageError("a LoRA needs the package 'peft'", "install kiwi-cli[train]") from None
    attention, rest = _LAYERS[group]
    chosen = attention if layers == "attention" else (*attention, *rest)
    where = model.get_submodule(LORA_GROUPS[group].rstrip("."))
    # Matched from the end, and only below the blocks: other modules of the transformer have a `to_out` too.
    pattern = r".*(layers|blocks)\.\d+\..*(" + "|".join(re.escape(name) for name in chosen) + ")"
    inject_adapter_in_model(
        LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]
            lora_dropout=0.0,
            target_modules=pattern,
            init_lora_weights=True,
        ),
        where,
    )


@torch.no_grad()
def initialise(model: nn.Module, groups: Iterable[str], seed: int = 0) -> None:
    """Begin parts that no base model has, as the released training does.

    Queries are normal with a standard deviation of 0.02. The last layer of a connector and both embedders are zero, so
    that a new part changes nothing at first.

    Args:
        groups: of `NEW`: all others have weights of their own.
    """
    generator = torch.Generator().manual_seed(seed)
    for group in groups:
        for name, parameter in model.named_parameters():
            if not name.startswith(NEW[group]):
                continue
            if name.endswith("_queries"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
            elif "embedder" in name or ".2." in name:
                parameter.zero_()
            elif parameter.ndim > 1:
                bound = parameter.shape[1] ** -0.5  # as torch begins a linear layer
                parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)
            else:
                parameter.zero_()
