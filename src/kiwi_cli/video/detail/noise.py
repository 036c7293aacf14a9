"""How much noise an autoencoder adds, told from what it blurs."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kiwi_cli.video.detail.cores import Cores

BLURS = 3
"""Times that the source is blurred, 3 pixels wide, for the mixture that is taken for the autoencoder's own blur."""
BAND = 32
"""Lines of a band, and four times that from one to the next: as good as the whole frame."""
ROUNDING = 4e-6
"""Variance that rounding to bytes leaves, measured on blurs without noise: 3.4e-6."""
SIDE = 4
"""Of the blocks that the quieter quarter is taken of."""


def planes(frame: torch.Tensor) -> torch.Tensor:
    """(n, w, 3) in 0..255 -> (3, n, w) around 0, so that little is lost when means are taken from second moments."""
    return frame.permute(2, 0, 1).contiguous().float().mul_(1 / 255).sub_(0.5)


def noise_of(round_trip: torch.Tensor, source: torch.Tensor, cores: Cores) -> float:
    """The variance of the noise in a channel of the round trip, less what rounding to bytes makes of it.

    It is what is left of the round trip by the best mixture of the source and its blurs, in the quieter blocks.

    Args:
        round_trip, source: (h, w, 3) bytes, or floats in 0..255.
        cores: that share the work.
    """
    height, width = round_trip.shape[:2]
    if min(height, width) < 4 * BLURS:
        return 0.0

    def of_band(top: int) -> torch.Tensor:
        left = _left(planes(round_trip[top : top + BAND]), planes(source[top : top + BAND]))
        return F.avg_pool2d(left.square()[None], SIDE)[0].mean(0).flatten()

    blocks = torch.cat(cores.each(of_band, range(0, max(1, height - BAND // 2), 4 * BAND)))
    return max(0.0, float(blocks.quantile(0.25)) - ROUNDING)


def _left(trip: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """What the mixture leaves of a band, (3, h, w), without the rows and columns that blurs have no neighbours for."""
    mixed = [source]
    for _ in range(BLURS):  # by 1 2 1 each way: a few sums are several times as fast as a convolution
        across = (mixed[-1][..., 1:] + mixed[-1][..., :-1]).mul_(0.5)
        across = (across[..., 1:] + across[..., :-1]).mul_(0.5)
        down = (across[:, 1:] + across[:, :-1]).mul_(0.5)
        mixed.append((down[:, 1:] + down[:, :-1]).mul_(0.5))
    rows = []
    for number, plane in enumerate(mixed):
        edge = BLURS - number
        rows.append(plane[..., edge : plane.shape[-2] - edge, edge : plane.shape[-1] - edge].flatten())
    wanted = trip[:, BLURS:-BLURS, BLURS:-BLURS]
    basis = torch.stack([*rows, torch.ones_like(rows[0])])
    # In fp64, sums too: blurs of one picture are so alike that rounding in fp32 now and then makes a wild mixture, and
    # in a picture of one colour 1e-6 is lost in a sum of thousands.
    wide = basis.double()
    gram = wide @ wide.T + 1e-6 * torch.eye(len(basis), dtype=torch.float64, device=basis.device)
    # Five unknowns: on the host, for a device's solver takes longer to start than a frame takes.
    weights = torch.linalg.solve(gram.cpu(), (wide @ wanted.flatten().double()).cpu()).to(basis)
    return wanted - (weights @ basis).view_as(wanted)
