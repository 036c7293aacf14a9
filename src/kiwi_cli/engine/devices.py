"""Which device and precision to work with. Asked for is what is used: nothing falls back silently."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kiwi_cli.base.choices import CPU_PARAMETERS
from kiwi_cli.errors import DeviceError, UsageError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def choose_device(name: str) -> torch.device:
    """The device to work on: 'auto' is CUDA, then MPS, then the CPU; anything else must be there.

    A CUDA device comes with its number: torch's memory calls refuse 'cuda' alone.

    Raises:
        UsageError: not a device. DeviceError: not on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device: '{name}'", "use cuda, cuda:N, mps or cpu") from None
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not here.get(device.type, False) or (device.index or 0) >= max(1, torch.cuda.device_count()):
        raise DeviceError(f"no such device here: '{name}'", "use --device cpu, or a machine with a GPU")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def choose_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """'auto' is bfloat16 on an accelerator and float32 on the CPU.

    Raises:
        UsageError: not one of bfloat16, float16, float32.
    """
    if isinstance(name, torch.dtype):
        return name
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise UsageError(f"unknown dtype: '{name}'", f"use one of {', '.join(DTYPES)}")
    return DTYPES[name]


def refuse_large_on_cpu(parameters: int, asked: str) -> None:
    """Stop before loading a large model onto a CPU that nobody asked for.

    Raises:
        DeviceError: with how to insist.
    """
    if asked == "auto" and choose_device("auto").type == "cpu" and parameters > CPU_PARAMETERS:
        raise DeviceError(
            f"no GPU here, and this model has {parameters / 1e9:.1f} billion parameters",
            "use a machine with a CUDA GPU, try --model tiny, or insist with --device cpu (hours for one clip)",
        )


@contextmanager
def exact_fp32() -> Iterator[None]:
    """A context in which fp32 convolutions and matrix products on CUDA keep all 24 bits of their operands.

    Outside it torch computes fp32 convolutions, and so the VAE's encoder, in TF32, which reads 11 bits: faster, and
    the default of everyone's torch. Inside it recorded values are compared. The settings are the whole process's.
    """
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products
