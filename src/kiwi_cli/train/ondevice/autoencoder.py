"""The small autoencoder's steps on a device, on clips of up to 17 frames as they are drawn."""

from __future__ import annotations

import random
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import nn

from kiwi_cli.train.ondevice import whole
from kiwi_cli.train.ondevice.bank import to_pixels
from kiwi_cli.train.ondevice.learner import Learner

PIXELS = 64 * 17 * 64 * 64
"""Pixels of a step's clips."""
STILLS = 8
"""Every so many steps the clips are reference pictures: single frames on white."""
NOISE, ABSOLUTE = 0.03, 0.02
"""As in `tiny_vae.VaeConfig`."""


def in_layout(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """The same, its kernels in the layout that tensor cores take without a copy."""
    for module in vae.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            layout = torch.channels_last_3d if isinstance(module, nn.Conv3d) else torch.channels_last
            module.weight.data = module.weight.data.contiguous(memory_format=layout)
    return vae


class Clips:
    """Uploaded chunks, and clips drawn from them.

    Args:
        share: of `PIXELS` that a step has.
        room: bytes of clips that are held; later chunks are let go.
    """

    def __init__(self, share: float, room: int) -> None:
        self.chunks: list[tuple[str, dict[str, torch.Tensor]]] = []
        self._pixels, self._room = max(1, round(PIXELS * share)), room
        self._chance = random.Random(0)

    def add(self, name: str, arrays: dict[str, torch.Tensor]) -> None:
        """Hold a chunk of the specification `name`."""
        size = sum(value.numel() * value.element_size() for value in arrays.values())
        if size <= self._room:
            self._room -= size
            self.chunks.append((name, arrays))

    def batch(self, number: int, generator: torch.Generator) -> torch.Tensor:
        """The clips of a step, (B, 3, F, H, W): from three chunks of one size and length."""
        first = self._chance.choice(self.chunks)
        size = first[1]["clips"].shape[2:]
        part = "reference" if number % STILLS == STILLS - 1 and "reference" in first[1] else "clips"
        alike = [arrays for _, arrays in self.chunks if part in arrays and arrays["clips"].shape[2:] == size]
        found = []
        for arrays in self._chance.choices(alike, k=3):
            clips = arrays[part].flatten(0, 1)
            count = max(1, self._pixels // 3 // clips[0, ..., 0].numel())
            count = min(count, 2 * len(clips))
            picks = torch.randint(len(clips), (count,), generator=generator, device=clips.device)
            found.append(clips[picks])
        pixels = to_pixels(torch.cat(found))
        if self._chance.random() < 0.5:
            pixels = pixels.flip(-1)
        return pixels.contiguous(memory_format=torch.channels_last_3d)


def loss(vae: AutoencoderKLWan, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Squared error and a little absolute error, with noise on the latents."""
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.device.type == "cuda"):
        latents = whole.encode(vae, pixels)
        spread = latents.detach().float().std()
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        back = whole.decode(vae, latents + NOISE * spread * noise)
    error = back.float() - pixels
    return error.square().mean() + ABSOLUTE * error.abs().mean()


def learner(vae: AutoencoderKLWan, lr: float) -> Learner:
    """The autoencoder's own."""
    return Learner(dict(vae.named_parameters()), lr, betas=(0.9, 0.99))


@torch.no_grad()
def measure_latents(vae: AutoencoderKLWan, clips: Clips) -> dict[str, Any]:
    """`latents_mean` and `latents_std` of some of the clips, written into the config."""
    found = []
    for _, arrays in clips.chunks[-16:]:
        for part in arrays["clips"].flatten(0, 1)[:32].split(16):
            found.append(whole.encode(vae, to_pixels(part)).float().transpose(0, 1).flatten(1))
    latents = torch.cat(found, dim=1)
    statistics = {"latents_mean": latents.mean(dim=1).tolist(), "latents_std": latents.std(dim=1).tolist()}
    vae.register_to_config(**statistics)
    return statistics
