"""Carries a memory plan out: which units are on the device during a stage.

The weights on the host stay where they are, mapped from the files; a unit on the device is a second set of
parameters, and taking it off only drops that set. Nothing is ever copied back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from diffusers.hooks import apply_group_offloading
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kiwi_cli.memory import (
    NEEDED,
    UNITS,
    Plan,
    Stage,
    Unit,
    Weights,
    Work,
    check_level,
    free_memory,
    plan,
    prompt_bytes,
    resident_units,
    step_down,
)

if TYPE_CHECKING:
    import numpy as np

    from kiwi_cli.mllm_inputs import MLLMInputs
    from kiwi_cli.pipeline import KiwiPipeline

Slot = tuple[nn.Module, str]
"""A module and the name of one of its own parameters or buffers."""


STREAMED: dict[Unit, str] = {"transformer": "block_level", "mllm": "leaf_level"}
"""Units that can come piece by piece, and the library's name for the pieces. The language model's embedding table is
used outside its stack of layers, so it goes leaf by leaf."""


class Residency:
    """Moves units on to a device and off again, by a plan made for each edit.

    Args:
        units: the modules of each, on the CPU.
        device: where work happens.
        level: 'auto', or the level that every plan is held to.
        limit: bytes to use at most, or None for what is free.

    Attributes:
        plan: in force.
        on_device: units that are on the device now.
    """

    def __init__(
        self,
        units: Mapping[Unit, Iterable[nn.Module]],
        device: torch.device,
        level: str = "auto",
        limit: int | None = None,
    ) -> None:
        self.units = {unit: list(modules) for unit, modules in units.items()}
        check_level(level)
        self.device, self.level, self.limit = device, level, limit
        self.weights = weigh(self.units)
        self.plan = Plan("resident" if level == "auto" else level)  # type: ignore[arg-type]
        self.on_device: set[Unit] = set()
        self.streamed = False
        self._host: dict[Unit, list[tuple[Slot, torch.Tensor]]] = {}
        self._work: Work | None = None
        self._say: Callable[[str], None] = lambda line: None

    def choose(self, work: Work, say: Callable[[str], None] | None = None) -> Plan:
        """Make the plan of an edit.

        Args:
            work: what it asks of the device.
            say: told of the plan, where there was something to plan, and of a step down later.

        Raises:
            UsageError, DeviceError: as `memory.plan`.
        """
        self._work, self._say = work, say or (lambda line: None)
        limits = [limit for limit in (self.limit, free_memory(self.device)) if limit is not None]
        self.adopt(plan(self.weights, work, min(limits, default=None), self.level))
        if self.plan.budget is not None or self.level != "auto":
            self._say(self.plan.describe())
        return self.plan

    def step_down(self) -> bool:
        """After running out of memory: a smaller plan for the rest of this edit, once. False when there is none."""
        smaller = step_down(self.plan, self.weights, self._work) if self._work and self.level == "auto" else None
        self._work = None
        if smaller is None:
            return False
        for unit in tuple(self.on_device):
            self.evict(unit)
        self.adopt(smaller)
        self._say(f"out of memory on {self.device}; going on with less: {smaller.describe()}")
        return True

    def adopt(self, plan: Plan) -> None:
        """Work by a plan from the next stage on."""
        self.plan = plan
        if plan.level in ("stream", "tiled") and not self.streamed:
            self.stream()

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[torch.device]:
        """The device, with what the stage needs on it and what the plan wants off it gone."""
        keep = resident_units(self.plan.level, stage)
        for unit in self.on_device - set(keep):
            self.evict(unit)
        for unit in keep if self.plan.level == "resident" else (NEEDED[stage],):
            self.load(unit)
        yield self.device

    def load(self, unit: Unit) -> None:
        """Put a unit on the device, if it is not there."""
        if unit in self.on_device:
            return
        # Of a streamed unit, the first module is in the library's hands.
        modules = self.units[unit][1:] if self.streamed and unit in STREAMED else self.units[unit]
        slots = [(slot, tensor) for module in modules for slot, tensor in tensors_of(module)]
        self._host[unit] = slots
        for (module, name), tensor in slots:
            _replace(module, name, self.copy(tensor))
        self.on_device.add(unit)

    def evict(self, unit: Unit) -> None:
        """Take a unit off the device, if it is there."""
        if unit not in self.on_device:
            return
        for (module, name), tensor in self._host.pop(unit):
            _replace(module, name, tensor)
        self.on_device.discard(unit)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the host on the device."""
        return tensor.to(self.device, non_blocking=True)

    def stream(self) -> None:
        """From now on the transformer comes block by block, the language model layer by layer. For good: the
        library's hooks stay on the modules."""
        for unit in UNITS:
            self.evict(unit)
        on_cuda = self.device.type == "cuda"
        for unit, kind in STREAMED.items():
            apply_group_offloading(
                self.units[unit][0],
                onload_device=self.device,
                offload_device=torch.device("cpu"),
                offload_type=kind,
                num_blocks_per_group=1 if kind == "block_level" else None,
                use_stream=on_cuda,
                low_cpu_mem_usage=on_cuda,  # pins while it copies, not all 17 GB at once
            )
        self.streamed = True


