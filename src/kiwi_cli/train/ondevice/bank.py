"""What is learnt from, on the device: latents, vision features and words of scenes, written as they are drawn.

In place of caches on a disk: 15 KB a row of 5 frames, a ring whose oldest scenes make room for new ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from kiwi_cli.model.vae import latent_statistics
from kiwi_cli.train.ondevice import whole
from kiwi_cli.train.ondevice.drawing import Spec, Tools
from kiwi_cli.train.ondevice.generators import Chunk
from kiwi_cli.train.ondevice.vision import Tower

PIXELS = 128 * 17 * 64 * 64
"""Pixels of clips that are encoded together."""


def upload(chunk: Chunk, device: torch.device) -> dict[str, torch.Tensor]:
    """A chunk's arrays on a device, its source and targets as `clips` (scenes, 1 + rows, F, H, W, 3); its slot is free.

    On CUDA through pinned memory, which the host fills and does not wait for.
    """

    def sent(*arrays: np.ndarray) -> torch.Tensor:
        shape = (arrays[0].shape[0], sum(array.shape[1] for array in arrays), *arrays[0].shape[2:])
        kind = torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype
        host = torch.empty(shape, dtype=kind, pin_memory=device.type == "cuda")
        np.concatenate(arrays, axis=1, out=host.numpy())
        return host.to(device, non_blocking=True)

    arrays = dict(chunk.arrays)
    found = {"clips": sent(arrays.pop("source")[:, None], arrays.pop("target"))}
    found |= {name: sent(array) for name, array in arrays.items() if array.size}
    chunk.release()
    return found


class Coder:
    """The frozen parts: the autoencoder's encoder, and the vision tower for each size that it sees.

    Args:
        towers: (height, width) -> tower.
    """

    def __init__(self, vae: AutoencoderKLWan, towers: dict[tuple[int, int], Tower]) -> None:
        self.vae, self.towers = vae, towers
        self.settle()

    def settle(self) -> None:
        """Take the latents' statistics as they are now."""
        self._mean, self._std = latent_statistics(self.vae, self.vae.encoder.conv_in.weight.device)

    @torch.no_grad()
    def latents(self, clips: torch.Tensor) -> torch.Tensor:
        """(N, F, H, W, 3) uint8 -> (N, C, T, h, w) normalised."""
        size = max(1, PIXELS // clips[0, ..., 0].numel())
        return torch.cat(
            [(whole.encode(self.vae, to_pixels(part)).float() - self._mean) / self._std for part in clips.split(size)]
        )

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """(N, f, h, w, 3) uint8 -> (N, tokens, D)."""
        return self.towers[pictures.shape[2], pictures.shape[3]](pictures)


def to_pixels(clips: torch.Tensor) -> torch.Tensor:
    """(N, F, H, W, 3) uint8 -> (N, 3, F, H, W) fp32 in [-1, 1]."""
    return clips.permute(0, 4, 1, 2, 3).to(torch.float32) * (2.0 / 255.0) - 1.0


class Bank:
    """Scenes of one specification.

    Args:
        capacity: in scenes, rounded down to whole chunks, one at least.

    Attributes:
        tables: name -> (capacity, ...): `source` (C, T, h, w), `target` (rows, C, T, h, w), `reference`
            (references, C, 1, h, w), `seen` and `still` (tokens, D) features of all frames and of the first alone,
            `picture` (references, tokens, D), `coverage`, `text`, `length`, `kind` as in `Tools.arrays`.
        scenes: how many there are; `there`: the same on the device.
        pending: uploaded chunks that wait to be encoded (`settle`).
    """

    def __init__(self, spec: Spec, tools: Tools, capacity: int, device: torch.device) -> None:
        self.spec, self.tools, self.device = spec, tools, device
        self.capacity = max(1, capacity // spec.scenes) * spec.scenes
        self.tables: dict[str, torch.Tensor] = {}
        self.scenes, self.written = 0, 0
        self.pending: list[dict[str, torch.Tensor]] = []
        self.there = torch.zeros((), device=device)

    @torch.no_grad()
    def add(self, arrays: dict[str, torch.Tensor], coder: Coder) -> None:
        """Encode an uploaded chunk and write it over the oldest."""
        spec = self.spec
        latents = coder.latents(arrays["clips"].flatten(0, 1)).unflatten(0, arrays["clips"].shape[:2])
        found: dict[str, Any] = {
            "source": latents[:, 0],
            "target": latents[:, 1:],
            "seen": coder.features(arrays["seen"]),
            "still": coder.features(arrays["seen"][:, :1]),
            **{name: arrays[name] for name in ("coverage", "text", "length", "kind")},
        }
        if spec.references:
            for name, of in (("reference", coder.latents), ("picture", coder.features)):
                found[name] = of(arrays[name].flatten(0, 1)).unflatten(0, arrays[name].shape[:2])
        start = self.written % self.capacity
        for name, value in found.items():
            kept = torch.bfloat16 if value.is_floating_point() else value.dtype
            if name not in self.tables:
                self.tables[name] = torch.empty(self.capacity, *value.shape[1:], dtype=kept, device=self.device)
            self.tables[name][start : start + spec.scenes] = value.to(kept)
        self.written += spec.scenes
        self.scenes = min(self.capacity, self.written)
        self.there.fill_(self.scenes)

    def settle(self, coder: Coder) -> None:
        """Encode what is pending."""
        for arrays in self.pending:
            self.add(arrays, coder)
        self.pending.clear()

    def bytes(self) -> int:
        """What the tables hold."""
        return sum(table.numel() * table.element_size() for table in self.tables.values())
