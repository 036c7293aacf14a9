"""What a step in minutes asks of a device: as much the first time as ever after. Operations are counted on the CPU,
by the ways that a GPU takes; on one, each that computes is a kernel that the host hands over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kiwi_cli.train.model import KiwiTrainModel
from kiwi_cli.train.ondevice import autoencoder
from kiwi_cli.train.ondevice.bf16 import Narrow
from kiwi_cli.train.ondevice.guide import Guide
from kiwi_cli.train.ondevice.learner import Learner
from kiwi_cli.train.ondevice.objective import Objective

from .test_ondevice import CPU, encoder, form, tiny


class Operations(TorchDispatchMode):
    """Counts what is dispatched within it, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def counted(learner: Learner, loss: Callable[[], torch.Tensor]) -> Counter[str]:
    """The operations of one step, the optimiser's in groups, as on CUDA."""
    learner.optimiser.grouped = True
    with Operations() as found:
        learner.step(loss, 1.0)
    return found.counts


def trained(model: KiwiTrainModel) -> dict[str, torch.nn.Parameter]:
    """A block of each network, and all that only some forms of batches have a gradient for."""
    kept = ("transformer.blocks.5.", "language_model.layers.0.", "queries", "connector", "embedder.patch_embedding")
    model.requires_grad_(False)
    return {name: value for name, value in model.named_parameters() if any(part in name for part in kept)}


@pytest.mark.parametrize("guided", [False, True])
def test_the_first_step_of_each_form_does_what_later_ones_do(guided: bool) -> None:
    model = KiwiTrainModel.from_folder(tiny(), torch.float32)
    guide = Guide(16, 256, 48)
    objective = Objective(model, CPU, torch.float32, (guide, 1.0) if guided else None)
    learner = Learner(trained(model) | (dict(guide.named_parameters()) if guided else {}), 1e-4, decay=0.9)
    random = torch.Generator().manual_seed(0)
    forms = [form("clip", still, reference) for still in (False, True) for reference in (True, False)]
    first, later = (
        [counted(learner, lambda asked=asked: objective.loss(asked, random)) for asked in forms] for _ in range(2)
    )
    assert first == later


def test_a_run_that_goes_on_makes_nothing_in_its_first_step() -> None:
    model = KiwiTrainModel.from_folder(tiny(), torch.float32)
    objective, asked = Objective(model, CPU, torch.float32), form("clip", False, True)
    learner = Learner(trained(model), 1e-4, decay=0.9)
    random = torch.Generator().manual_seed(0)
    expected = counted(learner, lambda: objective.loss(asked, random))
    kept = {name: value.clone() for name, value in learner.tensors().items()}
    # As a run saved it that never saw a reference: nothing is there of what only references train.
    kept = {name: value for name, value in kept.items() if not name.startswith("optimiser/") or "ref" not in name}
    again = Learner(trained(model), 1e-4, decay=0.9)
    again.load(kept)
    assert counted(again, lambda: objective.loss(asked, random)) == expected


@pytest.mark.parametrize("frames", [5, 17])
def test_the_autoencoders_first_step_does_what_later_ones_do(frames: int) -> None:
    vae = autoencoder.in_layout(encoder().vae.__class__.from_config(encoder().vae.config))
    learner = autoencoder.learner(vae, 1e-4)
    random = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 3, frames, 32, 32, generator=random) * 2 - 1
    first, later = (counted(learner, lambda: autoencoder.loss(vae, pixels, random)) for _ in range(2))
    assert first == later


def test_weights_cast_together_have_the_loss_and_gradients_of_autocast() -> None:
    """And in fewer operations: one for a cast of all, where autocast has one for each and one for each gradient."""
    model = KiwiTrainModel.from_folder(tiny(), torch.float32)
    parameters = trained(model)
    for value in parameters.values():
        value.requires_grad_(True)
    objective, asked = Objective(model, CPU, torch.bfloat16), form("clip", False, False)
    narrow = Narrow(model, torch.bfloat16)

    def graded(call: Callable[[Callable[[], torch.Tensor]], torch.Tensor]) -> tuple[torch.Tensor, list[Any], int]:
        model.zero_grad()
        with Operations() as operations, torch.autocast("cpu", torch.bfloat16):
            loss = call(lambda: objective.loss(asked, torch.Generator().manual_seed(1)))
            loss.backward()
        casts = operations.counts["aten._to_copy.default"]
        return loss.detach(), [value.grad for value in parameters.values()], casts

    expected, gradients, casts = graded(lambda work: work())
    found, mine, fewer = graded(narrow.call)
    assert torch.equal(found, expected)
    for first, second in zip(mine, gradients, strict=True):
        assert (first is None) == (second is None)
        assert first is None or (first.dtype == torch.float32 and torch.equal(first, second))
    unused = [name for name, value in parameters.items() if value.grad is None]
    assert unused and all("ref_" in name or "image_queries" in name for name in unused)
    assert fewer < casts - 40
