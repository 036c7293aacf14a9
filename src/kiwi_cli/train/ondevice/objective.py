"""A training step's loss from the bank alone: rows, timesteps and noises are drawn on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kiwi_cli.model.sampling import TIMESTEPS
from kiwi_cli.train.batch import Batch
from kiwi_cli.train.model import KiwiTrainModel
from kiwi_cli.train.objective import STEPS, loss_weights, noised, training_sigmas, velocity_loss
from kiwi_cli.train.ondevice.bank import Bank
from kiwi_cli.train.ondevice.guide import Guide
from kiwi_cli.train.ondevice.prompts import PromptForm
from kiwi_cli.train.ondevice.visible import Visible


@dataclass(frozen=True)
class Rows:
    """Rows of a bank as the model takes them.

    Attributes:
        target, source: (B, C, T, h, w) fp32. reference: (B, C, 1, h, w) fp32 or None. weight: (B, T, h, w) of mean 1.
        seen, picture, text, length: as `PromptForm.context` takes them. kind: (B,) numbers in `EVERY_KIND`.
    """

    target: torch.Tensor
    source: torch.Tensor
    reference: torch.Tensor | None
    weight: torch.Tensor
    seen: torch.Tensor
    picture: torch.Tensor | None
    text: torch.Tensor
    length: torch.Tensor
    kind: torch.Tensor


class Form:
    """Rows of a bank asked in one way: with or without a reference, all latent frames or the first.

    Args:
        frames: latent frames: all, or 1, for a causal autoencoder's first is that of the first frame alone.
        strength: how much more the edited region counts, as `CachedRows` has it.
    """

    def __init__(
        self, bank: Bank, prompts: PromptForm, frames: int, reference: bool, batch: int, draws: int, strength: float
    ) -> None:
        whole = 1 + (bank.spec.frames - 1) // bank.tools.frames_per_latent
        assert frames in (1, whole), "vision features are there of all frames and of the first"
        self.bank, self.prompts, self.frames, self.reference = bank, prompts, frames, reference
        self.batch, self.draws, self.strength = batch, draws, strength

    def draw(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Scenes and rows of a batch, (B,) each."""
        spec, device = self.bank.spec, self.bank.device
        first, count = (spec.edits, spec.references) if self.reference else (0, spec.edits)
        chance = torch.rand(2, self.batch, generator=generator, device=device)
        scenes = (chance[0] * self.bank.there).long()
        return scenes, first + (chance[1] * count).long()

    def rows(self, scenes: torch.Tensor, rows: torch.Tensor) -> Rows:
        tables, last = self.bank.tables, self.frames
        weight = 1.0 + self.strength * tables["coverage"][scenes, rows][:, :last].float()
        number = rows - self.bank.spec.edits
        return Rows(
            tables["target"][scenes, rows][:, :, :last].float(),
            tables["source"][scenes][:, :, :last].float(),
            tables["reference"][scenes, number].float() if self.reference else None,
            weight / weight.mean((1, 2, 3), keepdim=True),
            tables["still" if last == 1 else "seen"][scenes],
            tables["picture"][scenes, number] if self.reference else None,
            tables["text"][scenes, rows],
            tables["length"][scenes, rows],
            tables["kind"][scenes, rows],
        )


class Objective:
    """The loss of a `KiwiTrainModel`, as its `forward` has it, with nothing read by the host.

    Args:
        model: on the device.
        dtype: of the features between the layers.
        guide: what contexts are asked beside, and how much that counts.
        visible: what errors show, and the share of the loss that is measured so.
        even: share of timesteps that are drawn evenly over the schedule, as a sampler goes; the others are drawn as
            often as they weigh in the released loss, which leaves out the noisiest.
    """

    def __init__(
        self,
        model: KiwiTrainModel,
        device: torch.device,
        dtype: torch.dtype,
        guide: tuple[Guide, float] | None = None,
        visible: tuple[Visible, float] | None = None,
        even: float = 0.0,
    ) -> None:
        self.model, self.dtype, self.guide, self.visible = model, dtype, guide, visible
        weights = loss_weights(model.shift).double()
        chances = (1 - even) * weights / weights.sum() + even / STEPS
        self._cumulative = torch.cumsum(chances, 0).float().to(device)
        self._mean = float(weights.mean())
        self._sigmas = training_sigmas(model.shift).to(device)

    def loss(self, form: Form, generator: torch.Generator) -> torch.Tensor:
        """Mean over a batch that is drawn now; with gradients."""
        rows = form.rows(*form.draw(generator))
        sigma = self.sigmas(form.batch * form.draws, generator)
        noise = torch.randn(len(sigma), *rows.target.shape[1:], generator=generator, device=sigma.device)
        context = self.context(form, rows)
        loss = self.losses(form, rows, sigma, noise, context).mean()
        if self.guide is None:
            return loss
        guide, share = self.guide
        return loss + share * guide(context, rows.kind, rows.target)

    def sigmas(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """(count,) noise levels, drawn."""
        chance = torch.rand(count, generator=generator, device=self._sigmas.device)
        return self._sigmas[torch.searchsorted(self._cumulative, chance, right=True).clamp(max=STEPS - 1)]

    def losses(
        self, form: Form, rows: Rows, sigma: torch.Tensor, noise: torch.Tensor, context: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B * draws,) for given noise levels and noises, and the rows' context if it is there already."""
        draws = form.draws
        context = self.context(form, rows) if context is None else context
        clean = rows.target.repeat_interleave(draws, dim=0)
        weight = rows.weight.repeat_interleave(draws, dim=0)
        velocity = self.velocity(form, rows, context, noised(clean, noise, sigma), sigma)
        plain = velocity_loss(velocity, clean, noise, torch.full_like(sigma, self._mean), weight)
        if self.visible is None:
            return plain
        visible, share = self.visible
        seen = self._mean * visible(velocity.to(torch.float32) - (noise - clean), weight)
        return (1 - share) * plain + share * seen

    def context(self, form: Form, rows: Rows) -> torch.Tensor:
        mllm = self.model.mllm_encoder
        return form.prompts.context(mllm, rows.text, rows.length, rows.seen, rows.picture, self.dtype)

    def velocity(
        self, form: Form, rows: Rows, context: torch.Tensor, latents: torch.Tensor, sigma: torch.Tensor
    ) -> torch.Tensor:
        """Velocity of noisy latents (B * draws, C, T, h, w) at noise levels (B * draws,)."""
        batch = Batch(
            mode=form.prompts.mode,
            input_ids=rows.text,
            attention_mask=rows.length,
            position_ids=rows.length,
            vision=rows.seen,
            target=rows.target,
            source=rows.source,
            references=rows.reference,
            weight=rows.weight,
            sigma=sigma,
            timestep=sigma * TIMESTEPS,
            timestep_weight=sigma,
            noise=latents,
            draws=form.draws,
        )
        return self.model.velocity(batch, latents, context)
