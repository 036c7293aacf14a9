"""Attention kernels and compilation: chosen without side effects, and equal to what they replace."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from kiwi_cli import KiwiPipeline
from kiwi_cli.engine import attention
from kiwi_cli.engine.compilation import compile_model
from kiwi_cli.engine.memory import LEVELS, Placement
from kiwi_cli.engine.residency import Residency
from kiwi_cli.errors import UsageError
from kiwi_cli.model.vae import decode_stream

from .conftest import CHECKPOINT, random_frames, relative_error

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def latents(pipe: Any, frames: int = 5, seed: int = 0) -> torch.Tensor:
    return pipe.edit(random_frames(frames), "make it snowy", steps=2, seed=seed, output="latents")


def edit(pipe: Any, seed: int, decode: bool = True) -> tuple[torch.Tensor, Any]:
    """Latents of a clip of three latent frames, and its frames."""
    found = latents(pipe, 9, seed)
    return found, np.concatenate(list(pipe.decode(found))) if decode else None


class Moved(Residency):
    """A residency whose device is a second copy in the same memory."""

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()


@pytest.fixture
def fresh() -> Any:
    return KiwiPipeline.from_pretrained(str(CHECKPOINT), device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("capability", "installed", "expected"),
    [((8, 9), True, "sdpa"), ((9, 0), True, "flash3"), ((9, 0), False, "sdpa"), ((12, 0), True, "sdpa")],
)
def test_auto_chooses_by_device(
    capability: Any, installed: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(attention, "find_spec", lambda name: object() if installed else None)
    assert attention.choose_attention("auto", CUDA) == expected
    assert attention.choose_attention("auto", CPU) == "sdpa"


def test_what_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "find_spec", lambda name: None)
    for name, device, words in (("fast", CPU, "'fast'"), ("flash", CPU, "CUDA"), ("sage", CUDA, "sageattention")):
        with pytest.raises(UsageError, match=words) as error:
            attention.choose_attention(name, device)
        assert error.value.hint


def test_the_choice_stays_with_the_model(fresh: Any, pipe: Any) -> None:
    before = _AttentionBackendRegistry.get_active_backend()[0]
    expected = latents(fresh)
    attention.set_attention(fresh.transformer, "sdpa")
    chosen = {block.attn1.processor._attention_backend.value for block in fresh.transformer.blocks}
    assert chosen == {"native"}
    assert _AttentionBackendRegistry.get_active_backend()[0] == before
    assert torch.equal(latents(fresh), expected)


@pytest.mark.slow
def test_blocks_and_the_decoder_compile_to_one_whole_graph_each(fresh: Any) -> None:
    """Through a backend that only counts: no graph break (fullgraph), a graph for all layers, steps and latent frames,
    and none for a second clip, nor when weights move on and off the device."""
    graphs = []

    def counting(module: Any, inputs: Any) -> Any:
        graphs.append(module)
        return module.forward

    torch._dynamo.reset()
    expected = [edit(fresh, seed) for seed in (0, 1)]
    compile_model(fresh, backend=counting)
    for seed in (0, 1):
        latents, frames = edit(fresh, seed)
        assert torch.equal(latents, expected[seed][0]) and np.array_equal(frames, expected[seed][1])
        assert len(graphs) == 2
    fresh.residency = Moved(fresh.units, CPU, "swap")
    fresh.residency.choose = lambda work, say: fresh.residency.adopt(Placement(LEVELS["swap"]))
    latents, frames = edit(fresh, 0)
    # A kernel's order of sums depends on the alignment of the weights, which is the files' before they move.
    assert relative_error(latents, expected[0][0]) < 1e-6
    assert np.abs(frames.astype(int) - expected[0][1]).max() <= 1
    assert len(graphs) == 2
    with torch.no_grad():
        fresh.vae.decoder.conv_out.bias.fill_(10.0)  # the graph uses the weights there are now
    assert (next(fresh.decode(latents)) == 255).all()
    assert (np.concatenate(list(fresh.decode(latents))) == 255).all()
    assert len(graphs) == 2


@pytest.mark.parametrize("level", LEVELS)
def test_a_compiled_model_works_at_every_memory_level(fresh: Any, level: str) -> None:
    """One whole graph of the blocks whatever brings their weights, and the uncompiled result of that level."""
    graphs = []

    def counting(module: Any, inputs: Any) -> Any:
        graphs.append(module)
        return module.forward

    torch._dynamo.reset()
    fresh.residency = Moved(fresh.units, CPU, level)
    fresh.residency.choose = lambda work, say: fresh.residency.adopt(Placement(LEVELS[level]))
    expected = latents(fresh, 9)
    compile_model(fresh, backend=counting)
    assert torch.equal(latents(fresh, 9), expected) and torch.equal(latents(fresh, 9), expected)
    assert len(graphs) == 1


def test_strips_compile_to_a_graph_for_each_width() -> None:
    widths = set()

    def counting(module: Any, inputs: Any) -> Any:
        widths.add(tuple(tuple(value.shape) for value in inputs if value.ndim == 5))
        return module.forward

    torch._dynamo.reset()
    vae = small_vae()
    pipe = SimpleNamespace(transformer=SimpleNamespace(blocks=[]))
    compile_model(pipe, backend=counting)  # type: ignore[arg-type]
    latents = torch.randn(1, 4, 3, 2, 40)
    expected = torch.cat(list(decode_stream(vae, latents, 4)), dim=2)
    for _ in range(2):
        compiled = torch.cat(list(decode_stream(vae, latents, 4, pipe.decode_steady)), dim=2)
        assert torch.equal(compiled, expected)
        assert len(widths) == 3  # the low-resolution half, a strip at an edge, one between others


def small_vae() -> AutoencoderKLWan:
    """Wan 2.2's layout in as few layers as there can be."""
    torch.manual_seed(0)
    config = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1], "num_res_blocks": 0, "is_residual": True}
    patches = {"in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 8}
    statistics = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    vae = AutoencoderKLWan(**config, **patches, **statistics, temperal_downsample=[False, True])
    return vae.eval().requires_grad_(False)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with a C++ compiler")
def test_compiled_equals_eager(fresh: Any) -> None:
    """Fused operations round in another order: 1e-5 is allowed in fp32, 1.1e-7 is measured."""
    torch._dynamo.reset()
    expected = edit(fresh, 0, decode=False)[0]
    vae, z = small_vae(), torch.randn(1, 4, 3, 4, 4)
    pixels = torch.cat(list(decode_stream(vae, z)), dim=2)
    compile_model(fresh)
    assert relative_error(torch.cat(list(decode_stream(vae, z, 1, fresh.decode_steady)), dim=2), pixels) < 1e-5
    assert relative_error(edit(fresh, 0, decode=False)[0], expected) < 1e-5
