"""Key names: what the same tensor is called in raw checkpoints, base models, LoRA files and the released layout.

Tables first; the functions below only apply them. Nothing here opens a file.

    original Wan   blocks.0.self_attn.q.weight       (training code, ComfyUI)
    diffusers      blocks.0.attn1.to_q.weight        (released layout)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

AFFINE = ("weight", "bias")

DIT_BLOCK = (
    # original, diffusers, what it holds
    ("self_attn.q", "attn1.to_q", AFFINE),
    ("self_attn.k", "attn1.to_k", AFFINE),
    ("self_attn.v", "attn1.to_v", AFFINE),
    ("self_attn.o", "attn1.to_out.0", AFFINE),
    ("self_attn.norm_q", "attn1.norm_q", ("weight",)),
    ("self_attn.norm_k", "attn1.norm_k", ("weight",)),
    ("cross_attn.q", "attn2.to_q", AFFINE),
    ("cross_attn.k", "attn2.to_k", AFFINE),
    ("cross_attn.v", "attn2.to_v", AFFINE),
    ("cross_attn.o", "attn2.to_out.0", AFFINE),
    ("cross_attn.norm_q", "attn2.norm_q", ("weight",)),
    ("cross_attn.norm_k", "attn2.norm_k", ("weight",)),
    ("ffn.0", "ffn.net.0.proj", AFFINE),
    ("ffn.2", "ffn.net.2", AFFINE),
    ("norm3", "norm2", AFFINE),  # the affine norm before cross-attention; the other two have no parameters
    ("modulation", "scale_shift_table", ()),
)
"""Inside `blocks.N.`"""

DIT_TOP = (
    ("patch_embedding", "patch_embedding", AFFINE),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1", AFFINE),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2", AFFINE),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1", AFFINE),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2", AFFINE),
    ("time_projection.1", "condition_embedder.time_proj", AFFINE),
    ("head.head", "proj_out", AFFINE),
    ("head.modulation", "scale_shift_table", ()),
)

UNUSED_DIT = "condition_embedder.text_embedder."
"""Part of the released file, read by nothing."""

RAW_MLLM = (
    # raw (spelled so, and as later code spells it), released
    ("image_queries.q", "image_queries"),
    ("video_queries.q", "video_queries"),
    ("ref_queries.q", "ref_queries"),
    ("connetor.", "connector."),
    ("connector.", "connector."),
    ("ref_connector.", "ref_connector."),
)
"""Below `mllm.`; what is left over belongs to the language model."""

RAW_EMBEDDERS = (("vae_condition.", "source_embedder"), ("ref_vae_condition.", "ref_embedder"))

QWEN_LAYOUTS = (
    # new Hub layout, released (and old Hub) layout
    ("model.visual.", "visual."),
    ("model.language_model.", "model."),
    ("language_model.", "model."),
)
QWEN_DROPPED = ("lm_head.",)
"""Tied to the embeddings, and not needed without generation."""

VAE_TOP = (("quant_conv.", "conv1."), ("post_quant_conv.", "conv2."))
VAE_HALF = (
    # diffusers, original; inside `encoder.` and `decoder.`
    ("conv_in.", "conv1."),
    ("norm_out.", "head.0."),
    ("conv_out.", "head.2."),
    ("mid_block.resnets.0.", "middle.0."),
    ("mid_block.attentions.0.", "middle.1."),
    ("mid_block.resnets.1.", "middle.2."),
)
VAE_RESIDUAL = (
    ("norm1.", "residual.0."),
    ("conv1.", "residual.2."),
    ("norm2.", "residual.3."),
    ("conv2.", "residual.6."),
    ("conv_shortcut.", "shortcut."),
)


def dit_key(key: str) -> str | None:
    """Original Wan or diffusers name of a transformer tensor -> diffusers name; None for anything else.

    Module names, without a final `.weight`, are mapped the same way.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
    prefix, rest, table = (f"blocks.{match[1]}.", match[2], DIT_BLOCK) if match else ("", key, DIT_TOP)
    for original, ours, leaves in table:
        for name in (original, ours):
            if rest == name:
                return prefix + ours
            if rest.startswith(f"{name}.") and rest[len(name) + 1 :] in leaves:
                return prefix + ours + rest[len(name) :]
    return None


