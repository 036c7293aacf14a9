"""What the loss in minutes takes for visible is what shows in the pictures."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from kiwi_cli.model.vae import latent_statistics
from kiwi_cli.synth.scenes import make_scene
from kiwi_cli.train.ondevice import whole
from kiwi_cli.train.ondevice.bank import to_pixels
from kiwi_cli.train.ondevice.objective import Objective
from kiwi_cli.train.ondevice.visible import Visible

from .test_ondevice import CPU, encoder, form, model


@cache
def measured() -> Visible:
    return Visible.of(encoder().vae, CPU)


def test_an_error_counts_as_much_as_it_shows() -> None:
    """On a scene that it was not measured on, for white errors and even ones, and ways that show much or little."""
    vae, random = encoder().vae, torch.Generator().manual_seed(3)
    mean, std = latent_statistics(vae, CPU)
    scene = make_scene(41, 64, 64, 5).source
    with torch.no_grad():
        latents = (whole.encode(vae, to_pixels(torch.from_numpy(np.stack([scene])))) - mean) / std
        still = whole.decode(vae, latents * std + mean)
        shape, frame = latents.shape, (*latents.shape[:3], 1, 1)
        ways = torch.linalg.eigh(measured().local).eigenvectors  # the least first
        little, much = (ways[:, number].view(1, 48, 1, 1, 1) * 7.0 for number in (8, -1))
        white, even = torch.randn(shape, generator=random), torch.randn(frame, generator=random).expand(shape)
        errors = [0.2 * error for error in (white, even, white[:, :1] * much, white[:, :1] * little)]
        shown = [float((whole.decode(vae, (latents + error) * std + mean) - still).square().mean()) for error in errors]
    counted = [float(measured()(error)) for error in errors]
    ratios = np.array(shown) / np.array(counted)
    assert max(shown) > 20 * min(shown)  # they differ, and by about as much in both:
    assert max(ratios) < 3 * min(ratios), ratios


def test_a_white_error_counts_as_in_the_plain_loss_and_no_error_not_at_all() -> None:
    error = torch.randn(64, 48, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float(measured()(error).mean()) == pytest.approx(1.0, rel=0.05)
    assert float(measured()(torch.zeros(1, 48, 2, 4, 4))) == 0.0
    weight = torch.zeros(64, 2, 8, 8)
    weight[..., :4] = 2.0  # half of the places counts double
    assert float(measured()(error, weight).mean()) == pytest.approx(1.0, rel=0.1)


def test_it_counts_as_much_as_it_is_told_to() -> None:
    asked = form("clip", False, False)
    with torch.no_grad():
        plain, half, whole_ = (
            float(Objective(model(), CPU, torch.float32, visible=share).loss(asked, torch.Generator().manual_seed(3)))
            for share in (None, (measured(), 0.5), (measured(), 1.0))
        )
    assert half == pytest.approx((plain + whole_) / 2, rel=1e-4) and abs(whole_ - plain) > 0.01 * plain
