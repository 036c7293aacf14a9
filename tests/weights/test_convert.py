"""Raw training checkpoints: converted, they are what the released code computed with; every form that occurs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kiwi_cli.errors import CheckpointError, UsageError
from kiwi_cli.weights import keys
from kiwi_cli.weights.fetch import Access
from kiwi_cli.weights.layout import RELEASED, STEM
from kiwi_cli.weights.raw import convert_to

from ..conftest import CHECKPOINT, DATA, Case, relative_error
from ..released import edit_json, edit_tensors
from .conftest import files_below

RAW = DATA / "raw-stage3" / "step-30.safetensors"
GOLDENS = ("raw_reference", "raw_instruct")


def part(folder: Path, name: str, stem: str = STEM) -> dict[str, torch.Tensor]:
    """All tensors of a part, from one file or from shards."""
    files = sorted((folder / name).glob(f"{stem}*.safetensors"))
    return {key: value for path in files for key, value in load_file(path).items()}


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`qwen/` and `wan/` as on the Hub, from the small checkpoint, whose parts they are."""
    root = tmp_path_factory.mktemp("base")
    shutil.copytree(CHECKPOINT / "processor", root / "qwen")
    (root / "qwen/qwen_config.json").rename(root / "qwen/config.json")
    save_file(part(CHECKPOINT, "mllm_encoder", "model"), root / "qwen/model.safetensors")
    shutil.copytree(CHECKPOINT / "transformer", root / "wan/transformer")
    from kiwi_cli.model.vae import native_config
    from kiwi_cli.weights import TensorFiles, read_json
    from kiwi_cli.weights.keys import vae_key

    shapes = TensorFiles.open(CHECKPOINT / "vae", STEM).shapes
    native = native_config(read_json(CHECKPOINT / "vae/config.json"), shapes)
    (root / "wan/vae").mkdir()
    vae = {vae_key(key, 2): value for key, value in part(CHECKPOINT, "vae").items()}
    save_file(vae, root / f"wan/vae/{STEM}.safetensors")
    (root / "wan/vae/config.json").write_text(json.dumps({"_class_name": "AutoencoderKLWan", **native}))
    return root


@pytest.fixture
def convert(bases: Path, tmp_path: Path) -> Callable[..., Path]:
    """Convert a raw file; `notes` of the result is what the person is told."""

    def run(raw: Path = RAW, out: str = "out", **options: Any) -> Path:
        given = {"qwen": str(bases / "qwen"), "wan": str(bases / "wan"), **options}
        run.notes = convert_to(raw, tmp_path / out, Access(download=False), **given)  # type: ignore[attr-defined]
        return tmp_path / out

    return run


