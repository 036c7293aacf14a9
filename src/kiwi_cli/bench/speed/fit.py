"""Whether what is to be measured fits this machine: said before a weight is drawn, not by the kernel's killer after."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from kiwi_cli.base import hardware
from kiwi_cli.bench.speed.request import SpeedRequest
from kiwi_cli.engine.demand import STAGES, demand_of
from kiwi_cli.engine.estimate import weights_of
from kiwi_cli.engine.memory import GB, Weights, free_memory, parse_bytes, place
from kiwi_cli.engine.quantize import products
from kiwi_cli.engine.random_model import random_pipeline
from kiwi_cli.engine.residency import weigh
from kiwi_cli.errors import DeviceError
from kiwi_cli.model.pictures import as_picture
from kiwi_cli.model.shape import RELEASED_5B

PROCESS = 1_000_000_000
"""Bytes of the process itself: Python, torch, its libraries and their buffers."""

SMALLER = (("mid", 416, 224, 17), ("mid", 416, 224, 5), ("small", 64, 64, 5))
"""What is proposed instead, the first that fits: model, width, height, frames."""

WORDS = "measure"


def check_room(request: SpeedRequest, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse what does not fit into the host's memory, or the device's.

    Raises:
        DeviceError: with what is needed, what there is, and what would fit.
    """
    has = hardware.memory()
    needed = host_bytes(request, device, dtype)  # and what the device refuses
    if has is None or needed <= has[1]:
        return
    hint = "use a machine with more memory"
    for model, width, height, frames in SMALLER:
        smaller = replace(request, model=model, width=width, height=height, frames=frames, max_memory=None)
        if host_bytes(smaller, device, dtype) <= has[1]:
            hint = f"use --model {model} --size {width}x{height} --frames {frames}"
            break
    raise DeviceError(
        f"{request.model} weights at {request.width}x{request.height}, {request.frames} frames "
        f"need {needed / GB:.1f} GB of main memory in {str(dtype).removeprefix('torch.')}, "
        f"and {has[1] / GB:.1f} GB are free",
        hint,
    )


def host_bytes(request: SpeedRequest, device: torch.device, dtype: torch.dtype) -> int:
    """Bytes of main memory that a measurement takes: the weights, which are drawn whole, the clip twice, and where the
    CPU works, the activations.

    Raises:
        DeviceError: it does not fit the device.
    """
    pipe = random_pipeline(request.model, torch.device("meta"), dtype)
    frames = np.broadcast_to(np.zeros(1, np.uint8), (request.frames, request.height, request.width, 3))
    pictures = [as_picture(np.ascontiguousarray(frames[0]))] if request.reference else []
    demand = demand_of(pipe, frames, len(pictures), pipe.inputs(frames, WORDS, pictures))
    demand = replace(demand, compiled=request.compile, products=products(request.quantize, device, dtype))
    drawn = weigh(pipe.units)
    limits = [parse_bytes(request.max_memory)] if request.max_memory else []
    limits += [free] if (free := free_memory(device)) is not None else []
    weights = _kept(request, drawn, dtype)
    placement = place(weights, demand, min(limits, default=None), request.memory)
    host = sum(drawn.whole.values()) + 2 * frames.size + PROCESS
    if device.type == "cuda":
        return host
    strips = {"encode": placement.encode_strips, "decode": placement.decode_strips}
    level = placement.level
    return host + max(demand.activations(stage, strips.get(stage, 1), level.tiled) for stage in STAGES)


def _kept(request: SpeedRequest, drawn: Weights, dtype: torch.dtype) -> Weights:
    """The weights as they will be kept; in 8 bits counted for the released shape only, which needs it."""
    if request.model != "5b" or request.quantize == "as-stored":
        return drawn
    return weights_of(RELEASED_5B, dtype.itemsize, request.quantize)
