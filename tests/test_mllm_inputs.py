"""Sizing, sampling, patch order and positions of the language model's input, beyond the recorded cases."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kiwi_cli.model.prompt import (
    VisionGeometry,
    mrope_positions,
    to_patches,
    video_pixels,
)
from kiwi_cli.model.vision_sizes import FRAME_MIN_AREA, IMAGE_MAX_AREA, PixelBounds, smart_size

from .conftest import CHECKPOINT, random_frames


@pytest.mark.parametrize(
    ("size", "multiple", "bounds", "expected"),
    [
        ((1280, 704), 56, (FRAME_MIN_AREA, 262144), (672, 336)),
        ((96, 64), 56, (FRAME_MIN_AREA, 262144), (168, 112)),
        ((64, 96), 28, (4 * 28 * 28, IMAGE_MAX_AREA), (56, 84)),
        ((1024, 1024), 28, (4 * 28 * 28, 768 * 28 * 28), (756, 756)),
        ((10, 10), 28, (4 * 28 * 28, IMAGE_MAX_AREA), (56, 56)),
    ],
)
def test_smart_size(size: Any, multiple: int, bounds: Any, expected: Any) -> None:
    assert smart_size(*size, multiple, *bounds) == expected


def test_smart_size_keeps_its_bounds_for_any_size() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        width, height = (int(side) for side in rng.integers(20, 3000, 2))
        got = smart_size(width, height, 56, FRAME_MIN_AREA, 262144)
        assert got[0] % 56 == got[1] % 56 == 0
        assert FRAME_MIN_AREA <= got[0] * got[1] <= 262144


def test_at_most_sixteen_frames_evenly() -> None:
    frames = np.stack([np.full((56, 56, 3), index, np.uint8) for index in range(81)])
    seen = video_pixels(frames, PixelBounds())[:, 0, 0, 0].tolist()
    assert seen == [0, 5, 11, 16, 21, 27, 32, 37, 43, 48, 53, 59, 64, 69, 75, 80]


def test_patches_hold_two_frames_in_merge_windows() -> None:
    """The first four patches are the 2x2 window at the top left, both frames of each."""
    pixels = torch.zeros(3, 3, 56, 84, dtype=torch.uint8)
    pixels[1, :, :14, 14:28] = 255  # second frame, second patch of the first row
    pixels[2, :, 14:28, :14] = 255  # third (then repeated) frame, first patch of the second row
    patches, grid = to_patches(pixels, VisionGeometry(mean=(0, 0, 0), std=(1, 1, 1)))
    assert grid.tolist() == [[2, 4, 6]]
    assert patches.shape == (48, 3 * 2 * 14 * 14)
    patches = patches.view(48, 3, 2, 14, 14)
    assert patches[1, :, 0].sum() == 0 and (patches[1, :, 1] == 1).all()
    assert (patches[24 + 2] == 1).all()
    assert patches.sum() == patches[1].sum() + patches[26].sum()


def test_positions_of_text_around_a_video_and_a_picture() -> None:
    video, image = 7, 9
    ids = [1, video, video, video, video, 2, 3, image, image, image, image, 4]
    grids = {video: torch.tensor([[2, 2, 4]]), image: torch.tensor([[1, 4, 4]])}
    got = mrope_positions(ids, grids, VisionGeometry(tokens_per_second=2), still=image)[:, 0].tolist()
    assert got[0] == [0, 1, 1, 3, 3, 4, 5, 6, 6, 6, 6, 8]  # time: two ticks a temporal patch, still for a picture
    assert got[1] == [0, 1, 1, 1, 1, 4, 5, 6, 6, 7, 7, 8]
    assert got[2] == [0, 1, 2, 1, 2, 4, 5, 6, 7, 6, 7, 8]


def test_modes_follow_frames_and_references(pipe: Any) -> None:
    frames, picture = random_frames(2), Image.new("RGB", (40, 40))
    assert pipe.inputs(frames, "x").mode == "video"
    assert pipe.inputs(frames[:1], "x").mode == "image"
    for clip in (frames, frames[:1]):
        built = pipe.inputs(clip, "x", [picture, picture])
        assert built.mode == "reference"
        assert len(built.image_grid_thw) == 1  # only the first reference reaches the language model
        assert "Use the reference input from last frame." in pipe.tokenizer.decode(built.input_ids[0])


@pytest.mark.parametrize(
    ("least", "shape", "expected"),
    [
        (4, (64, 64), (56, 56)),  # 2x2 tokens
        (4, (64, 96), (56, 84)),
        (4, (20, 20), (56, 56)),
        (1, (30, 30), (28, 28)),
        (9, (64, 64), (84, 84)),
        (None, (64, 64), (336, 336)),  # a released model: 128 tokens or more
    ],
)
def test_a_model_may_be_shown_less(least: int | None, shape: tuple[int, int], expected: tuple[int, int]) -> None:
    pixels = video_pixels(random_frames(2, *shape), PixelBounds(min_visual_tokens=least))
    assert pixels.shape == (2, 3, *expected) and pixels.dtype == torch.uint8


def test_the_minimum_holds_for_pictures_too(pipe: Any) -> None:
    """Of the source in image mode and of the reference, whose largest size is `max_object_token`."""
    bounds = PixelBounds(max_reference_tokens=16, min_visual_tokens=9)
    small = replace(pipe.inputs, bounds=bounds)
    frames, picture = random_frames(1, 40, 40), Image.new("RGB", (30, 30))
    assert small(frames, "x").image_grid_thw.tolist() == [[1, 6, 6]]
    assert small(frames, "x", [picture]).image_grid_thw.tolist() == [[1, 6, 6]]
    assert small(frames, "x", [picture.resize((500, 500))]).image_grid_thw.tolist() == [[1, 8, 8]]
    assert pipe.inputs(frames, "x").image_grid_thw.tolist() == [[1, 4, 4]]  # 4 tokens, as released


@pytest.mark.parametrize("least", [0, -4, 1.5, "4", True])
def test_a_minimum_that_is_none(least: Any) -> None:
    with pytest.raises(ValueError, match="min_visual_tokens"):
        PixelBounds(min_visual_tokens=least)


@pytest.mark.parametrize(("setting", "expected"), [({}, None), ({"min_visual_tokens": 4}, 4)])
def test_the_minimum_comes_from_the_encoders_config(tmp_path: Path, setting: dict[str, int], expected: Any) -> None:
    """And not from the processor's, whose `min_pixels` says something else."""
    from kiwi_cli import KiwiPipeline

    folder = tmp_path / "model"
    shutil.copytree(CHECKPOINT, folder)
    config = folder / "mllm_encoder/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | setting))
    pipe = KiwiPipeline.from_pretrained(str(folder), device="cpu", dtype="float32")
    assert pipe.inputs.bounds.min_visual_tokens == expected
    grid = pipe.inputs(random_frames(5), "x").video_grid_thw.tolist()
    assert grid == ([[3, 4, 4]] if expected else [[3, 24, 24]])
