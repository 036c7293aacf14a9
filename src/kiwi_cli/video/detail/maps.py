"""Local affine colour maps between an edit and the source as the autoencoder gives it back.

A guided filter (He, Sun and Tang 2013) in its colour version, with three changes: the guide is the round trip and not
the sharp source; moments are kept once a block (as in He and Sun's fast guided filter, 2015) and averaged over frames
before solving; and a map that its own box does not determine leans on a wider box, not on zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from kiwi_cli.video.detail.moments import CHANGE, PAIRS, E, Moments, R, box, covariances, mean_of, variance
from kiwi_cli.video.detail.settings import DetailSettings

BAND = 44
"""Rows of blocks that are fitted at a time: what is there on the way is thirty times as much as what comes of it."""

NOISE = 3 * (3 / 255) ** 2
"""Variance, summed over the channels, that may always stay unexplained: three levels of 255 in each."""
HELD = (0.5, 0.75)
"""Share of the edit's variance in a box of three blocks that a smoothed map may leave unexplained: used in full up
to the first, not at all from the second. At the border of a removed thing a map still explains a fifth of it."""
HELD_TRUSTED = (0.5, 0.9)
"""The same where every map is trusted (`trust` 1): of a weak model's edit more is its own unrest."""
NOISE_SPARE = 1.2
"""Times the noise that is expected: a residual of no more counts as nothing."""
SHIFT = (0.75 / 255, 1.5 / 255)
"""Difference of local means, of the channel that differs most: unchanged up to the first, changed from the second."""
LEVEL = 1 / 255
MOST_LOSS = 6 / 255
"""However much the autoencoder loses, a difference above this root mean square is a change."""


def fit(
    frames: Sequence[Moments],
    weights: Sequence[float],
    loss: torch.Tensor,
    settings: DetailSettings,
    noise: float = 0.0,
) -> torch.Tensor:
    """Maps once a block, (10, h, w): `A` by rows (output, then input channel), and how unchanged it is there, 0..1.

    With `noise` (14, h, w): then how much of the residual counts, 0..1, and what stands for the rest, in 0..255.

    Args:
        frames: that maps are fitted to, and how much each counts.
        loss: (h, w), what the autoencoder loses.
        noise: of `noise_of`.
    """
    height, width = loss.shape
    coarse = torch.zeros_like(frames[0].coarse)
    for frame, weight in zip(frames, weights, strict=True):
        coarse.add_(frame.coarse, alpha=weight / sum(weights))
    radius = settings.radius(frames[0].side)
    wide = _wide(coarse, (height, width), settings.eps, radius)
    maps = torch.empty((14 if noise > 0 else 10, height, width), dtype=torch.float32, device=loss.device)

    # One band after the other: shared among cores, operations as small as these mostly wait for each other.
    for top in range(0, height, BAND):
        bottom = min(top + BAND, height)
        # A map's boxes reach as far as its radius, twice: what is fitted, and what is smoothed.
        reach = 2 * radius
        around = slice(max(0, top - reach), min(height, bottom + reach))
        found = _fit(mean_of(frames, weights, around), loss[around], wide[..., around, :], settings, radius, noise)
        maps[:, top:bottom] = found[:, top - around.start : bottom - around.start]
    return maps


