"""Lucy-Edit and VACE through diffusers' own classes, on random weights in the released layout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kiwi_cli.base.events import SILENT
from kiwi_cli.editors.base import Denoising
from kiwi_cli.editors.library import KINDS, LAYOUT, PipelineEditor
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.errors import CheckpointError, UsageError

from ..conftest import ROOT, random_frames
from ..weights import hub_server
from . import tiny_pipelines

pytest.importorskip("ftfy", reason="needs ftfy: pip install 'kiwi-cli[editors]'")

NAMES = ("lucy-edit", "vace")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: tiny_pipelines.save(name, tmp_path_factory.mktemp("models") / name) for name in NAMES}


def load(name: str, folder: Path) -> PipelineEditor:
    choice, kind = ModelChoice(str(folder), editor=name, device="cpu"), KINDS[name]
    found = kind.find(choice)
    kind.admit(found, choice)
    return kind.load(found, choice, SILENT)


@pytest.mark.parametrize("name", NAMES)
def test_an_edit(name: str, models: dict[str, Path]) -> None:
    """The same clip and seed give the same frames, another seed others; what was repeated to 4k + 1 is left out."""
    editor = load(name, models[name])
    assert (editor.multiple, editor.takes_references) == (16, name == "vace")
    frames, seen = random_frames(4, 32, 48), []
    made = [
        np.concatenate(
            list(
                editor.edit(
                    frames,
                    "make it snowy",
                    denoising=Denoising(2, seed),
                    progress=lambda stage, done, total: seen.append((stage, done, total)),
                ).frames
            )
        )
        for seed in (0, 0, 1)
    ]
    assert all(each.shape == frames.shape and each.dtype == np.uint8 for each in made)
    assert np.array_equal(made[0], made[1]) and not np.array_equal(made[0], made[2])
    assert seen[:2] == [("denoise", 1, 2), ("denoise", 2, 2)]
    identity = editor.identity()
    assert (identity.device, identity.dtype, identity.choice.editor) == ("cpu", "float32", name)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_diffusers_makes(name: str, models: dict[str, Path]) -> None:
    """The call of the model's card: the same numbers."""
    import diffusers
    import torch

    frames = random_frames(5, 32, 32)
    pipe = getattr(diffusers, KINDS[name].family.pipeline).from_pretrained(str(models[name]))
    pipe.set_progress_bar_config(disable=True)
    clip = [Image.fromarray(frame) for frame in frames]
    more = {} if name == "lucy-edit" else {"mask": [Image.new("L", (32, 32), 255)] * 5}
    expected = pipe(
        prompt="make it snowy",
        video=clip,
        height=32,
        width=32,
        num_frames=5,
        num_inference_steps=2,
        guidance_scale=5.0,
        generator=torch.Generator("cpu").manual_seed(3),
        **more,
    ).frames[0]
    made = load(name, models[name]).edit(frames, "make it snowy", denoising=Denoising(2, 3))
    assert np.array_equal(np.concatenate(list(made.frames)), (expected * 255).round().astype(np.uint8))


def test_vace_looks_at_reference_pictures_and_at_the_clip(models: dict[str, Path]) -> None:
    editor, frames = load("vace", models["vace"]), random_frames(5, 32, 32)

    def edit(frames: np.ndarray, *references: Image.Image) -> np.ndarray:
        return np.concatenate(list(editor.edit(frames, "make it red", references, denoising=Denoising(1)).frames))

    plain = edit(frames)
    assert not np.array_equal(plain, edit(frames, Image.new("RGB", (20, 30), "red")))
    assert not np.array_equal(plain, edit(frames[::-1]))


def test_what_is_in_a_folder_is_looked_at_before_it_is_loaded(models: dict[str, Path], tmp_path: Path) -> None:
    def find(name: str, folder: Path, **more: Any) -> None:
        KINDS[name].find(ModelChoice(str(folder), editor=name, **more))

    with pytest.raises(CheckpointError, match="is a WanVACEPipeline, and --editor lucy-edit takes a LucyEditPipeline"):
        find("lucy-edit", models["vace"])
    with pytest.raises(CheckpointError, match=r"has no model_index\.json"):
        find("vace", tmp_path)
    with pytest.raises(UsageError, match="--revision is for models on the Hub"):
        find("vace", models["vace"], revision="main")
    with pytest.raises(CheckpointError, match="no such model or folder"):
        KINDS["vace"].find(ModelChoice("magic", editor="vace"))
    broken = tmp_path / "broken"
    shutil.copytree(models["vace"], broken)
    (broken / "model_index.json").write_text("[")
    with pytest.raises(CheckpointError, match="cannot read"):
        find("vace", broken)


def test_two_fine_tunes_are_told_apart(models: dict[str, Path], tmp_path: Path) -> None:
    other = tiny_pipelines.save("vace", tmp_path / "other", seed=1)

    def fingerprint(folder: Path) -> str:
        choice = ModelChoice(str(folder), editor="vace")
        return KINDS["vace"].identify(KINDS["vace"].find(choice), choice)

    copy = shutil.copytree(models["vace"], tmp_path / "copy")
    assert fingerprint(copy) == fingerprint(models["vace"]) != fingerprint(other)


FETCH = """
import json
from kiwi_cli.editors.library import KINDS
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.base.events import Silent
from kiwi_cli.errors import CheckpointError

kind, events, choice = KINDS["lucy-edit"], Silent(), ModelChoice(editor="lucy-edit")
notes = []
events.note = notes.append
before = kind.find(choice)
assert before.missing and before.folder is None
try:
    kind.find(ModelChoice(editor="lucy-edit", download=False))
except CheckpointError as error:
    refused = error.message
found = kind.fetch(choice, events)
print(json.dumps([notes, str(found.folder), str(kind.find(choice).folder), refused]))
"""


def test_the_licence_is_said_before_anything_is_fetched(models: dict[str, Path], tmp_path: Path) -> None:
    """What is not of the layout is not fetched, and what is here is not asked for again."""
    files = hub_server.folder_contents(models["lucy-edit"]) | {"evil.py": b"raise SystemExit"}
    with hub_server.serve({KINDS["lucy-edit"].family.model: files}) as hub:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "KIWI_", "HUGGING"))}
        place = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [sys.executable, "-c", FETCH],
            env=kept | place | {"NO_PROXY": "127.0.0.1"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        notes, folder, again, refused = json.loads(done.stdout)
        assert "NON-COMMERCIAL" in notes[0] and "fetching" in notes[1] and "is not on this machine" in refused
        assert "evil.py" not in hub.fetched() and "model_index.json" in hub.fetched()
    assert folder == again and not LAYOUT.missing(Path(folder))


def test_ftfy_is_asked_for_by_its_name(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers falls over its absence in the middle of an edit."""
    choice = ModelChoice(str(models["vace"]), editor="vace", device="cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="--editor vace needs ftfy") as error:
        KINDS["vace"].admit(KINDS["vace"].find(choice), choice)
    assert error.value.hint == "pip install 'kiwi-cli[editors]'"
