"""Which attention kernel the transformer uses. Chosen for one model; the process's own default stays as it was.

Nothing is downloaded: the library's backends that fetch kernels from the Hub are not offered.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

import torch
from diffusers.models.attention_dispatch import attention_backend

from kiwi_cli.errors import UsageError

BACKENDS = {
    "sdpa": "native",  # torch picks its own fused kernel
    "cudnn": "_native_cudnn",
    "flash": "flash",
    "flash3": "_flash_3",
    "sage": "sage",
}
"""Our names -> the library's."""

PACKAGES = {"flash": "flash_attn", "flash3": "flash_attn_interface", "sage": "sageattention"}
APPROXIMATE = ("sage",)
"""Kernels that compute in 8 bits: NOT exact."""

HOPPER = (9, 0)


def choose_attention(name: str, device: torch.device) -> str:
    """One of `BACKENDS` for a device.

    'auto' is flash3 where it is installed and the GPU is a Hopper, else torch's own choice. On a Hopper torch chooses
    cuDNN's kernel for these shapes and gives it our strides as they are; the library's way to the same kernel, 'cudnn',
    copies queries, keys, values and the output first.

    Raises:
        UsageError: an unknown name, a kernel whose package is missing, or one that this device cannot run.
    """
    on_cuda = device.type == "cuda"
    if name == "auto":
        capability = torch.cuda.get_device_capability(device) if on_cuda else (0, 0)
        if capability == HOPPER and find_spec(PACKAGES["flash3"]):
            return "flash3"
        return "sdpa"
    if name not in BACKENDS:
        raise UsageError(f"unknown attention: '{name}'", f"use auto, {', '.join(BACKENDS)}")
    if name != "sdpa" and not on_cuda:
        raise UsageError(f"attention '{name}' needs a CUDA GPU, not {device.type}", "use --attention auto or sdpa")
    package = PACKAGES.get(name)
    if package and find_spec(package) is None:
        raise UsageError(f"attention '{name}' needs the package '{package}'", "install it, or use --attention auto")
    return name


def set_attention(transformer: Any, name: str) -> None:
    """Let a transformer use one of `BACKENDS`.

    Raises:
        UsageError: a package that is there but too old, or broken.
    """
    backend = BACKENDS[name]
    logger = logging.getLogger("diffusers.models.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of an experimental feature each time
    try:
        # The library also makes the choice the default of the whole process; the context takes that back.
        with attention_backend(backend):
            transformer.set_attention_backend(backend)
    except (RuntimeError, ImportError, ValueError) as error:
        raise UsageError(f"attention '{name}' cannot be used: {error}", "use --attention auto or sdpa") from error
    finally:
        logger.setLevel(level)
