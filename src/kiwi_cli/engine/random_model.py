"""A KiwiPipeline with random weights at any size, built in memory, and a clip for it: nothing needs a download.

Time and memory of a run do not depend on the values of the weights, only on their shapes and precision.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from kiwi_cli.engine.pipeline import KiwiPipeline
from kiwi_cli.engine.schedule import released_schedule
from kiwi_cli.model import transformer as dit
from kiwi_cli.model import vae as wan_vae
from kiwi_cli.model.checkpoint import build
from kiwi_cli.model.mllm import KiwiInstructionEncoder
from kiwi_cli.model.prompt import IMAGE_TOKEN, QUERY_TOKEN, VIDEO_TOKEN, VISION_END, VISION_START
from kiwi_cli.model.transformer import ConditionEmbedder, KiwiTransformer3DModel

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
)
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    QUERY_TOKEN,
    VISION_START,
    VISION_END,
    IMAGE_TOKEN,
    VIDEO_TOKEN,
)

# Sizes: the released 5B (its configs and Qwen2.5-VL-3B's), a tenth of a billion, and one for tests.
SIZES: dict[str, dict[str, Any]] = {
    "5b": {
        "dit": {"heads": 24, "head_dim": 128, "ffn": 14336, "layers": 30},
        "vae": {"encoder": 160, "decoder": 256},
        "text": {"hidden": 2048, "ffn": 11008, "layers": 36, "heads": 16, "kv_heads": 2, "vocab": 151936},
        "vision": {"hidden": 1280, "ffn": 3420, "depth": 32, "heads": 16, "full": [7, 15, 23, 31]},
        "queries": (256, 512, 768),
    },
    "mid": {
        "dit": {"heads": 6, "head_dim": 128, "ffn": 3072, "layers": 10},
        "vae": {"encoder": 40, "decoder": 64},
        "text": {"hidden": 512, "ffn": 1536, "layers": 6, "heads": 8, "kv_heads": 2, "vocab": 1024},
        "vision": {"hidden": 320, "ffn": 864, "depth": 4, "heads": 4, "full": [3]},
        "queries": (256, 512, 768),
    },
    "small": {
        "dit": {"heads": 2, "head_dim": 24, "ffn": 96, "layers": 3},
        "vae": {"encoder": 8, "decoder": 8},
        "text": {"hidden": 64, "ffn": 128, "layers": 2, "heads": 4, "kv_heads": 2, "vocab": 512},
        "vision": {"hidden": 32, "ffn": 48, "depth": 2, "heads": 2, "full": [1]},
        "queries": (8, 16, 24),
    },
}


def random_pipeline(
    size: str,
    device: torch.device,
    dtype: torch.dtype,
    references_first: bool = False,
    seed: int = 0,
    host: torch.device | None = None,
) -> KiwiPipeline:
    """A pipeline of one of `SIZES` with small normal weights, in the precisions that loading gives.

    Args:
        device: where the numbers are drawn. host: where the weights are kept; None is the device.
    """
    shape = SIZES[size]
    width = shape["dit"]["heads"] * shape["dit"]["head_dim"]
    tokenizer = byte_tokenizer()
    here = Path(f"random {size} model")

    transformer = build(
        KiwiTransformer3DModel,
        {
            "patch_size": [1, 2, 2],
            "num_attention_heads": shape["dit"]["heads"],
            "attention_head_dim": shape["dit"]["head_dim"],
            "in_channels": 48,
            "out_channels": 48,
            "freq_dim": 256,
            "ffn_dim": shape["dit"]["ffn"],
            "num_layers": shape["dit"]["layers"],
        },
        here,
    )
    vae = build(AutoencoderKLWan, _vae_config(shape["vae"]), here)
    images, videos, references = shape["queries"]
    mllm = build(
        KiwiInstructionEncoder,
        {
            "qwen_config": qwen_config(shape, tokenizer),
            "dit_dim": width,
            "hidden_size": shape["text"]["hidden"],
            "num_image_queries": images,
            "num_video_queries": videos,
            "num_ref_queries": references,
        },
        here,
    )
    source, reference = (build(ConditionEmbedder, {"in_dim": 48, "dim": width}, here) for _ in range(2))

    generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)
    host = host or device
    _materialise(transformer, device, host, dtype, generator, dit.keeps_fp32)
    _materialise(vae, device, host, dtype, generator, wan_vae.keeps_fp32)
    for module in (mllm, source, reference):
        _materialise(module, device, host, dtype, generator)
    return KiwiPipeline(
        transformer, vae, mllm, source, reference, tokenizer, released_schedule(), None, references_first
    )


def _materialise(
    module: Any,
    device: torch.device,
    host: torch.device,
    dtype: torch.dtype,
    generator: torch.Generator | None,
    keeps_fp32: Callable[[str], bool] = lambda key: False,
) -> None:
    """Replace `meta` parameters one by one by normal ones of scale 0.02, in the precision loading would give."""
    for name, parameter in list(module.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        precision = torch.float32 if keeps_fp32(name) else dtype
        value = torch.empty(parameter.shape, device=device, dtype=precision)
        if generator is None:
            pass  # on `meta` there is nothing to fill
        elif value.ndim == 1:
            value.fill_(1.0 if leaf == "weight" else 0.0)
        else:
            value.normal_(std=0.02, generator=generator)
        module.get_submodule(owner).register_parameter(leaf, torch.nn.Parameter(value.to(host), requires_grad=False))
    for name, buffer in list(module.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner).register_buffer(leaf, buffer.to(host), persistent=False)
    module.eval()


def _vae_config(shape: dict[str, int]) -> dict[str, Any]:
    return {
        "base_dim": shape["encoder"],
        "decoder_base_dim": shape["decoder"],
        "z_dim": 48,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "temperal_downsample": [False, True, True],
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "scale_factor_temporal": 4,
        "latents_mean": [0.0] * 48,
        "latents_std": [1.0] * 48,
    }


def qwen_config(shape: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Qwen2.5-VL's config from the `text` and `vision` of a shape as in `SIZES`, with the tokenizer's special ids."""
    text, vision = shape["text"], shape["vision"]
    head_dim = text["hidden"] // text["heads"]
    third = head_dim // 2 * 3 // 8
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    return {
        "model_type": "qwen2_5_vl",
        "image_token_id": ids[IMAGE_TOKEN],
        "video_token_id": ids[VIDEO_TOKEN],
        "vision_start_token_id": ids[VISION_START],
        "vision_end_token_id": ids[VISION_END],
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "hidden_size": text["hidden"],
            "intermediate_size": text["ffn"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "num_key_value_heads": text["kv_heads"],
            "vocab_size": text["vocab"],
            "max_position_embeddings": 128000,
            "rope_theta": 1000000.0,
            "rope_scaling": {
                "rope_type": "default",
                "type": "default",
                "mrope_section": [head_dim // 2 - 2 * third, third, third],
            },
            "tie_word_embeddings": True,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": vision["depth"],
            "hidden_size": vision["hidden"],
            "intermediate_size": vision["ffn"],
            "num_heads": vision["heads"],
            "out_hidden_size": text["hidden"],
            "fullatt_block_indexes": vision["full"],
            "window_size": 112,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "tokens_per_second": 2,
        },
    }


def byte_tokenizer() -> Any:
    """A tokenizer of single bytes with the model's special tokens, made without a file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def moving_picture(frames: int, height: int, width: int) -> np.ndarray:
    """A clip to work on, (F, H, W, 3) uint8: a drifting colour pattern."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / 24.0
    clip = np.empty((frames, height, width, 3), dtype=np.uint8)
    for frame in range(frames):
        for channel in range(3):
            clip[frame, ..., channel] = 127.5 + 120 * np.sin(x * (1 + channel / 3) + y + 0.2 * frame)
    return clip
