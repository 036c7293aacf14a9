"""The transformer: the library's own model where there is no condition, and what each condition must do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from kiwi_cli.bench.speed.operations import step_operations
from kiwi_cli.model.transformer import KiwiTransformer3DModel

from .conftest import relative_error


def inputs(pipe: Any, frames: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(1, 48, frames, 4, 6, generator=generator),
        "timestep": torch.tensor([752.0]),  # exact in bfloat16
        "encoder_hidden_states": torch.randn(1, 9, 48, generator=generator),
    }


@torch.no_grad()
def test_without_conditions_it_is_the_librarys_model(pipe: Any) -> None:
    library = WanTransformer3DModel.from_config(dict(pipe.transformer.config))
    library.condition_embedder.text_embedder = torch.nn.Identity()
    library.load_state_dict(pipe.transformer.state_dict(), strict=True)
    call = inputs(pipe)
    assert relative_error(pipe.transformer(**call).sample, library(**call).sample) < 1e-6


@torch.no_grad()
def test_the_timestep_is_rounded_and_the_sigma_is_not(pipe: Any) -> None:
    call = inputs(pipe)
    near = {**call, "timestep": torch.tensor([752.9])}  # bfloat16 holds every fourth number here
    assert torch.equal(pipe.transformer(**near).sample, pipe.transformer(**call).sample)
    source = pipe.source_embedder(call["hidden_states"])
    results = [
        pipe.transformer(**call, source_embeds=source, sigma=torch.tensor([sigma])).sample for sigma in (0.752, 0.7529)
    ]
    assert not torch.equal(*results)


@torch.no_grad()
def test_a_source_at_sigma_zero_changes_nothing(pipe: Any) -> None:
    call = inputs(pipe)
    source = pipe.source_embedder(call["hidden_states"])
    got = pipe.transformer(**call, source_embeds=source, sigma=torch.zeros(1)).sample
    assert torch.equal(got, pipe.transformer(**call).sample)


@torch.no_grad()
def test_first_references_take_the_first_frames_of_the_rotary_grid(pipe: Any) -> None:
    """With references first, [reference, video] are the tokens of one longer video."""
    call = inputs(pipe, frames=3)
    longer = pipe.transformer(**call).sample
    reference = pipe.transformer.patch_embedding(call["hidden_states"][:, :, :1])
    shorter = {**call, "hidden_states": call["hidden_states"][:, :, 1:]}
    got = pipe.transformer(**shorter, reference_embeds=reference, references_first=True).sample
    assert relative_error(got, longer[:, :, 1:]) < 1e-6
    last = pipe.transformer.patch_embedding(call["hidden_states"][:, :, 2:])
    shorter = {**call, "hidden_states": call["hidden_states"][:, :, :2]}
    assert relative_error(pipe.transformer(**shorter, reference_embeds=last).sample, longer[:, :, :2]) < 1e-6


def test_checkpointing_gives_the_same_gradients(pipe: Any) -> None:
    model = KiwiTransformer3DModel.from_config(dict(pipe.transformer.config)).train()
    call = inputs(pipe)
    gradients = []
    for enable in (model.disable_gradient_checkpointing, model.enable_gradient_checkpointing):
        enable()
        model.zero_grad()
        model(**call).sample.square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 50
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_saved_by_the_library_it_loads_again(pipe: Any, tmp_path: Any) -> None:
    pipe.transformer.save_pretrained(tmp_path)
    again, report = KiwiTransformer3DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    held = pipe.transformer.state_dict()
    assert all(torch.equal(value, held[key]) for key, value in again.state_dict().items())


@torch.no_grad()
def test_counted_operations_are_the_ones_that_run(pipe: Any) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    call = inputs(pipe)
    # The counter knows attention as two products, not the fused kernel of a CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        for block in pipe.transformer.blocks:
            tokens = torch.randn(1, 12, 48)
            rotary = pipe.transformer.rope(call["hidden_states"])
            block(tokens, call["encoder_hidden_states"], torch.randn(1, 6, 48), rotary)
    assert counter.get_total_flops() == pytest.approx(step_operations(pipe.transformer.config, 12, 9), rel=1e-9)


def test_the_full_shape_counts_292_tflop() -> None:
    """The figure everything is measured against: 1280x704, 81 frames, context 768."""
    from types import SimpleNamespace

    config = SimpleNamespace(num_layers=30, num_attention_heads=24, attention_head_dim=128, ffn_dim=14336)
    assert step_operations(config, 18_480, 768) / 1e12 == pytest.approx(292.4, abs=0.05)
