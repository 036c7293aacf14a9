"""A training run's settings: one TOML file a stage, every value of which the command line can override.

    kiwi train recipes/instruction.toml --set optimiser.lr=1e-4 --set data.0.ratio=2

The defaults are the released recipe's where it has a value. A key nobody knows, a value of another type and one out of
its range are refused with the key, the value and what would do. Nothing heavy is imported here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from kiwi_cli.base.toml import build, override, read_toml, wrong
from kiwi_cli.errors import UsageError


@dataclass(frozen=True)
class DataSource:
    """One cached data set.

    Attributes:
        cache: folder that `kiwi data cache` wrote.
        ratio: its share of the samples, relative to the other sources'. Above 0.
        weight_strength: how much more the edited region counts where the cache has masks; 0 leaves all alike.
    """

    cache: str
    ratio: float = 1.0
    weight_strength: float = 0.0


@dataclass(frozen=True)
class Optimiser:
    """How weights move. The released runs: AdamW, lr 1e-5 (5e-6 in the last stage), weight decay 0.01.

    Attributes:
        name: 'muon' is Muon for the transformer's hidden matrices and AdamW for the rest (muon.py), for training from
            nothing.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-5
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8


@dataclass(frozen=True)
class Schedule:
    """The learning rate's course. Constant from the first step as released.

    Attributes:
        warm_up: optimiser steps in which the rate rises linearly to `optimiser.lr`.
        decay: its course after that, to the last step.
        final: fraction of the rate that `linear` and `cosine` end at, 0 to 1.
    """

    warm_up: int = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"
    final: float = 0.0

    def factor(self, step: int, steps: int) -> float:
        """What the rate is multiplied by in optimiser step `step` (from 0) of `steps`."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        if self.decay == "constant":
            return 1.0
        along = min((step - self.warm_up) / max(steps - 1 - self.warm_up, 1), 1.0)
        left = 1.0 - along if self.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * along))
        return self.final + (1.0 - self.final) * left


@dataclass(frozen=True)
class Adapter:
    """A LoRA on one part of the model.

    Attributes:
        rank: 0 for none. alpha: its scale is alpha / rank; 0 stands for alpha = rank.
        layers: 'attention' (q, k, v, o) or 'all' (the feed-forward layers too).
    """

    rank: int = 0
    alpha: float = 0.0
    layers: Literal["attention", "all"] = "attention"


@dataclass(frozen=True)
class Lora:
    """Where LoRAs go. The released 5B runs train rank 64 on the language model's attention in every stage."""

    language_model: Adapter = Adapter(rank=64)
    transformer: Adapter = Adapter()


@dataclass(frozen=True)
class Validate:
    """Held-out loss and sample edits while training; 0 switches either off.

    Attributes:
        every: optimiser steps between two held-out losses. rows: of each data set's held-out rows.
        preview_every: optimiser steps between two sheets of sample edits. previews: how many edits a sheet has.
        preview_steps: denoising steps of those edits.
    """

    every: int = 500
    rows: int = 64
    preview_every: int = 0
    previews: int = 4
    preview_steps: int = 20


@dataclass(frozen=True)
class Save:
    """States of the run.

    Attributes:
        every: optimiser steps between two. keep: how many stay; older ones are deleted.
    """

    every: int = 500
    keep: int = 2


@dataclass(frozen=True)
class Export:
    """What is written to `out`/export at the end.

    Attributes:
        forms: 'folder' (released layout), 'raw' (trained keys in the released training's names), 'lora' (diffusers).
        dtype: precision of the weights.
    """

    forms: tuple[Literal["folder", "raw", "lora"], ...] = ("folder",)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"


