"""Held-out figures on the device at the end of a run: what an edit scores against its truth, kind by kind.

Quick looks, not the table of docs/tiny.md (`benchmarks/tiny_quality.py`): few scenes, no candidates to be nearest to.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from kiwi_cli.model.sampling import flow_sigmas
from kiwi_cli.model.vae import latent_statistics
from kiwi_cli.synth.wordings import EVERY_KIND
from kiwi_cli.train.ondevice import whole
from kiwi_cli.train.ondevice.bank import Bank, to_pixels
from kiwi_cli.train.ondevice.objective import Form, Objective
from kiwi_cli.train.tiny_vae import psnr

STEPS = 16
BATCH = 64


@torch.no_grad()
def held_out(
    objective: Objective,
    vae: AutoencoderKLWan,
    form: Form,
    clips: torch.Tensor,
    kinds: np.ndarray,
    generator: torch.Generator,
) -> dict[str, dict[str, float]]:
    """Kind -> `db` of the edits, `ceiling` of their truths through the autoencoder, `source` of no edit, `tint` of
    results in 0..255 (what the channels of a pixel differ by, beyond the truth's), `count`.

    Args:
        form: of a bank of held-out scenes; one draw.
        clips: (scenes, 1 + rows, F, H, W, 3) uint8, what the bank was made of. kinds: (scenes, rows) their numbers.
    """
    spec = form.bank.spec
    first, count = (spec.edits, spec.references) if form.reference else (0, spec.edits)
    scenes = torch.arange(form.bank.scenes, device=clips.device).repeat_interleave(count)
    rows = first + torch.arange(count, device=clips.device).repeat(form.bank.scenes)
    found: list[torch.Tensor] = []
    for part, row in zip(scenes.split(BATCH), rows.split(BATCH), strict=True):
        frames = 1 + (form.frames - 1) * 4
        truth, source = to_pixels(clips[part, 1 + row][:, :frames]), to_pixels(clips[part, 0][:, :frames])
        data = form.rows(part, row)
        edited, ceiling = (_decoded(vae, value) for value in (_edited(objective, form, data, generator), data.target))
        tint = (_spread(edited) - _spread(truth)).clamp(min=0).flatten(1).mean(1) * 127.5
        found.append(torch.stack([psnr(edited, truth), psnr(ceiling, truth), psnr(source, truth), tint], dim=1))
    table, each = torch.cat(found).cpu(), kinds[:, first : first + count].ravel()
    result: dict[str, dict[str, float]] = {}
    for number in np.unique(each).tolist():
        mine = table[torch.from_numpy(each == number)]
        means = [round(value, 2) for value in mine.mean(dim=0).tolist()]
        result[EVERY_KIND[number]] = dict(
            zip(("db", "ceiling", "source", "tint"), means, strict=True), count=float(len(mine))
        )
    return result


def _spread(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.amax(dim=1) - pixels.amin(dim=1)


def _edited(objective: Objective, form: Form, data: Any, generator: torch.Generator) -> torch.Tensor:
    """Latents by the sampler that an edit has."""
    sigmas = flow_sigmas(STEPS, objective.model.shift).to(data.target.device)
    latents = torch.randn(data.target.shape, generator=generator, device=data.target.device)
    with torch.autocast(latents.device.type, torch.bfloat16, enabled=latents.device.type == "cuda"):
        context = objective.context(form, data)
        for step in range(STEPS):
            sigma = sigmas[step].expand(len(latents))
            velocity = objective.velocity(form, data, context, latents, sigma)
            latents = latents + (sigmas[step + 1] - sigmas[step]) * velocity.float()
    return latents


def _decoded(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    mean, std = latent_statistics(vae, latents.device)
    return whole.decode(vae, latents * std + mean).float().clamp(-1, 1)


@torch.no_grad()
def reconstruction(vae: AutoencoderKLWan, clips: torch.Tensor) -> dict[str, float]:
    """Mean dB of clips (N, F, H, W, 3) uint8 given back by the autoencoder: of all frames, and of some."""
    parts = []
    for part in clips.split(BATCH):
        pixels = to_pixels(part)
        back = whole.decode(vae, whole.encode(vae, pixels)).float().clamp(-1, 1)
        spans = (slice(None), slice(0, 1), slice(0, 5), slice(-4, None))
        parts.append(torch.stack([psnr(back[:, :, span], pixels[:, :, span]) for span in spans], dim=1))
    means = torch.cat(parts).mean(dim=0).tolist()
    return dict(zip(("all", "first", "five", "last_four"), (round(value, 2) for value in means), strict=True))


def banked(bank: Bank) -> str:
    """A line on what a bank holds."""
    return f"{bank.spec.name} {bank.scenes} scenes ({bank.written} drawn), {bank.bytes() / 1e9:.2f} GB"
