"""Figures without a judge: on frames whose answer is known, and with tiny random models in the real layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kiwi_cli.bench import run as runs
from kiwi_cli.bench.metrics import pixels
from kiwi_cli.bench.metrics.measure import measure_run, paired_frames
from kiwi_cli.bench.metrics.models import ModelMetrics, self_similarity
from kiwi_cli.bench.metrics.store import average_metrics, read_metrics
from kiwi_cli.errors import CheckpointError

from .conftest import Kiwi, edited_run


def texture(shift: int = 0, seed: int = 0) -> np.ndarray:
    """(48, 64, 3) uint8 noise, moved to the right."""
    noise = np.random.default_rng(seed).integers(0, 255, (48, 96, 1), dtype=np.uint8)
    return np.repeat(noise[:, 16 - shift : 80 - shift], 3, axis=2)


def moving(count: int, speed: int, seed: int = 0) -> np.ndarray:
    return np.stack([texture(speed * t, seed) for t in range(count)])


def test_psnr_and_ssim() -> None:
    still = moving(3, 0)
    assert pixels.psnr(still, still) == 100 and pixels.ssim(still, still) == pytest.approx(1)
    darker = (still // 2).astype(np.uint8)
    off = np.clip(still.astype(int) + 10, 0, 255).astype(np.uint8)
    assert pixels.psnr(np.zeros_like(still), np.full_like(still, 10)) == pytest.approx(20 * np.log10(25.5))
    assert pixels.ssim(still, off) > pixels.ssim(still, darker) > pixels.ssim(still, moving(3, 0, 9))
    assert abs(pixels.ssim(still, moving(3, 0, 9))) < 0.15


def test_flicker_hears_jumps_and_not_fades() -> None:
    fade = np.stack([np.full((16, 16, 3), 50 + 10 * t, np.uint8) for t in range(6)])
    jump = fade.copy()
    jump[::2] += 40
    assert pixels.flicker(fade) == pytest.approx(0) and pixels.flicker(jump) == pytest.approx(80)
    assert pixels.flicker(fade[:2]) is None


def test_motion_is_found_and_followed() -> None:
    clip = moving(3, 2)
    light = [frame[..., 0].astype(float) for frame in clip]
    shifts, left = pixels.block_motion(light[0], light[1])
    inside = shifts[:, 1:-1]
    assert (inside == (0, 2)).all() and left[:, 1:-1].max() == 0
    inverted = 255 - clip  # an edit that moves with its source
    frozen = np.repeat(inverted[:1], 3, axis=0)  # and one that does not
    followed, stuck = pixels.warp_error(clip, inverted), pixels.warp_error(clip, frozen)
    assert followed is not None and stuck is not None and followed < 1 and stuck > 20
    assert pixels.warp_error(clip[:1], clip[:1]) is None


def test_structure_is_layout_not_look() -> None:
    tokens = np.random.default_rng(0).normal(size=(1, 6, 8))
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
    assert np.allclose(self_similarity(tokens), self_similarity(3 * tokens @ turn))
    assert not np.allclose(self_similarity(tokens), self_similarity(tokens[:, ::-1]))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Random CLIP and DINOv2, saved as the Hub has them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model, PreTrainedTokenizerFast

    torch.manual_seed(0)
    clip, dino = (tmp_path_factory.mktemp(name) for name in ("clip", "dino"))
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **small,
        "vocab_size": 64,
        "max_position_embeddings": 12,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    vision = {**small, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(clip)
    vocabulary = {name: k for k, name in enumerate(["<unk>", "<s>", "</s>", "make", "the", "please", "with", "commas"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    from tokenizers.processors import TemplateProcessing

    words.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(clip)
    Dinov2Model(Dinov2Config(**{**small, "image_size": 28, "patch_size": 14, "mlp_ratio": 2})).save_pretrained(dino)
    return clip, dino


@pytest.fixture(scope="module")
def measures(tiny: tuple[Path, Path]) -> ModelMetrics:
    return ModelMetrics("cpu", str(tiny[0]), str(tiny[1]))


def test_models_on_known_frames(measures: ModelMetrics) -> None:
    clip = moving(3, 2)
    same = measures.measure(clip, clip, "make the please with commas " * 20, texture())
    assert same["clip_source_similarity"] == pytest.approx(1, abs=1e-5) == same["dino_source_similarity"]
    assert same["dino_structure_distance"] == pytest.approx(0) and same["clip_direction"] == 0
    assert measures.measure(clip[:1], clip[:1], "x").keys() == same.keys() - {
        "clip_frame_consistency", "dino_frame_consistency", "clip_reference_similarity", "dino_reference_similarity"
    }  # fmt: skip
    still = np.repeat(clip[:1], 3, axis=0)
    values = measures.measure(still, still, "x", clip[0])
    assert values["clip_frame_consistency"] == pytest.approx(1, abs=1e-5)
    assert values["clip_reference_similarity"] == pytest.approx(1, abs=1e-5)


def test_a_run_is_measured_once_and_apart_from_the_ranking(
    kiwi: Kiwi, measures: ModelMetrics, tmp_path: Path, refvie_data: Path
) -> None:
    run = edited_run(tmp_path / "run", "refvie", refvie_data, skip=("background",))
    source, edit = paired_frames(run, run.items[0])
    assert source.shape == edit.shape == (5, 64, 64, 3) and np.array_equal(source, edit)
    assert measure_run(run, run.items, models=measures) == {}
    values = read_metrics(run)
    assert len(values) == 2 and all(entry["psnr_source"] == 100 for entry in values.values())
    assert all("dino_reference_similarity" in entry for entry in values.values())
    journal = run.folder / "metrics.jsonl"
    lines = journal.read_bytes()
    assert measure_run(run, run.items, models=measures) == {} and journal.read_bytes() == lines
    figure = next(entry for entry in average_metrics(run) if entry["name"] == "ssim_source")
    assert figure == {"name": "ssim_source", "value": 1.0, "scored": 2, "of": 3}
    code, out, _ = kiwi("bench", "report", run.folder)
    assert code == 0 and "figures without a judge, no ranking" in out and "no scores yet" in out
    data = json.loads((run.folder / "report/report.json").read_text())["benchmarks"][0]
    assert data["rows"] == [] and data["runs"][0]["metrics"]


def test_one_unreadable_result_is_a_failure(measures: ModelMetrics, openve_run: runs.Run) -> None:
    openve_run.edited(openve_run.items[0]).write_bytes(b"not a clip")
    failures = measure_run(openve_run, openve_run.items[:2], models=measures)
    assert list(failures) == [openve_run.items[0].id] and len(read_metrics(openve_run)) == 1


def test_the_option(kiwi: Kiwi, measures: ModelMetrics, openve_run: runs.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load(device: str, *_: Any) -> ModelMetrics:
        asked.append(device)
        return measures

    monkeypatch.setattr("kiwi_cli.bench.metrics.models.ModelMetrics", load)
    command = ("bench", "openve", "--stage", "report", "--out", openve_run.folder, "--metrics", "--device", "cpu")
    code, out, err = kiwi(*command, "--limit", 2)
    assert code == 0, err
    assert asked == ["cpu"] and "warp_error" in out and "2 of 8" in out


def test_models_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot load CLIP or DINO"):
        ModelMetrics("cpu", str(tmp_path), str(tmp_path))
