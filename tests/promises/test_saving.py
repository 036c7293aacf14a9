"""What a diffusers pipeline promises of saving and opening: the same results, and files of tensors only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
)

from kiwi_cli import KiwiPipeline
from kiwi_cli.errors import CheckpointError, UsageError

from .calls import PARTS, PICTURE, call, load


def test_saved_and_opened(tmp_path: Path, ours: Any, expected: np.ndarray) -> None:
    ours.save_pretrained(tmp_path, max_shard_size="100KB")
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "KiwiPipeline" and index["scheduler"][1] == "FlowMatchEulerDiscreteScheduler"
    assert (tmp_path / "tokenizer" / "tokenizer.json").is_file()
    assert list(tmp_path.rglob("*-00002-of-*.safetensors")) and not list(tmp_path.rglob("*.bin"))
    again = load(tmp_path)
    assert np.array_equal(call(again), expected)
    assert np.array_equal(call(again, image=PICTURE), call(ours, image=PICTURE))
    assert np.array_equal(call(load(tmp_path, memory="stream", max_memory="8GB")), expected)


def test_all_that_was_set_is_saved(tmp_path: Path, fresh: Any) -> None:
    colour = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    made = KiwiPipeline(**fresh.components, colour=colour, references_first=True)
    made.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    made.register_to_config(shift=4.0)
    made.set_progress_bar_config(disable=True)
    made.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.scheduler.config.shift == again.config.shift == 4.0 and again.config.references_first
    assert again.inputs.geometry.mean == (0.1, 0.2, 0.3)
    assert np.array_equal(call(again, image=PICTURE), call(made, image=PICTURE))
    assert load(tmp_path, scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0)).config.shift == 2.0


def test_no_pickles(tmp_path: Path, ours: Any, caplog: pytest.LogCaptureFixture) -> None:
    """`safe_serialization=False` is taken, says so, and is read back."""
    ours.save_pretrained(tmp_path, safe_serialization=False)
    files = [path.suffix for path in tmp_path.rglob("diffusion_pytorch_model*")]
    assert files and set(files) == {".safetensors"}
    assert load(tmp_path).components.keys() == ours.components.keys()
    with pytest.raises(UsageError, match="no pickles"):
        load(tmp_path, use_safetensors=False)


def test_variants(tmp_path: Path, ours: Any) -> None:
    ours.save_pretrained(tmp_path / "half", variant="fp16")
    for part in PARTS:
        assert [path.name.split(".")[1] for path in (tmp_path / "half" / part).glob("*.safetensors")] == ["fp16"]
    again = load(tmp_path / "half", variant="fp16")
    for part in PARTS:
        loaded = dict(getattr(again, part).named_parameters())
        assert all(torch.equal(loaded[name], value) for name, value in getattr(ours, part).named_parameters())
    ours.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="You are trying to load the model files of the `variant=fp16`"):
        load(tmp_path / "plain", variant="fp16")
    with pytest.raises(UsageError, match="no variant 'fp16'"):
        load(variant="fp16")


def test_a_device_map(tmp_path: Path, ours: Any, expected: np.ndarray) -> None:
    ours.save_pretrained(tmp_path)
    mapped = load(tmp_path, device_map="cpu")
    assert mapped.residency is None and np.array_equal(call(mapped), expected)


def test_an_index_that_names_foreign_classes(tmp_path: Path, ours: Any) -> None:
    ours.save_pretrained(tmp_path)
    path = tmp_path / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"transformer": ["antigravity", "Anything"]}))
    with pytest.raises(CheckpointError, match="'transformer' from 'antigravity'"):
        load(tmp_path)


def test_parts_of_ones_own(ours: Any) -> None:
    assert load(transformer=ours.transformer).transformer is ours.transformer
    with pytest.raises(UsageError, match="takes no 'safety_checker'"):
        load(safety_checker=None)
