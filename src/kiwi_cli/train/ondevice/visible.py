"""How much an error in the latents shows in the pictures: what a small model's loss is measured with.

The channels of latents are normalised, so the plain loss asks as much of each. But directions differ a thousandfold in
what shows of them: 16 of the embedded autoencoder's 48 have a fiftieth of the pictures' energy. And an error that is
the same all over a frame, as of its colour, shows in three directions for the most part, in the first of them 3.6 times
as much as one that differs from place to place. A model that has to learn looks in hours must be told.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from kiwi_cli.model.vae import latent_statistics
from kiwi_cli.synth.natural import natural_scene
from kiwi_cli.synth.scenes import make_scene
from kiwi_cli.train.ondevice import whole
from kiwi_cli.train.ondevice.bank import to_pixels

SCENES = 4
"""Drawn ones, and as many nearer to filmed ones, that it is measured on."""
PROBE = 0.3
"""Standard deviations that a channel is moved by."""


class Visible:
    """The squared error of pixels that an error of latents comes to, about, as a share of what a white one comes to.

    Args:
        local, even: (C, C) symmetric: energies of pixels that errors come to which differ from place to place, and
            which are the same all over a frame.
    """

    def __init__(self, local: torch.Tensor, even: torch.Tensor) -> None:
        scale = len(local) / local.trace()
        self.local, self.even = local * scale, even * scale

    def __call__(self, error: torch.Tensor, place_weight: torch.Tensor | None = None) -> torch.Tensor:
        """(B,) fp32, of errors (B, C, T, h, w) fp32.

        Args:
            place_weight: (B, T, h, w) of mean 1, of what differs from place to place.
        """
        mean = error.mean((3, 4), keepdim=True)
        differing = _energy(error - mean, self.local)
        if place_weight is not None:
            differing = differing * place_weight
        return (differing.flatten(1).mean(1) + _energy(mean, self.even).flatten(1).mean(1)) / error.shape[1]

    @classmethod
    @torch.no_grad()
    def of(cls, vae: AutoencoderKLWan, device: torch.device) -> Visible:
        """Measured on an autoencoder's own decoder, with scenes of its own; the same at each call."""
        mean, std = latent_statistics(vae, device)
        scenes = [draw(number, 64, 64, 5).source for draw in (make_scene, natural_scene) for number in range(SCENES)]
        clips = to_pixels(torch.from_numpy(np.stack(scenes)).to(device))
        latents = (whole.encode(vae, clips).float() - mean) / std
        chance = torch.randint(0, 2, (len(latents), *latents.shape[2:]), generator=torch.Generator().manual_seed(0))
        signs = chance.to(device) * 2.0 - 1.0

        def decoded(moved: torch.Tensor) -> torch.Tensor:
            return whole.decode(vae, moved * std + mean).float().flatten()

        def energies(way: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
            rows = []
            for channel in range(latents.shape[1]):
                moved = latents.clone()
                moved[:, channel] = way(moved[:, channel])
                rows.append((decoded(moved) - still) / PROBE)
            ways = torch.stack(rows)
            return ways @ ways.T / latents[:, 0].numel()

        still = decoded(latents)
        return cls(energies(lambda plane: plane + PROBE * signs), energies(lambda plane: plane + PROBE))


def _energy(error: torch.Tensor, metric: torch.Tensor) -> torch.Tensor:
    """(B, C, ...) -> (B, ...): the quadratic form."""
    return (error * torch.einsum("ij,bj...->bi...", metric, error)).sum(1)
