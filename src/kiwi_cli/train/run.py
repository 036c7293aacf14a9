"""A stage from its settings to its exports: model, data, training, files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kiwi_cli.base import lock
from kiwi_cli.base.events import SILENT, Events
from kiwi_cli.engine import parallel
from kiwi_cli.errors import CheckpointError, UsageError
from kiwi_cli.train.batch import collate
from kiwi_cli.train.config import TrainConfig
from kiwi_cli.train.dataset import CachedRows
from kiwi_cli.train.launch import make_accelerator
from kiwi_cli.train.loop import Result, Stop, train
from kiwi_cli.train.model import KiwiTrainModel
from kiwi_cli.train.preview import Preview
from kiwi_cli.train.sharding import gather, is_spread
from kiwi_cli.train.stages import GROUPS, LORA_GROUPS, NEW, STAGES, apply_stage, initialise
from kiwi_cli.weights.hub import locate

if TYPE_CHECKING:
    from accelerate import Accelerator

    from kiwi_cli.model.prompt import InputBuilder
    from kiwi_cli.train.batch import Sample

EXPORT = "export"


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: the run itself, and the exports by their form."""

    result: Result
    exports: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """A run's data sets by name; `held_out` has the same names, `ratios` too."""

    train: dict[str, CachedRows]
    held_out: dict[str, CachedRows]
    ratios: dict[str, float]


def run_stage(
    config: TrainConfig,
    *,
    events: Events = SILENT,
    resume: bool = False,
    stop: Stop | None = None,
    device: str = "auto",
) -> Outcome:
    """Train a stage and write its exports to `config.out`/export.

    Args:
        resume: go on from the last state. stop: set from outside to end early, with the state saved.
        device: 'auto' or 'cpu'.

    Raises:
        UsageError: settings that cannot be carried out. CheckpointError: a model or a cache that does not fit.
        KiwiError: as `loop.train`.
    """
    if not config.data:
        raise UsageError("there is no data to train on", "add a [[data]] table with a cache to the file")
    accelerator = make_accelerator(config, device)
    out = Path(config.out)
    if accelerator.is_main_process:
        lock.check_free(out, "training")  # before a model is loaded
    try:
        folder = locate(config.model)
        model = load_model(config, folder)
        data = open_data(config, model.inputs)
        for rows in data.train.values():
            check_cache(rows, model)
        with lock.held(out, "training") if accelerator.is_main_process else nullcontext():
            show = make_preview(config, model, data, folder, accelerator) if config.validate.preview_every else None
            result = train(
                config,
                model,
                data.train,
                ratios=data.ratios,
                held_out=data.held_out,
                events=events,
                resume=resume,
                stop=stop,
                preview=show,
                accelerator=accelerator,
            )
            exports = {} if result.interrupted else write_exports(config, model, result, folder, accelerator)
    finally:
        if accelerator.num_processes > 1:
            parallel.leave()
    return Outcome(result, exports)


def load_model(config: TrainConfig, folder: Path) -> KiwiTrainModel:
    """The checkpoint a stage starts from, with the stage's parts ready to be trained.

    Frozen weights are held in the run's precision, trained ones in fp32 (the trainer sees to that).
    """
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    model = KiwiTrainModel.from_folder(folder, dtype)
    prepare_model(config, model)
    return model


def prepare_model(config: TrainConfig, model: KiwiTrainModel) -> None:
    """Freeze, thaw and adapt a model's parts as the settings say.

    Raises:
        UsageError: an unknown group, a LoRA without a rank or one that is not trained, or a `freeze` that no
            parameter's name begins with.
    """
    groups = trained_groups(config)
    torch.manual_seed(config.seed)  # LoRAs begin at random
    initialise(model, config.fresh, config.seed)
    lora = {"language_model_lora": config.lora.language_model, "transformer_lora": config.lora.transformer}
    apply_stage(model, config.stage, groups=groups, freeze=config.freeze, lora=lora)
    if config.checkpointing:
        model.enable_checkpointing()


