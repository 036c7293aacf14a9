"""Raw training checkpoint + base models -> the released layout.

A raw checkpoint holds the trained parameters only, under the training code's names: queries, connectors, LoRA
factors or whole tensors of the language model and the transformer, the two embedders. Everything is planned here from
headers alone: which tensor comes from where, under which name, with which LoRA merged. `assemble.py` writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from kiwi_cli.errors import CheckpointError
from kiwi_cli.weights import keys
from kiwi_cli.weights.assemble import Lora, Result, Source, file_dtype
from kiwi_cli.weights.files import TensorFiles, read_json
from kiwi_cli.weights.layout import RELEASED, STEM

# What the released configs say and no tensor does (mllm_encoder/config.json, scheduler/scheduler_config.json).
MLLM_SETTINGS = {"max_object_token": 768, "max_frames": 16, "max_pixels_per_frame": 262144}
QUERIES = {"image_queries": 256, "video_queries": 512, "ref_queries": 768}
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "shift": 5.0,
    "num_train_timesteps": 1000,
    "base_shift": 0.5,
    "max_shift": 1.15,
}
MODEL_INDEX = {
    "_class_name": ["pipeline_kiwi_edit", "KiwiEditPipeline"],
    "_diffusers_version": "0.32.0",
    "processor": ["transformers", "AutoProcessor"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "vae": ["wan_video_vae", "VAE"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "mllm_encoder": ["mllm_encoder", "MLLMEncoder"],
    "source_embedder": ["conditional_embedder", "ConditionalEmbedder"],
    "ref_embedder": ["conditional_embedder", "ConditionalEmbedder"],
}
RELEASED_DECODER_DIM = 256  # of the VAE; the released config leaves it out


@dataclass
class Raw:
    """A raw training checkpoint, sorted by part.

    Attributes:
        values: part -> released name -> raw key, for whole tensors.
        loras: part -> released name of the weight -> its factors.
    """

    files: TensorFiles
    values: dict[str, dict[str, str]] = field(default_factory=dict)
    loras: dict[str, dict[str, Lora]] = field(default_factory=dict)

    def whole_transformer(self, config: Mapping[str, Any]) -> bool:
        """Whether it holds every transformer tensor, so that the base's are not needed."""
        return set(keys.dit_keys(config)) <= set(self.values.get("transformer", {}))


def read_raw(path: Path) -> Raw:
    """Sort a raw checkpoint's tensors by part, from its header.

    Raises:
        CheckpointError: keys that belong nowhere, half a LoRA, or nothing of an instruction encoder.
    """
    raw = Raw(TensorFiles.open_file(path))
    factors: dict[tuple[str, str], dict[str, str]] = {}
    unknown: list[str] = []
    for key in raw.files.infos:
        plain = key.replace(".base_layer.", ".")
        lora = keys.lora_key(plain)
        found = keys.raw_key(lora[0] if lora else plain)
        if found is None:
            if not any(part in plain for part in keys.QWEN_DROPPED):
                unknown.append(key)
        elif lora:
            factors.setdefault((found[0], f"{found[1]}.weight"), {})[lora[1]] = key
        else:
            raw.values.setdefault(found[0], {})[found[1]] = key
    if unknown or not raw.values.get("mllm"):
        what = f"has {len(unknown)} unknown tensors: {', '.join(unknown[:3])}" if unknown else "has no queries"
        raise CheckpointError(
            f"'{path}' {what}", "it is not a raw Kiwi-Edit checkpoint; a LoRA for the transformer goes with --lora"
        )
    for (part, name), roles in factors.items():
        if not {"down", "up"} <= set(roles) or set(roles) - {"down", "up", "alpha"}:
            raise CheckpointError(f"'{path}' holds only part of the LoRA of '{name}'", "fetch the file again")
        raw.loras.setdefault(part, {})[name] = Lora(roles["down"], roles["up"], roles.get("alpha"))
    return raw


def _overlay(raw: Raw, part: str, base: Mapping[str, tuple[TensorFiles, str]]) -> dict[str, Source]:
    """The base's tensors, replaced by the raw ones, with the raw LoRAs on top."""
    chosen = dict(base)
    for name, key in raw.values.get(part, {}).items():
        if name in base and raw.files.shapes[key] != base[name][0].shapes[base[name][1]]:
            raise CheckpointError(
                f"'{key}' of '{raw.files.label}' does not have the base model's shape",
                "convert it with the base models it was trained from",
            )
        chosen[name] = (raw.files, key)
    loras = raw.loras.get(part, {})
    if lost := sorted(set(loras) - set(chosen)):
        raise CheckpointError(
            f"'{raw.files.label}' has a LoRA for '{lost[0]}', which the base model lacks",
            "convert it with the base models it was trained from",
        )
    sources = {}
    for name, (files, key) in chosen.items():
        shape, lora = files.shapes[key], loras.get(name)
        if lora is not None:
            down, up = raw.files.shapes[lora.down], raw.files.shapes[lora.up]
            sizes = (up[0], prod(down[1:]), up[1] if len(up) > 1 else None)
            if sizes != (shape[0], prod(shape[1:]), down[0]):
                raise CheckpointError(
                    f"the LoRA of '{name}' in '{raw.files.label}' does not fit the base model",
                    "convert it with the base models it was trained from",
                )
        sources[name] = Source(files, key, shape, (raw.files, lora) if lora else None)
    return sources


