"""LoRA files for the transformer: every key style gives the same result; what does not fit is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kiwi_cli.errors import CheckpointError, UsageError
from kiwi_cli.weights import lora
from kiwi_cli.weights.fetch import Access
from kiwi_cli.weights.layout import STEM
from kiwi_cli.weights.lora import LoraSpec

from ..conftest import CHECKPOINT

RANK = 3
FILE = f"transformer/{STEM}.safetensors"
MODULES = (  # diffusers, original, (out, in)
    ("blocks.0.attn1.to_q", "blocks.0.self_attn.q", (48, 48)),
    ("blocks.1.attn2.to_out.0", "blocks.1.cross_attn.o", (48, 48)),
    ("blocks.2.ffn.net.0.proj", "blocks.2.ffn.0", (96, 48)),
    ("condition_embedder.time_proj", "time_projection.1", (288, 48)),
)
OFFLINE = Access(download=False)


@pytest.fixture
def transformer() -> Any:
    """The small transformer, its weights mapped from the checkpoint as in a real load."""
    from kiwi_cli.model.checkpoint import load_transformer

    return load_transformer(CHECKPOINT / "transformer", torch.float32, "cpu")


def factors() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """diffusers module -> (down, up)."""
    generator = torch.Generator().manual_seed(0)
    return {
        ours: (torch.randn(RANK, n, generator=generator), torch.randn(m, RANK, generator=generator))
        for ours, _, (m, n) in MODULES
    }


def expected(weight: float = 1.0) -> dict[str, torch.Tensor]:
    """Weight name -> what it becomes."""
    stored = load_file(CHECKPOINT / FILE)
    return {f"{name}.weight": stored[f"{name}.weight"] + weight * (up @ down) for name, (down, up) in factors().items()}


Style = Callable[[str, str], tuple[str, str, str]]
"""(diffusers, original) module -> keys of the two factors and of alpha."""

STYLES: dict[str, Style] = {
    "diffusers": lambda d, o: (f"transformer.{d}.lora_A.weight", f"transformer.{d}.lora_B.weight", ""),
    "older diffusers": lambda d, o: (f"transformer.{d}.lora.down.weight", f"transformer.{d}.lora.up.weight", ""),
    "peft": lambda d, o: (f"base_model.model.{d}.lora_A.weight", f"base_model.model.{d}.lora_B.weight", ""),
    "original": lambda d, o: (f"{o}.lora_A.default.weight", f"{o}.lora_B.default.weight", ""),
    "training code": lambda d, o: (f"pipe.dit.{o}.lora_A.default.weight", f"pipe.dit.{o}.lora_B.default.weight", ""),
    "comfy": lambda d, o: (
        f"diffusion_model.{o}.lora_down.weight",
        f"diffusion_model.{o}.lora_up.weight",
        f"diffusion_model.{o}.alpha",
    ),
    "comfy, peft names": lambda d, o: (f"diffusion_model.{o}.lora_A.weight", f"diffusion_model.{o}.lora_B.weight", ""),
    "kohya": lambda d, o: (
        f"lora_unet_{o.replace('.', '_')}.lora_down.weight",
        f"lora_unet_{o.replace('.', '_')}.lora_up.weight",
        f"lora_unet_{o.replace('.', '_')}.alpha",
    ),
}


def write_lora(path: Path, style: str = "diffusers", alpha: float = RANK, **extra: torch.Tensor) -> Path:
    tensors = dict(extra)
    for ours, original, _ in MODULES:
        down, up, scale = STYLES[style](ours, original)
        tensors[down], tensors[up] = factors()[ours]
        if scale:
            tensors[scale] = torch.tensor(alpha)
    save_file(tensors, path)
    return path


def assert_weights(transformer: Any, wanted: dict[str, torch.Tensor]) -> None:
    held = transformer.state_dict()
    stored = load_file(CHECKPOINT / FILE)
    for name, value in held.items():
        assert torch.allclose(value, wanted.get(name, stored[name]), atol=1e-5), name
    assert any(not torch.equal(held[name], stored[name]) for name in wanted)


@pytest.mark.parametrize("style", STYLES)
def test_every_key_style(style: str, transformer: Any, tmp_path: Path) -> None:
    before = (CHECKPOINT / FILE).read_bytes()
    path = write_lora(tmp_path / "x.safetensors", style)
    (applied,) = lora.apply(transformer, [LoraSpec(str(path))], OFFLINE)
    assert applied.tensors == len(MODULES) and applied.unused == 0
    assert_weights(transformer, expected())
    assert (CHECKPOINT / FILE).read_bytes() == before  # though the weights are mapped from it


def test_weights_alpha_and_several_at_once(transformer: Any, tmp_path: Path) -> None:
    first = write_lora(tmp_path / "a.safetensors", "diffusers")
    second = write_lora(tmp_path / "b.safetensors", "comfy", alpha=RANK / 2)
    lora.apply(transformer, [LoraSpec.parse(f"{first}:0.25"), LoraSpec.parse(f"{second}:-1.5")], OFFLINE)
    assert_weights(transformer, expected(0.25 - 1.5 * 0.5))


def test_alpha_in_the_header(transformer: Any, tmp_path: Path) -> None:
    path = write_lora(tmp_path / "a.safetensors")
    said = {"transformer.r": RANK, "transformer.lora_alpha": 2 * RANK}
    save_file(load_file(path), path, metadata={"lora_adapter_metadata": json.dumps(said)})
    lora.apply(transformer, [LoraSpec(str(path))], OFFLINE)
    assert_weights(transformer, expected(2.0))


def test_whole_differences(transformer: Any, tmp_path: Path) -> None:
    """As distilled models are published for ComfyUI: `.diff` of weights, `.diff_b` of biases."""
    change, bias = torch.randn(48, 48), torch.randn(48)
    path = tmp_path / "x.safetensors"
    save_file(
        {"diffusion_model.blocks.0.self_attn.q.diff": change, "diffusion_model.blocks.0.norm3.diff_b": bias}, path
    )
    lora.apply(transformer, [LoraSpec(str(path), 0.5)], OFFLINE)
    stored = load_file(CHECKPOINT / FILE)
    names = {"blocks.0.attn1.to_q.weight": change, "blocks.0.norm2.bias": bias}
    assert_weights(transformer, {name: stored[name] + 0.5 * value for name, value in names.items()})


def test_low_precision_is_rounded_once(tmp_path: Path) -> None:
    from kiwi_cli.model.checkpoint import load_transformer

    half = load_transformer(CHECKPOINT / "transformer", torch.bfloat16, "cpu")
    before = {name: value.float() for name, value in half.state_dict().items()}
    paths = [write_lora(tmp_path / f"{n}.safetensors") for n in range(4)]
    lora.apply(half, [LoraSpec(str(path), 0.01) for path in paths], OFFLINE)
    for name, (down, up) in factors().items():
        wanted = before[f"{name}.weight"] + 4 * 0.01 * (up @ down)
        held = half.state_dict()[f"{name}.weight"]
        assert torch.allclose(held.float(), wanted.to(held.dtype).float(), rtol=2**-7, atol=1e-6)


def test_the_unused_text_projection_is_no_fault(transformer: Any, tmp_path: Path) -> None:
    stem = "diffusion_model.text_embedding.0.lora_{}.weight"
    extra = {stem.format("down"): torch.ones(RANK, 32), stem.format("up"): torch.ones(48, RANK)}
    path = write_lora(tmp_path / "x.safetensors", "comfy", **extra)
    (applied,) = lora.apply(transformer, [LoraSpec(str(path))], OFFLINE)
    assert applied.unused == 1
    assert_weights(transformer, expected())


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"transformer.blocks.7.attn1.to_q.lora_A.weight": torch.ones(2, 48)}, "only in part.*blocks.7"),
        ({"transformer.blocks.0.attn1.to_k.lora_A.weight": torch.ones(2, 48)}, "only in part.*to_k"),
        ({"something.else": torch.ones(2)}, "only in part.*something.else"),
        (
            {
                "transformer.blocks.0.attn1.to_k.lora_A.weight": torch.ones(2, 64),
                "transformer.blocks.0.attn1.to_k.lora_B.weight": torch.ones(48, 2),
            },
            "only in part",
        ),
    ],
    ids=["no such block", "half of a pair", "no LoRA key", "another width"],
)
def test_what_fits_only_in_part_changes_nothing(
    extra: dict[str, torch.Tensor], words: str, transformer: Any, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in transformer.state_dict().items()}
    good = write_lora(tmp_path / "good.safetensors")
    bad = write_lora(tmp_path / "bad.safetensors", **extra)
    with pytest.raises(CheckpointError, match=words) as error:
        lora.apply(transformer, [LoraSpec(str(good)), LoraSpec(str(bad))], OFFLINE)
    assert "bad.safetensors" in error.value.message and error.value.hint
    assert all(torch.equal(value, before[name]) for name, value in transformer.state_dict().items())


def test_what_fits_nowhere(transformer: Any, tmp_path: Path) -> None:
    path = tmp_path / "sdxl.safetensors"
    save_file({"lora_unet_down_blocks_0.lora_down.weight": torch.ones(2, 4)}, path)
    with pytest.raises(CheckpointError, match="nothing for this model"):
        lora.apply(transformer, [LoraSpec(str(path))], OFFLINE)
    with pytest.raises(CheckpointError, match=r"LoRA not found: 'gone\.safetensors'"):
        lora.apply(transformer, [LoraSpec("gone.safetensors")], OFFLINE)
    with pytest.raises(CheckpointError, match="pickle"):
        lora.apply(transformer, [LoraSpec("style.pt")], OFFLINE)
    with pytest.raises(CheckpointError, match="not on this machine"):
        lora.apply(transformer, [LoraSpec("owner/never-fetched")], OFFLINE)


def test_a_file_that_is_not_here_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    for source in ("loras/x.safetensors", "my/loras/x.safetensors", "my/x.safetensors", "./a/b/c.safetensors", "my/x"):
        with pytest.raises(CheckpointError, match="LoRA not found"):
            lora.locate(LoraSpec(source), Access())
    for source in ("owner/name", "owner/name/x.safetensors", "owner/name/a/x.safetensors"):
        assert lora.is_hub_id(source)


def test_how_a_lora_is_written() -> None:
    assert LoraSpec.parse("a.safetensors") == LoraSpec("a.safetensors", 1.0)
    assert LoraSpec.parse("a.safetensors:0.8") == LoraSpec("a.safetensors", 0.8)
    assert LoraSpec.parse("owner/name/file.safetensors:-1") == LoraSpec("owner/name/file.safetensors", -1.0)
    assert LoraSpec.parse(r"C:\loras\a.safetensors") == LoraSpec(r"C:\loras\a.safetensors", 1.0)
    for wrong in ("", "a.safetensors:", "a.safetensors:much", "a.safetensors:nan", ":0.5"):
        with pytest.raises(UsageError):
            LoraSpec.parse(wrong)


def test_from_the_hub(hub: Any, kiwi: Any, tmp_path: Path) -> None:
    """The only safetensors file of a repository, or one that is named; then without a request."""
    data = write_lora(tmp_path / "x.safetensors").read_bytes()
    hub.repos["someone/style"] = {"style.safetensors": data, "README.md": b"x", "run.py": b"x"}
    hub.repos["someone/styles"] = {"a/one.safetensors": data, "two.safetensors": data}
    settings = json.dumps({"r": RANK, "lora_alpha": 2 * RANK}).encode()
    hub.repos["someone/peft"] = {"adapter_model.safetensors": data, "adapter_config.json": settings}
    hub.repos["someone/old"] = {"style.bin": b"x"}

    def locate(source: str) -> Any:
        program = (
            "from kiwi_cli.errors import KiwiError\nfrom kiwi_cli.weights import lora\n"
            "from kiwi_cli.weights.fetch import Access\n"
            f"try: print(lora.locate(lora.LoraSpec({source!r}), Access()).read_bytes().hex()[:16])\n"
            "except KiwiError as error: print(error.message)\nraise SystemExit(0)"
        )
        return kiwi(setup=program).stdout.strip()

    assert locate("someone/style") == data.hex()[:16] and hub.fetched() == {"style.safetensors"}
    hub.requests.clear()
    assert locate("someone/style") == data.hex()[:16] and not hub.requests
    assert locate("someone/styles/a/one.safetensors") == data.hex()[:16]
    assert locate("someone/peft") == data.hex()[:16]
    assert {"adapter_model.safetensors", "adapter_config.json"} <= hub.fetched()  # the settings come along
    assert "several files: a/one.safetensors, two.safetensors" in locate("someone/styles")
    assert "has no safetensors file" in locate("someone/old")
    assert "has no gone.safetensors" in locate("someone/styles/gone.safetensors")


# -- scales: peft's own merge is the judge -----------------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "alpha": {"lora_alpha": 8},
    "rank-stabilised": {"lora_alpha": 8, "use_rslora": True},
    "patterns of alpha": {"lora_alpha": 8, "alpha_pattern": {"blocks.0.attn1.to_q": 2, r"ffn\.net\.0\.proj": 16}},
    "patterns of rank": {"lora_alpha": 8, "rank_pattern": {r"attn2\.to_out\.0": 2}, "use_rslora": True},
    "both": {"lora_alpha": 3, "alpha_pattern": {"to_q": 1}, "rank_pattern": {"to_q": 1, "time_proj": 6}},
}


def adapted(transformer: Any, settings: dict[str, Any]) -> tuple[Any, dict[str, torch.Tensor]]:
    """A PEFT adapter with values on the small transformer, and the weights that PEFT's own merge gives."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=4, target_modules=[name for name, _, _ in MODULES], **settings)
    inject_adapter_in_model(config, transformer)
    generator = torch.Generator().manual_seed(1)
    merged = {}
    for name, layer in transformer.named_modules():
        if hasattr(layer, "get_delta_weight"):
            for factor in (layer.lora_A, layer.lora_B):
                shape = factor["default"].weight.shape
                factor["default"].weight.data = torch.randn(shape, generator=generator)
            merged[f"{name}.weight"] = layer.base_layer.weight.data + layer.get_delta_weight("default")
    return config, merged


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("form", ["diffusers", "peft"])
def test_scales_are_pefts(name: str, form: str, transformer: Any, tmp_path: Path) -> None:
    from kiwi_cli.model.checkpoint import load_transformer

    config, merged = adapted(transformer, SETTINGS[name])
    factors = {key.replace(".default", ""): v for key, v in transformer.state_dict().items() if ".lora_" in key}
    settings = json.loads(json.dumps(config.to_dict(), default=lambda value: sorted(value)))
    if form == "diffusers":
        from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, _pack_dict_with_prefix

        path = tmp_path / "pytorch_lora_weights.safetensors"
        header = {LORA_ADAPTER_METADATA_KEY: json.dumps(_pack_dict_with_prefix(settings, "transformer"))}
        save_file({f"transformer.{key}": value for key, value in factors.items()}, path, metadata=header)
    else:
        path = tmp_path / "adapter_model.safetensors"
        save_file({f"base_model.model.{key}": value for key, value in factors.items()}, path)
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    fresh = load_transformer(CHECKPOINT / "transformer", torch.float32, "cpu")
    lora.apply(fresh, [LoraSpec(str(path))], OFFLINE)
    assert_weights(fresh, merged)


