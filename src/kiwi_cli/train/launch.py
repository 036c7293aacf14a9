"""The processes of a run: accelerate's Accelerator, from the settings and the way the processes were started."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, GradientAccumulationPlugin

from kiwi_cli.errors import UsageError
from kiwi_cli.train.config import TrainConfig, accumulation

LAUNCH = "torchrun --nproc-per-node N -m kiwi_cli train ..."

BLOCKS = ("WanTransformerBlock", "Qwen2_5_VLDecoderLayer")
"""Classes whose instances are gathered one at a time when the model is sharded."""


def make_accelerator(config: TrainConfig, device: str = "auto") -> Accelerator:
    """An Accelerator that does what the settings say.

    Args:
        device: 'auto' (the accelerator of this process's local rank, else the CPU) or 'cpu'.

    Raises:
        UsageError: the processes were started for another strategy, batches do not come out even among them, or a
            tracker is not installed.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if config.strategy == "none" and processes > 1:
        raise UsageError(
            f"{processes} processes were started and strategy is 'none'",
            "pass --set strategy=ddp, or start one process",
        )
    if config.strategy != "none" and "RANK" not in os.environ:
        raise UsageError(f"strategy is '{config.strategy}' and no processes were started", f"start them: {LAUNCH}")
    _check_trackers(config)
    steps = accumulation(config, processes)
    options: dict[str, Any] = {}
    if config.strategy == "fsdp":
        options["fsdp_plugin"] = _sharding(config, device)
    # accelerate keeps one state for the whole process; a second run in it may have another precision or device.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            steps, adjust_scheduler=False, sync_with_dataloader=False
        ),
        log_with=list(config.trackers) or None,
        project_dir=config.out,
        # A batch of images leaves the video queries out, and so on: all processes the same ones, but DDP must look.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        **options,
    )
    kinds = {DistributedType.FSDP: "fsdp", DistributedType.DEEPSPEED: "deepspeed", DistributedType.NO: "none"}
    found = kinds.get(accelerator.distributed_type, "ddp")
    if found != config.strategy and processes > 1:
        raise UsageError(
            f"the processes were started for '{found}' and strategy is '{config.strategy}'",
            "change the launcher's settings" + (f", or pass --set strategy={found}" if found != "deepspeed" else ""),
        )
    return accelerator


def _sharding(config: TrainConfig, device: str) -> Any:
    """FSDP2, a unit for each block of the transformer and of the language model.

    Weights are gathered in the precision they are held in, trained ones in fp32, and gradients are reduced in fp32:
    autocast does the bf16, as without FSDP.
    """
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if device == "cpu" or not torch.cuda.is_available():
        raise UsageError("strategy is 'fsdp' and there is no GPU", "use strategy=ddp, which works on the CPU too")
    if config.validate.preview_every:
        raise UsageError(
            "sample edits need whole weights, which no process has with strategy 'fsdp'",
            "pass --set validate.preview_every=0",
        )
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=list(BLOCKS),
        mixed_precision_policy=MixedPrecisionPolicy(cast_forward_inputs=False),
        cpu_ram_efficient_loading=False,
    )


def _check_trackers(config: TrainConfig) -> None:
    """accelerate leaves out a tracker that is not installed without a word."""
    from accelerate.tracking import get_available_trackers

    available = [str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()]
    for tracker in config.trackers:
        if tracker not in available:
            raise UsageError(
                f"the tracker '{tracker}' is not installed",
                f"install it, or use {', '.join(available)}" if available else "install it, or leave out 'trackers'",
            )


def all_agree(accelerator: Accelerator, mine: bool) -> bool:
    """True when `mine` is true in every process. Collective: every process must call it."""
    if accelerator.num_processes == 1:
        return mine
    against = torch.tensor(0 if mine else 1, device=accelerator.device)
    return int(accelerator.reduce(against, "sum")) == 0
