"""Exports: what was trained is what is loaded again, from a folder, from raw names, from a LoRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import nn

from kiwi_cli.engine.random_model import random_pipeline
from kiwi_cli.errors import CheckpointError
from kiwi_cli.model.checkpoint import Parts, load_parts
from kiwi_cli.model.vae import decode_stream, encode_stream
from kiwi_cli.train import exports
from kiwi_cli.train.model import KiwiTrainModel
from kiwi_cli.weights import TensorFiles, lora
from kiwi_cli.weights.fetch import Access
from kiwi_cli.weights.layout import STEM
from kiwi_cli.weights.raw import convert_to

from ..conftest import CHECKPOINT, relative_error

RANK, ALPHA = 2, 6
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
DIT_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
OFFLINE = Access(download=False)


@pytest.fixture
def model() -> Any:
    """The small checkpoint after a training: LoRA on the language model, everything else changed outright."""
    trained = KiwiTrainModel.from_folder(CHECKPOINT)
    add_lora(trained.mllm_encoder.qwen.language_model, TARGETS)
    for name, parameter in trained.named_parameters():
        language = ".qwen." in name
        parameter.requires_grad_(not language or ".lora_" in name)
    shake(trained)
    return trained


def add_lora(module: nn.Module, targets: list[str]) -> None:
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets), module)


def shake(module: nn.Module) -> None:
    """New values for everything that is trained."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + 0.05 * torch.randn(parameter.shape, generator=generator)


def assert_same_model(model: Any, parts: Parts, dtype: torch.dtype = torch.float32) -> None:
    """Every tensor of the loaded parts is the trained one, LoRA merged."""
    for name in exports.PARTS:
        held = getattr(parts, name).state_dict()
        wanted = plain_state(getattr(model, name))
        assert held.keys() == wanted.keys()
        for key, value in held.items():
            assert torch.allclose(value, wanted[key].to(dtype).float(), atol=1e-6), f"{name}.{key}"


