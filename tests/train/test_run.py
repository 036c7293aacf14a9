"""The three stages on the real model at its smallest: from cached synthetic rows to exports that edit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from kiwi_cli import KiwiPipeline
from kiwi_cli.data.encode import Encoder
from kiwi_cli.data.latents import Item, write_cache
from kiwi_cli.errors import CheckpointError, UsageError
from kiwi_cli.synth.writer import Settings, quadruplets
from kiwi_cli.train.config import TrainConfig, from_dict
from kiwi_cli.train.loop import train
from kiwi_cli.train.run import load_model, open_data, run_stage, trained_groups
from kiwi_cli.train.stages import GROUPS

from ..conftest import CHECKPOINT, random_frames

KINDS = {
    "images": ("black-and-white", "negative"),
    "videos": ("black-and-white", "negative"),
    "references": ("reference-background",),
}


def items(name: str, count: int) -> Iterator[Item]:
    still = name == "images"
    settings = Settings(count, KINDS[name], 64, 64, 1 if still else 5, seed=len(name), images=still)
    for row in quadruplets(settings):
        reference = None if row.edit.reference is None else Image.fromarray(row.edit.reference)
        yield Item(row.scene.source, row.edit.target, row.prompt, reference, row.edit.mask)


@pytest.fixture(scope="module")
def caches(loaded: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 rows, of which about a tenth are held out."""
    out = tmp_path_factory.mktemp("caches")
    for name, count in (("images", 110), ("videos", 50), ("references", 40)):
        write_cache(out / name, items(name, count), Encoder.from_pipeline(loaded), held_out=0.1, reference_views=2)
    return out


def settings(stage: str, model: Path, out: Path, caches: Path, **changes: Any) -> TrainConfig:
    names = {"alignment": ["images"], "instruction": ["images", "videos"]}.get(stage, list(KINDS))
    tree: dict[str, Any] = {
        "stage": stage,
        "model": str(model),
        "out": str(out),
        "data": [{"cache": str(caches / name)} for name in names],
        "steps": 10,
        "global_batch": 6,
        "micro_batch": 3,
        "draws": 2,
        "precision": "fp32",
        "checkpointing": False,
        "optimiser": {"lr": 2e-3},
        "lora": {"language_model": {"rank": 4}},
        "validate": {"every": 10, "rows": 8},
        "export": {"dtype": "float32"},
        "log_every": 1,
    }
    return from_dict({**tree, **changes})


@pytest.mark.slow
def test_three_stages_lower_the_held_out_loss_and_their_exports_edit(caches: Path, tmp_path: Path) -> None:
    model: Path = CHECKPOINT
    for stage in ("alignment", "instruction", "reference"):
        config = settings(
            stage,
            model,
            tmp_path / stage,
            caches,
            ema=0.8,
            export={"forms": ["folder", "raw"], "dtype": "float32"},
            validate={"every": 10, "rows": 8, "preview_every": 10, "previews": 3, "preview_steps": 2},
        )
        outcome = run_stage(config, device="cpu")
        before, after = outcome.result.held_out[0][1], outcome.result.held_out[-1][1]
        for name in before:
            assert after[name] < before[name], (stage, name)
        with Image.open(tmp_path / stage / "previews/step-00000010.png") as sheet:
            assert sheet.width == 792 and len(set(sheet.convert("L").tobytes())) > 50
        assert (tmp_path / stage / "previews/step-00000010.mp4").exists() == (stage != "alignment")
        model = outcome.exports["folder"]
    clip = random_frames(5)
    base = KiwiPipeline.from_pretrained(str(CHECKPOINT), device="cpu", dtype="float32")
    trained = KiwiPipeline.from_pretrained(str(model), device="cpu", dtype="float32")
    edits = [
        pipe.edit(clip, "make it blue", [Image.fromarray(clip[0])], steps=2, output="latents")
        for pipe in (base, trained)
    ]
    assert not torch.allclose(*edits)
    # The exported weights are the averaged ones, LoRA merged.
    ema = load_file(tmp_path / "reference/states/step-00000010/ema.safetensors")
    exported = dict(trained.transformer.named_parameters())
    assert torch.equal(exported["proj_out.weight"], ema["transformer.proj_out.weight"])
    assert set(load_file(tmp_path / "reference/export/raw.safetensors")) >= {
        "mllm.ref_queries.q",
        "mllm.connetor.0.weight",
    }


def run(config: TrainConfig) -> Any:
    """(the model after training, how it ended)"""
    model = load_model(config, Path(config.model))
    data = open_data(config, model.inputs)
    result = train(config, model, data.train, ratios=data.ratios, held_out=data.held_out, device="cpu")
    return model, result