def _fit(
    moments: torch.Tensor, loss: torch.Tensor, wide: torch.Tensor, settings: DetailSettings, radius: int, noise: float
) -> torch.Tensor:
    """`fit` of some rows of blocks."""
    local = box(moments, radius)
    rr, re = covariances(local)
    a = solve(rr, re + settings.eps * wide, settings.eps)
    left, total = unexplained(a, rr, re, variance(local)), variance(local)
    trusted = 1 - ((left - NOISE) / (settings.trust * total + 1e-9)).clamp(0, 1)
    a = box(a.flatten(0, 1) * trusted, radius).unflatten(0, (3, 3))
    same = unchanged(moments, local, box(loss[None], radius)[0])
    # The boxes of blocks within a removed thing reach out of it. What came of them must hold close by as well.
    near = box(moments, 1)
    rr, re = covariances(near)
    total = variance(near)
    left = unexplained(a, rr, re, total)
    most, none = HELD_TRUSTED if settings.trust >= 1 else HELD
    held = 1 - (((left - NOISE) / (total + 1e-9) - most) / (none - most)).clamp(0, 1)
    a = a * held
    rows = [_rows(a, same), same[None]]
    if noise > 0:
        expected = NOISE_SPARE * noise * (3 + a.square().sum((0, 1)))
        counts = 1 - held * (expected / left.clamp_min(1e-9)).clamp_max(1) * (1 - same)
        rest = near[E] - (a * near[R][:, None]).sum(0) + (1 - a.sum(0)) / 2
        rows += [counts[None], (1 - counts) * rest * 255]
    return torch.cat(rows)


def _rows(a: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Maps (3, 3, h, w), input channel first, -> (9, h, w), output first; the identity where it is unchanged."""
    a = a.transpose(0, 1) * (1 - same)
    a.diagonal(dim1=0, dim2=1).add_(same[..., None])
    return a.flatten(0, 1)


def _wide(coarse: torch.Tensor, size: tuple[int, int], eps: float, radius: int) -> torch.Tensor:
    """Maps of a neighbourhood four times as wide, (3, 3, *size); these lean on the whole frame's."""
    rr, re = covariances(coarse.mean((1, 2), keepdim=True))
    frame = solve(rr, re, eps)
    rr, re = covariances(box(coarse, radius))
    a = solve(rr, re + eps * frame, eps)
    return F.interpolate(a.flatten(0, 1)[None], size=size, mode="bilinear")[0].unflatten(0, (3, 3))


def solve(rr: torch.Tensor, re: torch.Tensor, eps: float) -> torch.Tensor:
    """(rr + eps I)^-1 re, by the adjugate: (6, h, w) and (3, 3, h, w) -> (3 in, 3 out, h, w)."""
    a, b, c, d, e, f = rr
    a, d, f = a + eps, d + eps, f + eps
    adjugate = [d * f - e * e, c * e - b * f, b * e - c * d, a * f - c * c, b * c - a * e, a * d - b * b]
    scale = 1 / (a * adjugate[0] + b * adjugate[1] + c * adjugate[2])
    of = {pair: adjugate[row] * scale for row, pair in enumerate(PAIRS)}
    inverse = [[of[min(i, j), max(i, j)] for j in range(3)] for i in range(3)]
    return torch.stack([row[0] * re[0] + row[1] * re[1] + row[2] * re[2] for row in inverse])


def unexplained(a: torch.Tensor, rr: torch.Tensor, re: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """What is left of the edit's variance when the map is taken off, summed over the channels."""
    rows = dict(zip(PAIRS, rr, strict=True))
    left = total - 2 * (a * re).sum((0, 1))
    for (i, j), shared in rows.items():
        left = left + (1 if i == j else 2) * shared * (a[i] * a[j]).sum(0)
    return left.clamp_min(0)


def unchanged(moments: torch.Tensor, local: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
    """1 where edit and round trip agree within the autoencoder's own error, 0 where they do not; (h, w)."""
    shift = (local[E] - local[R]).abs().amax(0)
    same = 1 - ((shift - SHIFT[0]) / (SHIFT[1] - SHIFT[0])).clamp(0, 1)
    # A small thing must not drown in its neighbourhood: the largest difference of a block near by counts. Twice the
    # loss, because both sides have it, and half of that again for chance.
    change = F.max_pool2d(moments[None, CHANGE], 3, 1, 1)[0] / 3
    allowed = (3 * loss / 3).clamp_max(MOST_LOSS**2) + LEVEL**2
    return same * (2 - change / allowed).clamp(0, 1)