def changed(tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """The raw checkpoint with a change; what `change` returns replaces it."""
    tensors = load_file(RAW)
    result = change(tensors)
    path = tmp_path / "changed.safetensors"
    save_file(tensors if result is None else result, path)
    return path


def drop(key: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {name: value for name, value in tensors.items() if name != key}


@pytest.mark.parametrize("name", GOLDENS)
def test_a_converted_checkpoint_agrees_with_the_released_code(name: str, converted: Any) -> None:
    call = json.loads((DATA / "golden" / "raw_cases.json").read_text())[name]
    case = Case(name, call, load_file(DATA / "golden" / f"{name}.safetensors"))
    recorded = case.tensors
    frames, references = case.frames, case.references
    context = converted.encode_instruction(frames, call["prompt"], references)
    assert relative_error(context, recorded["context"]) < 1e-5
    source = converted.encode_source(frames)
    assert relative_error(source, recorded["source_latents"]) < 1e-5
    pictures = converted.encode_references(references, frames.shape[2], frames.shape[1]) if references else None
    if pictures is not None:
        assert relative_error(pictures, recorded["reference_latents"]) < 1e-5
    velocities: list[torch.Tensor] = []
    hook = converted.transformer.register_forward_hook(lambda *a: velocities.append(a[-1][0].clone()))
    latents = converted.denoise(recorded["noise"], context, source, pictures, call["steps"])
    hook.remove()
    steps = [int(key.removeprefix("velocity_")) for key in recorded if key.startswith("velocity_")]
    assert steps
    for step in steps:
        assert relative_error(velocities[step], recorded[f"velocity_{step:03d}"]) < 1e-5
    assert relative_error(latents, recorded["latents_final"]) < 1e-5
    decoded = torch.cat(list(converted.decode_pixels(latents)), dim=2)
    assert relative_error(decoded, recorded["decoded"].clamp(-1, 1)) < 1e-5


@pytest.fixture(scope="session")
def converted(bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The raw checkpoint with its bases beside it, opened by name alone."""
    from kiwi_cli import KiwiPipeline

    root = tmp_path_factory.mktemp("raw-stage3")
    (root / "raw").mkdir()
    shutil.copyfile(RAW, root / "raw" / RAW.name)
    (root / "base").symlink_to(bases)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kiwi_cli.weights.raw.local_cache", lambda: root / "cache")
        pipe = KiwiPipeline.from_pretrained(str(root), device="cpu", dtype="float32")
        (found,) = (root / "cache").iterdir()
        before = {path: path.stat().st_mtime_ns for path in found.rglob("*")}
        KiwiPipeline.from_pretrained(str(root / "raw" / RAW.name), device="cpu", dtype="float32")
        assert {path: path.stat().st_mtime_ns for path in found.rglob("*")} == before  # converted once
    return pipe


def test_a_touched_file_is_the_same_and_a_changed_one_replaces_its_conversion(
    bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kiwi_cli.weights.hub import locate

    monkeypatch.setattr("kiwi_cli.weights.raw.local_cache", lambda: tmp_path / "cache")
    raw = tmp_path / "raw" / RAW.name
    raw.parent.mkdir()
    shutil.copyfile(RAW, raw)
    (tmp_path / "base").symlink_to(bases)
    first = locate(str(raw))
    os.utime(raw, (1, 1))
    assert locate(str(raw)) == first and [*(tmp_path / "cache").iterdir()] == [first]
    tensors = load_file(raw)
    key = max(tensors, key=lambda name: tensors[name].numel())
    save_file(tensors | {key: tensors[key] * 2}, raw)
    second = locate(str(raw))
    assert second != first and [*(tmp_path / "cache").iterdir()] == [second]


def test_converting_twice_gives_the_same_bytes(convert: Callable[..., Path], tmp_path: Path) -> None:
    first, second = files_below(convert(out="a")), files_below(convert(out="b"))
    assert first == second
    assert RELEASED.missing(tmp_path / "a") == []
    assert set(first) <= {*RELEASED.required, *RELEASED.optional} | {
        f"{folder}/{stem}.safetensors" for folder, stem in RELEASED.weights
    }


@pytest.mark.parametrize("prefix", ["dit.", "pipe.dit.", "module.pipe.dit."])
def test_key_prefixes_that_occur(prefix: str, convert: Callable[..., Path], tmp_path: Path) -> None:
    plain = files_below(convert(out="plain"))

    def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        bare = {key.removeprefix("pipe."): value for key, value in tensors.items()}
        others = prefix.removesuffix("dit.")
        mine = ("mllm.", "vae_condition.", "ref_vae_condition.")
        return {(others if key.startswith(mine) else prefix) + key: value for key, value in bare.items()}

    assert files_below(convert(changed(tmp_path, rename), out="prefixed")) == plain


def test_the_language_models_lora_is_merged_in_fp32(convert: Callable[..., Path], bases: Path, tmp_path: Path) -> None:
    raw = load_file(RAW)
    base = load_file(bases / "qwen/model.safetensors")
    merged = part(convert(), "mllm_encoder", "model")
    stem = "pipe.mllm.model.model.language_model.layers.1.self_attn.q_proj.lora_{}.default.weight"
    difference = raw[stem.format("B")] @ raw[stem.format("A")]
    key = "model.layers.1.self_attn.q_proj.weight"
    assert torch.allclose(merged[key], base[key] + difference, atol=1e-7) and difference.norm() > 0.01
    untouched = [k for k in base if not k.endswith("_proj.weight") or ".mlp." in k]
    assert all(torch.equal(merged[k], base[k]) for k in untouched)

    def other_rank(tensors: dict[str, torch.Tensor]) -> None:  # the same product, written with twice the rank
        for key in [k for k in tensors if ".lora_A." in k]:
            tensors[key] = torch.cat([tensors[key]] * 2) / 2
            up = key.replace("lora_A", "lora_B")
            tensors[up] = torch.cat([tensors[up]] * 2, dim=1)

    wide = part(convert(changed(tmp_path, other_rank), out="wide"), "mllm_encoder", "model")
    assert all(torch.allclose(wide[k], merged[k], atol=1e-6) for k in merged)


def test_the_new_hub_layout_of_qwen(convert: Callable[..., Path], bases: Path, tmp_path: Path) -> None:
    plain = files_below(convert(out="old"))
    new = tmp_path / "qwen"
    shutil.copytree(bases / "qwen", new)

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            name = f"model.{key}" if key.startswith("visual.") else key.replace("model.", "model.language_model.", 1)
            tensors[name] = tensors.pop(key)
        tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].clone()

    edit_tensors(new / "model.safetensors", rename)
    assert files_below(convert(qwen=str(new), out="new")) == plain


def test_a_lora_on_the_transformer_is_merged_into_the_base(convert: Callable[..., Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    down, up = torch.randn(3, 48), torch.randn(96, 3)

    def only_lora(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kept = {key: value for key, value in tensors.items() if key.startswith("pipe.")}
        stem = "blocks.1.ffn.0.lora_{}.default.weight"
        return {**kept, stem.format("A"): down, stem.format("B"): up}

    ours, base = part(convert(changed(tmp_path, only_lora)), "transformer"), part(CHECKPOINT, "transformer")
    key = "blocks.1.ffn.net.0.proj.weight"
    assert torch.allclose(ours[key], base[key] + up @ down, atol=1e-6)
    assert ours.keys() == base.keys() and all(torch.equal(ours[k], base[k]) for k in base if k != key)


def test_a_whole_transformer_needs_no_base_weights(convert: Callable[..., Path], bases: Path, tmp_path: Path) -> None:
    wan = tmp_path / "wan"
    shutil.copytree(bases / "wan", wan)
    (wan / f"transformer/{STEM}.safetensors").unlink()
    whole = part(convert(wan=str(wan)), "transformer")
    raw = load_file(RAW)
    assert torch.equal(whole["blocks.2.attn2.to_out.0.weight"], raw["blocks.2.cross_attn.o.weight"])
    some = changed(tmp_path, drop("head.head.bias"))
    with pytest.raises(CheckpointError, match="lacks transformer"):
        convert(some, out="lacking", wan=str(wan))


def test_stage_1_has_no_source_embedder(convert: Callable[..., Path], tmp_path: Path) -> None:
    def stage1(tensors: dict[str, torch.Tensor]) -> None:
        for key in [k for k in tensors if "vae_condition" in k or "ref_" in k]:
            del tensors[key]

    out = convert(changed(tmp_path, stage1))
    source = part(out, "source_embedder")
    assert source["patch_embedding.weight"].shape == (48, 48, 1, 2, 2)
    assert not any(value.any() for value in source.values())
    assert any("source embedder" in note for note in convert.notes)  # type: ignore[attr-defined]
    from kiwi_cli import KiwiPipeline

    KiwiPipeline.from_pretrained(str(out), device="cpu", dtype="float32")


def test_reference_first_goes_into_the_config(convert: Callable[..., Path]) -> None:
    first = convert(references_first=True, out="first")
    assert json.loads((first / "ref_embedder/config.json").read_text())["ref_pad_first"] is True
    assert json.loads((convert() / "ref_embedder/config.json").read_text())["ref_pad_first"] is False


def test_precision_and_shards(convert: Callable[..., Path], kiwi_run: Callable[..., int], tmp_path: Path) -> None:
    half = convert(dtype="bfloat16", out="half")
    whole = convert(out="whole")
    for name in ("transformer", "vae"):
        ours, full = part(half, name), part(whole, name)
        assert all(torch.equal(ours[key], full[key].to(torch.bfloat16)) for key in full)

    assert kiwi_run("convert", str(whole), str(tmp_path / "cut"), "--max-shard-size", "100kB") == 0
    for name, stem in (("transformer", STEM), ("mllm_encoder", "model"), ("vae", STEM)):
        ours, full = part(tmp_path / "cut", name, stem), part(whole, name, stem)
        assert ours.keys() == full.keys() and all(torch.equal(ours[key], full[key]) for key in full)
        shards = list((tmp_path / "cut" / name).glob(f"{stem}-*.safetensors"))
        assert len(shards) > 2
        for shard in shards:
            assert shard.stat().st_size < 120_000 or len(load_file(shard)) == 1
    assert kiwi_run("convert", str(tmp_path / "cut"), str(tmp_path / "joined"), "--dtype", "bfloat16") == 0
    assert files_below(tmp_path / "joined") == files_below(half)


def test_nothing_is_rounded_unless_asked(convert: Callable[..., Path], bases: Path, tmp_path: Path) -> None:
    """Each tensor keeps its precision; a LoRA stored wider than its base makes the merged weight as wide."""

    def half(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({k: v.to(torch.bfloat16) for k, v in tensors.items() if "lora" not in k})

    out = convert(changed(tmp_path, half))
    assert {value.dtype for value in part(out, "transformer").values()} == {torch.bfloat16}
    assert all(torch.equal(value, part(CHECKPOINT, "vae")[key]) for key, value in part(out, "vae").items())

    qwen = tmp_path / "qwen"
    shutil.copytree(bases / "qwen", qwen)
    edit_tensors(qwen / "model.safetensors", lambda t: t.update({k: v.to(torch.bfloat16) for k, v in t.items()}))
    merged = part(convert(qwen=str(qwen), out="mixed"), "mllm_encoder", "model")
    assert merged["model.layers.0.self_attn.q_proj.weight"].dtype == torch.float32
    assert merged["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16


@pytest.fixture
def kiwi_run(capsys: pytest.CaptureFixture[str]) -> Callable[..., int]:
    from kiwi_cli.cli import run

    return lambda *arguments: run(arguments)


def test_what_is_refused(
    convert: Callable[..., Path], kiwi_run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(change: Callable[..., Any], words: str) -> None:
        with pytest.raises(CheckpointError, match=words):
            convert(changed(tmp_path, change), out="refused")
        assert not (tmp_path / "refused").exists() and not list(tmp_path.glob("*.part"))

    a = "pipe.mllm.model.model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight"
    refused(lambda t: t.update({"surprise.weight": torch.zeros(1)}), "unknown tensors: surprise.weight")
    refused(drop(a), "only part of the LoRA")
    refused(lambda t: t.update({a: torch.zeros(4, 7)}), "does not fit")
    refused(lambda t: t.update({"pipe.mllm.connetor.2.bias": torch.zeros(7)}), "connector.2.bias.*does not fit")
    refused(lambda t: t.update({"pipe.vae_condition.patch_embedding.bias": torch.zeros(7)}), "source embedder.*not fit")
    refused(lambda t: {k: v for k, v in t.items() if "mllm" not in k}, "no queries")

    pickle = tmp_path / "step.pth"
    pickle.write_bytes(b"\x80\x02")
    for source in (str(pickle), str(tmp_path)):
        assert kiwi_run("convert", source, str(tmp_path / "out")) == 1
    told = capsys.readouterr().err
    assert told.count("pickle") >= 2 or "several" in told
    assert kiwi_run("convert", str(RAW), str(DATA)) == 1 and "exists already" in capsys.readouterr().err
    assert kiwi_run("convert", str(RAW), str(tmp_path / "o"), "--max-shard-size", "many") == 2
    with pytest.raises(UsageError, match="unknown precision"):
        convert(dtype="int8")


def test_no_room(convert: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kiwi_cli.weights.assemble.free_bytes", lambda _: 1000)
    with pytest.raises(CheckpointError, match="not enough room"):
        convert()
    assert not (tmp_path / "out").exists()


def test_names_account_for_the_full_size_model() -> None:
    """Every tensor of the 5B release: both ways through the tables and back."""
    from kiwi_cli.weights.keys import vae_key

    manifest = json.loads((DATA / "released-5b-manifest.json").read_text())
    configs = json.loads((DATA / "released-5b-configs.json").read_text())
    transformer = list(manifest["transformer"])
    original = [keys.original_dit_key(key) for key in transformer]
    assert [keys.dit_key(key) for key in original] == transformer == [keys.dit_key(key) for key in transformer]
    assert len({*original, *transformer}) > len(transformer)
    needed = [key for key in transformer if not key.startswith(keys.UNUSED_DIT)]
    assert sorted(keys.dit_keys(configs["transformer"])) == sorted(needed)
    for key in manifest["vae"]:
        assert keys.original_vae_key(vae_key(key, 2), 2) == key == keys.original_vae_key(key, 2)
    for key in manifest["mllm_encoder_qwen_shards"]:
        new = f"model.{key}" if key.startswith("visual.") else key.replace("model.", "model.language_model.", 1)
        assert keys.qwen_key(new) == key == keys.qwen_key(key)


def test_a_raw_variant_is_fetched_and_converted_in_one_go(hub: Any, kiwi: Any, bases: Path, tmp_path: Path) -> None:
    """By name, with base models from the Hub; the second time without a request."""
    from kiwi_cli.weights.catalog import QWEN_REPO, WAN_REPO, find_variant

    variant = find_variant("stage3-reference")
    assert variant is not None
    extra = {"README.md": b"x", "step-1.safetensors": b"older"}
    hub.repos[variant.repo] = {"step-30.safetensors": RAW.read_bytes(), **extra}
    hub.repos[QWEN_REPO] = files_below(bases / "qwen")
    hub.repos[WAN_REPO] = files_below(bases / "wan")
    told = kiwi("download", "stage3-reference", "--dry-run").stdout
    assert "raw checkpoint" in told and "step-30.safetensors" in told and QWEN_REPO in told and not hub.fetched()
    full = "import shutil\nshutil.disk_usage = lambda _: type('U', (), {'free': 9_000_000})()"
    assert "not enough room" in kiwi("download", "stage3-reference", setup=full).stderr and not hub.fetched()
    ran = kiwi("download", "stage3-reference")
    assert ran.returncode == 0, ran.stderr
    assert f"transformer/{STEM}.safetensors" not in hub.fetched()  # the raw one holds all of it
    assert "step-30.safetensors" in hub.fetched() and "step-1.safetensors" not in hub.fetched()
    folder = Path(ran.stdout.strip())
    assert json.loads((folder / "ref_embedder/config.json").read_text())["ref_pad_first"] is True
    assert {value.dtype for value in part(folder, "transformer").values()} == {torch.bfloat16}
    hub.requests.clear()
    assert kiwi("download", "stage3-reference").stdout == ran.stdout and not hub.requests
    assert kiwi("download", "stage3-reference", "--verify").returncode == 0


def test_a_base_of_another_kind_is_refused(convert: Callable[..., Path], bases: Path, tmp_path: Path) -> None:
    wan = tmp_path / "wan"
    shutil.copytree(bases / "wan", wan)
    edit_json(wan / "transformer/config.json", num_attention_heads=None)
    with pytest.raises(CheckpointError, match=r"transformer/config\.json"):
        convert(wan=str(wan))
