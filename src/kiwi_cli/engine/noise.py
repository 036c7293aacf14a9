"""The noise of a moment of an edit: what the whole edit would have there, also at a smaller size.

So a seed shows in a preview what it will do in the whole. No torch is imported before noise is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiwi_cli.engine.layout import Layout
from kiwi_cli.video import Size

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class NoisePart:
    """A few latent frames of a longer edit.

    Attributes:
        latents: latent frames of the edit that they belong to. first: the part's first of them.
        size: of that edit's frames, pixels. worked: of the part's.
        layout, shot: of an edit in windows that are denoised together, whose latent frames have noise one by one; None
            where the noise is drawn in one piece.
    """

    latents: int
    first: int
    size: Size
    worked: Size
    layout: Layout | None = None
    shot: int = 0

    def __call__(self, shape: Sequence[int], seed: int) -> torch.Tensor:
        """The part's noise, (1, C, n, h, w) fp32 on the CPU, standard normal.

        Args:
            shape: of it. At a smaller size than the edit's it is that noise averaged and made white again.
        """
        _, channels, count, height, width = shape
        full = (height * self.size.height // self.worked.height, width * self.size.width // self.worked.width)
        noise = self._whole((channels, *full), count, seed)
        for axis, length in ((-2, height), (-1, width)):
            if noise.shape[axis] != length:
                noise = (noise.movedim(axis, -1) @ shrink(noise.shape[axis], length).T).movedim(-1, axis)
        return noise.contiguous()

    def _whole(self, frame: tuple[int, int, int], count: int, seed: int) -> torch.Tensor:
        import torch

        from kiwi_cli.engine.joint import row_seed
        from kiwi_cli.model.sampling import make_noise

        rows = range(self.first, self.first + count)
        if self.layout is None:
            channels, height, width = frame
            whole = make_noise((1, channels, max(self.latents, rows.stop), height, width), seed)
            return whole[:, :, rows.start : rows.stop]
        shot, period = self.layout.shots[self.shot], self.layout.noise_period
        # A model that begins anew with each window starts each with the noise of the first row.
        seeds = [0 if period is not None and row == rows.start else row for row in rows]
        return torch.stack([make_noise(frame, row_seed(seed, shot, row, period)) for row in seeds], dim=1)[None]


def shrink(length: int, to: int) -> torch.Tensor:
    """What makes `to` values of `length`: (to, length) fp32, the matrix nearest to averaging neighbours whose rows are
    orthonormal, so that white noise stays white."""
    import torch

    edges = torch.linspace(0, length, to + 1, dtype=torch.float64)
    cells = torch.arange(length, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], cells + 1) - torch.maximum(edges[:-1, None], cells)
    u, _, v = torch.linalg.svd(overlap.clamp(min=0), full_matrices=False)
    return (u @ v).float()
