"""The small autoencoder on whole clips at once: what it computes chunk by chunk, in a fifth of the launches.

The autoencoder is causal in time, so a clip's first frames never depend on its later ones, and a convolution over all
frames with zeros before the first is what the chunks with their kept frames add up to. Only the resampling in time
treats the first frame on its own.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify


def encode(vae: AutoencoderKLWan, clips: torch.Tensor) -> torch.Tensor:
    """(B, 3, 4k + 1, H, W) in [-1, 1] -> the posterior's mean (B, C, k + 1, h, w), not normalised; with gradients."""
    coder = vae.encoder
    x = coder.conv_in(patchify(clips, patch_size=vae.config.patch_size))
    for block in coder.down_blocks:
        kept = x
        for resnet in block.resnets:
            x = resnet(x)
        if block.downsampler is not None:
            x = _shrunk(block.downsampler, x)
        x = x + block.avg_shortcut(kept)
    return vae.quant_conv(_head(coder, coder.mid_block(x))).chunk(2, dim=1)[0]


def decode(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """The inverse of `encode`; with gradients, and not clamped."""
    coder = vae.decoder
    x = coder.mid_block(coder.conv_in(vae.post_quant_conv(latents)))
    for block in coder.up_blocks:
        kept = x
        for resnet in block.resnets:
            x = resnet(x)
        if block.upsampler is not None:
            x = _grown(block.upsampler, x)
        if block.avg_shortcut is not None:
            x = x + block.avg_shortcut(kept, first_chunk=True)
    return unpatchify(_head(coder, x), patch_size=vae.config.patch_size)


def _head(coder: Any, x: torch.Tensor) -> torch.Tensor:
    return coder.conv_out(coder.nonlinearity(coder.norm_out(x)))


def _shrunk(resample: Any, x: torch.Tensor) -> torch.Tensor:
    """Half the size, and half the frames after the first."""
    x = resample(x)  # without kept frames: in space alone
    if resample.mode == "downsample3d" and x.shape[2] > 1:
        x = torch.cat([x[:, :, :1], resample.time_conv(x)], dim=2)
    return x


def _grown(resample: Any, x: torch.Tensor) -> torch.Tensor:
    """Twice the size, and two frames for each after the first, which the convolution in time does not see."""
    if resample.mode == "upsample3d" and x.shape[2] > 1:
        batch, channels, frames, height, width = x.shape
        pairs = resample.time_conv(x[:, :, 1:]).view(batch, 2, channels, frames - 1, height, width)
        doubled = pairs.permute(0, 2, 3, 1, 4, 5).reshape(batch, channels, 2 * (frames - 1), height, width)
        x = torch.cat([x[:, :, :1], doubled], dim=2)
    return resample(x)
