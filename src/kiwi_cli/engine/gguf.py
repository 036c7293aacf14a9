"""The transformer's weights from a GGUF file: blocks of 2 to 8 bits a weight. NOT exact.

The matrices of the transformer stay in the file's form and are unpacked for each call by the library's GGUF layer;
everything else of the file is unpacked once. The rest of the pipeline comes from its own checkpoint as ever. The
library's optional CUDA kernels for GGUF, which it would download, are off unless its own environment variable asks.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kiwi_cli.engine.memory import GB
from kiwi_cli.engine.quantize import is_quantized, large_layers
from kiwi_cli.engine.residency import stored_bytes, weigh
from kiwi_cli.errors import CheckpointError, NoSuchModelError, UsageError
from kiwi_cli.model.transformer import keeps_fp32
from kiwi_cli.weights.keys import UNUSED_DIT, dit_key

if TYPE_CHECKING:
    from kiwi_cli.engine.pipeline import KiwiPipeline

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "pipe.dit.", "dit.")
"""What programs put in front of the transformer's keys."""

ANOTHER_HINT = "use a GGUF file made from Kiwi-Edit's 5B transformer"


def load_gguf(pipe: KiwiPipeline, path: Path) -> str:
    """Replace a pipeline's transformer weights by those of a GGUF file, in place and for good.

    Args:
        pipe: not quantised; anything else of it stays.
        path: keys as in diffusers or as in the original Wan code.

    Returns:
        What was done, one line for the person; it joins `pipe.alterations`.

    Raises:
        UsageError: the package is missing, or the pipeline is quantised already.
        CheckpointError: a file that is missing, broken, or of another model. Nothing is changed then.
    """
    if find_spec("gguf") is None:
        raise UsageError("a GGUF file needs the package 'gguf'", "pip install 'kiwi-cli[gguf]'")
    residency = pipe.residency
    if is_quantized(pipe):
        raise UsageError("quantised weights cannot be replaced", "load the GGUF file first")

    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter, dequantize_gguf_tensor

    model = pipe.transformer
    found = _renamed(_read(path), path)
    _check_names(found, dict(model.named_parameters()), path)
    matrices = {name.removeprefix("transformer.") for name, _ in large_layers(pipe)}
    if residency is not None:
        for unit in tuple(residency.on_device):
            residency.evict(unit)
    wanted = dict(model.named_parameters())  # taken after the eviction: those of the host
    before = sum(map(stored_bytes, wanted.values()))
    for name, old in wanted.items():
        owner_name, _, leaf = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        value = found.pop(name)
        if isinstance(value, GGUFParameter) and leaf == "weight" and owner_name in matrices:
            assert isinstance(owner, nn.Linear)
            packed = GGUFLinear(owner.in_features, owner.out_features, False, pipe.compute_dtype, "meta")
            packed.weight, packed.bias = value.to(old.device), owner.bias
            model.set_submodule(owner_name, packed)
            continue
        if isinstance(value, GGUFParameter):
            value = dequantize_gguf_tensor(value)
        dtype = torch.float32 if keeps_fp32(name) else pipe.compute_dtype
        # Files have at most four dimensions: the patch embedding's kernel is flattened in them.
        plain = value.reshape(old.shape).to(old.device, dtype)
        owner._parameters[leaf] = nn.Parameter(plain, requires_grad=False)
    if residency is not None:
        residency.weights = weigh(residency.units)
    after = sum(stored_bytes(value) for value in model.parameters())
    line = f"transformer from '{path.name}': NOT exact, GGUF weights; {before / GB:.2f} -> {after / GB:.2f} GB"
    pipe.alterations.append(line)
    return line


def _read(path: Path) -> dict[str, Any]:
    """Every tensor of a file: packed ones as the library's `GGUFParameter`, fp32 and fp16 as they are."""
    from diffusers.models.model_loading_utils import load_gguf_checkpoint

    if not path.is_file():
        raise NoSuchModelError(f"GGUF file not found: '{path}'", "pass an existing .gguf file")
    try:
        return load_gguf_checkpoint(str(path))
    except Exception as error:  # the reader raises whatever its parsing raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"cannot read the GGUF file '{path}': {reason}", "fetch or make it again") from error


def _renamed(tensors: dict[str, Any], path: Path) -> dict[str, Any]:
    """Under diffusers' names, without the T5 projection that the model never reads."""
    renamed: dict[str, Any] = {}
    for key in list(tensors):
        plain = key
        for prefix in PREFIXES:
            plain = plain.removeprefix(prefix)
        name = dit_key(plain)
        if name is None and plain.startswith("text_embedding."):
            continue
        if name is None:
            raise CheckpointError(f"'{path}' is of another model: it holds '{key}'", ANOTHER_HINT)
        if not name.startswith(UNUSED_DIT):
            renamed[name] = tensors[key]
    return renamed


def _check_names(found: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise CheckpointError(f"'{path}' lacks {len(missing)} tensors, such as '{missing[0]}'", ANOTHER_HINT)
    extra = [name for name in found if name not in wanted]
    if extra:
        raise CheckpointError(f"'{path}' is of another model: it holds '{extra[0]}'", ANOTHER_HINT)
    for name, old in wanted.items():
        shape = tuple(getattr(found[name], "quant_shape", None) or found[name].shape)
        # Of more than two dimensions, files keep no more than the number of values.
        fits = math.prod(shape) == old.numel() if old.ndim > 2 else shape == tuple(old.shape)
        if not fits:
            raise CheckpointError(
                f"'{path}' is of another model: '{name}' is {shape}, not {tuple(old.shape)}", ANOTHER_HINT
            )