@dataclass(frozen=True)
class TrainConfig:
    """A run of one stage.

    Attributes:
        stage: one of `STAGES`. model: the checkpoint the stage starts from: a folder, a model's name or a Hub id.
        out: folder of the run: states, metrics, curves, previews, exports.
        data: the cached data sets and their ratios.
        steps: optimiser steps. global_batch: samples of one, over all processes. micro_batch: samples one process
            computes at a time. bucket_batch: samples of a global batch that come from the same bucket; 0 for all.
        draws: timesteps and noises drawn for a sample each time it is used; its context is computed once for all.
        timesteps: 'uniform' draws them evenly and weights the loss, as released; 'weighted' draws them as often as
            they weigh, which has the same mean and less noise.
        seed: of timesteps, noises and the order of the data.
        precision: 'bf16' computes in bfloat16 (trained weights and optimiser stay fp32), 'fp32' does not.
        clip: largest norm of the gradient; 0 for no limit. ema: decay of the averaged weights a step; 0 for none.
        checkpointing: compute activations again in the backward pass instead of keeping them.
        train: groups of parameters to train (of train/stages.py). Empty for the stage's own, in which the transformer
            is trained by its LoRA if that has a rank, and whole if not.
        fresh: groups whose weights begin anew, as the released training began them.
        freeze: names or beginnings of names of parameters that stay as they are.
        strategy: what the processes were started for; a run that finds something else refuses to start. There is no
            DeepSpeed: its states are pickles, and FSDP shards as well.
        trackers: of accelerate ('tensorboard', ...), besides the run's own metrics.jsonl and curves.png.
        log_every: optimiser steps whose mean is one line of the metrics.
    """

    stage: Literal["alignment", "instruction", "reference"]
    model: str
    out: str
    data: tuple[DataSource, ...] = ()
    steps: int = 20000
    global_batch: int = 128
    micro_batch: int = 1
    bucket_batch: int = 0
    draws: int = 1
    timesteps: Literal["uniform", "weighted"] = "uniform"
    seed: int = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    optimiser: Optimiser = field(default_factory=Optimiser)
    schedule: Schedule = field(default_factory=Schedule)
    clip: float = 0.0
    ema: float = 0.0
    checkpointing: bool = True
    lora: Lora = field(default_factory=Lora)
    train: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    strategy: Literal["none", "ddp", "fsdp"] = "none"
    validate: Validate = field(default_factory=Validate)
    save: Save = field(default_factory=Save)
    export: Export = field(default_factory=Export)
    trackers: tuple[str, ...] = ()
    log_every: int = 10

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as JSON and `from_dict` take them."""
        return json.loads(json.dumps(asdict(self)))


def load_config(path: Path, overrides: Sequence[str] = (), **changes: Any) -> TrainConfig:
    """Read a stage's file and apply `KEY=VALUE` overrides.

    Args:
        overrides: in order; a value is TOML (`3`, `1e-4`, `true`, `["a"]`), or the text itself.
        changes: top-level values that come last, such as `out`; None changes nothing.

    Raises:
        UsageError: no such file, not TOML, or as `from_dict`.
    """
    tree = read_toml(path)
    for text in overrides:
        override(tree, text)
    tree.update({key: value for key, value in changes.items() if value is not None})
    return from_dict(tree)


def from_dict(tree: Mapping[str, Any]) -> TrainConfig:
    """Nested plain values -> settings.

    Raises:
        UsageError: an unknown key, a value of another type or out of range, a missing key.
    """
    config = build(TrainConfig, tree)
    _check(config)
    return config


def _check(config: TrainConfig) -> None:
    """Ranges, and what must go together."""
    at_least: list[tuple[str, float, float]] = [
        *((name, getattr(config, name), 1) for name in ("steps", "global_batch", "micro_batch", "draws", "log_every")),
        *((f"validate.{name}", getattr(config.validate, name), 0) for name in ("every", "preview_every")),
        *((f"validate.{name}", getattr(config.validate, name), 1) for name in ("rows", "previews", "preview_steps")),
        *((name, getattr(config, name), 0) for name in ("bucket_batch", "seed", "clip")),
        ("save.every", config.save.every, 1),
        ("save.keep", config.save.keep, 1),
        ("schedule.warm_up", config.schedule.warm_up, 0),
        ("lora.language_model.rank", config.lora.language_model.rank, 0),
        ("lora.language_model.alpha", config.lora.language_model.alpha, 0),
        ("lora.transformer.rank", config.lora.transformer.rank, 0),
        ("lora.transformer.alpha", config.lora.transformer.alpha, 0),
        ("optimiser.weight_decay", config.optimiser.weight_decay, 0),
        *((f"data.{number}.weight_strength", source.weight_strength, 0) for number, source in enumerate(config.data)),
    ]
    for key, value, least in at_least:
        if not value >= least:
            raise wrong(key, value, f"at least {least:g}")
    above = [("optimiser.lr", config.optimiser.lr), ("optimiser.eps", config.optimiser.eps)]
    above += [(f"data.{number}.ratio", source.ratio) for number, source in enumerate(config.data)]
    for key, value in above:
        if not 0 < value < float("inf"):
            raise wrong(key, value, "above 0")
    within = [("ema", config.ema), *((f"optimiser.betas.{n}", beta) for n, beta in enumerate(config.optimiser.betas))]
    for key, value in within:
        if not 0 <= value < 1:
            raise wrong(key, value, "from 0 to below 1")
    if not 0 <= config.schedule.final <= 1:
        raise wrong("schedule.final", config.schedule.final, "from 0 to 1")
    if config.bucket_batch and config.global_batch % config.bucket_batch:
        raise wrong("bucket_batch", config.bucket_batch, f"a divisor of global_batch ({config.global_batch})")
    names = [source.cache for source in config.data]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"'{twice}' stands twice in 'data'", "name each cache once and raise its ratio")


def accumulation(config: TrainConfig, processes: int) -> int:
    """Micro-batches of one process in an optimiser step.

    Raises:
        UsageError: batches that do not come out even, so that no mean over the global batch would be right.
    """
    at_once = config.micro_batch * processes
    group = config.bucket_batch or config.global_batch
    if group % at_once:
        name = "bucket_batch" if config.bucket_batch else "global_batch"
        raise UsageError(
            f"{name} {group} is no multiple of {config.micro_batch} (micro_batch) x {processes} (processes)",
            f"use a multiple of {at_once}, or a smaller micro_batch",
        )
    return config.global_batch // at_once
