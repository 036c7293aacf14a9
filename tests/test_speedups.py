"""Attention kernels and compilation: chosen without side effects, and equal to what they replace."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from kiwi_cli import KiwiPipeline, attention
from kiwi_cli.compilation import compile_model
from kiwi_cli.errors import UsageError

from .conftest import CHECKPOINT, random_frames, relative_error

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def latents(pipe: Any, frames: int = 5, seed: int = 0) -> torch.Tensor:
    return pipe(random_frames(frames), "make it snowy", steps=2, seed=seed, output="latents")


@pytest.fixture
def fresh() -> Any:
    return KiwiPipeline.from_pretrained(str(CHECKPOINT), device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("capability", "installed", "expected"),
    [((8, 9), True, "sdpa"), ((9, 0), True, "flash3"), ((9, 0), False, "cudnn"), ((12, 0), True, "cudnn")],
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


def test_blocks_compile_to_one_whole_graph_for_all_layers_steps_and_clips(fresh: Any) -> None:
    """Through a backend that only counts: no graph break (fullgraph), one graph, and none for a second clip."""
    graphs = []

    def counting(module: Any, inputs: Any) -> Any:
        graphs.append(module)
        return module.forward

    torch._dynamo.reset()
    expected = latents(fresh), latents(fresh, seed=1)
    compile_model(fresh.transformer, backend=counting)  # type: ignore[arg-type]
    assert torch.equal(latents(fresh), expected[0])
    assert len(graphs) == 1
    assert torch.equal(latents(fresh, seed=1), expected[1])
    assert len(graphs) == 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with a C++ compiler")
def test_compiled_equals_eager(fresh: Any) -> None:
    """Fused operations round in another order: 1e-5 is allowed in fp32, 1.1e-7 is measured."""
    torch._dynamo.reset()
    expected = latents(fresh)
    compile_model(fresh.transformer)
    assert relative_error(latents(fresh), expected) < 1e-5