def trained_groups(config: TrainConfig) -> tuple[str, ...]:
    """The groups a run trains: `train`, or the stage's own with a LoRA in the transformer's place if it has a rank.

    Raises:
        UsageError: as `prepare_model`.
    """
    ranks = {"language_model_lora": config.lora.language_model.rank, "transformer_lora": config.lora.transformer.rank}
    for key, names, known in (("train", config.train, [*GROUPS, *LORA_GROUPS]), ("fresh", config.fresh, [*NEW])):
        for name in names:
            if name not in known:
                raise UsageError(f"'{key}' has no group '{name}'", f"the groups are {', '.join(known)}")
    chosen = config.train
    if not chosen:
        chosen = STAGES[config.stage].groups
        if ranks["transformer_lora"]:
            chosen = (*(group for group in chosen if group != "transformer"), "transformer_lora")
        if not ranks["language_model_lora"]:
            chosen = tuple(group for group in chosen if group != "language_model_lora")
    for group, rank in ranks.items():
        if group in chosen and not rank:
            raise UsageError(
                f"'{group}' is to be trained and has rank 0", f"pass --set lora.{group.removesuffix('_lora')}.rank=64"
            )
    if ranks["transformer_lora"] and "transformer_lora" not in chosen:
        raise UsageError(
            f"lora.transformer.rank is {ranks['transformer_lora']} and 'transformer_lora' is not trained",
            "add it to 'train', or set the rank to 0",
        )
    whole = [group for group in chosen if group not in LORA_GROUPS]
    if "lora" in config.export.forms and (whole or not chosen):
        raise UsageError(
            f"export.forms has 'lora', and '{whole[0] if whole else 'nothing'}' is trained, which is no LoRA",
            "a LoRA file would hold only part of what was trained: export 'folder' or 'raw'",
        )
    return chosen


def open_data(config: TrainConfig, inputs: InputBuilder) -> Data:
    """The caches of a run.

    Raises:
        CacheError: one that is not there, not complete or damaged.
    """
    data = Data({}, {}, {})
    for source in config.data:
        rows = CachedRows(Path(source.cache), inputs, weight_strength=source.weight_strength)
        name = rows.name if rows.name not in data.train else source.cache
        data.train[name], data.held_out[name], data.ratios[name] = rows, rows.held_out, source.ratio
    return data


def check_cache(rows: CachedRows, model: KiwiTrainModel) -> None:
    """Refuse a cache made with another vision tower, or with other latents.

    Raises:
        CheckpointError: with what to do.
    """
    from kiwi_cli.data.encode import vision_digest

    rows.check_model(vision_digest(model.mllm_encoder, model.inputs))
    channels = model.transformer.config.in_channels
    if len(rows) and rows[0].target.shape[0] != channels:
        raise CheckpointError(
            f"the latents in '{rows.folder}' have {rows[0].target.shape[0]} channels, the model takes {channels}",
            "run `kiwi data cache` with this model and another --out",
        )


def make_preview(
    config: TrainConfig, model: KiwiTrainModel, data: Data, folder: Path, accelerator: Accelerator
) -> Callable[[torch.nn.Module, int], None] | None:
    """Sample edits of the first held-out rows of each data set in turn; None in processes that write none."""
    rows = preview_rows(data.held_out, config.validate.previews)
    if not accelerator.is_main_process or not rows:
        return None
    from kiwi_cli.engine.pipeline import KiwiPipeline
    from kiwi_cli.engine.schedule import released_schedule
    from kiwi_cli.model import checkpoint

    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    vae = checkpoint.load_vae(folder / "vae", dtype, accelerator.device)
    pipe = KiwiPipeline(
        model.transformer,
        vae,
        model.mllm_encoder,
        model.source_embedder,
        model.ref_embedder,
        model.tokenizer,
        released_schedule(model.shift),
        model.colour,
        model.references_first,
    )

    def context(sample: Sample) -> torch.Tensor:
        return model.context(collate([sample], [0], 0).to(accelerator.device))

    preview = Preview(pipe, context, rows, config.validate.preview_steps, Path(config.out))

    def show(trained: torch.nn.Module, step: int) -> None:
        with accelerator.autocast():
            preview(trained, step)

    return show


def preview_rows(held_out: dict[str, Any], count: int) -> list[tuple[str, Sample]]:
    """(instruction, sample) of `count` held-out rows, the data sets in turn."""
    chosen: list[tuple[str, Sample]] = []
    for number in range(max((len(rows) for rows in held_out.values()), default=0)):
        for rows in held_out.values():
            if number < len(rows) and len(chosen) < count:
                chosen.append((rows.prompt(number), rows[number]))
    return chosen


def write_exports(
    config: TrainConfig, model: KiwiTrainModel, result: Result, folder: Path, accelerator: Accelerator
) -> dict[str, Path]:
    """What was trained as files, with the averaged weights where there is an average.

    Every process must call this; the first writes.
    """
    from kiwi_cli.train import exports

    dtype = getattr(torch, config.export.dtype)
    out = Path(config.out) / EXPORT
    written: dict[str, Path] = {}
    first = accelerator.is_main_process
    with result.ema.swapped() if result.ema is not None else nullcontext():
        spread = any(is_spread(value) for value in model.parameters())
        state = gather(model.state_dict(), first) if spread else None
        for form in config.export.forms if first else ():
            path = written[form] = out / (form if form == "folder" else f"{form}.safetensors")
            if form == "folder":
                exports.replace_folder(path, lambda new: exports.export_folder(model, new, folder, dtype, state))
            elif form == "raw":
                exports.export_raw(model, path, state)
            else:
                exports.export_lora(model, path, state)
    return written
