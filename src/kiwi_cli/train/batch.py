"""What the data hands to the model: samples, and batches of samples that have the same sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from kiwi_cli.model.prompt import Mode
from kiwi_cli.model.sampling import SHIFT, TIMESTEPS
from kiwi_cli.train.objective import Timesteps, draw, training_sigmas


@dataclass(frozen=True)
class Prompt:
    """A prompt of the instruction encoder whose vision features are there already.

    Attributes:
        mode: which queries and connectors apply.
        input_ids: (L,) int64. position_ids: (3, L) int64: time, height, width.
        vision: (V, D) what the vision tower gives after its merger, in the order of the placeholders.
    """

    mode: Mode
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    vision: torch.Tensor


@dataclass(frozen=True)
class Sample:
    """One row.

    Attributes:
        target, source: (C, T, h, w) normalised latents; no source where a stage uses none.
        references: (C, R, h, w), or None.
        weight: (T, h, w) fp32 of mean 1: how much each place counts in the loss; None for all alike.
    """

    prompt: Prompt
    target: torch.Tensor
    source: torch.Tensor | None = None
    references: torch.Tensor | None = None
    weight: torch.Tensor | None = None


@dataclass(frozen=True, order=True)
class Bucket:
    """What the samples of a batch have in common.

    Attributes:
        frames, height, width: of the latents.
        references: how many; reference_tokens: visual tokens of the first in the prompt.
    """

    mode: str
    frames: int
    height: int
    width: int
    references: int = 0
    reference_tokens: int = 0


@dataclass
class Batch:
    """B samples, each with K draws of timestep and noise.

    Attributes:
        input_ids: (B, L) int64, shorter prompts padded on the left; attention_mask: (B, L) int64, 0 there.
        position_ids: (3, B, L). vision: (V of all samples, D).
        target, source: (B, C, T, h, w) fp32; references: (B, C, R, h, w); weight: (B, T, h, w).
        sigma, timestep, timestep_weight: (B * K,) fp32. noise: (B * K, C, T, h, w) fp32.
        draws: K.
    """

    mode: Mode
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    vision: torch.Tensor
    target: torch.Tensor
    source: torch.Tensor | None
    references: torch.Tensor | None
    weight: torch.Tensor | None
    sigma: torch.Tensor
    timestep: torch.Tensor
    timestep_weight: torch.Tensor
    noise: torch.Tensor
    draws: int = 1

    def __len__(self) -> int:
        return len(self.target)

    def to(self, device: torch.device | str) -> Batch:
        """All tensors on a device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **moved)


def collate(
    samples: Sequence[Sample],
    positions: Sequence[int],
    seed: int,
    draws: int = 1,
    timesteps: Timesteps = "uniform",
    shift: float = SHIFT,
) -> Batch:
    """Samples of one bucket to a batch.

    Args:
        positions: global number of each sample in the run, from 0; with the seed it decides timesteps and noises.
        draws: timesteps and noises for each sample; its context is computed once for all of them.
        timesteps: how they are drawn, shift: of the schedule they are drawn from (objective.py).
    """
    length = max(len(sample.prompt.input_ids) for sample in samples)
    ids, mask, places = [], [], []
    for sample in samples:
        missing = length - len(sample.prompt.input_ids)
        ids.append(torch.nn.functional.pad(sample.prompt.input_ids, (missing, 0)))
        mask.append(torch.nn.functional.pad(torch.ones_like(sample.prompt.input_ids), (missing, 0)))
        places.append(torch.nn.functional.pad(sample.prompt.position_ids, (missing, 0)))
    drawn = [
        draw(seed, position, draws, tuple(sample.target.shape), timesteps, shift)
        for sample, position in zip(samples, positions, strict=True)
    ]
    sigma = training_sigmas(shift)[torch.cat([steps for steps, _, _ in drawn])]
    return Batch(
        mode=samples[0].prompt.mode,
        input_ids=torch.stack(ids),
        attention_mask=torch.stack(mask),
        position_ids=torch.stack(places, dim=1),
        vision=torch.cat([sample.prompt.vision for sample in samples]),
        target=_stacked([sample.target for sample in samples]),
        source=None if samples[0].source is None else _stacked([_there(sample.source) for sample in samples]),
        references=(
            None if samples[0].references is None else _stacked([_there(sample.references) for sample in samples])
        ),
        weight=_weights(samples),
        sigma=sigma,
        timestep=sigma * TIMESTEPS,
        timestep_weight=torch.cat([weights for _, weights, _ in drawn]),
        noise=torch.cat([noise for _, _, noise in drawn]),
        draws=draws,
    )


def _there(value: torch.Tensor | None) -> torch.Tensor:
    assert value is not None, "samples of one bucket have the same parts"
    return value


def _stacked(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([value.to(torch.float32) for value in values])


def _weights(samples: Sequence[Sample]) -> torch.Tensor | None:
    """(B, T, h, w), a sample without weights counting alike everywhere; None if no sample has any."""
    if all(sample.weight is None for sample in samples):
        return None
    even = torch.ones(samples[0].target.shape[1:])
    return torch.stack([even if sample.weight is None else sample.weight.to(torch.float32) for sample in samples])
