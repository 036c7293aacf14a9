"""The embedded model before it is trained: its sizes, its tokenizer, and the checkpoint that training begins from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kiwi_cli.synth.wordings import KINDS, WORDINGS

TRANSFORMER: dict[str, Any] = {"heads": 4, "head_dim": 64, "ffn": 1024, "layers": 6, "patch": [1, 1, 1]}
TEXT: dict[str, Any] = {"hidden": 256, "ffn": 704, "layers": 3, "heads": 4, "kv_heads": 2}
VISION: dict[str, Any] = {"hidden": 128, "ffn": 256, "depth": 2, "heads": 4, "full": [1]}
QUERIES, VOCABULARY = 16, 1536
WORKING = {"pixels": 144 * 80, "frames": 5, "steps": 16}
DETAIL = {"steady": True, "trust": 1.0}
"""Its edits move and remove nothing; what its frames have beside their source is blotches (docs/detail.md)."""


def write_base(folder: Path, vae: Any) -> None:
    """A checkpoint with that VAE, everything else new."""
    import torch

    from kiwi_cli.model.mllm import KiwiInstructionEncoder
    from kiwi_cli.model.transformer import ConditionEmbedder, KiwiTransformer3DModel
    from kiwi_cli.train.exports import write_checkpoint

    torch.manual_seed(0)
    width = TRANSFORMER["heads"] * TRANSFORMER["head_dim"]
    tokenizer = make_tokenizer()
    qwen = qwen_config(tokenizer)
    transformer = KiwiTransformer3DModel.from_config(
        {
            "patch_size": TRANSFORMER["patch"],
            "num_attention_heads": TRANSFORMER["heads"],
            "attention_head_dim": TRANSFORMER["head_dim"],
            "in_channels": 48,
            "out_channels": 48,
            "freq_dim": 256,
            "ffn_dim": TRANSFORMER["ffn"],
            "num_layers": TRANSFORMER["layers"],
            "rope_max_seq_len": 1024,
        }
    )
    mllm = KiwiInstructionEncoder(
        qwen_config=qwen,
        dit_dim=width,
        hidden_size=TEXT["hidden"],
        num_image_queries=QUERIES,
        num_video_queries=QUERIES,
        num_ref_queries=QUERIES,
        max_object_token=16,
        max_frames=16,
        min_visual_tokens=4,
    )
    embedders = [
        ConditionEmbedder(in_dim=48, dim=width, patch_size=tuple(TRANSFORMER["patch"]), zero_init=False)
        for _ in range(2)
    ]
    write_checkpoint(
        folder,
        transformer=transformer,
        vae=vae,
        mllm_encoder=mllm,
        source_embedder=embedders[0],
        ref_embedder=embedders[1],
        tokenizer=tokenizer,
        qwen_config=qwen,
        extra={"working": WORKING, "detail": DETAIL},
        dtype=torch.float32,
    )


def make_tokenizer() -> Any:
    """Byte pairs learnt from the wordings and the system prompt, with the model's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from kiwi_cli.engine.random_model import CHAT_TEMPLATE, SPECIAL_TOKENS
    from kiwi_cli.model.prompt import REFERENCE_SUFFIX, SYSTEM_PROMPT
    from kiwi_cli.synth.textures import PALETTE

    seen = [template for kind in KINDS for template in WORDINGS[kind].seen]
    words = [f" {name} ball square triangle diamond stripes gradient plain" for name in PALETTE]
    text = [*(seen * 4), *words, SYSTEM_PROMPT, REFERENCE_SUFFIX, "system user assistant"] * 8
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def qwen_config(tokenizer: Any) -> dict[str, Any]:
    from kiwi_cli.engine.random_model import qwen_config as small_qwen_config

    return small_qwen_config({"text": {**TEXT, "vocab": len(tokenizer)}, "vision": VISION}, tokenizer)