def _is_released(folder: Path) -> bool:
    return (folder / "model_index.json").is_file()


def _released(folder: Path, part: str) -> dict[str, tuple[TensorFiles, str]]:
    """The part's tensors if `folder` is in the released layout, else {}."""
    if not _is_released(folder):
        return {}
    files = TensorFiles.open(folder / part, STEM)
    return {key: (files, key) for key in files.infos}


def plan_raw(raw: Raw, qwen: Path, wan: Path, dtype: str = "auto", references_first: bool = False) -> Result:
    """What a raw checkpoint and its base models become.

    Args:
        qwen: folder of Qwen2.5-VL as on the Hub, in the old or the new key layout.
        wan: folder with `transformer/` and `vae/` in the library's format. Either may be a folder in the released
            layout (what training went on from): then its settings, and what the raw checkpoint lacks, are its too.
        dtype: 'bfloat16', 'float16' or 'float32' for everything; 'auto' keeps each tensor's own, and so loses nothing.
        references_first: reference tokens before the video's; a raw checkpoint does not say it, a released base does.

    Raises:
        CheckpointError: parts that are missing or do not fit each other.
    """
    stored = None if dtype == "auto" else file_dtype(dtype)
    result = Result()
    config = {k: v for k, v in read_json(wan / "transformer/config.json").items() if not k.startswith("_")}
    config = {"_class_name": "WanTransformer3DModel", **config}
    try:
        width = config["num_attention_heads"] * config["attention_head_dim"]
        channels, patch = config["in_channels"], tuple(config["patch_size"])
        wanted = keys.dit_keys(config)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"'{wan / 'transformer/config.json'}' is not a Wan transformer's in the library's format: {error}",
            "use the -Diffusers repository of Wan 2.2",
        ) from None

    base: dict[str, tuple[TensorFiles, str]] = {}
    if not raw.whole_transformer(config):
        files = TensorFiles.open(wan / "transformer", STEM)
        base = {name: (files, key) for key in files.infos if (name := keys.dit_key(key))}
    transformer = _overlay(raw, "transformer", base)
    if missing := [key for key in wanted if key not in transformer]:
        raise CheckpointError(f"neither the checkpoint nor '{wan}' has '{missing[0]}'", "fetch the base model again")
    result.add("transformer", STEM, transformer, stored)
    result.configs["transformer/config.json"] = config

    _plan_vae(result, wan / "vae", stored)

    files = TensorFiles.open(qwen / "mllm_encoder" if _is_released(qwen) else qwen, "model")
    named = {name: (files, key) for key in files.infos if (name := keys.qwen_key(key))}
    result.add("mllm_encoder", "model", _overlay(raw, "qwen", named), stored)
    hidden = named["model.norm.weight"][0].shapes[named["model.norm.weight"][1]][0]
    _plan_mllm(result, raw, qwen, hidden, width, stored)

    shapes = {"patch_embedding.weight": (width, channels, *patch), "patch_embedding.bias": (width,)}
    _plan_embedders(result, raw, wan, shapes, stored, references_first or _says_first(wan))
    for path, config in (("scheduler/scheduler_config.json", SCHEDULER), ("model_index.json", MODEL_INDEX)):
        result.configs[path] = read_json(wan / path) if _is_released(wan) else config
    _plan_processor(result, qwen)
    return result


def _plan_embedders(
    result: Result,
    raw: Raw,
    wan: Path,
    shapes: dict[str, tuple[int, ...]],
    stored: str | None,
    references_first: bool,
) -> None:
    """The two condition embedders, of `shapes`; zeros where neither the checkpoint nor its base has one."""
    width, channels, *patch = shapes["patch_embedding.weight"]
    for _, part in keys.RAW_EMBEDDERS:
        sources = _overlay(raw, part, _released(wan, part))
        if not sources:
            result.notes.append(f"the checkpoint has no {part.replace('_', ' ')}; zeros stand in for it")
            sources = {name: Source(None, "", shape) for name, shape in shapes.items()}
        if {name: source.shape for name, source in sources.items()} != shapes:
            raise CheckpointError(
                f"the {part.replace('_', ' ')} of '{raw.files.label}' does not fit the transformer of '{wan}'",
                "convert it with the base models it was trained from",
            )
        result.add(part, STEM, sources, stored)
        result.configs[f"{part}/config.json"] = {
            "_class_name": "ConditionalEmbedder",
            "in_dim": channels,
            "dim": width,
            "patch_size": patch,
            "zero_init": True,
            "ref_pad_first": part == "ref_embedder" and references_first,
        }


