"""Dry runs: the figures are those of the run, and no weight is read."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kiwi_cli.data.encode import Encoder
from kiwi_cli.data.latents import Item, write_cache
from kiwi_cli.errors import CheckpointError, UsageError
from kiwi_cli.model.transformer import UNUSED_PREFIX
from kiwi_cli.train.batch import Bucket
from kiwi_cli.train.config import TrainConfig, from_dict
from kiwi_cli.train.plan import activations, plan_run, skeleton
from kiwi_cli.train.run import load_model

from ..conftest import CHECKPOINT, DATA, random_frames


def without_weights(source: Path, out: Path) -> Path:
    """A checkpoint's configs and tokenizer."""
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    return out


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """The released 5B model's configs around the small one's tokenizer."""
    folder = without_weights(CHECKPOINT, tmp_path / "5b")
    for part, config in json.loads((DATA / "released-5b-configs.json").read_text()).items():
        path = {"qwen": "processor/qwen_config.json", "scheduler": "scheduler/scheduler_config.json"}.get(part)
        (folder / (path or f"{part}/config.json")).write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def cache(loaded: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plan") / "rows"
    rows = [
        (random_frames(5, seed=n), random_frames(5, seed=n + 1), "train" if n < 6 else "held_out") for n in range(8)
    ]
    write_cache(out, [Item(a, b, "x", split=split) for a, b, split in rows], Encoder.from_pipeline(loaded))  # type: ignore[arg-type]
    return out


def config(model: Path, **changes: Any) -> TrainConfig:
    return from_dict({"stage": "instruction", "model": str(model), "out": "run", **changes})


@pytest.mark.parametrize("stage", ["alignment", "instruction", "reference"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_counts_and_bytes_are_those_of_the_model_that_is_trained(tmp_path: Path, stage: str, precision: str) -> None:
    settings = config(CHECKPOINT, stage=stage, precision=precision, ema=0.9)
    plan = plan_run(settings)
    model = load_model(settings, CHECKPOINT)
    trained = [value for value in model.parameters() if value.requires_grad]
    assert plan.trained == sum(value.numel() for value in trained)
    total = sum(value.numel() for value in model.parameters())
    assert sum(part.trained + part.frozen for part in plan.parts) == total
    for value in trained:
        value.data = value.data.to(torch.float32)
    held = sum(value.numel() * value.element_size() for value in model.parameters())
    # In bf16 the library keeps a few small layers of the transformer in fp32 even when they are frozen.
    assert plan.memory["weights"] == pytest.approx(held, rel=0.05)
    assert plan.memory["gradients"] == plan.memory["average"] == 4 * plan.trained
    assert plan.memory["optimiser"] == 8 * plan.trained
    assert "activations" not in plan.memory  # without data there is nothing to estimate


def test_the_released_model_without_a_weight(released: Path) -> None:
    plan = plan_run(config(released, strategy="fsdp"))
    parts = {part.name: part for part in plan.parts}
    shapes = json.loads((DATA / "released-5b-manifest.json").read_text())["transformer"]
    stored = sum(math.prod(shape) for key, shape in shapes.items() if not key.startswith(UNUSED_PREFIX))
    assert (parts["transformer"].trained, parts["transformer"].frozen) == (stored, 0)
    # Rank 64 on q, k, v, o of 36 layers: k and v are an eighth as wide.
    assert parts["language model"].trained == 36 * 64 * (2 * (2048 + 2048) + 2 * (2048 + 256))
    assert parts["language model"].frozen == pytest.approx(3.09e9, rel=0.01)
    assert (parts["vision tower"].trained, parts["reference embedder"].trained) == (0, 0)
    alignment = plan_run(config(released, stage="alignment"))
    assert alignment.trained < 60e6
    for text in (
        "4.98 B trained, none frozen",
        "a process; activations come on top",
        "20000 of 128 samples: 2560000 samples",
    ):
        assert text in plan.text()


def test_data_and_epochs(cache: Path) -> None:
    settings = config(
        without_weights(CHECKPOINT, cache.parent / "configs"),
        data=[{"cache": str(cache)}],
        steps=9,
        global_batch=4,
        draws=2,
        micro_batch=2,
    )
    plan = plan_run(settings)
    assert plan.rows == {"rows": (6, 2)} and plan.epochs == {"rows": 6.0}
    assert (plan.accumulation, plan.processes) == (2, 1)
    assert plan.memory["activations"] > 0
    for text in ("2 x 2 samples in one process", "6 rows, 2 held out, 6 epochs", "2 draws of timestep and noise each"):
        assert text in plan.text()
    data = plan.as_dict()
    assert data["memory"]["total"] == sum(plan.memory.values()) and data["samples"] == 36
    assert json.loads(json.dumps(data)) == data


def test_a_cache_that_is_not_there_is_said(tmp_path: Path) -> None:
    plan = plan_run(config(CHECKPOINT, data=[{"cache": str(tmp_path / "gone")}]))
    assert len(plan.notes) == 1 and "gone" in plan.notes[0] and "no rows counted" in plan.notes[0]
    assert plan_run(config(CHECKPOINT)).notes == ("no data is named",)


def test_activations_follow_what_is_computed() -> None:
    model = skeleton(CHECKPOINT)
    bucket = Bucket("video", 5, 8, 8)

    def estimate(**changes: Any) -> int:
        return activations(config(CHECKPOINT, **changes), model, bucket, 100)

    plain = estimate(checkpointing=False)
    assert estimate(checkpointing=True) < plain / 2
    assert estimate(checkpointing=False, micro_batch=4) == 4 * plain
    assert plain < estimate(checkpointing=False, draws=4) < 4 * plain  # the prompt is computed once
    assert estimate(checkpointing=False, precision="fp32") > plain


def test_what_the_run_would_refuse(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'train' has no group 'x'"):
        plan_run(config(CHECKPOINT, train=["x"]))
    with pytest.raises(UsageError, match="no multiple of 3"):
        plan_run(config(CHECKPOINT, micro_batch=3))
    with pytest.raises(CheckpointError):
        plan_run(config(tmp_path))
