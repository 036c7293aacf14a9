"""A run in minutes with counts of one: from the embedded model to parts that edit, and on from where it was stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from kiwi_cli import KiwiPipeline
from kiwi_cli.errors import CheckpointError, KiwiError
from kiwi_cli.synth.wordings import seen_wordings
from kiwi_cli.train.model import KiwiTrainModel
from kiwi_cli.train.ondevice import parts
from kiwi_cli.train.ondevice.bf16 import Bf16
from kiwi_cli.train.ondevice.drawing import Spec
from kiwi_cli.train.ondevice.learner import Learner
from kiwi_cli.train.ondevice.objective import Objective
from kiwi_cli.train.ondevice.recipe import Ask, Recipe
from kiwi_cli.train.ondevice.run import train
from kiwi_cli.train.ondevice.session import Settings
from kiwi_cli.weights.hub import locate
from kiwi_cli.weights.settings import read_settings

from .test_ondevice import CPU, form, tiny

RECIPE = Recipe(
    name="small",
    specs=(Spec("clip", 32, 32, 5, 1, 2, 1),),
    capacity={"clip": 4},
    for_the_vae={"clip": 1.0},
    for_the_model={"clip": 1.0},
    asked=(Ask("clip", False, False, 1), Ask("clip", False, True, 1), Ask("clip", True, False, 1)),
    held_out={"clip": 1},
    frames=17,
    guide=0.1,
)


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_parts_that_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, steps, step = tmp_path / "out", [], Learner.step

    def counted(learner: Learner, *arguments: Any) -> None:
        steps.append(learner.steps)
        step(learner, *arguments)

    monkeypatch.setattr(Learner, "step", counted)

    def stop(line: str, at: str) -> None:
        if '"ended": true' in line and f'"stage": "{at}"' in line:
            os.kill(os.getpid(), signal.SIGTERM)

    settings = Settings(
        locate("tiny"), out, tmp_path / "state", "cpu", positions=256, workers=0, steps=4, scale=1.0, recipe=RECIPE
    )
    settings = replace(settings, vae_share=0.5, minutes=20.0)
    for stage in ("vae", "model"):
        assert train(replace(settings, say=partial(stop, at=stage))) == 130
        assert not (out / parts.INDEX).exists()
    assert train(settings) == 0
    ended = [(line["stage"], line["step"]) for line in lines(out) if line.get("ended")]
    assert ended == [("vae", 4), ("vae", 4), ("model", 4), ("model", 4)]
    assert steps == [0, 1, 2, 3] * 2  # no step was done again
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert train(settings) == 0  # it is done
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before

    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) <= 8 and max(path.stat().st_size for path in files) < 16 << 20
    figures = json.loads((out / "figures.json").read_text())
    assert sum(kind["count"] for kind in figures["clip clip"].values()) == 3
    assert figures["autoencoder clip"]["first"] > 10

    folder = tmp_path / "folder"
    parts.unpack(out, folder)
    pipe = KiwiPipeline.from_pretrained(folder, device="cpu", dtype="float32")
    reference = Image.new("RGB", (32, 32), "red")
    for frames in (1, 5):
        clip = np.full((frames, 32, 32, 3), 90, np.uint8)
        for references in ([], [reference]):
            edited = pipe.edit(clip, "make it snowy", references, steps=1)
            assert np.asarray(edited.frames if hasattr(edited, "frames") else edited).shape == clip.shape
    assert read_settings(folder).understands == {kind: tuple(texts) for kind, texts in seen_wordings().items()}
    index = json.loads((folder / "model_index.json").read_text())
    assert index["working"]["frames"] == 17 and index["offers"] == []
    assert index["detail"] == {"steady": True, "trust": 1.0}  # as the model had it that it began from


def packed(folder: Path) -> Path:
    """Parts of a checkpoint: a small file and a large one."""
    (folder / "checkpoint/vae").mkdir(parents=True)
    (folder / "checkpoint/model_index.json").write_text("{}")
    (folder / "checkpoint/vae/weights.bin").write_bytes(bytes(parts.LARGE))
    parts.pack(folder / "checkpoint", folder / "parts")
    return folder / "parts"


def test_parts_take_the_place_of_a_checkpoint_and_of_nothing_else(tmp_path: Path) -> None:
    out, model, empty = packed(tmp_path), tmp_path / "model", tmp_path / "empty"
    parts.unpack(out, model)
    (model / "old.json").touch()
    empty.mkdir()
    for folder in (model, empty):
        parts.unpack(out, folder)
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert found == {"model_index.json", "vae/weights.bin"}
    (tmp_path / "src").mkdir()
    (tmp_path / "src/code.py").touch()
    for other in (tmp_path / "src", tmp_path / "src/code.py", out):
        with pytest.raises(CheckpointError, match=f"'{other}' is there, and is no checkpoint"):
            parts.unpack(out, other)
    assert (tmp_path / "src/code.py").is_file() and (out / parts.INDEX).is_file()


def test_parts_say_whether_reading_or_writing_failed(tmp_path: Path) -> None:
    out = packed(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(KiwiError, match=r"'.*file/model' cannot be written: Not a directory"):
        parts.unpack(out, tmp_path / "file/model")
    damaged = bytearray((out / parts.REST).read_bytes())
    damaged[40:60] = bytes(20)
    (out / parts.REST).write_bytes(damaged)
    with pytest.raises(CheckpointError, match="holds no whole parts"):
        parts.unpack(out, tmp_path / "model")
    (out / "vae-weights.bin").unlink()
    with pytest.raises(CheckpointError, match="holds no whole parts"):
        parts.unpack(out, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_parts_never_lead_out_of_their_folder(tmp_path: Path) -> None:
    (tmp_path / parts.INDEX).write_text("{}")
    with zipfile.ZipFile(tmp_path / parts.REST, "w") as rest:
        rest.writestr("../outside.json", "{}")
    with pytest.raises(CheckpointError, match="leads out"):
        parts.unpack(tmp_path, tmp_path / "folder")
    assert not (tmp_path / "outside.json").exists() and not (tmp_path / "folder").exists()


@pytest.mark.slow
def test_compiled_layers_have_the_loss_and_gradients_of_plain_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In bf16, with a C++ compiler's help, on a CPU: within bf16's rounding of fp32."""
    if shutil.which("g++") is None:
        pytest.skip("torch compiles with g++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    asked, found = form("clip", False, False), []
    for compiled in (False, True):
        model = KiwiTrainModel.from_folder(tiny(), torch.float32).requires_grad_(False)
        trained = [value.requires_grad_(True) for name, value in model.named_parameters() if "blocks.5.ffn" in name]
        objective = Objective(model, CPU, torch.bfloat16 if compiled else torch.float32)
        step = partial(objective.loss, asked, torch.Generator().manual_seed(1))
        loss = Bf16(model, CPU).call(step) if compiled else step()
        loss.backward()
        gradients = [value.grad for value in trained if value.grad is not None]
        found.append((float(loss), torch.cat([gradient.flatten() for gradient in gradients])))
    (plain, expected), (loss, gradient) = found
    assert loss == pytest.approx(plain, rel=0.01) and loss != plain
    assert gradient.dtype == torch.float32
    assert float(functional.cosine_similarity(gradient, expected, dim=0)) > 0.995
