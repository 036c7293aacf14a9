"""How much noise an autoencoder adds, told from what it blurs."""

from __future__ import annotations

import torch
import torch.nn.functional as F

BLURS = 3
"""Times that the source is blurred, 3 pixels wide, for the mixture that is taken for the autoencoder's own blur."""
BAND = 32
"""Lines of a band, and four times that from one to the next: as good as the whole frame."""
ROUNDING = 4e-6
"""Variance that rounding to bytes leaves, measured on blurs without noise: 3.4e-6."""
SIDE = 4
"""Of the blocks that the quieter quarter is taken of."""


def noise_of(round_trip: torch.Tensor, source: torch.Tensor) -> float:
    """The variance of the noise in a channel of the round trip, less what rounding to bytes makes of it.

    It is what is left of the round trip by the best mixture of the source and its blurs, in the quieter blocks.

    Args:
        round_trip, source: (3, h, w), in 0..1 but for an offset.
    """
    height, width = round_trip.shape[1:]
    if min(height, width) < 4 * BLURS:
        return 0.0
    tops = range(0, max(1, height - BAND // 2), 4 * BAND)
    bands = [_left(round_trip[:, top : top + BAND], source[:, top : top + BAND]) for top in tops]
    blocks = torch.cat([F.avg_pool2d(band.square()[None], SIDE)[0].mean(0).flatten() for band in bands])
    return max(0.0, float(blocks.quantile(0.25)) - ROUNDING)


def _left(trip: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """What the mixture leaves of a band, (3, h, w), without the rows and columns that blurs have no neighbours for."""
    line = torch.tensor([1.0, 2.0, 1.0], device=source.device) / 4
    kernel = (line[:, None] * line)[None, None]
    mixed = [source[:, None]]
    for _ in range(BLURS):
        mixed.append(F.conv2d(mixed[-1], kernel))
    rows = []
    for number, plane in enumerate(mixed):
        edge = BLURS - number
        rows.append(plane[..., edge : plane.shape[-2] - edge, edge : plane.shape[-1] - edge].flatten())
    wanted = trip[:, BLURS:-BLURS, BLURS:-BLURS]
    basis = torch.stack([*rows, torch.ones_like(rows[0])])
    # In fp64: in a picture of one colour all rows are alike, and 1e-6 is lost in an fp32 sum of thousands.
    gram = (basis @ basis.T).double() + 1e-6 * torch.eye(len(basis), dtype=torch.float64, device=basis.device)
    weights = torch.linalg.solve(gram, (basis @ wanted.flatten()).double()).to(basis.dtype)
    return wanted - (weights @ basis).view_as(wanted)
