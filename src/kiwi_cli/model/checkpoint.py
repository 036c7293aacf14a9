"""The released Kiwi-Edit layout: a folder of parts -> the modules of a pipeline.

    model_index.json  transformer/  vae/  mllm_encoder/  source_embedder/  ref_embedder/  scheduler/  processor/

Modules are built on `meta`, so nothing is allocated twice, and filled strictly. Every size comes from the
configs and the tensors: nothing here says 5B.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from transformers import AutoTokenizer

from kiwi_cli.errors import CheckpointError
from kiwi_cli.model import vae as wan_vae
from kiwi_cli.model.mllm import KiwiInstructionEncoder, rename_qwen_key
from kiwi_cli.model.sampling import SHIFT, TIMESTEPS
from kiwi_cli.model.transformer import UNUSED_PREFIX, ConditionEmbedder, KiwiTransformer3DModel, keeps_fp32
from kiwi_cli.weights import RELAYOUT_HINT, TensorFiles, check_layout, fill, keys, parameter_count, read_json
from kiwi_cli.weights.layout import STEM

__all__ = ["Parts", "build", "check_layout", "load_parts", "parameter_count"]

VAE_FP32 = ["encoder", "quant_conv"]
"""As the library declares such layers: it passes over them when it says what precision a module has."""


@dataclass
class Parts:
    """The modules of one checkpoint.

    Attributes:
        references_first: where the reference tokens go (`ref_pad_first`).
    """

    transformer: KiwiTransformer3DModel
    vae: AutoencoderKLWan
    mllm_encoder: KiwiInstructionEncoder
    source_embedder: ConditionEmbedder
    ref_embedder: ConditionEmbedder
    tokenizer: Any
    scheduler: FlowMatchEulerDiscreteScheduler
    colour: dict[str, Any]
    references_first: bool

    @property
    def shift(self) -> float:
        """Of the flow-matching schedule."""
        return self.scheduler.config.shift


def load_parts(folder: Path, dtype: torch.dtype | Mapping[str, torch.dtype], device: torch.device | str) -> Parts:
    """Load a folder in the released layout.

    Args:
        folder: the checkpoint.
        dtype: compute precision, or one for each part by name, with 'default' for the others (fp32 without it). The
            VAE's encoder and the layers the library keeps in fp32 stay fp32.
        device: where the weights go.

    Raises:
        CheckpointError: a folder that is no checkpoint, or one with broken or mismatched parts.
    """
    check_layout(folder)
    ref_config = read_json(folder / "ref_embedder/config.json")
    shift = float(read_json(folder / "scheduler/scheduler_config.json").get("shift", SHIFT))
    tokenizer, colour = load_processor(folder / "processor")

    def of(name: str) -> torch.dtype:
        return dtype.get(name, dtype.get("default", torch.float32)) if isinstance(dtype, Mapping) else dtype

    parts = Parts(
        transformer=load_transformer(folder / "transformer", of("transformer"), device),
        vae=load_vae(folder / "vae", of("vae"), device),
        mllm_encoder=load_mllm(folder, of("mllm_encoder"), device),
        source_embedder=load_embedder(folder / "source_embedder", of("source_embedder"), device),
        ref_embedder=load_embedder(folder / "ref_embedder", of("ref_embedder"), device),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMESTEPS, shift=shift),
        colour=colour,
        references_first=bool(ref_config.get("ref_pad_first", False)),
    )
    _check_fit(parts, folder)
    return parts


def build(cls: Any, config: dict[str, Any], source: Path) -> Any:
    """A module on `meta` from a config; its buffers (rotary tables) are real.

    Raises:
        CheckpointError: a config the class cannot be built from.
    """
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        with init_empty_weights(include_buffers=False):
            return cls.from_config(settings)
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError, RuntimeError) as error:
        raise CheckpointError(f"'{source}' does not describe a {cls.__name__}: {error}", RELAYOUT_HINT) from error


def load_transformer(folder: Path, dtype: torch.dtype, device: torch.device | str) -> KiwiTransformer3DModel:
    model = build(KiwiTransformer3DModel, read_json(folder / "config.json"), folder / "config.json")

    def precision(key: str) -> torch.dtype:
        return torch.float32 if keeps_fp32(key) else dtype

    files = TensorFiles.open(folder, STEM)
    fill(model, [files], unused=(UNUSED_PREFIX,), dtype=precision, device=device)
    return model


def load_vae(folder: Path, dtype: torch.dtype, device: torch.device | str) -> AutoencoderKLWan:
    config = read_json(folder / "config.json")
    files = TensorFiles.open(folder, STEM)
    native = wan_vae.native_config(config, files.shapes)
    model = build(AutoencoderKLWan, native, folder / "config.json")

    def precision(key: str) -> torch.dtype:
        return torch.float32 if wan_vae.keeps_fp32(key) else dtype

    def rename(key: str) -> str:
        return keys.vae_key(key, native["num_res_blocks"])

    fill(model, [files], rename=rename, dtype=precision, device=device)
    model._keep_in_fp32_modules = VAE_FP32
    return model


def set_vae_dtype(vae: AutoencoderKLWan, dtype: torch.dtype) -> None:
    """Bring an fp32 autoencoder to a compute precision: its decoder, for the encoder stays fp32."""
    vae.decoder.to(dtype)
    vae.post_quant_conv.to(dtype)
    vae._keep_in_fp32_modules = VAE_FP32


def load_mllm(folder: Path, dtype: torch.dtype, device: torch.device | str) -> KiwiInstructionEncoder:
    part = folder / "mllm_encoder"
    config = {key: value for key, value in read_json(part / "config.json").items() if key != "mllm_model_path"}
    config["qwen_config"] = read_json(folder / "processor/qwen_config.json")
    model = build(KiwiInstructionEncoder, config, part / "config.json")
    files = [TensorFiles.open(part, "model"), TensorFiles.open(part, STEM)]
    fill(model, files, rename=rename_qwen_key, dtype=lambda _: dtype, device=device)
    return model


def load_embedder(folder: Path, dtype: torch.dtype, device: torch.device | str) -> ConditionEmbedder:
    model = build(ConditionEmbedder, read_json(folder / "config.json"), folder / "config.json")
    fill(model, [TensorFiles.open(folder, STEM)], dtype=lambda _: dtype, device=device)
    return model


def load_processor(folder: Path) -> tuple[Any, dict[str, Any]]:
    preprocessor = read_json(folder / "preprocessor_config.json")
    colour = {
        ours: tuple(preprocessor[theirs])
        for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))
        if theirs in preprocessor
    }
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        # The library would make an empty tokenizer of what is left, without a word.
        raise CheckpointError(f"no tokenizer in '{folder}'", RELAYOUT_HINT)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises whatever its parsers raise
        raise CheckpointError(f"cannot load the tokenizer in '{folder}': {error}", "fetch it again") from error
    if not tokenizer.chat_template:
        template = folder / "chat_template.json"
        tokenizer.chat_template = read_json(template).get("chat_template")
    return tokenizer, colour


def _check_fit(parts: Parts, folder: Path) -> None:
    """Parts that load alone may still not belong together: compare the widths at their seams."""
    width = parts.transformer.config.num_attention_heads * parts.transformer.config.attention_head_dim
    channels = parts.transformer.config.in_channels
    seams: list[tuple[str, Callable[[], int], int]] = [
        ("mllm_encoder dit_dim", lambda: parts.mllm_encoder.config.dit_dim, width),
        ("source_embedder dim", lambda: parts.source_embedder.config.dim, width),
        ("ref_embedder dim", lambda: parts.ref_embedder.config.dim, width),
        ("source_embedder in_dim", lambda: parts.source_embedder.config.in_dim, channels),
        ("ref_embedder in_dim", lambda: parts.ref_embedder.config.in_dim, channels),
        ("vae z_dim", lambda: parts.vae.config.z_dim, channels),
    ]
    for name, value, wanted in seams:
        if value() != wanted:
            raise CheckpointError(
                f"the parts of '{folder}' do not fit: {name} is {value()}, the transformer needs {wanted}",
                "fetch the checkpoint again",
            )
