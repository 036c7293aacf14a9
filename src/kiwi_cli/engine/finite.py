"""Edits whose values stopped being numbers: refused, with the place where that began.

An overflow in float16, or one NaN in a weight, spreads over the whole picture and ends as one grey or black level. The
final latents are looked at once, when every step is done, and the decoded pixels gather a flag on the device: nothing
waits in between. Only a failed edit is run again, with every module's output looked at, to name the first bad one.

One kernel hides what is wrong: torch's attention on a CPU gives zeros for a query whose products are all NaN, where
there are fewer keys than one vector register holds. There the queries and keys are looked at themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

import torch
from torch import nn

from kiwi_cli.errors import CheckpointError, KiwiError

Parts = Mapping[str, nn.Module]

FLOAT16_HINT = "float16 ends at 65504: use --dtype float32, or bfloat16 where the GPU has it"
WEIGHTS_HINT = "fetch the model again (`kiwi download MODEL --verify --repair`), and leave out any LoRA"


VECTOR = 16
"""fp32 values in the widest register: as many keys or more, and torch's attention on a CPU hides nothing."""


class NotFiniteError(KiwiError):
    """An edit's values stopped being numbers."""


class _Began(Exception):
    """A module gave back a value that is not finite; carries its name."""


def is_finite(values: torch.Tensor) -> bool:
    """Whether all values are numbers; waits for the device."""
    return bool(torch.isfinite(values).all())


def watched(chunks: Iterable[torch.Tensor], parts: Parts, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The chunks as they come; after the last one, an error if a value in any was not finite.

    Raises:
        KiwiError: with the precision, and what to do.
    """
    good: torch.Tensor | None = None
    try:
        for chunk in chunks:
            found = torch.isfinite(chunk).all()
            good = found if good is None else good & found.to(good.device)
            yield chunk
    except NotFiniteError:
        _refuse_weights(parts)
        raise
    if good is not None and not bool(good):
        _refuse_weights(parts)
        raise _error("in the decoded frames", dtype)


def explain(parts: Parts, dtype: torch.dtype, again: Callable[[Callable[[str, int, int], None]], Any]) -> NoReturn:
    """Find out where an edit's values stopped being finite, and say it.

    Args:
        parts: the modules by name, their weights on the host.
        dtype: precision of the edit.
        again: runs the edit once more, reporting its progress.

    Raises:
        CheckpointError: a weight is not finite. KiwiError: the first module whose output is not.
    """
    _refuse_weights(parts)
    at: list[tuple[str, int]] = []
    try:
        with ExitStack() as hooks:
            for part, module in parts.items():
                for name, inner in module.named_modules():
                    hook = inner.register_forward_hook(_look(f"{part}.{name}".rstrip(".")))
                    hooks.callback(hook.remove)
            again(lambda stage, done, total: at.append((stage, done)))
    except _Began as began:
        steps = sum(stage == "denoise" for stage, _ in at)
        step = f" in step {steps + 1}" if str(began).startswith("transformer") else ""
        raise _error(f"from '{began}' on{step}", dtype) from None
    raise _error("in the latents", dtype)


@contextmanager
def few_keys_watched(parts: Parts, dtype: torch.dtype) -> Iterator[None]:
    """A context in which attention over fewer than `VECTOR` keys is refused queries and keys that are not finite.

    For work on a CPU. Looked at are the transformer's normalised queries and keys, and the VAE's; a prompt always has
    more tokens. Compiled blocks are not looked into.

    Raises:
        NotFiniteError: with the module whose output is not; an earlier module's may not be either.
    """
    with ExitStack() as hooks:
        for part, module in parts.items():
            for name, inner in module.named_modules():
                for hook in _attention_hooks(f"{part}.{name}", inner, dtype):
                    hooks.callback(hook.remove)
        yield


def _attention_hooks(name: str, module: nn.Module, dtype: torch.dtype) -> Iterator[Any]:
    """Hooks on the modules that give an attention layer its queries and keys."""
    if name.endswith(".to_qkv"):  # of a picture: one key for each pixel

        def pixels(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            if output.shape[-2:].numel() < VECTOR and not is_finite(output):
                raise _error(f"from '{name}' on", dtype)

        yield module.register_forward_hook(pixels)
    query, key = getattr(module, "norm_q", None), getattr(module, "norm_k", None)
    if not isinstance(query, nn.Module) or not isinstance(key, nn.Module):
        return
    asked: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if not torch.compiler.is_compiling():
            asked[:] = [output]

    def compare(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if torch.compiler.is_compiling():
            return
        for kind, tensor in zip(("norm_q", "norm_k"), (*asked, output), strict=True):
            if output.shape[1] < VECTOR and not is_finite(tensor):
                raise _error(f"from '{name}.{kind}' on", dtype)
        asked.clear()

    yield query.register_forward_hook(keep)
    yield key.register_forward_hook(compare)


def first_bad(parts: Parts) -> tuple[str, torch.Tensor] | None:
    """The first weight with a value that is not finite, with its name; None when all are."""
    for part, module in parts.items():
        for name, tensor in module.named_parameters():
            # Quantised weights are subclasses that do not answer; they were made from finite ones or spread NaN whole.
            plain = type(tensor.data) is torch.Tensor and tensor.is_floating_point() and tensor.itemsize >= 2
            if plain and not is_finite(tensor.data):
                return f"{part}.{name}", tensor.data
    return None


def _refuse_weights(parts: Parts) -> None:
    found = first_bad(parts)
    if found is None:
        return
    name, values = found
    if values.dtype == torch.float16 and not bool(values.isnan().any()):
        raise CheckpointError(f"the weight '{name}' does not fit into float16", FLOAT16_HINT)
    raise CheckpointError(
        f"the weights are damaged: '{name}' holds values that are not finite (NaN or Inf)", WEIGHTS_HINT
    )


def _look(name: str) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, (tuple, list)) and output else output
        if isinstance(first, torch.Tensor) and first.is_floating_point() and not is_finite(first):
            raise _Began(name)

    return hook


def _error(where: str, dtype: torch.dtype) -> NotFiniteError:
    precision = str(dtype).removeprefix("torch.")
    return NotFiniteError(
        f"the edit's values are not finite (NaN or Inf) {where}, in {precision}; no picture can be made of them",
        FLOAT16_HINT if dtype == torch.float16 else WEIGHTS_HINT,
    )
