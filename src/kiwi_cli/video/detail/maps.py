"""Local affine colour maps between an edit and the source as the autoencoder gives it back.

A guided filter (He, Sun and Tang 2013) in its colour version, with three changes: the guide is the round trip and not
the sharp source; moments are kept once a block (as in He and Sun's fast guided filter, 2015) and averaged over frames
before solving; and a map that its own box does not determine leans on a wider box, not on zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from kiwi_cli.video.detail.cores import Cores
from kiwi_cli.video.detail.noise import noise_of
from kiwi_cli.video.detail.settings import STEP, DetailSettings

ANALYSED_SIDE = 352
"""Pixels: frames whose shorter side is twice this or more are halved before moments are taken. An affine map survives
the averaging, and the moments cost a quarter."""
BAND = 16
"""Rows of blocks that are worked on at a time: they fit a core's cache."""
PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))  # of a symmetric 3x3 matrix

# Rows of the moments: means of R and E, of the products R R and R E, and of |E|^2, |E - R|^2 and |R - s|^2.
R, E, RR, RE = slice(0, 3), slice(3, 6), slice(6, 12), slice(12, 21)
EE, CHANGE, LOSS = 21, 22, 23

NOISE = 3 * (3 / 255) ** 2
"""Variance, summed over the channels, that may always stay unexplained: three levels of 255 in each."""
HELD = (0.5, 0.9)
"""Share of the edit's variance in a box of three blocks that a smoothed map may leave unexplained: used in full up
to the first, not at all from the second."""
NOISE_SPARE = 1.2
"""Times the noise that is expected: a residual of no more counts as nothing."""
SHIFT = (0.75 / 255, 1.5 / 255)
"""Difference of local means, of the channel that differs most: unchanged up to the first, changed from the second."""
LEVEL = 1 / 255
MOST_LOSS = 6 / 255
"""However much the autoencoder loses, a difference above this root mean square is a change."""


