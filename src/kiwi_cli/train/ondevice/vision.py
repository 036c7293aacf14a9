"""The vision tower on many equal pictures at once, from the bytes that are on the device: nothing that the host must
read, and nothing counted twice."""

from __future__ import annotations

from typing import Any

import torch

from kiwi_cli.model.prompt import VisionGeometry
from kiwi_cli.model.vision import Places, look_at


class Tower:
    """The tower for pictures of one size.

    Args:
        visual: of Qwen2.5-VL, as `model.vision.batch_windows` leaves it.
        geometry: of its input.
        height, width: of the pictures, as `vision_sizes` sizes them.
    """

    def __init__(self, visual: Any, geometry: VisionGeometry, height: int, width: int) -> None:
        self.visual, self.geometry = visual, geometry
        self.rows, self.columns = height // geometry.patch, width // geometry.patch
        self._colour = torch.tensor([geometry.mean, geometry.std]) * 255.0
        self._places: dict[int, Places] = {}

    @torch.no_grad()
    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """(B, f, H, W, 3) uint8 -> features (B, ceil(f / 2) * tokens, D); an odd count repeats its last frame."""
        count = len(pictures)
        if pictures.shape[1] % self.geometry.temporal_patch:
            pictures = torch.cat([pictures, pictures[:, -1:]], dim=1)
        patches = self._patches(pictures.flatten(0, 1)).to(self.visual.dtype)
        pairs = len(patches) // (self.rows * self.columns)
        if pairs not in self._places:
            grids = torch.tensor([[1, self.rows, self.columns]]).repeat(pairs, 1)
            self._places[pairs] = Places.of(self.visual, grids, pictures.device)
        return look_at(self.visual, patches, self._places[pairs]).unflatten(0, (count, -1))

    def _patches(self, frames: torch.Tensor) -> torch.Tensor:
        """As `prompt.to_patches`, (F, H, W, 3) uint8 -> (patches, values) fp32, nothing sent to the device."""
        step, merge, patch = self.geometry.temporal_patch, self.geometry.merge, self.geometry.patch
        self._colour = self._colour.to(frames.device)
        values = ((frames.float() - self._colour[0]) / self._colour[1]).permute(0, 3, 1, 2)
        rows, columns = self.rows // merge, self.columns // merge
        values = values.reshape(len(frames) // step, step, 3, rows, merge, patch, columns, merge, patch)
        return values.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(len(frames) // step * self.rows * self.columns, -1)
