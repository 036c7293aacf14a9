"""What was trained, as files: a released-layout folder, the raw training names, a LoRA, a whole new checkpoint.

    export_folder      what `kiwi edit --model` takes; LoRA merged in fp32
    export_raw         trained parameters only, under the training code's names; `kiwi convert` reads it back
    export_lora        the LoRAs of the transformer and the language model, for `kiwi edit --lora`; diffusers reads the
                       transformer's
    write_checkpoint   a checkpoint of its own from modules in memory, VAE and tokenizer included

Everything is written beside its place and renamed, so that a file or folder that is there is whole.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kiwi_cli.base.failures import writing_hint
from kiwi_cli.base.whole import whole_file
from kiwi_cli.errors import CheckpointError
from kiwi_cli.model.mllm import QWEN_RENAMES
from kiwi_cli.model.prompt import CLIP_MEAN, CLIP_STD
from kiwi_cli.model.sampling import SHIFT
from kiwi_cli.model.transformer import UNUSED_PREFIX
from kiwi_cli.weights import TensorFiles, assemble, check_layout, keys
from kiwi_cli.weights.assemble import Result, Source, tensor_bytes
from kiwi_cli.weights.convert import MODEL_INDEX, SCHEDULER, released_vae
from kiwi_cli.weights.layout import RELEASED, STEM
from kiwi_cli.weights.tensorfile import Entry, write_file

PARTS = ("transformer", "mllm_encoder", "source_embedder", "ref_embedder")
"""Submodules that are trained; the VAE is not."""

QUERIES_AND_CONNECTORS = ("image_queries", "video_queries", "ref_queries", "connector.", "ref_connector.")
ALWAYS_RAW = ("source_embedder.", "ref_embedder.", *(f"mllm_encoder.{name}" for name in QUERIES_AND_CONNECTORS))
"""What no base model holds: a raw checkpoint has it whether or not this stage trained it."""

FILE_DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}

PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
    "image_mean": list(CLIP_MEAN),
    "image_std": list(CLIP_STD),
}
"""Qwen2.5-VL's own; the colour statistics are read, the rest says what the file is."""


@dataclass(frozen=True)
class Weight:
    """One tensor of a model, with the low-rank differences that are to be merged into it.

    Attributes:
        base: as it is held. loras: (down, up, scale) of each adapter.
    """

    base: torch.Tensor
    loras: tuple[tuple[torch.Tensor, torch.Tensor, float], ...] = ()

    def value(self, dtype: torch.dtype) -> torch.Tensor:
        """On the CPU; merged in fp32 and rounded once."""
        merged = self.base.detach().to("cpu")
        if self.loras:
            merged = merged.to(torch.float32)
            for down, up, scale in self.loras:
                down, up = (factor.detach().to("cpu", torch.float32).flatten(1) for factor in (down, up))
                merged = merged + scale * (up @ down).reshape(merged.shape)
        return merged.to(dtype)

    def entry(self, key: str, dtype: torch.dtype | None) -> Entry:
        """As a tensor to be written; `dtype` None keeps its own."""
        kept = dtype or self.base.dtype
        return Entry(key, FILE_DTYPES[kept], tuple(self.base.shape), lambda: [tensor_bytes(self.value(kept))])


State = Mapping[str, torch.Tensor]


def merged_weights(module: nn.Module, state: State | None = None) -> dict[str, Weight]:
    """A module's tensors under the names they have without PEFT, its LoRA ready to be merged.

    Args:
        state: its complete state dict, where the parameters themselves are spread over processes.
    """
    held = module.state_dict() if state is None else state
    loras: dict[str, list[tuple[torch.Tensor, torch.Tensor, float]]] = {}
    for name, scale, adapter in _adapters(module):
        down, up = (held[f"{name}.lora_{factor}.{adapter}.weight"] for factor in "AB")
        loras.setdefault(f"{name}.weight", []).append((down, up, scale))
    plain = {key.replace(".base_layer.", "."): value for key, value in held.items() if ".lora_" not in key}
    return {key: Weight(value, tuple(loras.get(key, ()))) for key, value in plain.items()}


def _adapters(module: nn.Module) -> Iterable[tuple[str, float, str]]:
    """(module name, scale, adapter) of every LoRA that is not merged already."""
    for name, layer in module.named_modules():
        if hasattr(layer, "base_layer") and hasattr(layer, "lora_A"):
            for adapter in layer.lora_A:
                if adapter not in getattr(layer, "merged_adapters", ()):
                    yield name, float(layer.scaling[adapter]), adapter