def resized(frame: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
    """(h, w, 3) -> (height, width, 3) with antialiasing; bytes stay bytes on the CPU, where that is much faster."""
    if frame.shape[:2] == (height, width):
        return frame
    planar = frame.permute(2, 0, 1)[None]
    if frame.dtype == torch.uint8 and frame.device.type != "cpu":
        planar = planar.float()
    big = F.interpolate(planar, size=(height, width), mode=mode, antialias=True)[0].permute(1, 2, 0)
    return big if frame.dtype == big.dtype else big.round_().clamp_(0, 255).to(frame.dtype)


def block_moments(
    edited: torch.Tensor, round_trip: torch.Tensor, source: torch.Tensor, cores: Cores
) -> tuple[torch.Tensor, float]:
    """Means over blocks of a frame, (24, h / 4, w / 4) fp32, and the round trip's noise, of `noise_of`.

    Args:
        edited, round_trip: (h, w, 3) bytes, or floats in 0..255. source: (H, W, 3), the same range.
        cores: that share the work.
    """
    height, width = edited.shape[:2]
    shrink = 2 if min(height, width) >= 2 * ANALYSED_SIDE else 1
    size = max(1, height // shrink), max(1, width // shrink)

    def small(frame: torch.Tensor) -> torch.Tensor:
        # Around 0.5, so that little is lost to rounding when means are taken from second moments.
        return resized(frame, *size, "bilinear").permute(2, 0, 1).contiguous().float().mul_(1 / 255).sub_(0.5)

    e, r, s = cores.each(small, (edited, round_trip, source))
    blocks = max(1, round(height / STEP)), max(1, round(width / STEP))
    side = STEP // shrink
    if size != (blocks[0] * side, blocks[1] * side):
        return F.adaptive_avg_pool2d(_products(e, r, s), blocks), noise_of(r, s)
    rows = torch.empty((24, *blocks), dtype=torch.float32, device=e.device)

    def band(top: int | None) -> float:
        if top is None:
            return noise_of(r, s)
        lines = slice(top * side, (top + BAND) * side)
        part = _products(e[:, lines], r[:, lines], s[:, lines])
        for _ in range(side.bit_length() - 1):  # halved once or twice; several times as fast as a pooling
            part = part[:, ::2] + part[:, 1::2]
            part = part[:, :, ::2] + part[:, :, 1::2]
        torch.div(part, side * side, out=rows[:, top : top + BAND])
        return 0.0

    noise, *_ = cores.each(band, (None, *range(0, blocks[0], BAND)))
    return rows, noise


def _products(e: torch.Tensor, r: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """The moments of single pixels, (24, h, w)."""
    rows = torch.empty((24, *e.shape[1:]), dtype=torch.float32, device=e.device)
    rows[R], rows[E] = r, e
    for row, (i, j) in enumerate(PAIRS):
        torch.mul(r[i], r[j], out=rows[RR][row])
    torch.mul(r[:, None], e[None], out=rows[RE].view(3, 3, *e.shape[1:]))
    for row, difference in ((EE, e), (CHANGE, e - r), (LOSS, r - s)):
        torch.sum(difference.square(), 0, out=rows[row])
    return rows


def fit(moments: torch.Tensor, settings: DetailSettings, cores: Cores, noise: float = 0.0) -> torch.Tensor:
    """Maps once a block, (10, h, w): `A` by rows (output, then input channel), and how unchanged it is there, 0..1.

    With `noise` (14, h, w): then how much of the residual counts, 0..1, and what stands for the rest, in 0..255.

    Args:
        moments: (24, h, w), averaged over frames.
        cores: that share the work.
        noise: of `noise_of`, as many frames' average.
    """
    work: tuple[Callable[[], torch.Tensor], ...] = (
        lambda: box(moments, settings.radius),
        lambda: box(moments, 1),
        lambda: _wide(moments, settings),
    )
    local, near, wide = cores.each(lambda part: part(), work)
    rr, re = covariances(local)
    a = solve(rr, re + settings.eps * wide, settings.eps)
    left = unexplained(a, rr, re, variance(local))
    trusted = 1 - ((left - NOISE) / (settings.trust * variance(local) + 1e-9)).clamp(0, 1)
    a = box(a.flatten(0, 1) * trusted, settings.radius).unflatten(0, (3, 3))
    # The boxes of blocks within a removed thing reach out of it. What came of them must hold close by as well.
    rr, re = covariances(near)
    total = variance(near)
    left = unexplained(a, rr, re, total)
    held = 1 - (((left - NOISE) / (total + 1e-9) - HELD[0]) / (HELD[1] - HELD[0])).clamp(0, 1)
    a = a * held
    same = unchanged(moments, local)
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


def _wide(moments: torch.Tensor, settings: DetailSettings) -> torch.Tensor:
    """Maps of a neighbourhood four times as wide, (3, 3, h, w); these lean on the whole frame's."""
    whole = moments.mean((1, 2), keepdim=True)
    rr, re = covariances(whole)
    frame = solve(rr, re, settings.eps)
    height, width = moments.shape[1:]
    coarse = F.adaptive_avg_pool2d(moments, (max(1, height // 4), max(1, width // 4)))
    rr, re = covariances(box(coarse, settings.radius))
    a = solve(rr, re + settings.eps * frame, settings.eps)
    return F.interpolate(a.flatten(0, 1)[None], size=(height, width), mode="bilinear")[0].unflatten(0, (3, 3))


def box(rows: torch.Tensor, radius: int) -> torch.Tensor:
    """Means over a box of 2 radius + 1, of what of it is inside: (C, h, w) -> the same."""
    for axis in (1, 2):
        total = rows.clone()
        length = rows.shape[axis]
        # A few shifted sums: in torch they are several times as fast as a pooling of the same size.
        for shift in range(1, min(radius, length - 1) + 1):
            total.narrow(axis, shift, length - shift).add_(rows.narrow(axis, 0, length - shift))
            total.narrow(axis, 0, length - shift).add_(rows.narrow(axis, shift, length - shift))
        place = torch.arange(length, device=rows.device)
        inside = (place + radius).clamp_max(length - 1) - (place - radius).clamp_min(0) + 1
        rows = total.div_(inside[:, None] if axis == 1 else inside)
    return rows


def covariances(moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cov(R, R) as (6, h, w) and cov(R, E) as (3 of R, 3 of E, h, w)."""
    r, e = moments[R], moments[E]
    own = torch.stack([moments[RR][row] - r[i] * r[j] for row, (i, j) in enumerate(PAIRS)])
    return own, moments[RE].unflatten(0, (3, 3)) - r[:, None] * e[None]


def variance(moments: torch.Tensor) -> torch.Tensor:
    """The edit's variance, summed over its channels."""
    return (moments[EE] - moments[E].square().sum(0)).clamp_min(0)


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


def unchanged(moments: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    """1 where edit and round trip agree within the autoencoder's own error, 0 where they do not; (h, w)."""
    shift = (local[E] - local[R]).abs().amax(0)
    same = 1 - ((shift - SHIFT[0]) / (SHIFT[1] - SHIFT[0])).clamp(0, 1)
    # A small thing must not drown in its neighbourhood: the largest difference of a block near by counts. Twice the
    # loss, because both sides have it, and half of that again for chance.
    change = F.max_pool2d(moments[None, CHANGE], 3, 1, 1)[0] / 3
    allowed = (3 * local[LOSS] / 3).clamp_max(MOST_LOSS**2) + LEVEL**2
    return same * (2 - change / allowed).clamp(0, 1)
