"""What a diffusers pipeline promises of its parts: the scheduler, precision, and every kind of offload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, CpuOffload, SequentialHook
from diffusers import (
    EulerDiscreteScheduler,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    PyramidAttentionBroadcastConfig,
)

from kiwi_cli import KiwiPipeline
from kiwi_cli.engine.random_model import random_pipeline
from kiwi_cli.errors import UsageError

from ..conftest import CHECKPOINT
from .calls import FRAMES, PARTS, call, load


def test_the_scheduler_is_a_part_that_matters(fresh: Any, expected: np.ndarray) -> None:
    assert isinstance(fresh.scheduler, FlowMatchEulerDiscreteScheduler) and fresh.scheduler.config.shift == 5.0
    before = fresh.edit(FRAMES, "x", steps=2, output="latents")
    fresh.scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    assert fresh.config.shift == 2.0
    assert not np.array_equal(call(fresh), expected)
    assert not torch.equal(fresh.edit(FRAMES, "x", steps=2, output="latents"), before)
    fresh.register_to_config(shift=5.0)
    assert np.array_equal(call(fresh), expected)
    assert torch.equal(fresh.edit(FRAMES, "x", steps=2, output="latents"), before)


def test_schedulers_that_would_not_be_followed(fresh: Any) -> None:
    for scheduler, words in (
        (EulerDiscreteScheduler(), "EulerDiscreteScheduler"),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "use_dynamic_shifting"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "stochastic_sampling"),
    ):
        with pytest.raises(UsageError, match=words):
            fresh.scheduler = scheduler
        with pytest.raises(UsageError, match=words):
            load(scheduler=scheduler)


def test_components_make_the_same_pipeline(ours: Any, expected: np.ndarray) -> None:
    assert set(ours.components) == {*PARTS, "tokenizer", "scheduler"}
    again = KiwiPipeline(**ours.components)
    again.set_progress_bar_config(disable=True)
    assert set(again.components) == set(ours.components) and np.array_equal(call(again), expected)
    made = random_pipeline("small", torch.device("cpu"), torch.float32)
    assert set(KiwiPipeline(**made.components).components) == set(ours.components)


def test_a_pipeline_from_a_pipeline(fresh: Any, expected: np.ndarray) -> None:
    other = KiwiPipeline.from_pipe(fresh, scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0))
    other.set_progress_bar_config(disable=True)
    assert other.transformer is fresh.transformer and other.config.shift == 2.0
    assert not np.array_equal(call(other), expected) and np.array_equal(call(fresh), expected)


def test_to_another_precision(fresh: Any) -> None:
    assert {getattr(fresh, part).dtype for part in PARTS} == {torch.float32}
    fresh.to(dtype=torch.bfloat16)
    assert {getattr(fresh, part).dtype for part in PARTS} == {torch.bfloat16}
    assert np.isfinite(call(fresh)).all()


def test_precision_by_part(tmp_path: Path, ours: Any) -> None:
    ours.save_pretrained(tmp_path)
    wanted = {"transformer": torch.bfloat16, "default": torch.float16}
    for source in (CHECKPOINT, tmp_path):
        for name in ("dtype", "torch_dtype"):
            pipe = load(source, **{name: wanted})
            found = {part: getattr(pipe, part).dtype for part in PARTS}
            assert found == {part: wanted.get(part, torch.float16) for part in PARTS}
            assert pipe.vae.encoder.conv_in.weight.dtype == torch.float32  # the source steers every step
            assert pipe.transformer.scale_shift_table.dtype == torch.float32
    with pytest.raises(UsageError, match="two names"):
        load(dtype="float16", torch_dtype=torch.float32)


def test_half_precision_is_close(expected: np.ndarray) -> None:
    half = call(load(dtype=torch.bfloat16))
    assert 0 < np.abs(half - expected).mean() < 0.02


@pytest.mark.parametrize("managed", [False, True])
def test_model_offload_twice(fresh: Any, expected: np.ndarray, managed: bool) -> None:
    if managed:
        fresh.manage(torch.device("cpu"), "swap")
        call(fresh)
    for _ in range(2):
        fresh.enable_model_cpu_offload(device="cpu")
        # Weights that were mapped from a file are copied, and some processors' sums hang on where a matrix begins.
        assert np.abs(call(fresh) - expected).max() < 1e-5
        assert {type(getattr(fresh, part)._hf_hook) for part in PARTS} == {CpuOffload}


def test_sequential_offload_twice(fresh: Any, expected: np.ndarray) -> None:
    """As `enable_sequential_cpu_offload` does it, which without an accelerator cannot put weights back."""
    fresh.to("cpu")
    for part in PARTS:
        module = getattr(fresh, part)
        cpu_offload(module, torch.device("cpu"), offload_buffers=len(module._parameters) > 0)
    for _ in range(2):
        assert np.abs(call(fresh) - expected).max() < 1e-5
        assert {getattr(fresh, part).device.type for part in PARTS} == {"meta"}
    hooks = [getattr(fresh, part)._hf_hook for part in PARTS]
    assert all(isinstance(hook, AlignDevicesHook | SequentialHook) for hook in hooks)
    edited = fresh.edit(FRAMES, "make it snowy", steps=2)
    assert np.abs(edited - (expected[0] * 255)).max() <= 0.5 + 1e-2


@pytest.mark.parametrize(
    "kind", [{"offload_type": "block_level", "num_blocks_per_group": 1}, {"offload_type": "leaf_level"}]
)
def test_group_offload(fresh: Any, expected: np.ndarray, kind: dict[str, Any]) -> None:
    fresh.enable_group_offload(torch.device("cpu"), **kind)
    assert fresh.residency is None
    assert np.abs(call(fresh) - expected).max() < 1e-5


def test_fp8_storage_layer_by_layer(fresh: Any, expected: np.ndarray) -> None:
    fresh.vae.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    fresh.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert 0 < np.abs(call(fresh) - expected).mean() < 0.1


def test_the_caches_of_the_library(fresh: Any) -> None:
    exact = call(fresh, num_inference_steps=4)
    attention = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1000),
        current_timestep_callback=lambda: fresh.current_timestep,
    )
    for cache in (FirstBlockCacheConfig(threshold=10.0), attention):
        fresh.transformer.enable_cache(cache)
        cached = [call(fresh, num_inference_steps=4) for _ in range(2)]
        fresh.transformer.disable_cache()
        assert np.array_equal(*cached) and np.abs(cached[0] - exact).max() > 0  # nothing is left from call to call
    assert np.array_equal(call(fresh, num_inference_steps=4), exact) and fresh.current_timestep is None