def original_dit_key(key: str) -> str:
    """diffusers name of a transformer module or tensor -> original Wan name; others pass unchanged."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
    prefix, rest, table = (f"blocks.{match[1]}.", match[2], DIT_BLOCK) if match else ("", key, DIT_TOP)
    for original, ours, leaves in table:
        if rest == ours or (rest.startswith(f"{ours}.") and rest[len(ours) + 1 :] in leaves):
            return prefix + original + rest[len(ours) :]
    return key


def dit_keys(config: Mapping[str, Any]) -> list[str]:
    """Every tensor a transformer of that config reads, by its diffusers name."""

    def expand(prefix: str, table: Iterable[tuple[str, str, tuple[str, ...]]]) -> Iterable[str]:
        for _, ours, leaves in table:
            if ours == "norm2" and not config.get("cross_attn_norm", True):
                continue
            yield from (f"{prefix}{ours}.{leaf}" for leaf in leaves) if leaves else (prefix + ours,)

    keys = [key for key in expand("", DIT_TOP) if not key.startswith(UNUSED_DIT)]
    for number in range(int(config["num_layers"])):
        keys += expand(f"blocks.{number}.", DIT_BLOCK)
    return keys


def strip_raw_prefix(key: str) -> str:
    """`pipe.dit.blocks…`, `dit.blocks…` and `blocks…` are the same: training code saves all three."""
    for prefix in ("module.", "pipe.", "dit."):
        key = key.removeprefix(prefix)
    return key


RawPart = Literal["transformer", "mllm", "qwen", "source_embedder", "ref_embedder"]


def raw_key(key: str) -> tuple[RawPart, str] | None:
    """Raw tensor or module name -> the part it belongs to and its name in the released layout; None if unknown."""
    key = strip_raw_prefix(key)
    for prefix, part in RAW_EMBEDDERS:
        if key.startswith(prefix):
            return part, key.removeprefix(prefix)  # type: ignore[return-value]
    if not key.startswith("mllm."):
        name = dit_key(key)
        return None if name is None else ("transformer", name)
    rest = key.removeprefix("mllm.")
    for raw, ours in RAW_MLLM:
        if rest == raw or (raw.endswith(".") and rest.startswith(raw)):
            return "mllm", ours + rest[len(raw) :]
    while rest.startswith(("model.", "base_model.")):  # wrappers: PEFT's, the library's, the training code's
        rest = rest.partition(".")[2]
    if rest.startswith(("layers.", "embed_tokens.", "norm.")):
        return "qwen", f"model.{rest}"
    name = qwen_key(rest)
    return None if name is None or not name.startswith(("model.", "visual.")) else ("qwen", name)


RAW_NAMES = (
    # key of the modules that are trained, raw name; the first that fits
    ("transformer.", ""),
    ("source_embedder.", "vae_condition."),
    ("ref_embedder.", "ref_vae_condition."),
    ("mllm_encoder.image_queries", "mllm.image_queries.q"),
    ("mllm_encoder.video_queries", "mllm.video_queries.q"),
    ("mllm_encoder.ref_queries", "mllm.ref_queries.q"),
    ("mllm_encoder.connector.", "mllm.connetor."),
    ("mllm_encoder.ref_connector.", "mllm.ref_connector."),
    ("mllm_encoder.qwen.", "mllm.model.model."),
)


def to_raw_key(key: str) -> str:
    """A tensor or module of the modules as they are trained -> its raw name, which `raw_key` reads back.

    Raises:
        KeyError: it belongs to none of the parts.
    """
    for ours, raw in RAW_NAMES:
        if key.startswith(ours):
            rest = key.removeprefix(ours)
            return raw + (original_dit_key(rest) if ours == "transformer." else rest)
    raise KeyError(key)


def qwen_key(key: str) -> str | None:
    """Qwen2.5-VL name in either Hub layout -> released name; None for what the released layout leaves out."""
    if key.startswith(QWEN_DROPPED):
        return None
    for new, ours in QWEN_LAYOUTS:
        if key.startswith(new):
            return ours + key.removeprefix(new)
    return key


def _swapped(name: str, table: Iterable[tuple[str, str]], to_original: bool) -> str | None:
    """A name with the first prefix that fits replaced, in one direction or the other; None when none fits."""
    for ours, original in table:
        old, new = (ours, original) if to_original else (original, ours)
        if name.startswith(old):
            return new + name.removeprefix(old)
    return None


def _vae_layer(name: str, to_original: bool) -> str:
    return _swapped(name, VAE_RESIDUAL, to_original) or name


def _vae_fixed(key: str, to_original: bool) -> str | None:
    """A VAE's name outside of the numbered blocks; None for the rest."""
    if top := _swapped(key, VAE_TOP, to_original):
        return top
    half, _, rest = key.partition(".")
    for ours, original in VAE_HALF:
        old, new = (ours, original) if to_original else (original, ours)
        if rest.startswith(old):
            return f"{half}.{new}{_vae_layer(rest.removeprefix(old), to_original)}"
    return None