def test_settings_beside_a_file_that_has_another_name(transformer: Any, tmp_path: Path) -> None:
    path = write_lora(tmp_path / "style.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 2 * RANK}))
    lora.apply(transformer, [LoraSpec(str(path))], OFFLINE)
    assert_weights(transformer, expected(2.0))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"r": 7, "lora_alpha": 7}, "says rank 7 .* holds rank 3"),
        ({"r": RANK, "lora_alpha": "much"}, "'lora_alpha' is 'much'"),
        ({"r": RANK, "lora_alpha": 1, "alpha_pattern": {"(a+)+": 1}}, "alpha_pattern"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"bias": "all"}, "biases"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_settings_that_are_not_carried_out_are_refused(
    settings: dict[str, Any], words: str, transformer: Any, tmp_path: Path
) -> None:
    path = write_lora(tmp_path / "x.safetensors")
    said = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in settings.items()})}
    save_file(load_file(path), path, metadata=said)
    with pytest.raises(CheckpointError, match=words):
        lora.apply(transformer, [LoraSpec(str(path))], OFFLINE)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lycoris_blocks_0_self_attn_q.lokr_w1", "a LoKr"),
        ("lora_unet_blocks_0_self_attn_q.hada_w1_a", "a LoHa"),
        ("transformer.blocks.0.attn1.to_q.lora_magnitude_vector", "a DoRA"),
        ("diffusion_model.blocks.0.self_attn.q.dora_scale", "a DoRA"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "text encoder"),
        ("text_encoder.text_model.layers.0.q_proj.lora_A.weight", "text encoder"),
        ("transformer.blocks.0.attn1.to_q.lora_B.bias", "biases"),
        ("base_model.model.blocks.0.attn1.to_q.base_layer.bias", "biases"),
    ],
)
def test_other_kinds_are_named(key: str, kind: str, transformer: Any, tmp_path: Path) -> None:
    path = write_lora(tmp_path / "x.safetensors", **{key: torch.ones(4, 4)})
    with pytest.raises(CheckpointError, match=kind) as error:
        lora.apply(transformer, [LoraSpec(str(path))], OFFLINE)
    assert "not read" in error.value.message and key in error.value.message


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    from kiwi_cli.model.checkpoint import load_transformer

    half = load_transformer(CHECKPOINT / "transformer", torch.float16, "cpu")
    path = write_lora(tmp_path / "x.safetensors")
    tensors = load_file(path)
    key = "transformer.blocks.0.attn1.to_q.lora_B.weight"
    tensors[key][0, 0] = torch.nan
    save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match=r"nan\.safetensors' holds values that are not finite"):
        lora.apply(half, [LoraSpec(str(tmp_path / "nan.safetensors"))], OFFLINE)
    with pytest.raises(CheckpointError, match=r"x\.safetensors'.* does not fit into float16"):
        lora.apply(half, [LoraSpec(str(path), 1e6)], OFFLINE)
