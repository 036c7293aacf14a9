"""Random pipelines of diffusers in the layout of the released ones: everything is small, and nothing stands in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = ("<pad>", "<eos>", "<unk>", "make", "it", "snowy", "the", "red", "a", "please", ",", ".", "add", "change")


def _tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=512
    )


def save(kind: str, folder: Path, seed: int = 0) -> Path:
    """A tiny 'lucy-edit' or 'vace' in a folder."""
    import diffusers
    import torch
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(seed)
    text = UMT5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0)
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    shared: dict[str, Any] = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 16,
        "ffn_dim": 16,
        "rope_max_seq_len": 32,
    }
    if kind == "lucy-edit":
        transformer: Any = diffusers.WanTransformer3DModel(in_channels=8, num_layers=1, **shared)
        pipeline: Any = diffusers.LucyEditPipeline
    else:
        channels = 2 * 4 + 64  # the clip's and its mask's: 8 x 8 values of each latent
        transformer = diffusers.WanVACETransformer3DModel(
            in_channels=4, num_layers=2, vace_layers=[0], vace_in_channels=channels, **shared
        )
        pipeline = diffusers.WanVACEPipeline
    pipe = pipeline(
        tokenizer=_tokenizer(),
        text_encoder=UMT5EncoderModel(text),
        vae=vae,
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=transformer,
    )
    pipe.save_pretrained(folder)
    return folder