def plain_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict as PEFT itself would merge it."""
    state = {k.replace(".base_layer.", "."): v.clone() for k, v in module.state_dict().items() if ".lora_" not in k}
    for name, layer in module.named_modules():
        if hasattr(layer, "get_delta_weight"):
            state[f"{name}.weight"] += layer.get_delta_weight("default")
    return state


def test_a_folder_is_the_trained_model(model: Any, tmp_path: Path) -> None:
    exports.export_folder(model, tmp_path / "out", CHECKPOINT, torch.float32)
    parts = load_parts(tmp_path / "out", torch.float32, "cpu")
    assert_same_model(model, parts)
    before = load_parts(CHECKPOINT, torch.float32, "cpu")
    changed = "language_model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(
        parts.mllm_encoder.qwen.get_parameter(changed), before.mllm_encoder.qwen.get_parameter(changed)
    )
    assert all(torch.equal(v, parts.vae.state_dict()[k]) for k, v in before.vae.state_dict().items())
    names = TensorFiles.open(tmp_path / "out/mllm_encoder", "model").infos
    assert {name.split(".")[0] for name in names} == {"visual", "model"}
    for path in ("model_index.json", "processor/tokenizer.json", "mllm_encoder/config.json"):
        assert (tmp_path / "out" / path).read_bytes() == (CHECKPOINT / path).read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_folder_edits_as_the_trained_model_does(model: Any, tmp_path: Path) -> None:
    from kiwi_cli import KiwiPipeline

    exports.export_folder(model, tmp_path / "out", CHECKPOINT, torch.float32)
    parts = load_parts(CHECKPOINT, torch.float32, "cpu")
    for name in exports.PARTS:
        setattr(parts, name, getattr(model, name))
    frames = torch.randint(0, 255, (5, 32, 32, 3), dtype=torch.uint8, generator=torch.manual_seed(1)).numpy()
    ours = KiwiPipeline(**vars(parts)).edit(frames, "make it blue", steps=2, output="latents")
    loaded = KiwiPipeline.from_pretrained(str(tmp_path / "out"), device="cpu", dtype="float32")
    assert relative_error(loaded.edit(frames, "make it blue", steps=2, output="latents"), ours) < 1e-4


def test_a_folder_in_half_precision(model: Any, tmp_path: Path) -> None:
    exports.export_folder(model, tmp_path / "out", CHECKPOINT)
    for part in exports.PARTS:
        assert {info.dtype for info in TensorFiles.open(tmp_path / "out" / part, STEM).infos.values()} == {"BF16"}
    assert_same_model(model, load_parts(tmp_path / "out", torch.float32, "cpu"), torch.bfloat16)


def test_a_state_dict_gathered_from_several_processes(model: Any, tmp_path: Path) -> None:
    state = {key: value.clone() for key, value in model.state_dict().items()}
    exports.export_folder(model, tmp_path / "a", CHECKPOINT, torch.float32)
    exports.export_raw(model, tmp_path / "a.safetensors")
    for parameter in model.parameters():
        parameter.data.zero_()
    exports.export_folder(model, tmp_path / "b", CHECKPOINT, torch.float32, state)
    exports.export_raw(model, tmp_path / "b.safetensors", state)
    for part in exports.PARTS:
        file = f"{part}/{STEM}.safetensors"
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_what_a_folder_refuses(model: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a Kiwi-Edit checkpoint"):
        exports.export_folder(model, tmp_path / "out", tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there/mine.txt").write_text("x")
    with pytest.raises(CheckpointError, match="exists already"):
        exports.export_folder(model, tmp_path / "there", CHECKPOINT)
    model.source_embedder = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="is not what was trained"):
        exports.export_folder(model, tmp_path / "out", CHECKPOINT)
    assert not (tmp_path / "out").exists()


def test_raw_names_are_the_training_codes(model: Any, tmp_path: Path) -> None:
    exports.export_raw(model, tmp_path / "step.safetensors")
    raw = load_file(tmp_path / "step.safetensors")
    for name in (
        "mllm.image_queries.q",
        "mllm.connetor.2.bias",
        "mllm.ref_connector.0.weight",
        "mllm.model.model.language_model.layers.1.self_attn.o_proj.lora_B.default.weight",
        "blocks.2.self_attn.q.weight",
        "blocks.0.modulation",
        "head.head.weight",
        "vae_condition.patch_embedding.weight",
        "ref_vae_condition.patch_embedding.bias",
    ):
        assert name in raw, name
    assert not any("base_layer" in name or "visual" in name or "embed_tokens" in name for name in raw)
    layer = model.mllm_encoder.qwen.language_model.layers[0].self_attn.q_proj
    name = "mllm.model.model.language_model.layers.0.self_attn.q_proj.lora_{}.default.weight"
    product = raw[name.format("B")] @ raw[name.format("A")]
    assert torch.allclose(product, layer.get_delta_weight("default"), atol=1e-6)


@pytest.mark.parametrize("frozen", [False, True], ids=["whole transformer", "its LoRA"])
def test_raw_is_read_back_to_the_same_model(frozen: bool, model: Any, tmp_path: Path) -> None:
    if frozen:
        model.transformer = load_parts(CHECKPOINT, torch.float32, "cpu").transformer
        add_lora(model.transformer, DIT_TARGETS)
        for name, parameter in model.transformer.named_parameters():
            parameter.requires_grad_(".lora_" in name)
        shake(model.transformer)
    exports.export_raw(model, tmp_path / "step.safetensors")
    raw = load_file(tmp_path / "step.safetensors")
    assert ("blocks.0.self_attn.q.weight" in raw) is not frozen
    base = str(CHECKPOINT)
    convert_to(tmp_path / "step.safetensors", tmp_path / "out", OFFLINE, qwen=base, wan=base)
    assert_same_model(model, load_parts(tmp_path / "out", torch.float32, "cpu"))


def test_raw_from_a_base_of_its_own_settings(model: Any, tmp_path: Path) -> None:
    """What no tensor says is taken over from the folder that training began from."""
    base = tmp_path / "base"
    exports.export_folder(model, base, CHECKPOINT, torch.float32)
    edits: dict[str, dict[str, Any]] = {
        "mllm_encoder/config.json": {"min_visual_tokens": 4, "max_object_token": 16},
        "ref_embedder/config.json": {"ref_pad_first": True},
        "scheduler/scheduler_config.json": {"shift": 3.0},
        "model_index.json": {"offers": ["style"]},
    }
    for path, change in edits.items():
        (base / path).write_text(json.dumps(json.loads((base / path).read_text()) | change))
    exports.export_raw(model, tmp_path / "step.safetensors")
    convert_to(tmp_path / "step.safetensors", tmp_path / "out", OFFLINE, qwen=str(base), wan=str(base))
    for path, change in edits.items():
        written = json.loads((tmp_path / "out" / path).read_text())
        assert {key: written[key] for key in change} == change
    parts = load_parts(tmp_path / "out", torch.float32, "cpu")
    assert parts.mllm_encoder.bounds.min_visual_tokens == 4 and parts.references_first and parts.shift == 3.0


def test_a_lora_for_edits_and_for_diffusers(tmp_path: Path) -> None:
    model = KiwiTrainModel.from_folder(CHECKPOINT)
    with pytest.raises(CheckpointError, match="no LoRA to export"):
        exports.export_lora(model, tmp_path / "none.safetensors")
    add_lora(model.transformer, DIT_TARGETS)
    for name, parameter in model.transformer.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    shake(model.transformer)
    exports.export_lora(model, tmp_path / "lora.safetensors")
    wanted = plain_state(model.transformer)

    ours = load_parts(CHECKPOINT, torch.float32, "cpu").transformer
    (applied,) = lora.apply(ours, [lora.LoraSpec(str(tmp_path / "lora.safetensors"))], OFFLINE)
    assert applied.tensors == 3 * (8 + 2) and applied.unused == 0
    assert all(torch.allclose(value, wanted[key], atol=1e-6) for key, value in ours.state_dict().items())

    theirs = load_parts(CHECKPOINT, torch.float32, "cpu").transformer
    theirs.load_lora_adapter(load_file(tmp_path / "lora.safetensors"), prefix="transformer")
    theirs.fuse_lora()
    theirs.unload_lora()
    assert all(torch.allclose(value, wanted[key], atol=1e-6) for key, value in theirs.state_dict().items())


@pytest.mark.parametrize("form", ["lora", "raw"])
def test_loras_of_both_models_make_the_same_edit_as_the_folder(form: str, tmp_path: Path) -> None:
    model = KiwiTrainModel.from_folder(CHECKPOINT)
    add_lora(model.transformer, DIT_TARGETS)
    add_lora(model.mllm_encoder.qwen.language_model, TARGETS)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    shake(model)
    file = tmp_path / "x.safetensors"
    exports.export_lora(model, file)
    if form == "raw":  # the same LoRAs under the raw training names, without what a raw file holds beside them
        exports.export_raw(model, file)
        save_file({key: value for key, value in load_file(file).items() if ".lora_" in key}, file)
    exports.export_folder(model, tmp_path / "folder", CHECKPOINT, torch.float32)
    parts = load_parts(CHECKPOINT, torch.float32, "cpu")
    (applied,) = lora.apply(parts.transformer, [lora.LoraSpec(str(file))], OFFLINE, parts.mllm_encoder)
    assert applied.tensors == 3 * (8 + 2) + 2 * 4
    assert_same_model(model, parts)
    assert_same_model(model, load_parts(tmp_path / "folder", torch.float32, "cpu"))
    theirs = load_parts(CHECKPOINT, torch.float32, "cpu").transformer
    with pytest.raises(CheckpointError, match="only in part"):
        lora.apply(theirs, [lora.LoraSpec(str(file))], OFFLINE)  # without the language model


def test_a_disk_that_is_full_leaves_nothing(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "step.safetensors").write_bytes(b"the one before")
    monkeypatch.setattr("kiwi_cli.train.exports.write_file", full)
    monkeypatch.setattr("kiwi_cli.weights.tensorfile.write_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        exports.export_raw(model, tmp_path / "step.safetensors")
    with pytest.raises(CheckpointError, match="No space left"):
        exports.export_folder(model, tmp_path / "out", CHECKPOINT)
    assert [path.name for path in tmp_path.iterdir()] == ["step.safetensors"]
    assert (tmp_path / "step.safetensors").read_bytes() == b"the one before"


# -- a checkpoint of its own -------------------------------------------------------------------------------------

VAES: dict[str, dict[str, Any]] = {
    "released geometry": {"dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True], "patch_size": 2},
    "two levels, patches of 4": {"dim_mult": [1, 2, 2], "temperal_downsample": [True, True], "patch_size": 4},
    "one residual block": {
        "dim_mult": [1, 2, 2],
        "temperal_downsample": [True, True],
        "patch_size": 4,
        "num_res_blocks": 1,
    },
}


def make_vae(**shape: Any) -> AutoencoderKLWan:
    torch.manual_seed(0)
    patch, levels = shape["patch_size"], len(shape["dim_mult"])
    generator = torch.Generator().manual_seed(1)
    return AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=12,
        z_dim=48,
        is_residual=True,
        in_channels=3 * patch**2,
        out_channels=3 * patch**2,
        scale_factor_spatial=patch * 2 ** (levels - 1),
        scale_factor_temporal=4,
        latents_mean=torch.randn(48, generator=generator).tolist(),
        latents_std=(torch.rand(48, generator=generator) + 0.5).tolist(),
        **shape,
    ).eval()


@pytest.mark.parametrize("name", VAES)
def test_a_whole_checkpoint_from_memory(name: str, tmp_path: Path) -> None:
    pipe = random_pipeline("small", torch.device("cpu"), torch.float32, references_first=True)
    pipe.ref_embedder.register_to_config(ref_pad_first=True)
    pipe.mllm_encoder.register_to_config(min_visual_tokens=4)
    vae = make_vae(**VAES[name])
    exports.write_checkpoint(
        tmp_path / "new/model",
        transformer=pipe.transformer,
        vae=vae,
        mllm_encoder=pipe.mllm_encoder,
        source_embedder=pipe.source_embedder,
        ref_embedder=pipe.ref_embedder,
        tokenizer=pipe.tokenizer,
        qwen_config=pipe.mllm_encoder.config.qwen_config,
        extra={"offers": ["style"]},
        dtype=torch.float32,
        shift=4.0,
    )
    parts = load_parts(tmp_path / "new/model", torch.float32, "cpu")
    assert_same_model(pipe, parts)
    state = vae.state_dict()
    assert state.keys() == parts.vae.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in parts.vae.state_dict().items())
    stored = TensorFiles.open(tmp_path / "new/model/vae", STEM).infos
    assert "encoder.downsamples.0.downsamples.0.residual.2.weight" in stored and "conv1.weight" in stored
    for key in ("latents_mean", "latents_std", "scale_factor_spatial", "patch_size", "num_res_blocks"):
        assert parts.vae.config[key] == vae.config[key], key
    assert (parts.references_first, parts.shift, parts.mllm_encoder.bounds.min_visual_tokens) == (True, 4.0, 4)
    assert parts.tokenizer("<|im_start|>make it")["input_ids"] == pipe.tokenizer("<|im_start|>make it")["input_ids"]
    assert parts.tokenizer.chat_template == pipe.tokenizer.chat_template
    assert json.loads((tmp_path / "new/model/model_index.json").read_text())["offers"] == ["style"]

    pixels = torch.rand(1, 3, 9, 64, 64, generator=torch.manual_seed(2)) * 2 - 1
    chunks = [pixels[:, :, :1], pixels[:, :, 1:5], pixels[:, :, 5:]]
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist.mode()
        latents = torch.cat(list(encode_stream(parts.vae, chunks)), dim=2)
        assert latents.shape == (1, 48, 3, 4, 4)
        mean, std = (torch.tensor(vae.config[key]).view(1, -1, 1, 1, 1) for key in ("latents_mean", "latents_std"))
        assert relative_error(latents, (posterior - mean) / std) < 1e-5
        decoded = torch.cat(list(decode_stream(parts.vae, latents)), dim=2)
        assert relative_error(decoded, vae.decode(posterior).sample) < 1e-4
        for strips in (2, 3):
            again = torch.cat(list(encode_stream(parts.vae, chunks, strips)), dim=2)
            assert relative_error(again, latents) < 1e-5
            assert relative_error(torch.cat(list(decode_stream(parts.vae, latents, strips)), dim=2), decoded) < 1e-5


def test_a_new_checkpoint_is_small_in_half_precision(tmp_path: Path) -> None:
    pipe = random_pipeline("small", torch.device("cpu"), torch.float32)
    common = {
        name: getattr(pipe, name) for name in ("transformer", "mllm_encoder", "source_embedder", "ref_embedder", "vae")
    }
    common |= {"tokenizer": pipe.tokenizer, "qwen_config": pipe.mllm_encoder.config.qwen_config}
    exports.write_checkpoint(tmp_path / "half", **common, vae_dtype=torch.float32)
    assert_same_model(pipe, load_parts(tmp_path / "half", torch.float32, "cpu"), torch.bfloat16)
    stored = {part: TensorFiles.open(tmp_path / "half" / part, STEM).infos for part in ("transformer", "vae")}
    assert {info.dtype for info in stored["transformer"].values()} == {"BF16"}
    assert {info.dtype for info in stored["vae"].values()} == {"F32"}
    assert "min_visual_tokens" not in (tmp_path / "half/mllm_encoder/config.json").read_text()
