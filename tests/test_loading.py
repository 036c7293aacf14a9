"""The released layout: strict, any stored precision, single files or shards, any size; broken ones refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kiwi_cli import KiwiPipeline
from kiwi_cli.errors import CheckpointError

from .conftest import CHECKPOINT, DATA, random_frames, relative_error
from .released import STEM, copy_checkpoint, edit_json, edit_tensors, original_vae_key, write_16_channel_checkpoint

TRANSFORMER = f"transformer/{STEM}.safetensors"
FRAMES = random_frames(5)


def load(folder: Path, dtype: str = "float32") -> Any:
    return KiwiPipeline.from_pretrained(str(folder), device="cpu", dtype=dtype)


def result(pipe: Any) -> torch.Tensor:
    return pipe.edit(FRAMES, "make it snowy", steps=2, output="latents")


def test_every_parameter_is_the_stored_one(loaded: Any) -> None:
    stored = load_file(CHECKPOINT / TRANSFORMER)
    unused = {key for key in stored if key.startswith("condition_embedder.text_embedder.")}
    held = loaded.transformer.state_dict()
    assert unused and held.keys() == stored.keys() - unused
    assert all(torch.equal(held[key], stored[key]) for key in held)
    modules = (loaded.transformer, loaded.vae, loaded.mllm_encoder, loaded.source_embedder, loaded.ref_embedder)
    for module in modules:
        tensors = [*module.parameters(), *module.buffers()]
        assert not any(tensor.is_meta or tensor.requires_grad for tensor in tensors)
        assert not module.training


def test_shards_equal_a_single_file(loaded: Any, tmp_path: Path) -> None:
    root = copy_checkpoint(tmp_path)
    single = load_file(root / TRANSFORMER)
    keys = sorted(single)
    names = [f"{STEM}-0000{n}-of-00002.safetensors" for n in (1, 2)]
    save_file({key: single[key] for key in keys[:40]}, root / "transformer" / names[0])
    save_file({key: single[key] for key in keys[40:]}, root / "transformer" / names[1])
    weight_map = {key: names[index >= 40] for index, key in enumerate(keys)}
    (root / f"transformer/{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (root / TRANSFORMER).unlink()
    ours = load(root)
    held = loaded.transformer.state_dict()
    assert all(torch.equal(value, held[key]) for key, value in ours.transformer.state_dict().items())
    # Not to the last bit: tensors are mapped, and a kernel's order of sums depends on their alignment.
    assert relative_error(result(ours), result(loaded)) < 1e-6


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64])
def test_stored_precision_is_converted(stored: torch.dtype, tmp_path: Path) -> None:
    root = copy_checkpoint(tmp_path)

    def convert(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({key: value.to(stored) for key, value in tensors.items()})

    for path in root.rglob("*.safetensors"):
        edit_tensors(path, convert)
    pipe = load(root)
    assert {p.dtype for p in pipe.transformer.parameters()} == {torch.float32}
    assert relative_error(result(pipe), result(load(CHECKPOINT))) < (1e-6 if stored == torch.float64 else 0.02)


def test_the_16_channel_layout_loads_and_runs(tmp_path: Path) -> None:
    root, vae = write_16_channel_checkpoint(tmp_path)
    pipe = load(root)
    assert pipe.size_multiple == 16 and pipe.vae.config.scale_factor_spatial == 8
    latents = result(pipe)
    assert latents.shape == (1, 16, 2, 8, 8) and latents.isfinite().all()
    assert pipe.edit(FRAMES, "make it snowy", steps=1).shape == FRAMES.shape

    frames = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.equal(pipe.vae.encode(frames).latent_dist.mode(), vae.encode(frames).latent_dist.mode())
        assert torch.equal(pipe.vae.decode(latents).sample, vae.decode(latents).sample)


def test_wan_2_1_names_agree_with_the_librarys_converter() -> None:
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    from kiwi_cli.weights.keys import vae_key

    ours = AutoencoderKLWan(base_dim=4, z_dim=4).state_dict()
    original = {original_vae_key(key, 2, residual=False): key for key in ours}
    assert convert_wan_vae_to_diffusers({key: key for key in original}).keys() == ours.keys()
    assert {key: vae_key(key, 2) for key in original} == original


@pytest.mark.parametrize("part", ["transformer", "vae", "source_embedder", "ref_embedder", "mllm_encoder"])
def test_full_size_modules_account_for_every_released_key(part: str) -> None:
    """5B modules on `meta` against every key and shape of the released checkpoint."""
    from diffusers import AutoencoderKLWan

    from kiwi_cli.model.checkpoint import build
    from kiwi_cli.model.mllm import KiwiInstructionEncoder, rename_qwen_key
    from kiwi_cli.model.transformer import UNUSED_PREFIX, ConditionEmbedder, KiwiTransformer3DModel
    from kiwi_cli.model.vae import native_config
    from kiwi_cli.weights.keys import vae_key

    manifest = json.loads((DATA / "released-5b-manifest.json").read_text())
    configs = json.loads((DATA / "released-5b-configs.json").read_text())
    shapes = {key: tuple(shape) for key, shape in manifest[part].items()}
    config, cls = configs[part], ConditionEmbedder
    if part == "transformer":
        cls = KiwiTransformer3DModel
        unused = [key for key in shapes if key.startswith(UNUSED_PREFIX)]
        assert len(unused) == 4
        shapes = {key: shape for key, shape in shapes.items() if key not in unused}
    elif part == "vae":
        cls, config = AutoencoderKLWan, native_config(config, shapes)
        assert (config["base_dim"], config["decoder_base_dim"]) == (160, 256)
        assert (config["patch_size"], config["scale_factor_spatial"], config["is_residual"]) == (2, 16, True)
        shapes = {vae_key(key, config["num_res_blocks"]): shape for key, shape in shapes.items()}
    elif part == "mllm_encoder":
        cls = KiwiInstructionEncoder
        config = {**config, "qwen_config": configs["qwen"]}
        config.pop("mllm_model_path")
        qwen = manifest["mllm_encoder_qwen_shards"]
        shapes |= {rename_qwen_key(key): tuple(shape) for key, shape in qwen.items()}
    module = build(cls, config, Path(part))
    assert all(parameter.is_meta for parameter in module.parameters())
    assert {key: tuple(value.shape) for key, value in module.state_dict().items()} == shapes


# -- broken checkpoints -------------------------------------------------------------------------------------


def drop(key: str) -> Any:
    return lambda tensors: tensors.pop(key)


def add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["blocks.9.surprise"] = torch.zeros(2)


def reshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["proj_out.bias"] = torch.zeros(7)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


BREAKS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "missing key": (lambda r: edit_tensors(r / TRANSFORMER, drop("proj_out.bias")), ("lacks 1", "proj_out.bias")),
    "unexpected key": (lambda r: edit_tensors(r / TRANSFORMER, add), ("unexpected", "blocks.9.surprise")),
    "misshapen key": (lambda r: edit_tensors(r / TRANSFORMER, reshape), ("proj_out.bias is 7, needs 192",)),
    "missing query": (lambda r: edit_tensors(r / f"mllm_encoder/{STEM}.safetensors", drop("ref_queries")), ("ref_q",)),
    "truncated": (lambda r: truncate(r / TRANSFORMER), (TRANSFORMER, "damaged")),
    "not safetensors": (lambda r: (r / TRANSFORMER).write_bytes(b"\xff" * 4096), (TRANSFORMER, "damaged")),
    "empty file": (lambda r: (r / TRANSFORMER).write_bytes(b""), (TRANSFORMER, "damaged")),
    "no weights": (lambda r: (r / TRANSFORMER).unlink(), (f"no {STEM}.safetensors",)),
    "no index": (lambda r: (r / "model_index.json").unlink(), ("no model_index.json",)),
    "index not JSON": (lambda r: (r / "model_index.json").write_text("{"), ("model_index.json",)),
    "another pipeline": (lambda r: edit_json(r / "model_index.json", _class_name="WanPipeline"), ("'WanPipeline'",)),
    "no shard": (lambda r: (r / "mllm_encoder/model-00002-of-00004.safetensors").unlink(), ("model-00002",)),
    "parts of other models": (lambda r: edit_json(r / "transformer/config.json", num_layers=4), ("lacks", "blocks.3")),
    "nonsense config": (lambda r: edit_json(r / "transformer/config.json", num_layers="x"), ("transformer/config",)),
    "no Qwen config": (lambda r: (r / "processor/qwen_config.json").unlink(), ("qwen_config.json",)),
    "no tokenizer": (
        lambda r: [(r / "processor" / n).unlink() for n in ("tokenizer.json", "vocab.json", "merges.txt")],
        ("tokenizer",),
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_checkpoint_is_refused_with_its_file_and_keys(name: str, tmp_path: Path) -> None:
    root = copy_checkpoint(tmp_path)
    damage, words = BREAKS[name]
    damage(root)
    with pytest.raises(CheckpointError) as error:
        load(root)
    assert all(word in error.value.message for word in words), error.value.message
    assert error.value.hint


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/outside.safetensors", "sub/x.safetensors", "x.bin", 3]
)
def test_an_index_cannot_name_files_outside_its_folder(name: Any, tmp_path: Path) -> None:
    root = copy_checkpoint(tmp_path)
    index = root / "mllm_encoder/model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="outside its folder"):
        load(root)


def test_names_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        load(Path("instruct-refrence"))
    assert "'instruct-refrence'" in error.value.message and "instruct-reference" in error.value.hint
    with pytest.raises(CheckpointError, match="no model_index"):
        load(tmp_path)


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    root = copy_checkpoint(tmp_path)
    mark = tmp_path / "mark"
    code = f"open({str(mark)!r}, 'w')\n"
    for name in ("pipeline_kiwi_edit.py", "mllm_encoder/mllm_encoder.py", "processor/tokenization.py"):
        (root / name).write_text(code)
    tokenizer = root / "processor/tokenizer_config.json"
    edit_json(tokenizer, auto_map={"AutoTokenizer": ["tokenization.Tokenizer", None]})
    load(root)
    assert not mark.exists()
