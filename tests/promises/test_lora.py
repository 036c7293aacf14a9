"""What a diffusers pipeline promises of adapters: loaded in any key style, switched, weighted, fused, taken away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kiwi_cli.errors import CheckpointError

from .calls import call, seeded

STYLES = {
    "diffusers": ("transformer.blocks.{}.attn1.to_q.lora_A.weight", "transformer.blocks.{}.attn1.to_q.lora_B.weight"),
    "kiwi's training": ("pipe.dit.blocks.{}.self_attn.q.lora_A.default.weight",) * 2,
    "ComfyUI": ("diffusion_model.blocks.{}.self_attn.q.lora_down.weight",) * 2,
    "kohya": ("lora_unet_blocks_{}_self_attn_q.lora_down.weight",) * 2,
}


def lora(style: str = "diffusers", seed: int = 0, alpha: float | None = None) -> dict[str, torch.Tensor]:
    down_key, up_key = STYLES[style]
    up_key = up_key.replace("lora_A", "lora_B").replace("lora_down", "lora_up")
    state: dict[str, torch.Tensor] = {}
    for block in range(3):
        state[down_key.format(block)] = torch.randn(4, 48, generator=seeded(seed + block))
        state[up_key.format(block)] = torch.randn(48, 4, generator=seeded(seed + 10 + block))
        if alpha is not None:
            state[down_key.format(block).split(".lora_")[0] + ".alpha"] = torch.tensor(alpha)
    return state


@pytest.mark.parametrize("style", STYLES)
def test_a_lora_in_any_key_style(tmp_path: Path, fresh: Any, expected: np.ndarray, style: str) -> None:
    save_file(lora(style), tmp_path / "style.safetensors")
    fresh.load_lora_weights(tmp_path, weight_name="style.safetensors", adapter_name="style")
    assert fresh.get_active_adapters() == ["style"]
    for block in range(3):
        layer = fresh.transformer.blocks[block].attn1.to_q
        assert torch.equal(layer.lora_A["style"].weight, torch.randn(4, 48, generator=seeded(block)))
    assert np.abs(call(fresh) - expected).max() > 1e-3


def test_the_alpha_of_a_lora(fresh: Any, expected: np.ndarray) -> None:
    state = lora()
    fresh.load_lora_weights({key: 0.5 * value if "lora_B" in key else value for key, value in state.items()}, "weaker")
    half = call(fresh)
    fresh.unload_lora_weights()
    assert np.array_equal(call(fresh), expected)
    fresh.load_lora_weights(lora("ComfyUI", alpha=2.0), "alpha")  # of rank 4
    assert np.array_equal(call(fresh), half) and not np.array_equal(half, expected)


def test_adapters_are_switched_weighted_fused_and_taken_away(fresh: Any, expected: np.ndarray) -> None:
    fresh.load_lora_weights(lora(), adapter_name="one")
    one = call(fresh)
    fresh.load_lora_weights(lora(seed=50), adapter_name="two")
    fresh.set_adapters(["one", "two"], [1.0, 0.5])
    both = call(fresh)
    fresh.set_adapters("one")
    assert np.array_equal(call(fresh), one) and not np.array_equal(both, one)
    fresh.fuse_lora(adapter_names=["one"])
    fused = call(fresh)
    fresh.unfuse_lora()
    assert np.abs(fused - one).max() < 1e-3
    assert np.abs(call(fresh) - one).max() < 1e-3
    fresh.disable_lora()
    assert np.abs(call(fresh) - expected).max() < 1e-3
    fresh.unload_lora_weights()
    assert np.abs(call(fresh) - expected).max() < 1e-3
    assert not [name for name, _ in fresh.transformer.named_modules() if "lora" in name]


def test_the_scale_of_a_call(fresh: Any, expected: np.ndarray) -> None:
    fresh.load_lora_weights(lora())
    assert np.array_equal(call(fresh, attention_kwargs={"scale": 0.0}), expected)
    assert not np.array_equal(call(fresh), expected)


@pytest.mark.parametrize("level", ["resident", "stream"])
def test_an_adapter_in_a_managed_pipeline(fresh: Any, level: str) -> None:
    fresh.to("cpu")
    fresh.load_lora_weights(lora())
    plain = call(fresh)
    fresh.unload_lora_weights()
    fresh.manage(torch.device("cpu"), level)
    call(fresh)  # the parts were on the device before the adapter came
    fresh.load_lora_weights(lora())
    assert fresh.residency.level == level and np.abs(call(fresh) - plain).max() < 1e-5


def test_loras_that_do_not_fit(tmp_path: Path, fresh: Any, expected: np.ndarray) -> None:
    foreign = {key.replace("blocks", "layers"): value for key, value in lora().items()}
    pickle = tmp_path / "style.bin"
    pickle.write_bytes(b"")
    for source, words in (
        (foreign, "nothing for this model"),
        (lora() | {"transformer.blocks.9.attn1.to_q.lora_A.weight": torch.zeros(4, 48)}, "only in part"),
        (lora("ComfyUI") | {"diffusion_model.blocks.0.norm3.diff": torch.zeros(48)}, "no adapter"),
        (pickle, "pickle"),
        (tmp_path / "nowhere.safetensors", "not found"),
    ):
        with pytest.raises(CheckpointError, match=words):
            fresh.load_lora_weights(source)
    assert np.array_equal(call(fresh), expected)
