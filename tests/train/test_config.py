"""Settings: every value can be set, and what cannot be meant is refused with words that help."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kiwi_cli.base.toml import known_keys
from kiwi_cli.errors import UsageError
from kiwi_cli.train import config as settings
from kiwi_cli.train.config import Schedule, TrainConfig, accumulation, from_dict, load_config

from ..conftest import ROOT

FILE = """
stage = "instruction"
model = "base"
out = "run"
steps = 100
[optimiser]
lr = 2e-5
[[data]]
cache = "images"
[[data]]
cache = "videos"
ratio = 2
"""
LEAST: dict[str, Any] = {"stage": "alignment", "model": "m", "out": "o"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "stage.toml"
    path.write_text(FILE)
    return path


def test_a_file_and_what_overrides_it(file: Path) -> None:
    config = load_config(
        file,
        [
            "optimiser.lr=1e-4",
            "data.1.ratio=3",
            "optimiser.betas=[0.9, 0.95]",
            "schedule.decay=cosine",
            "model=my base",
        ],
        out="elsewhere",
    )
    assert (config.optimiser.lr, config.optimiser.betas) == (1e-4, (0.9, 0.95))
    assert [(source.cache, source.ratio) for source in config.data] == [("images", 1.0), ("videos", 3.0)]
    assert (config.schedule.decay, config.model, config.out, config.steps) == ("cosine", "my base", "elsewhere", 100)
    assert from_dict(config.as_dict()) == config


def test_every_key_can_be_set(file: Path) -> None:
    other = {int: 7, float: 0.25, bool: False, str: "text"}
    choices = {
        "stage": "alignment",
        "precision": "fp32",
        "strategy": "ddp",
        "timesteps": "weighted",
        "export.dtype": "float32",
    }
    choices |= {
        "schedule.decay": "linear",
        "optimiser.name": "muon",
        "lora.language_model.layers": "all",
        "lora.transformer.layers": "all",
    }
    lists = {"optimiser.betas": "[0.5, 0.25]", "export.forms": '["raw"]', "global_batch": "7", "bucket_batch": "7"}
    for key in known_keys(TrainConfig):
        dotted = key.replace("N", "1")
        before = _at(load_config(file), dotted)
        text = (
            choices.get(key) or lists.get(key) or ('["x"]' if isinstance(before, tuple) else str(other[type(before)]))
        )
        after = load_config(file, [f"{dotted}={text.lower()}", *(["global_batch=14"] if key == "bucket_batch" else [])])
        assert _at(after, dotted) != before, key


def _at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[int(part)] if part.isdigit() else getattr(config, part)
    return config


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("lr=1e-4", "unknown key 'lr' (= 0.0001)", "did you mean 'optimiser.lr'?"),
        ("optimizer.lr=1", "unknown key 'optimizer'", "did you mean 'optimiser.lr'?"),
        ("data.0.rtio=2", "unknown key 'data.0.rtio' (= 2)", "did you mean 'data.N.ratio'?"),
        ("warmup=3", "unknown key 'warmup' (= 3)", "did you mean 'schedule.warm_up'?"),
        ("optimizer.betas=[1, 1]", "unknown key 'optimizer'", "did you mean 'optimiser.betas'?"),
        ("optimiser.qqqqq=3", "unknown key 'optimiser.qqqqq' (= 3)", "the keys here are name, lr"),
        ("qqqqqqqqqqqqqq=3", "unknown key 'qqqqqqqqqqqqqq' (= 3)", "the keys here are stage, model"),
        ("stage=instrucion", "'stage' is one of alignment, instruction, reference, not 'instrucion'", "'instruction'?"),
        ("steps=1.5", "'steps' is a whole number, not 1.5", "--set steps=..."),
        ("steps=true", "'steps' is a whole number, not true", ""),
        ("checkpointing=1", "'checkpointing' is true or false, not 1", ""),
        ("checkpointing=False", "'checkpointing' is true or false, not 'False'", ""),
        ("optimiser=3", "'optimiser' is a table with name, lr", ""),
        ("optimiser.lr=high", "'optimiser.lr' is a number, not 'high'", ""),
        ("optimiser.betas=[0.9]", "'optimiser.betas' is a list of 2, not [0.9]", ""),
        ("trackers=tensorboard", "'trackers' is a list, not 'tensorboard'", ""),
        ('export.forms=["raw", "lra"]', "'export.forms.1' is one of folder, raw, lora, not 'lra'", "'lora'?"),
        ("data.2.ratio=1", "'2' is no entry of that list", "0 to 1"),
        ("optimiser.lr", "--set takes KEY=VALUE, not 'optimiser.lr'", ""),
        ("clip=nan", "'clip' is at least 0, not NaN", ""),
        ("optimiser.lr=0", "'optimiser.lr' is above 0, not 0.0", ""),
        ("ema=1", "'ema' is from 0 to below 1, not 1.0", ""),
        ("steps=0", "'steps' is at least 1, not 0", ""),
        ("schedule.final=2", "'schedule.final' is from 0 to 1, not 2.0", ""),
        ("data.0.ratio=-1", "'data.0.ratio' is above 0, not -1.0", ""),
        ("bucket_batch=3", "'bucket_batch' is a divisor of global_batch (128), not 3", ""),
        ("data.1.cache=images", "'images' stands twice in 'data'", "ratio"),
    ],
)
def test_what_cannot_be_meant(file: Path, override: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        load_config(file, [override])
    assert message in error.value.message and hint in error.value.hint
    assert error.value.exit_code == 2


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read '.*gone.toml': No such file"):
        load_config(tmp_path / "gone.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("stage = \n")
    with pytest.raises(UsageError, match=r"'.*bad.toml' is not TOML: .*line 1"):
        load_config(bad)
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="it is not text"):
        load_config(bad)
    bad.write_text('stage = "alignment"')
    with pytest.raises(UsageError, match="'model' is missing"):
        load_config(bad)


def test_schedules() -> None:
    constant = Schedule()
    assert [constant.factor(step, 10) for step in (0, 5, 9)] == [1.0, 1.0, 1.0]
    linear = Schedule(warm_up=4, decay="linear", final=0.1)
    assert [linear.factor(step, 15) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert linear.factor(9, 15) == pytest.approx(0.55) and linear.factor(14, 15) == pytest.approx(0.1)
    cosine = Schedule(decay="cosine")
    assert cosine.factor(5, 11) == pytest.approx(0.5) and cosine.factor(10, 11) == pytest.approx(0.0)
    assert cosine.factor(2, 11) > 0.8  # slower than linear at first


def test_batches_come_out_even() -> None:
    config = from_dict({**LEAST, "global_batch": 24, "micro_batch": 2, "bucket_batch": 12})
    assert [accumulation(config, processes) for processes in (1, 2, 3, 6)] == [12, 6, 4, 2]
    with pytest.raises(UsageError, match=r"bucket_batch 12 is no multiple of 2 \(micro_batch\) x 4") as error:
        accumulation(config, 4)
    assert "multiple of 8" in error.value.hint


RECIPES = sorted(set((ROOT / "recipes").glob("*.toml")) - {ROOT / "recipes/reference-data.toml"})  # that one is of data


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes(path: Path) -> None:
    config = load_config(path)
    released = {"alignment": (1e-5, 30000), "instruction": (1e-5, 20000), "reference": (5e-6, 15000)}
    if path.stem in released:
        assert config.stage == path.stem
        assert (config.optimiser.lr, config.steps) == released[path.stem]
        assert (config.optimiser.weight_decay, config.schedule.decay, config.global_batch) == (0.01, "constant", 128)
        assert config.lora.language_model.rank == 64 and config.lora.transformer.rank == 0
    accumulation(config, 1)


def test_settings_are_frozen_and_need_no_torch() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        from_dict(LEAST).steps = 3  # type: ignore[misc]
    program = f"import sys, {settings.__name__}; sys.exit('torch' in sys.modules or 'accelerate' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