def export_folder(
    model: Any, out: Path, base: Path, dtype: torch.dtype = torch.bfloat16, state: State | None = None
) -> None:
    """A checkpoint in the released layout, which `kiwi edit --model` takes.

    Args:
        model: with the submodules `PARTS`.
        out: the folder; it appears when it is whole.
        base: the released-layout folder that training began from: its VAE as it is stored, its configs and tokenizer.
        dtype: of everything else.
        state: the model's complete state dict, where its parameters are spread over processes.

    Raises:
        CheckpointError: `base` is none or of other sizes, `out` exists already, or it cannot be written.
    """
    check_layout(base)
    result = Result()
    for part in PARTS:
        tensors = merged_weights(getattr(model, part), _below(state, part))
        for stem, chosen in _files_of(part, tensors).items():
            _check_sizes(TensorFiles.open(base / part, stem), chosen)
            result.entries[part, stem] = [weight.entry(key, dtype) for key, weight in chosen.items()]
    files = TensorFiles.open(base / "vae", STEM)
    result.add("vae", STEM, {key: Source(files, key, info.shape) for key, info in files.infos.items()}, None)
    for path in (*RELEASED.required, *RELEASED.optional):
        if (base / path).is_file():
            result.copies[path] = base / path
    out.parent.mkdir(parents=True, exist_ok=True)
    assemble.write(result, out)


def replace_folder(path: Path, export: Callable[[Path], None]) -> None:
    """Write an export where an earlier one of the same run may be: that one goes when the new one is whole.

    Args:
        export: writes the folder it is given.

    Raises:
        CheckpointError: something else is there, or as `export_folder`.
    """
    if not (path / "model_index.json").is_file():
        export(path)
        return
    check_layout(path)
    fresh, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("new", "old"))
    try:
        export(fresh)
        path.rename(old)
        fresh.rename(path)
    except OSError as error:
        raise CheckpointError(f"cannot write '{path}': {error.strerror or error}", writing_hint(error)) from error
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for folder in (fresh, old):
            shutil.rmtree(folder, ignore_errors=True)


