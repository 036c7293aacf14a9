"""Which device and precision to work with. Asked for is what is used: nothing falls back silently."""

from __future__ import annotations

import torch

from kiwi_cli.errors import DeviceError, UsageError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

CPU_PARAMETERS = 1_000_000_000
"""Above this many parameters, a CPU must be asked for by name: an edit would take hours."""


def choose_device(name: str) -> torch.device:
    """'auto' is CUDA, then MPS, then the CPU; anything else must be there.

    Raises:
        UsageError: not a device. DeviceError: not on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device: '{name}'", "use cuda, cuda:N, mps or cpu") from None
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not here.get(device.type, False) or (device.index or 0) >= max(1, torch.cuda.device_count()):
        raise DeviceError(f"no such device here: '{name}'", "use --device cpu, or a machine with a GPU")
    return device


def choose_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """'auto' is bfloat16 on an accelerator and float32 on the CPU.

    Raises:
        UsageError: a precision that is none of bfloat16, float16, float32.
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
            "use a machine with a CUDA GPU, or insist with --device cpu (hours for one clip)",
        )
