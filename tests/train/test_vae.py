"""The small autoencoder's recipe: it learns, goes on after an interruption, and what it writes loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kiwi_cli.model import vae as wan_vae
from kiwi_cli.synth.scenes import make_scene
from kiwi_cli.train import tiny_vae as recipe


def clips(first: int, count: int) -> np.ndarray:
    return np.stack([make_scene(seed, 32, 32, 5).source for seed in range(first, first + count)])


def test_training_encode_and_decode_are_the_streams(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = recipe.new_vae().eval()
    frames = recipe.to_clips(clips(0, 2))
    with torch.no_grad():
        latents = recipe.encode(vae, frames)
        assert latents.shape == (2, 48, 2, 2, 2)
        streamed = torch.cat(list(wan_vae.encode_stream(vae, [frames[:, :, :1], frames[:, :, 1:]])), dim=2)
        assert torch.allclose(latents, streamed, atol=1e-5)
        back = recipe.decode(vae, latents).clamp(-1, 1)
        assert torch.allclose(back, torch.cat(list(wan_vae.decode_stream(vae, latents)), dim=2), atol=1e-5)


@pytest.mark.slow
def test_it_learns_and_what_it_wrote_is_normalised(tmp_path: Path) -> None:
    train, held = clips(0, 24), clips(1000, 8)
    torch.manual_seed(0)
    before, _ = recipe.held_out_psnr(recipe.new_vae(), recipe.to_clips(held))
    config = recipe.VaeConfig(steps=25, batch=4, warm_up=4, every=10)
    recipe.train_vae(config, train, held, tmp_path)
    vae = recipe.load_vae(tmp_path)
    after, _ = recipe.held_out_psnr(vae, recipe.to_clips(held))
    assert after > before + 3
    lines = [json.loads(line) for line in (tmp_path / recipe.CURVE).read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 25]
    latents = torch.cat(list(wan_vae.encode_stream(vae, [c for c in recipe.to_clips(train).split([1, 4], dim=2)])), 2)
    assert latents.mean().abs() < 0.1 and abs(latents.std().item() - 1) < 0.1


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    train, held = clips(0, 8), clips(1000, 4)
    vae = recipe.new_vae()
    optimiser = recipe.MuonAdamW(vae.named_parameters(), 1e-3)
    recipe.encode(vae, recipe.to_clips(train[:2])).square().mean().backward()
    optimiser.step()
    recipe._save_state(tmp_path, vae, optimiser, 7, 3.5)
    other = recipe.new_vae()
    again = recipe.MuonAdamW(other.named_parameters(), 1e-3)
    assert recipe._resume(tmp_path, other, again) == (7, 3.5)
    for (name, first), second in zip(vae.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(first, second), name
        for key, value in optimiser.state.get(first, {}).items():
            assert torch.equal(again.state[second][key], value), (name, key)
    assert len(held) == 4