def _below(state: State | None, part: str) -> State | None:
    prefix = f"{part}."
    return None if state is None else {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _files_of(part: str, tensors: Mapping[str, Weight]) -> dict[str, dict[str, Weight]]:
    """A part's tensors by the stem of their file, under the released names."""
    if part != "mllm_encoder":
        return {STEM: dict(tensors)}
    qwen, rest = {}, {}
    for key, weight in tensors.items():
        for released, ours in QWEN_RENAMES:
            if key.startswith(ours):
                qwen[released + key.removeprefix(ours)] = weight
                break
        else:
            rest[key] = weight
    return {"model": qwen, STEM: rest}


def _check_sizes(files: TensorFiles, chosen: Mapping[str, Weight]) -> None:
    """That a base has the same tensors, so that its configs are those of what is written."""
    wanted = {key: shape for key, shape in files.shapes.items() if not key.startswith(UNUSED_PREFIX)}
    given = {key: tuple(weight.base.shape) for key, weight in chosen.items()}
    if wanted != given:
        different = sorted(key for key in wanted.keys() | given.keys() if wanted.get(key) != given.get(key))
        raise CheckpointError(
            f"'{files.label}' is not what was trained: {different[0]} differs",
            "name the folder that training began from",
        )


def export_raw(model: Any, out: Path, state: State | None = None) -> None:
    """The trained parameters under the raw training names, in the precision they are held in: one safetensors file.

    Trained is what requires a gradient; queries, connectors and embedders are always there, because no base model has
    them. A LoRA's scale is multiplied into its second factor: nothing in these files says an alpha.

    `kiwi convert OUT NEW --qwen BASE --wan BASE`, with the folder that training began from as both bases, gives the
    same model as `export_folder`.

    Args:
        model: with the submodules `PARTS`. state: as in `export_folder`.

    Raises:
        CheckpointError: it cannot be written.
    """
    held = model.state_dict() if state is None else state
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    scales = {
        f"{part}.{name}.lora_B.{adapter}.weight": scale
        for part in PARTS
        for name, scale, adapter in _adapters(getattr(model, part))
    }
    entries = []
    for name, value in held.items():
        if ".lora_" in name or name in trained or name.startswith(ALWAYS_RAW):
            scaled = value if name not in scales or scales[name] == 1 else value * scales[name]
            plain = name.replace(".base_layer.", ".")
            module, lora, factor = plain.partition(".lora_")
            entries.append(Weight(scaled).entry(keys.to_raw_key(module) + lora + factor, None))
    _write(out, entries)


def export_lora(model: Any, out: Path, state: State | None = None) -> None:
    """All LoRAs in one file that `--lora` takes whole.

    The transformer's has the names that diffusers writes (`transformer.blocks.0.attn1.to_q.lora_A.weight`), so that
    diffusers loads it from the same file; the language model's begin with `mllm_encoder.`. The scale is multiplied into
    the second factor, so that every reader's rule without an alpha (W + B A) is right.

    Args:
        model: with the submodules `PARTS`, of which one or more have a LoRA. state: as in `export_folder`.

    Raises:
        CheckpointError: there is none, or a part has several, or the file cannot be written.
    """
    held = model.state_dict() if state is None else state
    entries = []
    for part in PARTS:
        found = list(_adapters(getattr(model, part)))
        if len({adapter for _, _, adapter in found}) > 1:
            raise CheckpointError(f"'{part}' has several LoRAs, a file holds one", "train with one")
        for name, scale, adapter in found:
            down, up = (held[f"{part}.{name}.lora_{factor}.{adapter}.weight"] for factor in "AB")
            entries.append(Weight(down).entry(f"{part}.{name}.lora_A.weight", None))
            entries.append(Weight(up * scale).entry(f"{part}.{name}.lora_B.weight", None))
    if not entries:
        raise CheckpointError("the model has no LoRA to export", "train with a LoRA, or export 'folder' or 'raw'")
    _write(out, entries)


def _write(out: Path, entries: Sequence[Entry]) -> None:
    """One safetensors file, whole or not at all; an older one of that name is replaced."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(out) as part:
            write_file(part, entries)
    except OSError as error:
        raise CheckpointError(f"cannot write '{out}': {error.strerror or error}", writing_hint(error)) from error


def write_checkpoint(
    out: Path,
    *,
    transformer: nn.Module,
    vae: nn.Module,
    mllm_encoder: nn.Module,
    source_embedder: nn.Module,
    ref_embedder: nn.Module,
    tokenizer: Any,
    qwen_config: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    vae_dtype: torch.dtype | None = None,
    shift: float = SHIFT,
) -> None:
    """A new checkpoint in the released layout from modules in memory. LoRA is merged.

    Args:
        out: the folder; it appears when it is whole.
        vae: an `AutoencoderKLWan`; `latents_mean` and `latents_std` are of its config. One of Wan 2.2's kind
            (`is_residual`) is written under its original names, any other as the library has it.
        mllm_encoder, source_embedder, ref_embedder, transformer: their configs are written too; `ref_pad_first` is that
            of the reference embedder.
        tokenizer: with its chat template.
        qwen_config: of the language model, for `processor/qwen_config.json`.
        extra: further keys of `model_index.json`, such as 'working' and 'offers'.
        dtype: of the weights; vae_dtype: of the VAE's, None is the same.
        shift: of the schedule.

    Raises:
        CheckpointError: `out` exists already, or it cannot be written.
    """
    modules = dict(zip(PARTS, (transformer, mllm_encoder, source_embedder, ref_embedder), strict=True))
    result = Result()
    for part, module in modules.items():
        for stem, chosen in _files_of(part, merged_weights(module)).items():
            result.entries[part, stem] = [weight.entry(key, dtype) for key, weight in chosen.items()]
    vae_config, rename = released_vae(_plain(vae))
    result.entries["vae", STEM] = [
        weight.entry(rename(key), vae_dtype or dtype) for key, weight in merged_weights(vae).items()
    ]
    mllm = {key: value for key, value in _plain(mllm_encoder).items() if key != "qwen_config" and value is not None}
    result.configs |= {
        "model_index.json": {**MODEL_INDEX, **(extra or {})},
        "transformer/config.json": {"_class_name": "WanTransformer3DModel", **_plain(transformer)},
        "vae/config.json": {"_class_name": "AutoencoderKLWan", **vae_config},
        "mllm_encoder/config.json": {"_class_name": "MLLMEncoder", "mllm_model_path": ".", **mllm},
        "scheduler/scheduler_config.json": {**SCHEDULER, "shift": shift},
        "processor/qwen_config.json": dict(qwen_config),
        "processor/preprocessor_config.json": PREPROCESSOR,
    }
    for part in ("source_embedder", "ref_embedder"):
        result.configs[f"{part}/config.json"] = {"_class_name": "ConditionalEmbedder", **_plain(modules[part])}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        result.copies |= {f"processor/{path.name}": path for path in sorted(Path(folder).iterdir()) if path.is_file()}
        assemble.write(result, out)


def _plain(module: Any) -> dict[str, Any]:
    """A module's config without the library's own keys."""
    return {key: value for key, value in dict(module.config).items() if not key.startswith("_")}
