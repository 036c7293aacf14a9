"""The coders equal the library's, and strips the whole, to rounding, in all VAE layouts; and no fewer columns would do.

In fp64, where rounding is 1e-15: a kernel's order of sums may depend on the width, a wrong column does not hide.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan

from kiwi_cli.model import vae_layers
from kiwi_cli.model import vae_strips as strips_module
from kiwi_cli.model.vae import decode_stream, encode_stream, latent_statistics
from kiwi_cli.model.vae_strips import StripDecoder, StripEncoder

LAYOUTS = {
    "2.2": {
        "base_dim": 4,
        "decoder_base_dim": 4,
        "z_dim": 8,
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
    },
    "2.1": {"base_dim": 4, "z_dim": 8},
    "three stages": {
        "base_dim": 4,
        "decoder_base_dim": 4,
        "z_dim": 8,
        "dim_mult": [1, 2, 2],
        "temperal_downsample": [True, True],
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 8,
    },
}


@pytest.fixture(scope="module", params=LAYOUTS)
def vae(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    config = {**LAYOUTS[request.param], "latents_mean": [0.1] * 8, "latents_std": [1.3] * 8}
    model = AutoencoderKLWan(**config).eval().double().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def clip(vae: Any) -> list[torch.Tensor]:
    scale = vae.config.scale_factor_spatial
    frames = torch.rand(1, 3, 5, scale, 13 * scale, dtype=torch.float64) * 2 - 1
    return [frames[:, :, :1], frames[:, :, 1:]]


def decode(vae: Any, latents: torch.Tensor, strips: int) -> torch.Tensor:
    return torch.cat(list(decode_stream(vae, latents, strips)), dim=2)


def encode(vae: Any, clip: list[torch.Tensor], strips: int) -> torch.Tensor:
    return torch.cat(list(encode_stream(vae, clip, strips)), dim=2)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


def test_the_coders_equal_the_librarys(vae: Any, clip: list[torch.Tensor]) -> None:
    clip = [*clip, clip[1].flip(2)]
    mean, std = latent_statistics(vae, torch.device("cpu"))
    with torch.no_grad():
        posterior = vae.encode(torch.cat(clip, dim=2)).latent_dist.mode()
        latents = encode(vae, clip, 1)
        assert difference(latents, (posterior - mean) / std) < 3e-7
        # The library enlarges in fp32 whatever it is given: 3.3e-7 is measured.
        assert difference(decode(vae, latents, 1), vae.decode((latents * std + mean).double()).sample) < 1e-6


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_every_layout_of_memory_gives_the_same(
    vae: Any, clip: list[torch.Tensor], layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU works channels last, other devices as the library does: both orders run here."""
    latents = encode(vae, clip, 2)
    whole = decode(vae, latents, 2)
    for module in (vae_layers, strips_module):
        monkeypatch.setattr(module, "layout_for", lambda device: layout)
    assert difference(encode(vae, clip, 2), latents) < 3e-7
    assert difference(decode(vae, latents, 2), whole) < 3e-7


@pytest.mark.parametrize("strips", [2, 3, 12])
def test_strips_equal_the_whole(vae: Any, clip: list[torch.Tensor], strips: int) -> None:
    latents = encode(vae, clip, 1)
    # What leaves the coders is fp32, so the last digit of that is the tolerance.
    assert difference(encode(vae, clip, strips), latents) < 3e-7
    assert difference(decode(vae, latents, strips), decode(vae, latents, 1)) < 3e-7


def test_the_halo_is_as_large_as_needed_and_no_larger(
    vae: Any, clip: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = encode(vae, clip, 1)
    whole = decode(vae, latents, 1)
    reach = strips_module._reach
    monkeypatch.setattr(strips_module, "_reach", lambda blocks: reach(blocks) - 1)
    assert difference(decode(vae, latents, 2), whole) > 1e-6


def test_halos_of_the_released_layout() -> None:
    """Ten pixels at four times the latents' resolution; sixteen of the encoder's input."""
    vae = AutoencoderKLWan(**LAYOUTS["2.2"])
    assert StripDecoder(vae.decoder, 2).halo == 10
    assert StripEncoder(vae.encoder, 2).halo == 16