def _says_first(base: Path) -> bool:
    config = read_json(base / "ref_embedder/config.json") if _is_released(base) else {}
    return bool(config.get("ref_pad_first", False))


def _plan_vae(result: Result, folder: Path, dtype: str | None) -> None:
    config, files = read_json(folder / "config.json"), TensorFiles.open(folder, STEM)
    released, rename = released_vae(config)
    result.configs["vae/config.json"] = released
    result.add("vae", STEM, {rename(key): Source(files, key, info.shape) for key, info in files.infos.items()}, dtype)


def released_vae(config: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[[str], str]]:
    """The library's config of a video autoencoder -> that of the released layout, and how its keys are renamed.

    One that the released layout has no words for (Wan 2.1), or that is in it already, passes unchanged: the loader
    reads both.
    """
    if "base_dim" not in config or not config.get("is_residual"):
        return dict(config), lambda key: key
    blocks = int(config.get("num_res_blocks", 2))
    decoder = config.get("decoder_base_dim") or config["base_dim"]
    copied = ("dim_mult", "num_res_blocks", "attn_scales", "temperal_downsample", "dropout")
    statistics = ("latents_mean", "latents_std")
    released = {
        "_class_name": "VAE",
        "z_dim": config["z_dim"],
        "dim": config["base_dim"],
        **{key: config[key] for key in (*copied, *statistics) if key in config},
        **({} if decoder == RELEASED_DECODER_DIM else {"dec_dim": decoder}),
        "vae_pth": f"{STEM}.safetensors",
    }
    return released, lambda key: keys.original_vae_key(key, blocks)


def _plan_mllm(result: Result, raw: Raw, base: Path, hidden: int, width: int, dtype: str | None) -> None:
    sources = _overlay(raw, "mllm", _released(base, "mllm_encoder"))
    settings = read_json(base / "mllm_encoder/config.json") if _is_released(base) else MLLM_SETTINGS
    shapes: dict[str, tuple[int, ...]] = {name: (count, hidden) for name, count in QUERIES.items()}
    for connector in ("connector", "ref_connector"):
        shapes[f"{connector}.0.weight"], shapes[f"{connector}.0.bias"] = (width, hidden), (width,)
        shapes[f"{connector}.2.weight"], shapes[f"{connector}.2.bias"] = (width, width), (width,)
    if missing := [name for name in shapes if name not in sources]:
        result.notes.append(f"the checkpoint has no {', '.join(missing)}; zeros stand in, and that mode will not work")
    sources |= {name: Source(None, "", shapes[name]) for name in missing}
    for name, shape in shapes.items():
        found = sources[name].shape
        if (found[-1:] if name in QUERIES else found) != (shape[-1:] if name in QUERIES else shape):
            raise CheckpointError(
                f"'{name}' of '{raw.files.label}' does not fit the base models",
                "convert it with the base models it was trained from",
            )
    result.add("mllm_encoder", STEM, {name: sources[name] for name in shapes}, dtype)
    sizes: dict[str, int] = {"dit_dim": width, "hidden_size": hidden}
    sizes |= {f"num_{name}": sources[name].shape[0] for name in QUERIES}
    result.configs["mllm_encoder/config.json"] = {
        "_class_name": "MLLMEncoder",
        "mllm_model_path": ".",
        **sizes,
        **{key: value for key, value in settings.items() if key not in sizes},
    }


def _plan_processor(result: Result, qwen: Path) -> None:
    if _is_released(qwen):
        for path in (*RELEASED.required, *RELEASED.optional):
            if path.startswith(("processor/", "mllm_encoder/generation_config")) and (qwen / path).is_file():
                result.copies[path] = qwen / path
        return
    result.copies["processor/qwen_config.json"] = qwen / "config.json"
    for path in (*RELEASED.required, *RELEASED.optional):
        folder, _, name = path.partition("/")
        if folder == "processor" and (qwen / name).is_file():
            result.copies[path] = qwen / name
    if (qwen / "generation_config.json").is_file():
        result.copies["mllm_encoder/generation_config.json"] = qwen / "generation_config.json"
