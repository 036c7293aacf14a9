"""The Wan video autoencoder as a stream: frames in as they are read, frames out as they are decoded.

The autoencoder is causal in time. It takes one frame and then four at a time, and gives one and then four, if
each convolution keeps the last two frames it saw. So neither a clip's frames nor its activations ever have to
be in memory at once. The result equals encoding and decoding the whole clip, exactly.

Released checkpoints hold the autoencoder under its original key names, in one of two layouts: Wan 2.2 (48
channels, 16x in space, nested residual blocks) or Wan 2.1 (16 channels, 8x, flat). `rename_key` maps both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify

from kiwi_cli.coders import Run, run
from kiwi_cli.errors import CheckpointError
from kiwi_cli.strips import StripDecoder, StripEncoder

# Original name -> diffusers' name, in order; the index arithmetic of the blocks is in `rename_key`.
_TOP_LEVEL = {
    "conv1.": "quant_conv.",
    "conv2.": "post_quant_conv.",
}
_LAYERS = {
    "residual.0.": "norm1.",
    "residual.2.": "conv1.",
    "residual.3.": "norm2.",
    "residual.6.": "conv2.",
    "shortcut.": "conv_shortcut.",
}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}


def _rename_layer(layer: str) -> str:
    for original, ours in _LAYERS.items():
        if layer.startswith(original):
            return ours + layer[len(original) :]
    return layer


def rename_key(key: str, num_res_blocks: int) -> str:
    """Original Wan VAE key -> `AutoencoderKLWan` key. Keys that are already the latter pass unchanged."""
    for original, ours in _TOP_LEVEL.items():
        if key.startswith(original):
            return ours + key[len(original) :]
    half, _, rest = key.partition(".")
    for original, ours in (("conv1.", "conv_in."), ("head.0.", "norm_out."), ("head.2.", "conv_out.")):
        if rest.startswith(original):
            return f"{half}.{ours}{rest[len(original) :]}"
    if match := re.fullmatch(r"middle\.([012])\.(.+)", rest):
        return f"{half}.mid_block.{_MIDDLE[match[1]]}.{_rename_layer(match[2])}"
    # Wan 2.2: blocks of (residual layers, then one resampling), named twice.
    if match := re.fullmatch(r"(down|up)samples\.(\d+)\.\1samples\.(\d+)\.(.+)", rest):
        way, block, layer, tail = match[1], match[2], match[3], match[4]
        if tail.startswith(("resample.", "time_conv.")):
            return f"{half}.{way}_blocks.{block}.{way}sampler.{tail}"
        return f"{half}.{way}_blocks.{block}.resnets.{layer}.{_rename_layer(tail)}"
    # Wan 2.1: one flat list. diffusers keeps it flat in the encoder and groups it in the decoder.
    if match := re.fullmatch(r"downsamples\.(\d+)\.(.+)", rest):
        return f"{half}.down_blocks.{match[1]}.{_rename_layer(match[2])}"
    if match := re.fullmatch(r"upsamples\.(\d+)\.(.+)", rest):
        block, layer = divmod(int(match[1]), num_res_blocks + 2)
        if layer == num_res_blocks + 1:
            return f"{half}.up_blocks.{block}.upsamplers.0.{match[2]}"
        return f"{half}.up_blocks.{block}.resnets.{layer}.{_rename_layer(match[2])}"
    return key


def native_config(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The `AutoencoderKLWan` config of a released VAE folder.

    Args:
        config: `vae/config.json`. A native diffusers config is taken as it is.
        shapes: original key -> shape, of its tensor file. Widths are read from here, not guessed: the released
            config says nothing of the decoder's.

    Raises:
        CheckpointError: when a tensor that gives a width is missing.
    """
    if "base_dim" in config:
        return {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        encoder_in, decoder_out = shapes["encoder.conv1.weight"], shapes["decoder.head.2.weight"]
    except KeyError as error:
        raise CheckpointError(
            f"the VAE file has no tensor {error}", "use a checkpoint in the released Kiwi-Edit layout"
        ) from None
    dim_mult = list(config.get("dim_mult", [1, 2, 4, 4]))
    temporal = list(config.get("temperal_downsample", [False, True, True]))  # spelled so in the configs
    patch = math.isqrt(encoder_in[1] // 3)
    native: dict[str, Any] = {
        "base_dim": encoder_in[0],
        "decoder_base_dim": decoder_out[1] // dim_mult[0],
        "z_dim": shapes["conv2.weight"][0],
        "dim_mult": dim_mult,
        "num_res_blocks": config.get("num_res_blocks", 2),
        "attn_scales": list(config.get("attn_scales", [])),
        "temperal_downsample": temporal,
        "dropout": config.get("dropout", 0.0),
        "is_residual": any(".downsamples.0.downsamples." in key for key in shapes),
        "in_channels": encoder_in[1],
        "out_channels": decoder_out[0],
        "patch_size": patch if patch > 1 else None,
        "scale_factor_spatial": patch * 2 ** (len(dim_mult) - 1),
        "scale_factor_temporal": 2 ** sum(temporal),
    }
    for statistic in ("latents_mean", "latents_std"):
        if statistic in config:
            native[statistic] = list(config[statistic])
    return native


def keeps_fp32(key: str) -> bool:
    """Whether a weight stays fp32 at every compute precision: the encoder's do, for the source's latents steer
    every step; the decoder follows the request."""
    return key.startswith(("encoder.", "quant_conv."))


def latent_statistics(vae: AutoencoderKLWan, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the latents per channel, (1, C, 1, 1, 1) fp32."""
    mean = torch.tensor(vae.config.latents_mean, dtype=torch.float32, device=device)
    std = torch.tensor(vae.config.latents_std, dtype=torch.float32, device=device)
    return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)


def encode_stream(vae: AutoencoderKLWan, chunks: Iterable[torch.Tensor], strips: int = 1) -> Iterator[torch.Tensor]:
    """Frames to normalised latents, one latent frame at a time.

    Args:
        vae: its encoder's precision is the precision of the work.
        chunks: (B, 3, f, H, W) in [-1, 1]; one frame first, then as many as a latent frame covers (4).
        strips: the high-resolution half in that many vertical strips (strips.py): less memory, the same result.

    Yields:
        (B, C, 1, H/s, W/s) fp32: `(mean of the posterior - latents_mean) / latents_std`, not sampled.
    """
    weight = vae.encoder.conv_in.weight
    mean, std = latent_statistics(vae, weight.device)
    encoder = StripEncoder(vae.encoder, strips)
    for chunk in chunks:
        pixels = chunk.to(weight.device, weight.dtype)
        if vae.config.patch_size is not None:
            pixels = patchify(pixels, patch_size=vae.config.patch_size)
        posterior_mean = vae.quant_conv(encoder(pixels)).chunk(2, dim=1)[0]
        yield (posterior_mean.to(torch.float32) - mean) / std


def decode_stream(
    vae: AutoencoderKLWan, latents: torch.Tensor, strips: int = 1, steady: Run = run
) -> Iterator[torch.Tensor]:
    """Normalised latents to frames, as they are decoded.

    Args:
        vae: its decoder's precision is the precision of the work.
        latents: (B, C, T, h, w) normalised.
        strips: the high-resolution half in that many vertical strips (strips.py): less memory, the same result.
        steady: runs the layers from the second latent frame on; compiled or not (compilation.py).

    Yields:
        (B, 3, f, H, W) fp32 in [-1, 1]; one frame first, then as many as a latent frame covers (4).
    """
    weight = vae.decoder.conv_in.weight
    mean, std = latent_statistics(vae, weight.device)
    decoder = StripDecoder(vae.decoder, strips, steady)
    for index in range(latents.shape[2]):
        latent = latents[:, :, index : index + 1].to(weight.device, torch.float32) * std + mean
        pixels = decoder(vae.post_quant_conv(latent.to(weight.dtype)))
        if vae.config.patch_size is not None:
            pixels = unpatchify(pixels, patch_size=vae.config.patch_size)
        yield pixels.to(torch.float32).clamp(-1.0, 1.0)


def decode_tiled(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """The whole clip by the library's blended tiles: least memory, and NOT the same frames as `decode_stream`.

    Returns:
        (B, 3, F, H, W) fp32 in [-1, 1].
    """
    weight = vae.decoder.conv_in.weight
    mean, std = latent_statistics(vae, weight.device)
    vae.enable_tiling()
    try:
        pixels = vae.decode((latents.to(weight.device, torch.float32) * std + mean).to(weight.dtype)).sample
    finally:
        vae.disable_tiling()
    return pixels.to(torch.float32).clamp(-1.0, 1.0)