def vae_key(key: str, num_res_blocks: int) -> str:
    """Original Wan VAE key -> `AutoencoderKLWan` key. Keys that are already the latter pass unchanged."""
    if fixed := _vae_fixed(key, to_original=False):
        return fixed
    half, _, rest = key.partition(".")
    # Wan 2.2: blocks of (residual layers, then one resampling), named twice.
    if match := re.fullmatch(r"(down|up)samples\.(\d+)\.\1samples\.(\d+)\.(.+)", rest):
        way, block, layer, tail = match[1], match[2], match[3], match[4]
        if tail.startswith(("resample.", "time_conv.")):
            return f"{half}.{way}_blocks.{block}.{way}sampler.{tail}"
        return f"{half}.{way}_blocks.{block}.resnets.{layer}.{_vae_layer(tail, to_original=False)}"
    # Wan 2.1: one flat list. diffusers keeps it flat in the encoder and groups it in the decoder.
    if match := re.fullmatch(r"downsamples\.(\d+)\.(.+)", rest):
        return f"{half}.down_blocks.{match[1]}.{_vae_layer(match[2], to_original=False)}"
    if match := re.fullmatch(r"upsamples\.(\d+)\.(.+)", rest):
        block, layer = divmod(int(match[1]), num_res_blocks + 2)
        if layer == num_res_blocks + 1:
            return f"{half}.up_blocks.{block}.upsamplers.0.{match[2]}"
        return f"{half}.up_blocks.{block}.resnets.{layer}.{_vae_layer(match[2], to_original=False)}"
    return key


def original_vae_key(key: str, num_res_blocks: int) -> str:
    """`AutoencoderKLWan` name of a Wan 2.2 autoencoder -> original name; original names pass unchanged."""
    if fixed := _vae_fixed(key, to_original=True):
        return fixed
    half, _, rest = key.partition(".")
    if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.resnets\.(\d+)\.(.+)", rest):
        way, block, layer, tail = match.groups()
        return f"{half}.{way}samples.{block}.{way}samples.{layer}.{_vae_layer(tail, to_original=True)}"
    if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.\1sampler\.(.+)", rest):
        way, block, tail = match.groups()
        layer = num_res_blocks + (way == "up")  # the decoder has one residual block more
        return f"{half}.{way}samples.{block}.{way}samples.{layer}.{tail}"
    return key


LoraRole = Literal["down", "up", "alpha", "diff", "diff_b"]

LORA_SUFFIXES: tuple[tuple[str, LoraRole], ...] = (
    (r"\.lora_A(\.[^.]+)?\.weight", "down"),  # PEFT, DiffSynth; the middle is the adapter's name
    (r"\.lora_B(\.[^.]+)?\.weight", "up"),
    (r"\.lora_A", "down"),
    (r"\.lora_B", "up"),
    (r"\.lora_down\.weight", "down"),  # kohya, ComfyUI
    (r"\.lora_up\.weight", "up"),
    (r"\.lora\.down\.weight", "down"),  # older diffusers
    (r"\.lora\.up\.weight", "up"),
    (r"\.alpha", "alpha"),
    (r"\.diff", "diff"),  # whole differences, of a weight and of a bias
    (r"\.diff_b", "diff_b"),
)


def lora_key(key: str) -> tuple[str, LoraRole] | None:
    """A LoRA file's key -> module and role; None when it is no LoRA key."""
    for suffix, role in LORA_SUFFIXES:
        if match := re.fullmatch(rf"(.+){suffix}", key):
            return match[1], role
    return None
