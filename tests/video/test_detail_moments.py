"""What maps are fitted to: means over blocks, and the same maps whatever they are fitted in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kiwi_cli.video.detail import DetailSettings, maps, stream
from kiwi_cli.video.detail.cores import Cores
from kiwi_cli.video.detail.moments import CHANGE, EE, RE, E, R, block_moments, loss_of, mean_of
from kiwi_cli.video.detail.noise import noise_of


def noise(seed: int, height: int, width: int) -> torch.Tensor:
    """(h, w, 3) bytes: coarse colours with finer ones on them."""
    rng = np.random.default_rng(seed)
    coarse, fine = rng.uniform(0, 200, (-(-height // 8), -(-width // 8), 3)), rng.uniform(0, 55, (height, width, 3))
    return torch.from_numpy((coarse.repeat(8, 0).repeat(8, 1)[:height, :width] + fine).astype(np.uint8))


def test_maps_do_not_depend_on_the_bands_they_are_fitted_in(monkeypatch: pytest.MonkeyPatch) -> None:
    source = noise(0, 144, 256)
    round_trip = (source // 2 + 60).to(torch.uint8)
    edited = (round_trip.float() * torch.tensor([0.4, 0.7, 0.9])).to(torch.uint8)
    moments, (loss, _) = block_moments(edited, round_trip, Cores(1)), loss_of(round_trip, source, Cores(1))
    fitted = []
    for band in (3, 1000):
        monkeypatch.setattr(maps, "BAND", band)
        fitted.append(maps.fit([moments], [1], loss, DetailSettings(), noise=1e-4))
    torch.testing.assert_close(*fitted)
    strength = fitted[0][[0, 4, 8]].mean((1, 2))
    torch.testing.assert_close(strength, torch.tensor([0.4, 0.7, 0.9]), atol=0.05, rtol=0)


@pytest.mark.parametrize("size", [(72, 128), (704, 720), (90, 75)])
def test_moments_are_means_over_blocks(size: tuple[int, int]) -> None:
    """Of frames looked at as they are, halved, and in blocks of no one size: of two frames, one counts twice."""
    side = 8 if size[0] >= 704 else 4
    shape = round(size[0] / side), round(size[1] / side)
    frames = [noise(seed, *size) for seed in range(4)]
    kept = [block_moments(frames[n], frames[n + 1], Cores(1)) for n in (0, 2)]
    found = mean_of(kept, [1, 2], slice(None))
    planes = [frame.permute(2, 0, 1)[None] for frame in frames]
    if size[0] >= 704:
        planes = [F.interpolate(plane, scale_factor=0.5, mode="bilinear", antialias=True) for plane in planes]
    e, r, e2, r2 = (plane[0].double() / 255 - 0.5 for plane in planes)

    def means(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d((one + 2 * two) / 3, shape).float()

    products = means((r[:, None] * e).flatten(0, 1), (r2[:, None] * e2).flatten(0, 1))
    strength = means(e.square().sum(0, keepdim=True), e2.square().sum(0, keepdim=True))[0]
    for rows, expected in ((found[R], means(r, r2)), (found[RE], products), (found[EE], strength)):
        torch.testing.assert_close(rows, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("seed", [3, 6, 12])
def test_noise_on_a_smooth_picture_is_what_it_is(seed: int) -> None:
    """Blurs of such a picture are so alike that a mixture of them can come out wild: 69 for 2.25 (levels, squared)."""
    rng = np.random.default_rng(seed)
    grid = torch.from_numpy(rng.uniform(20, 230, (1, 3, 3, 4)).astype(np.float32))
    smooth = F.interpolate(grid, size=(80, 144), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
    source = smooth.clamp(0, 255).round().to(torch.uint8)
    noisy = source + torch.from_numpy(rng.normal(0, 1.5, source.shape).astype(np.float32))
    found = noise_of(noisy.clamp(0, 255).round().to(torch.uint8), source, Cores(1))
    assert found * 255**2 == pytest.approx(2.25, abs=0.5)


def test_a_small_thing_does_not_drown_in_a_large_block() -> None:
    """The change of a block of 8 pixels is that of its most changed quarter; the other means are of all of it."""
    round_trip = torch.full((704, 720, 3), 100, dtype=torch.uint8)
    edited = round_trip.clone()
    edited[8:12, 16:20] = 120  # the upper left quarter of the second row's third block
    moments = block_moments(edited, round_trip, Cores(1))
    assert (moments.side, moments.kept.shape) == (8, (23, 88, 90))
    found = mean_of([moments], [1], slice(None))
    assert float(found[CHANGE, 1, 2]) == pytest.approx(3 * (20 / 255) ** 2, rel=0.5)  # halving spreads it a little
    assert float(found[E, 1, 2].mean()) == pytest.approx(100 / 255 - 0.5 + 20 / 255 / 4, abs=2e-3)


def test_boxes_are_of_one_size_in_pixels_and_noise_is_measured_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [DetailSettings().radius(side) for side in (4, 8)] == [2, 1]
    measured = []
    monkeypatch.setattr(stream, "loss_of", lambda *given, noise: measured.append(noise) or loss_of(*given, noise=noise))
    frames = [noise(seed, 72, 128).numpy() for seed in (0, 0, 0, 0, 0, 0, 0)]
    assert len(list(stream.transfer((frame, frame, frame) for frame in frames))) == 7
    assert measured == [True, False, False, True, False, False, True]
