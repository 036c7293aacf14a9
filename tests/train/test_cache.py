"""What is cached is what the model's own parts compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kiwi_cli.data import shards
from kiwi_cli.data.encode import SHRINK, Encoder, shrink_on_white
from kiwi_cli.data.latents import Item, write_cache
from kiwi_cli.data.shards import read_index
from kiwi_cli.model.pictures import fit_on_white

from ..conftest import CHECKPOINT, random_frames
from .cached import TOLERANCE, edits, tensors


def test_latents_are_the_pipelines(loaded: Any, whole: Path) -> None:
    for item, found in zip(edits(), tensors(whole), strict=True):
        for name in ("source", "target"):
            alone = loaded.encode_source(getattr(item, name))[0]
            assert found[name].shape == alone.shape
            assert alone.abs().max() > 0.5
            torch.testing.assert_close(found[name], alone, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_vision_features_are_the_towers(loaded: Any, whole: Path) -> None:
    """Bit for bit: attention stays within a clip, and the rest is row by row."""
    qwen = loaded.mllm_encoder.qwen
    for item, found in zip(edits(), tensors(whole), strict=True):
        references = [item.reference] if item.reference is not None else []
        prompt = loaded.inputs(item.source, item.prompt, references)
        wanted = []
        if prompt.pixel_values_videos is not None:
            wanted += qwen.get_video_features(prompt.pixel_values_videos, prompt.video_grid_thw).pooler_output
        if prompt.pixel_values is not None:
            wanted += qwen.get_image_features(prompt.pixel_values, prompt.image_grid_thw).pooler_output
        cached = [found[name].flatten(0, 2) for name in ("vision", "picture") if name in found]
        assert len(cached) == len(wanted) == 1 + len(references)
        for ours, alone in zip(cached, wanted, strict=True):
            torch.testing.assert_close(ours, alone, rtol=0, atol=1e-5)


def test_reference_views_are_shrunk_on_white(loaded: Any, encoder: Encoder) -> None:
    picture = Image.fromarray(random_frames(1, 40, 70)[0])
    assert np.array_equal(shrink_on_white(picture, 96, 64, 1.0), fit_on_white(picture, 96, 64))
    # 70x40 fits 96x64 as 96x55; at half size that is 48x27, in the middle: lines 18 to 44, columns 24 to 71.
    small = np.asarray(shrink_on_white(picture, 96, 64, 0.5))
    coloured = np.argwhere((small != 255).any(-1))
    assert coloured.min(0).tolist() == [18, 24]
    assert coloured.max(0).tolist() == [44, 71]

    views = encoder.reference_views([picture, picture], 96, 64, ["a", "b"], 5)
    assert [view.shape for view in views] == [(5, 48, 1, 4, 6)] * 2
    again = encoder.reference_views([picture], 96, 64, ["a"], 5)[0]
    torch.testing.assert_close(views[0], again, rtol=0, atol=TOLERANCE)
    assert not torch.allclose(views[0], views[1], atol=1e-3)  # each picture has its own draws
    assert not torch.allclose(views[0][0], views[0][1], atol=1e-3)  # and so has each view
    sizes = [encoder.latents([np.asarray(shrink_on_white(picture, 96, 64, part))[None]])[0] for part in SHRINK]
    assert all(min(float((view - end).abs().max()) for end in sizes) > 1e-3 for view in views[0])


def test_coverage_is_the_mean_over_what_a_latent_stands_for(encoder: Encoder) -> None:
    mask = np.zeros((5, 64, 96), bool)
    mask[0, :16, :16] = True  # one latent position of the first frame
    mask[1:3, 32:48, 32:40] = True  # half a position, in two of four frames
    found = encoder.coverage(mask)
    assert found.shape == (2, 4, 6)
    assert found[0, 0, 0] == 1
    assert found[1, 2, 2] == 0.25
    assert float(found.sum()) == 1.25
    assert torch.equal(encoder.coverage(mask.astype(np.uint8) * 255), found)


def test_what_rows_share_is_encoded_once(whole: Path) -> None:
    rows = read_index(whole)["rows"]
    assert rows[2]["tensors"]["source"] == rows[3]["tensors"]["source"]
    assert rows[4]["tensors"]["vision"] == rows[5]["tensors"]["vision"]
    assert len({row["tensors"]["target"] for row in rows}) == len(rows)
    # A single frame is a video in a prompt with a reference, else a picture: two sets of features of one source.
    assert rows[2]["tensors"]["vision"] != rows[3]["tensors"]["vision"]
    stored = {key for path in whole.glob("*.safetensors") for key in shards.read_header(path)}
    assert stored == {key for row in rows for key in row["tensors"].values()}


def test_modes_kinds_and_order(whole: Path) -> None:
    rows = read_index(whole)["rows"]
    assert [row["prompt"] for row in rows] == [f"edit {number}" for number in range(6)]
    assert [row["mode"] for row in rows] == ["reference", "video", "image", "reference", "video", "video"]
    assert [row["kind"] for row in rows] == ["k0", "k1"] * 3
    assert rows[1]["tensors"].keys() == {"source", "target", "vision", "coverage"}


def test_in_bfloat16(encoder: Encoder, loaded: Any, whole: Path, tmp_path: Path) -> None:
    write_cache(tmp_path, edits(2), Encoder.from_pipeline(loaded, store="bfloat16"))
    for found, exact in zip(tensors(tmp_path), tensors(whole), strict=False):
        assert found["target"].dtype == found["vision"].dtype == torch.bfloat16
        torch.testing.assert_close(found["target"].float(), exact["target"], rtol=2**-8, atol=TOLERANCE)


def test_the_fingerprint_is_that_of_the_weights(encoder: Encoder) -> None:
    """Loaded from the folder, in another precision: the same weights."""
    cpu = torch.device("cpu")
    assert Encoder.from_folder(CHECKPOINT, cpu, torch.float32).settings == encoder.settings
    halved = Encoder.from_folder(CHECKPOINT, cpu, torch.bfloat16).settings
    assert halved == {**encoder.settings, "vision_dtype": "bfloat16"}


def test_held_out_goes_by_the_source_and_stays(encoder: Encoder, tmp_path: Path) -> None:
    still = random_frames(1)

    def row(source: int, **more: Any) -> Item:
        return Item(still, still, "p", group=f"source {source}", **more)

    def split(rows: list[Item], fraction: float) -> list[bool]:
        write_cache(tmp_path, rows, encoder, held_out=fraction)
        return [row["split"] == "held_out" for row in read_index(tmp_path)["rows"]]

    many = split([row(number // 2) for number in range(1000)], 0.2)
    assert many[::2] == many[1::2]  # the two rows of a source are on one side
    assert 0.15 < sum(many) / 1000 < 0.25
    assert split([row(number) for number in range(250)], 0.2) == many[:500:2]  # whatever other rows there are
    assert sum(split([row(number) for number in range(3)], 0.001)) == 1  # at least one
    assert sum(split([row(number) for number in range(3)], 0.0)) == 0
    assert split([row(0, split="held_out"), row(1, split="train")], 0.0) == [True, False]
