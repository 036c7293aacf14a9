"""Checkpoints in the released layout, written by tests: copies with a change, and other sizes from scratch.

The original VAE names are produced by tables of their own, the other way round from the loader's, so that a
mistake there cannot cancel itself here.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .conftest import CHECKPOINT

STEM = "diffusion_pytorch_model"


def copy_checkpoint(folder: Path) -> Path:
    """A copy of the small checkpoint that a test may damage."""
    return Path(shutil.copytree(CHECKPOINT, folder / "checkpoint"))


def edit_json(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in {**data, **changes}.items() if v is not None}))


def edit_tensors(path: Path, change: Any) -> None:
    """`change` receives the tensors as a dict and may alter it in place."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def original_vae_key(key: str, num_res_blocks: int, residual: bool) -> str:
    """`AutoencoderKLWan` key -> original Wan key."""
    key = re.sub(r"^quant_conv", "conv1", re.sub(r"^post_quant_conv", "conv2", key))
    for ours, theirs in (
        (".conv_in.", ".conv1."),
        (".norm_out.", ".head.0."),
        (".conv_out.", ".head.2."),
        (".mid_block.resnets.0.", ".middle.0."),
        (".mid_block.attentions.0.", ".middle.1."),
        (".mid_block.resnets.1.", ".middle.2."),
    ):
        key = key.replace(ours, theirs)
    if residual:
        key = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"downsamples.\1.downsamples.\2", key)
        key = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", r"upsamples.\1.upsamples.\2", key)
        key = re.sub(r"down_blocks\.(\d+)\.downsampler", rf"downsamples.\1.downsamples.{num_res_blocks}", key)
        key = re.sub(r"up_blocks\.(\d+)\.upsampler", rf"upsamples.\1.upsamples.{num_res_blocks + 1}", key)
    else:
        step = num_res_blocks + 2
        key = re.sub(r"down_blocks\.(\d+)", r"downsamples.\1", key)
        key = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"upsamples.{int(m[1]) * step + int(m[2])}", key)
        key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"upsamples.{int(m[1]) * step + step - 1}", key)
    if ".middle." in key or "samples." in key:
        for ours, theirs in (
            (".norm1.", ".residual.0."),
            (".conv1.", ".residual.2."),
            (".norm2.", ".residual.3."),
            (".conv2.", ".residual.6."),
            (".conv_shortcut.", ".shortcut."),
        ):
            key = key.replace(ours, theirs)
    return key


def write_16_channel_checkpoint(folder: Path) -> tuple[Path, Any]:
    """A random checkpoint of the 14B kind: 16 channels, Wan 2.1 VAE (8x, flat key names), other widths.

    Returns:
        Its folder and the `AutoencoderKLWan` whose weights it holds.
    """
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    torch.manual_seed(0)
    root = copy_checkpoint(folder)
    vae = AutoencoderKLWan(base_dim=4, z_dim=16).eval()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.normal_(std=0.2)
    original = {original_vae_key(key, 2, residual=False): value for key, value in vae.state_dict().items()}
    save_file({key: value.contiguous() for key, value in original.items()}, root / f"vae/{STEM}.safetensors")
    config = {"_class_name": "VAE", "z_dim": 16, "dim": 4, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}
    config["temperal_downsample"] = [False, True, True]
    (root / "vae/config.json").write_text(json.dumps(config))

    settings = {
        "patch_size": [1, 2, 2],
        "num_attention_heads": 3,
        "attention_head_dim": 12,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 20,
        "freq_dim": 16,
        "ffn_dim": 40,
        "num_layers": 2,
    }
    width = 36
    transformer = WanTransformer3DModel(**settings)
    save_file(transformer.state_dict(), root / f"transformer/{STEM}.safetensors")
    (root / "transformer/config.json").write_text(json.dumps({"_class_name": "WanTransformer3DModel", **settings}))

    for name in ("source_embedder", "ref_embedder"):
        tensors = {
            "patch_embedding.weight": torch.randn(width, 16, 1, 2, 2),
            "patch_embedding.bias": torch.randn(width),
        }
        save_file(tensors, root / name / f"{STEM}.safetensors")
        edit_json(root / name / "config.json", in_dim=16, dim=width)

    def resize_connectors(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("connector", "ref_connector"):
            tensors[f"{name}.0.weight"] = torch.randn(width, 64)
            tensors[f"{name}.0.bias"] = torch.randn(width)
            tensors[f"{name}.2.weight"] = torch.randn(width, width)
            tensors[f"{name}.2.bias"] = torch.randn(width)

    edit_tensors(root / f"mllm_encoder/{STEM}.safetensors", resize_connectors)
    edit_json(root / "mllm_encoder/config.json", dit_dim=width)
    return root, vae
