"""A GGUF file of the transformer: read strictly, kept packed, near to what it was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kiwi_cli import KiwiPipeline
from kiwi_cli.engine import memory as mem
from kiwi_cli.engine import quantize
from kiwi_cli.engine.gguf import load_gguf
from kiwi_cli.engine.residency import Residency, weigh
from kiwi_cli.errors import CheckpointError, UsageError
from kiwi_cli.weights.keys import original_dit_key

from .cli.terminal import inside
from .conftest import CHECKPOINT, ROOT, random_frames, relative_error

gguf = pytest.importorskip("gguf", reason="needs the extra 'gguf'")
CPU = torch.device("cpu")
Q8 = gguf.GGMLQuantizationType.Q8_0  # blocks of 32 values: 34 bytes for 32
FRAMES = random_frames(5)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """A tiny model: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(dtype: str = "float32") -> Any:
    return KiwiPipeline.from_pretrained(str(CHECKPOINT), device="cpu", dtype=dtype)


def write(
    path: Path, tensors: dict[str, torch.Tensor], kind: Any = Q8, prefix: str = "", original: bool = True
) -> Path:
    """As converters do: matrices packed where their rows divide into blocks, at most four dimensions."""
    writer = gguf.GGUFWriter(path, "wan")
    for name, tensor in tensors.items():
        array = tensor.detach().float().numpy()
        array = array.reshape(*array.shape[:2], -1) if array.ndim > 4 else array
        key = prefix + (original_dit_key(name) if original else name)
        if array.ndim == 2 and array.shape[1] % 32 == 0 and "blocks." in name:
            writer.add_tensor(key, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return dict(small().transformer.named_parameters())


def edit(pipe: Any) -> torch.Tensor:
    pipe.register_to_config(references_first=False)
    return pipe.edit(FRAMES, "make it snowy", [FRAMES[0]], steps=4, output="latents")


@pytest.mark.parametrize(
    ("original", "prefix"),
    [(True, ""), (True, "model.diffusion_model."), (False, "")],
    ids=["wan", "comfy", "diffusers"],
)
def test_names_of_both_kinds_are_read(tmp_path: Path, weights: Any, original: bool, prefix: str) -> None:
    """The small model's rows of 96 are packed, those of 48 are not: 5e-3 is allowed, 1e-3 measured."""
    pipe = small()
    expected = edit(pipe)
    before = weigh(pipe.units).whole["transformer"]
    path = write(tmp_path / "dit.gguf", weights, prefix=prefix, original=original)
    line = load_gguf(pipe, path)
    assert 0 < relative_error(edit(pipe), expected) < 5e-3
    assert "NOT exact" in line and "'dit.gguf'" in line and pipe.approximations == [line]
    assert pipe.residency.weights.whole["transformer"] == weigh(pipe.units).whole["transformer"] < before
    assert pipe.transformer.blocks[0].ffn.net[2].weight.dtype == torch.uint8


def test_unpacked_weights_are_exact(tmp_path: Path, weights: Any) -> None:
    pipe = small()
    expected = edit(pipe)
    load_gguf(pipe, write(tmp_path / "dit.gguf", weights, gguf.GGMLQuantizationType.F32))
    assert relative_error(edit(pipe), expected) < 1e-6  # other addresses, another order of sums


class Watched(Residency):
    """A residency whose device is a second copy in the same memory: on a CPU, moving is seen this way."""

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()


@pytest.mark.parametrize("level", ["swap", "stream"])
def test_levels_move_them_whole(tmp_path: Path, weights: Any, level: str) -> None:
    pipe = small()
    load_gguf(pipe, write(tmp_path / "dit.gguf", weights))
    pipe.to("cpu")
    expected = edit(pipe)
    pipe.residency = Watched(pipe.units, CPU, level)
    pipe.residency.choose = lambda work, say: pipe.residency.adopt(mem.Placement(mem.LEVELS[level]))
    assert relative_error(edit(pipe), expected) < 1e-6


def test_another_models_file_is_refused_and_nothing_changes(tmp_path: Path, weights: Any) -> None:
    pipe = small()
    expected = edit(pipe)
    less = {name: value for name, value in weights.items() if "blocks.2." not in name}
    wider = {**weights, "blocks.0.ffn.net.2.weight": torch.zeros(48, 192)}
    coarser = {**weights, "patch_embedding.weight": torch.zeros(48, 48, 1, 2, 4)}
    deeper = {**weights, "blocks.3.ffn.net.2.bias": torch.zeros(48)}
    strange = {**weights, "double_blocks.0.img_attn.qkv.weight": torch.zeros(32, 32)}
    for tensors, words in (
        (less, "lacks"),
        (wider, "not \\(48, 96\\)"),
        (coarser, "'patch_embedding.weight' is"),
        (deeper, "blocks.3"),
        (strange, "double_blocks"),
    ):
        with pytest.raises(CheckpointError, match=words) as error:
            load_gguf(pipe, write(tmp_path / "other.gguf", tensors))
        assert error.value.hint
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(20))
    for name, words in (("broken.gguf", "cannot read"), ("none.gguf", "not found")):
        with pytest.raises(CheckpointError, match=words):
            load_gguf(pipe, tmp_path / name)
    assert torch.equal(edit(pipe), expected) and pipe.approximations == []


def test_what_cannot_be_done_is_refused(tmp_path: Path, weights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "dit.gguf", weights)
    pipe = small()
    quantize.quantize(pipe, "fp8-storage")
    with pytest.raises(UsageError, match="quantised"):
        load_gguf(pipe, path)
    packed = small()
    load_gguf(packed, path)
    with pytest.raises(UsageError, match="already"):
        quantize.quantize(packed, "fp8-storage")
    monkeypatch.setattr("kiwi_cli.engine.gguf.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="gguf") as error:
        load_gguf(small(), path)
    assert "kiwi-cli[gguf]" in error.value.hint


def test_edit_takes_a_gguf_file_and_a_rerun_knows_it(
    tmp_path: Path, weights: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "small.gguf", weights)
    source = ROOT / "examples/reference.png"
    call = ("edit", source, "in red", "--model", CHECKPOINT, "--size", "64x64", "--steps", "2", "--gguf", file)
    code, out, err = inside(capsys, *call, "-o", tmp_path / "a.png", "--json")
    assert code == 0, err
    data = json.loads(out)
    assert any("GGUF" in line and "NOT exact" in line for line in data["approximations"])
    assert inside(capsys, "rerun", tmp_path / "a.png", "-o", tmp_path / "b.png", "-q")[0] == 0
    file.write_bytes(file.read_bytes() + b"\0")
    code, _, err = inside(capsys, "rerun", tmp_path / "a.png", "-o", tmp_path / "c.png", "-q")
    assert code == 1 and "GGUF file has changed" in err