def difference(one: torch.nn.Module, two: torch.nn.Module) -> float:
    """The largest of all trained parameters, relative to their size."""
    pairs = [
        (a.detach(), b.detach()) for a, b in zip(one.parameters(), two.parameters(), strict=True) if a.requires_grad
    ]
    return max(float((a - b).norm() / (a.norm() + 1e-6)) for a, b in pairs)


TOLERANCE = 1e-4
"""Of the weights after three steps, relative. Prompts of a micro-batch are padded to the longest, so sums differ."""


@pytest.mark.slow
def test_accumulation_checkpointing_and_bits(caches: Path, tmp_path: Path) -> None:
    def again(name: str, **changes: Any) -> Any:
        plain = {"steps": 3, "validate": {"every": 0}, "optimiser": {"lr": 1e-3, "eps": 1e-4}}
        return run(settings("reference", CHECKPOINT, tmp_path / name, caches, **{**plain, **changes}))

    whole, one = again("whole", micro_batch=6)
    accumulated, two = again("accumulated", micro_batch=2)
    assert difference(whole, accumulated) < TOLERANCE
    assert two.loss == pytest.approx(one.loss, rel=1e-4)
    checkpointed, three = again("checkpointed", micro_batch=6, checkpointing=True)
    assert difference(whole, checkpointed) == 0 and three.loss == one.loss
    other, _ = again("other", micro_batch=6, seed=1)
    assert difference(whole, other) > 10 * TOLERANCE


TRAINED = {
    "alignment": {"image_queries", "connector"},
    "instruction": {"image_queries", "connector", "video_queries", "transformer", "source_embedder"},
}
TRAINED["reference"] = {*TRAINED["instruction"], "ref_queries", "ref_connector", "ref_embedder"}


@pytest.mark.parametrize("stage", TRAINED)
def test_frozen_parts_do_not_move_by_a_bit_and_trained_parts_all_do(caches: Path, tmp_path: Path, stage: str) -> None:
    config = settings(
        stage, CHECKPOINT, tmp_path, caches, steps=3, global_batch=12, bucket_batch=3, validate={"every": 0}
    )
    start = load_model(config, CHECKPOINT)
    model, _ = run(config)
    moved: dict[str, list[bool]] = {}
    for (name, before), (_, after) in zip(start.named_parameters(), model.named_parameters(), strict=True):
        group = "lora" if ".lora_" in name else next((g for g, s in GROUPS.items() if name.startswith(s)), "vision")
        moved.setdefault(group, []).append(not torch.equal(before, after))
    assert all(moved.pop("lora"))
    for group, flags in moved.items():
        assert any(flags) == (group in TRAINED[stage]), group
        if any(flags):
            assert all(flags), group


def test_bf16_keeps_trained_weights_in_fp32(caches: Path, tmp_path: Path) -> None:
    config = settings("alignment", CHECKPOINT, tmp_path, caches, precision="bf16", steps=2)
    model, result = run(config)
    assert {value.dtype for value in model.parameters() if value.requires_grad} == {torch.float32}
    assert model.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert np.isfinite(result.loss) and result.held_out[-1][1] != result.held_out[0][1]


def test_a_lora_on_the_transformer(caches: Path, tmp_path: Path) -> None:
    lora = {"language_model": {"rank": 0}, "transformer": {"rank": 2, "layers": "all"}}
    config = settings(
        "instruction",
        CHECKPOINT,
        tmp_path,
        caches,
        steps=2,
        lora=lora,
        train=["transformer_lora"],
        export={"forms": ["lora"], "dtype": "float32"},
    )
    assert trained_groups(config) == ("transformer_lora",)
    outcome = run_stage(config, device="cpu")
    keys = load_file(outcome.exports["lora"])
    assert len(keys) == 2 * 3 * (4 + 4 + 2)  # two factors, three blocks, two attentions and the feed-forward
    assert all(key.startswith("transformer.blocks.") for key in keys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": ["lora"]}, "'train' has no group 'lora'"),
        ({"fresh": ["transformer"]}, "'fresh' has no group 'transformer'"),
        ({"train": ["transformer_lora"]}, "'transformer_lora' is to be trained and has rank 0"),
        (
            {"train": ["connector"], "lora": {"transformer": {"rank": 4}}},
            "rank is 4 and 'transformer_lora' is not trained",
        ),
        (
            {"lora": {"transformer": {"rank": 2}}, "export": {"forms": ["lora"]}},
            "export.forms has 'lora', and 'image_queries' is trained",
        ),
        ({"freeze": ["transfromer"]}, "no parameter's name begins with 'transfromer'"),
        ({"data": []}, "there is no data to train on"),
        ({"data": [{"cache": "gone"}]}, "gone"),
    ],
)
def test_what_is_refused(caches: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, CheckpointError)) as error:
        run_stage(settings("instruction", CHECKPOINT, tmp_path / "run", caches, **changes), device="cpu")
    assert message in error.value.message
    assert not (tmp_path / "run").exists()