def tensors_of(module: nn.Module) -> Iterator[tuple[Slot, torch.Tensor]]:
    """Every parameter and buffer, with the module that holds it."""
    for owner in module.modules():
        for table in (owner._parameters, owner._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    yield (owner, name), tensor


def _replace(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    if name in module._buffers:
        module._buffers[name] = tensor
    elif isinstance(tensor, nn.Parameter):
        module._parameters[name] = tensor
    else:
        module._parameters[name] = nn.Parameter(tensor, requires_grad=False)


def weigh(units: Mapping[Unit, Iterable[nn.Module]]) -> Weights:
    """Bytes of each unit, whole and streamed (two blocks, or two of the largest layers, at once)."""
    whole: dict[Unit, int] = {}
    streamed: dict[Unit, int] = {}
    for unit, modules in units.items():
        modules = list(modules)
        whole[unit] = sum(_bytes(module) for module in modules)
        streamed[unit] = whole[unit]
        if unit == "transformer":
            blocks = [_bytes(block) for block in modules[0].get_submodule("blocks").children()]
            streamed[unit] = whole[unit] - sum(blocks) + 2 * max(blocks)
        elif unit == "mllm":
            leaves = [_bytes(leaf) for leaf in modules[0].modules() if not list(leaf.children())]
            streamed[unit] = 2 * max(leaves)
    return Weights(whole, streamed)


def count_work(pipe: KiwiPipeline, frames: np.ndarray, references: int, inputs: MLLMInputs) -> Work:
    """What an edit of these frames asks of the device, from the shapes and configs of its model.

    Args:
        frames: (F, H, W, 3). references: how many pictures. inputs: the prompt.
    """
    count, height, width = frames.shape[:3]
    dit, vae, qwen = pipe.transformer.config, pipe.vae.config, pipe.mllm_encoder.qwen.config
    latent_frames = 1 + -(-(count - 1) // pipe.frames_per_latent)
    grid = (height // pipe.size_multiple) * (width // pipe.size_multiple)
    area = (height // vae.scale_factor_spatial) * (width // vae.scale_factor_spatial)
    item = pipe.compute_dtype.itemsize
    token = dit.num_attention_heads * dit.attention_head_dim * item
    pixels = [values for values in (inputs.pixel_values_videos, inputs.pixel_values) if values is not None]
    prompt = prompt_bytes(
        max(map(len, pixels)),
        qwen.vision_config.hidden_size + qwen.vision_config.intermediate_size,
        inputs.input_ids.numel(),
        qwen.text_config.hidden_size + qwen.text_config.intermediate_size,
        item,
    )
    return Work(
        width=width,
        height=height,
        frames=1 + (latent_frames - 1) * pipe.frames_per_latent,
        tokens=(latent_frames + references) * grid,
        encoder_width=vae.base_dim * pipe.vae.encoder.conv_in.weight.element_size(),
        decoder_width=(vae.decoder_base_dim or vae.base_dim) * pipe.vae.decoder.conv_in.weight.element_size(),
        transformer=token,
        prompt=prompt + 4 * sum(values.numel() for values in pixels),
        # Source, noise and result in fp32, once more while they change; up to a thousand context tokens.
        latent_bytes=4 * 4 * vae.z_dim * area * (latent_frames + references) + 1024 * token,
    )


def stored_bytes(tensor: torch.Tensor) -> int:
    """Bytes a tensor takes. A quantised one says the precision it stands for: its parts are counted."""
    if is_traceable_wrapper_subclass(tensor):
        parts, _ = tensor.__tensor_flatten__()
        return sum(stored_bytes(getattr(tensor, part)) for part in parts)
    return tensor.numel() * tensor.element_size()


def _bytes(module: nn.Module) -> int:
    return sum(stored_bytes(tensor) for _, tensor in tensors_of(module))
