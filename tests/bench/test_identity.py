"""What a run is a run of: two models are never taken for one, whichever of their weights differ."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kiwi_cli.base.identity import sampled
from kiwi_cli.bench.run import name_of

from ..conftest import CHECKPOINT
from .conftest import FAST, Kiwi

FILES = {
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "language model": "mllm_encoder/model-00002-of-00004.safetensors",
    "decoder": "vae/diffusion_pytorch_model.safetensors",
}


def fine_tuned(folder: Path, file: str, key: str, factor: float = 1.01) -> Path:
    """The small checkpoint with one tensor changed: files of the same names and sizes."""
    shutil.copytree(CHECKPOINT, folder)
    tensors = load_file(folder / file)
    tensors[key] = tensors[key] * factor
    save_file(tensors, folder / file)
    return folder


@pytest.mark.parametrize("part", FILES)
def test_any_tensor_that_differs_makes_another_model(part: str, tmp_path: Path) -> None:
    keys = sorted(load_file(CHECKPOINT / FILES[part]))
    same = fine_tuned(tmp_path / "same", FILES[part], keys[0], 1.0)
    known = sampled(same)
    for number, key in enumerate(keys[:: max(1, len(keys) // 5)]):
        assert sampled(fine_tuned(tmp_path / str(number), FILES[part], key)) != known, key


def test_a_tensor_in_the_middle_of_a_large_file(tmp_path: Path) -> None:
    """Both ends of the file are equal, as where only the language model's layers were trained."""
    tensors = {f"{n}.weight": torch.zeros(1 << 20) for n in range(4)}
    found = []
    for name, value in (("a", 0.0), ("b", 1.0)):
        (tmp_path / name).mkdir()
        save_file(tensors | {"2.weight": torch.full((1 << 20,), value)}, tmp_path / name / "model.safetensors")
        found.append(sampled(tmp_path / name))
    assert found[0] != found[1]
    assert sampled(shutil.copytree(tmp_path / "a", tmp_path / "copy")) == found[0]


def test_a_file_that_is_no_safetensors_is_no_fault_here(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * (3 << 20))
    assert sampled(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10" + bytes(7) + b"[1, 2, 3, 4, 5] " + bytes(3 << 20))
    assert sampled(tmp_path)


def test_a_second_fine_tune_is_not_reported_with_the_firsts_clips(
    kiwi: Kiwi, tmp_path: Path, openve_data: Path
) -> None:
    key = sorted(load_file(CHECKPOINT / FILES["transformer"]))[5]
    first, second = (fine_tuned(tmp_path / n, FILES["transformer"], key, f) for n, f in (("a", 1.1), ("b", 1.2)))
    options = FAST[2:]  # without its model
    command = ("bench", "openve", "--data", openve_data, "--out", tmp_path / "run", "--stage", "edit", "--limit", 1)
    assert kiwi(*command, *options, "--model", first)[0] == 0
    code, _, err = kiwi(*command, *options, "--model", second)
    assert code == 2 and "holds another run: its model" in err


def test_exports_have_folders_of_their_own(tmp_path: Path) -> None:
    folders = [tmp_path / "runs" / name / "export" / "folder" for name in ("one", "two")]
    for folder in folders:
        folder.mkdir(parents=True)
    assert [name_of(str(folder)) for folder in folders] == ["runs-one", "runs-two"]
    assert name_of("instruct-reference") == "instruct-reference" and name_of("someone/model") == "model"
