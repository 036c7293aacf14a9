"""The vision tower in few calls: the library's features, and a prompt that never asks the device for a value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from kiwi_cli.engine.random_model import random_pipeline
from kiwi_cli.model.prompt import QUERY_TOKEN, VISION_END, VISION_START
from kiwi_cli.model.vision import batch_windows, look

from .conftest import random_frames

LAYERS = 4
GRIDS = {
    "a clip of equal windows": [[4, 8, 16]],
    "windows cut off on two sides, clips and pictures": [[2, 12, 20], [1, 10, 6], [3, 8, 8]],
    "one window": [[1, 4, 4]],
}


class AttentionCalls(TorchDispatchMode):
    """Counts calls of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "scaled_dot_product" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def towers() -> tuple[Any, Any]:
    """The library's tower and ours, with the same weights."""
    shape = {"depth": LAYERS, "hidden_size": 160, "intermediate_size": 96, "num_heads": 2, "out_hidden_size": 24}
    config = {**shape, "fullatt_block_indexes": [1, 3]}
    library, ours = (
        Qwen2_5_VisionTransformerPretrainedModel._from_config(Qwen2_5_VLVisionConfig(**config)).eval() for _ in range(2)
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in library.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    ours.load_state_dict(library.state_dict())
    batch_windows(ours)
    return library, ours


@torch.no_grad()
@pytest.mark.parametrize("name", GRIDS)
def test_features_are_the_librarys(towers: tuple[Any, Any], name: str) -> None:
    library, ours = towers
    grids = torch.tensor(GRIDS[name])
    counts = grids.prod(dim=1)
    pixels = torch.randn(int(counts.sum()), 1176, generator=torch.Generator().manual_seed(1))
    expected = library(pixels, grid_thw=grids).pooler_output
    found = look(ours, pixels, grids)
    assert [len(features) for features in found] == (counts // 4).tolist()
    torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=1e-6)
    # Asked as the library asks it, the tower gives the same.
    torch.testing.assert_close(ours(pixels, grid_thw=grids).pooler_output, expected, rtol=0, atol=1e-6)
    # And each picture only sees itself.
    for features, alone, grid in zip(found, pixels.split(counts.tolist()), grids, strict=True):
        torch.testing.assert_close(features, look(ours, alone, grid[None])[0], rtol=0, atol=1e-6)


@torch.no_grad()
def test_equal_windows_are_one_call_a_layer(towers: tuple[Any, Any]) -> None:
    grids = torch.tensor([[4, 8, 16]])
    pixels = torch.zeros(int(grids.prod()), 1176)
    calls = []
    for tower in towers:
        with AttentionCalls() as counter:
            tower(pixels, grid_thw=grids)
        calls.append(counter.count)
    windows, frames = 4 * 1 * 2, 4
    assert calls == [2 * windows + 2 * frames, LAYERS]


def test_another_attention_of_the_library_can_still_be_set(towers: tuple[Any, Any]) -> None:
    library, ours = towers
    grids = torch.tensor([[2, 12, 20]])
    pixels = torch.randn(int(grids.prod()), 1176, generator=torch.Generator().manual_seed(1))
    before = ours.config._attn_implementation
    ours.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            torch.testing.assert_close(
                look(ours, pixels, grids)[0], library(pixels, grid_thw=grids).pooler_output, rtol=0, atol=1e-5
            )
    finally:
        ours.set_attn_implementation(before)


@pytest.mark.parametrize(("frames", "reference"), [(9, False), (1, False), (9, True)])
def test_a_prompt_reads_nothing_back(frames: int, reference: bool) -> None:
    """On `meta` there are no values: whatever asks for one, for a length or for the places of a token, raises."""
    pipe = random_pipeline("small", torch.device("meta"), torch.bfloat16)
    pictures = [Image.fromarray(random_frames(1)[0])] if reference else []
    inputs = pipe.inputs(random_frames(frames), "make it snowy", pictures)
    tokens = [pipe.inputs.token_id(token) for token in (QUERY_TOKEN, VISION_START, VISION_END)]
    with torch.no_grad():
        context = pipe.mllm_encoder(inputs.to("meta"), *tokens)
    counts = pipe.mllm_encoder.query_counts
    seen = 0 if not reference else int(inputs.image_grid_thw.prod()) // 4
    assert context.device.type == "meta" and context.shape[1] == counts[inputs.mode] + seen


def test_ids_that_do_not_fit_their_features_are_refused(pipe: Any) -> None:
    inputs = pipe.inputs(np.zeros((9, 64, 96, 3), np.uint8), "make it snowy", [])
    with pytest.raises(AssertionError, match="differ in number"):
        pipe.encode_inputs(replace(inputs, input_ids=inputs.input_ids[:, :-40]))
