"""The real classes at tiny size with random weights: what they say means nothing, the way to it is the real one."""

from __future__ import annotations

import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kiwi_cli.data.reference import asking, painting, vision
from kiwi_cli.data.reference.fetching import models
from kiwi_cli.data.reference.files import place_of
from kiwi_cli.data.reference.recipe import Make, drawn, load
from kiwi_cli.data.reference.running import Going, go_through
from kiwi_cli.data.reference.triplets import read_triplets
from kiwi_cli.errors import CheckpointError, KiwiError

from ..conftest import CHECKPOINT, ROOT, random_frames
from . import planted

LOOK = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random weights, the same in every run: a box of others may lie outside the picture."""
    import torch

    torch.manual_seed(0)


def saved(folder: Path, model: Any, look: dict[str, Any] = LOOK) -> str:
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(look))
    return str(folder)


def dino(folder: Path) -> str:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    return saved(folder, DINOv3ViTModel(DINOv3ViTConfig(image_size=32, patch_size=16, **SMALL)))


def siglip(folder: Path) -> str:
    from transformers import SiglipConfig, SiglipModel

    vision_config = {"image_size": 32, "patch_size": 16, **SMALL}
    return saved(
        folder, SiglipModel(SiglipConfig(vision_config=vision_config, text_config={"vocab_size": 50, **SMALL}))
    )


def sam(folder: Path) -> str:
    from transformers import Sam2VideoConfig, Sam2VideoModel

    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [128, 128],
        "blocks_per_stage": [1, 2, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": [8, 4, 8, 4],
        "window_positional_embedding_background_size": [4, 4],
        "global_attention_blocks": [4],
    }
    config = Sam2VideoConfig(
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": backbone,
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        prompt_encoder_config={"image_size": 128},
        image_size=128,
        memory_attention_num_layers=1,
        memory_fuser_num_layers=1,
        memory_attention_rope_feat_sizes=[8, 8],
    )
    return saved(folder, Sam2VideoModel(config), {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})


def sam3(folder: Path) -> str:
    from transformers import Sam3TrackerVideoConfig, Sam3TrackerVideoModel

    backbone = {"model_type": "sam3_vit_model", "image_size": 112, "patch_size": 14, "pretrain_image_size": 112}
    config = Sam3TrackerVideoConfig(
        vision_config={
            "model_type": "sam3_vision_model",
            "backbone_config": {**backbone, "window_size": 4, "global_attn_indexes": [1], **SMALL},
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        image_size=112,
        memory_attention_num_layers=1,
        memory_fuser_num_layers=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        memory_attention_rope_feat_sizes=[8, 8],
    )
    return saved(folder, Sam3TrackerVideoModel(config), {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})


def owl(folder: Path) -> str:
    from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection

    words = ["<|startoftext|>", "<|endoftext|>", "!", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"{letter}</w>" for letter in "!abcdefghijklmnopqrstuvwxyz"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="!").save_pretrained(folder)
    text = {"vocab_size": len(words), "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1, **SMALL}
    config = Owlv2Config(
        text_config=text, vision_config={"image_size": 32, "patch_size": 16, **SMALL}, projection_dim=32
    )
    return saved(folder, Owlv2ForObjectDetection(config))


def grounding_dino(folder: Path) -> str:
    from transformers import BertTokenizer, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "?", "red", "ball"]))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    swin = SwinConfig(
        window_size=7, image_size=32, embed_dim=12, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], out_indices=[2, 3, 4]
    )
    text = {"model_type": "bert", "vocab_size": 1100, "max_position_embeddings": 64, **SMALL}
    config = GroundingDinoConfig(
        backbone_config=swin,
        text_config=text,
        d_model=32,
        num_queries=5,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_feature_levels=4,
        encoder_n_points=2,
        decoder_n_points=2,
        max_text_len=16,
        disable_custom_kernels=True,
    )
    return saved(folder, GroundingDinoForObjectDetection(config))


def qwen(folder: Path) -> str:
    import torch
    from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(**json.loads((CHECKPOINT / "processor" / "qwen_config.json").read_text()))
    config.eos_token_id = config.text_config.eos_token_id = None
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(CHECKPOINT / "processor").save_pretrained(folder)
    shutil.copy(CHECKPOINT / "processor" / "preprocessor_config.json", folder)
    return str(folder)


@pytest.mark.parametrize("make", [dino, siglip])
def test_features(make: Any, tmp_path: Path) -> None:
    embed = vision.Embedder(make(tmp_path / "model"), "", "cpu")
    one, other = (Image.fromarray(random_frames(1, 40, 60, seed)[0]) for seed in (0, 1))
    found = embed(one)
    assert found.dtype == np.float32 and np.linalg.norm(found) == pytest.approx(1, abs=1e-5)
    assert np.array_equal(found, embed(one)) and not np.array_equal(found, embed(other))


@pytest.mark.parametrize(("by", "make"), [("sam2", sam), ("sam3", sam3)])
def test_a_tracked_box(by: str, make: Any, tmp_path: Path) -> None:
    track = vision.Tracker(by, make(tmp_path / "model"), "", "cpu").track
    frames = random_frames(3, 48, 64, 0)
    found = track(frames, [0.2, 0.2, 0.7, 0.8])
    assert found.shape == (3, 48, 64) and found.dtype == bool
    assert np.array_equal(found, track(frames, [0.2, 0.2, 0.7, 0.8]))


@pytest.mark.parametrize("make", [owl, grounding_dino])
def test_a_box_for_a_phrase(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "LEAST", 0.0)
    monkeypatch.setattr(vision, "DINO_SIDES", (64, 96))
    detector = vision.Detector(make(tmp_path / "model"), "", "cpu")
    box = detector(Image.fromarray(random_frames(1, 40, 60, 0)[0]), "red ball")
    assert box is not None and 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1
    monkeypatch.setattr(vision, "LEAST", 1.1)
    assert detector(Image.fromarray(random_frames(1, 40, 60, 0)[0]), "red ball") is None


def test_painters_are_called_as_their_pipelines_ask() -> None:
    import diffusers

    for name in painting.PIPELINES.values():
        taken = inspect.signature(getattr(diffusers, name).__call__).parameters
        assert {"image", "prompt", "num_inference_steps", "generator"} <= set(taken)
    assert "the two dogs" in painting.words_for("the two dogs")


def test_kiwi_paints(tmp_path: Path) -> None:
    make = Make(background="kiwi", model=str(CHECKPOINT), steps=1)
    paint = painting.make_painter(make, "cpu")
    frame = random_frames(1, 64, 96, 0)[0]
    made = paint(frame, np.zeros((64, 96), bool), "the ball")
    assert made.size == (96, 64) and not np.array_equal(np.asarray(made), frame)


def test_a_local_model_that_rambles_drops_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "NEW_TOKENS", 4)
    table, _ = planted.drawn(tmp_path / "rows", 1, kinds=("change",))
    recipe = replace(drawn(), score=replace(drawn().score, by="local", model=qwen(tmp_path / "model")))
    standing, _ = go_through(tmp_path / "out", list(read_triplets(table)), recipe, Going(device="cpu"))
    ((stage, reason),) = standing.dropped.values()
    assert stage == "score" and reason.startswith("the answer cannot be read")


def test_stages_with_models_in_a_run(tmp_path: Path) -> None:
    table, _ = planted.drawn(tmp_path / "rows", 1, kinds=("add",))
    recipe = replace(
        drawn(),
        segment=replace(drawn().segment, by="sam2", noise=0.0, model=sam(tmp_path / "sam")),
        check=replace(drawn().check, features="model", model=dino(tmp_path / "dino")),
        deduplicate=replace(drawn().deduplicate, features="model", model=str(tmp_path / "dino")),
        thresholds=replace(
            drawn().thresholds, tracked=0, overlap=0, smallest=0, largest=1, aspect=99, side=1, similarity=-1
        ),
    )
    rows = list(read_triplets(table))
    standing, _ = go_through(tmp_path / "out", rows, recipe, Going(device="cpu"))
    assert standing.failed == {} and list(standing.ran) in (
        ["read", "score", "ground", "segment", "make"],  # random weights may leave the first frame empty
        ["read", "score", "ground", "segment", "make", "check", "deduplicate"],
    )
    assert (tmp_path / "out" / place_of("segment", rows[0].key, ".mkv")).is_file()


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot ask"):
        asking.LocalAsker(dino(tmp_path / "model"), "", "cpu")
    with pytest.raises(KiwiError):
        vision.Detector(str(tmp_path / "model"), "", "cpu")
    with pytest.raises(KiwiError, match="cannot be had from the Hub"):
        vision.Embedder("nobody/nothing", "", "cpu")


def test_the_published_recipe_names_its_models_and_licences() -> None:
    recipe = load(str(ROOT / "recipes" / "reference-data.toml"), [])
    named = list(models(recipe))
    assert {model.stage for model in named} == {"score", "ground", "segment", "make", "check", "deduplicate"}
    assert all(model.licence for model in named)
    assert recipe.thresholds.following == 8.0
