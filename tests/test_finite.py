"""Edits whose values stop being numbers are refused, and the error names where that began."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kiwi_cli import KiwiPipeline
from kiwi_cli.errors import KiwiError

from .cli.terminal import inside
from .conftest import make_model, random_frames
from .video.media import make_clip

FRAMES = random_frames(5)
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def changed(folder: Path, **factors: float) -> Path:
    """The small checkpoint with weights of block 1 multiplied."""
    make_model(folder)
    tensors = load_file(folder / WEIGHTS)
    for name, factor in factors.items():
        key = f"blocks.1.ffn.{name.replace('_', '.')}.weight"
        tensors[key] = tensors[key] * factor
    save_file(tensors, folder / WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same function as the small checkpoint's, through values that float16 does not have."""
    return changed(tmp_path_factory.mktemp("large") / "model", net_0_proj=1e5, net_2=1e-5)


def test_an_overflow_names_the_module_the_step_and_the_precision(large: Path) -> None:
    pipe = KiwiPipeline.from_pretrained(str(large), device="cpu", dtype="float16")
    with pytest.raises(KiwiError, match=r"'transformer\.blocks\.1\.ffn.*' on in step 1, in float16") as error:
        pipe.edit(FRAMES, "make it snowy", steps=2)
    assert "--dtype float32" in error.value.hint
    assert not any(module._forward_hooks for module in pipe.transformer.modules())  # the diagnosis leaves nothing


def test_the_same_weights_are_right_in_float32(large: Path) -> None:
    pipe = KiwiPipeline.from_pretrained(str(large), device="cpu", dtype="float32")
    assert pipe.edit(FRAMES, "make it snowy", steps=1).std() > 1


def test_a_weight_that_is_no_number_is_named(loaded: Any) -> None:
    parts = {name: getattr(loaded, name) for name in ("vae", "mllm_encoder", "source_embedder", "ref_embedder")}
    given = {"tokenizer": loaded.tokenizer, "scheduler": loaded.scheduler}
    pipe = KiwiPipeline(copy.deepcopy(loaded.transformer), **given, **parts)
    with torch.no_grad():
        pipe.transformer.blocks[2].ffn.net[2].weight[3, 4] = torch.nan
    with pytest.raises(KiwiError, match=r"'transformer\.blocks\.2\.ffn\.net\.2\.weight' holds values"):
        pipe.edit(FRAMES, "make it snowy", steps=1)


def test_a_weight_too_large_for_float16_is_named(tmp_path: Path) -> None:
    pipe = KiwiPipeline.from_pretrained(str(changed(tmp_path / "m", net_2=1e8)), device="cpu", dtype="float16")
    with pytest.raises(KiwiError, match=r"'transformer\.blocks\.1\.ffn\.net\.2\.weight' does not fit into float16"):
        pipe.edit(FRAMES, "make it snowy", steps=1)


PICTURE = random_frames(1, 32, 32)


@pytest.mark.parametrize("layer", ["attn1.to_q", "attn1.to_k", "attn2.to_q"])
def test_attention_over_few_keys_hides_nothing(loaded: Any, layer: str) -> None:
    """torch gives zeros for a query that is NaN where there are fewer than 16 keys: the picture looked fine."""
    broken = copy.deepcopy(loaded.transformer.blocks[1])
    whole = loaded.transformer.blocks[1]
    with torch.no_grad():
        broken.get_submodule(layer).weight.fill_(torch.nan)
    loaded.transformer.blocks[1] = broken
    try:
        with pytest.raises(KiwiError, match=rf"'transformer\.blocks\.1\.{layer}\.weight' holds values"):
            loaded.edit(PICTURE, "make it snowy", steps=1)
    finally:
        loaded.transformer.blocks[1] = whole
    assert not any(module._forward_hooks for module in loaded.transformer.modules())


def test_values_that_overflow_before_few_keys_name_the_module(large: Path) -> None:
    pipe = KiwiPipeline.from_pretrained(str(large), device="cpu", dtype="float32")
    query = pipe.transformer.blocks[2].attn1.norm_q
    hook = query.register_forward_hook(lambda module, given, output: output * torch.inf)
    with pytest.raises(KiwiError, match=r"from 'transformer\.blocks\.2\.attn1\.norm_q' on.*float32"):
        pipe.edit(PICTURE, "make it snowy", steps=1)
    hook.remove()
    assert pipe.edit(PICTURE, "make it snowy", steps=1).std() > 1


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_the_autoencoders_attention_hides_nothing(loaded: Any, half: str) -> None:
    layer = getattr(loaded.vae, half).mid_block.attentions[0].to_qkv
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight[: len(before) // 3] = torch.nan  # the queries
    try:
        with pytest.raises(KiwiError, match=rf"'vae\.{half}\.mid_block\.attentions\.0\.to_qkv\.weight' holds"):
            loaded.edit(PICTURE, "make it snowy", steps=1)
    finally:
        with torch.no_grad():
            layer.weight.copy_(before)


def test_decoded_pixels_that_are_no_numbers_are_refused(pipe: Any) -> None:
    latents = torch.full((1, pipe.vae.config.z_dim, 2, 4, 4), torch.inf)
    with pytest.raises(KiwiError, match="in the decoded frames, in float32"):
        list(pipe.decode(latents))


def test_the_command_writes_nothing(large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = make_clip(tmp_path / "in.mp4", frames=5)
    options = ("--model", large, "--size", "64x64", "--steps", 1, "--dtype", "float16")
    code, out, err = inside(capsys, "edit", clip, "make it snowy", *options)
    assert (code, out) == (1, "") and "not finite" in err and "float16" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4"]
