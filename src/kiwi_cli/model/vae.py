"""The Wan video autoencoder as a stream: frames in as they are read, frames out as they are decoded.

The autoencoder is causal in time. It takes one frame and then four at a time, and gives one and then four, if
each convolution keeps the last two frames it saw. So neither a clip's frames nor its activations ever have to
be in memory at once. The result equals encoding and decoding the whole clip, exactly.

Released checkpoints hold the autoencoder under its original key names, in one of two layouts: Wan 2.2 (48
channels, 16x in space, nested residual blocks) or Wan 2.1 (16 channels, 8x, flat). `weights.keys.vae_key` maps both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify

from kiwi_cli.errors import CheckpointError
from kiwi_cli.model.transfer import send
from kiwi_cli.model.vae_layers import LayerRun, run
from kiwi_cli.model.vae_strips import StripDecoder, StripEncoder


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
    statistics = torch.tensor([vae.config.latents_mean, vae.config.latents_std], dtype=torch.float32)
    mean, std = send(statistics.view(2, 1, -1, 1, 1, 1), device).unbind()
    return mean, std


def is_hooked(vae: AutoencoderKLWan) -> bool:
    """Whether the library moves or converts this autoencoder layer by layer: sequential or group offload, or fp8.

    Its hooks fire in the layers' own calls, which the coders of vae_layers.py go around.
    """
    if any(hasattr(module, "_hf_hook") for module in vae.modules() if module is not vae):
        return True
    return any(getattr(getattr(module, "_diffusers_hook", None), "hooks", None) for module in vae.modules())


def _encode_by_library(vae: AutoencoderKLWan, pixels: torch.Tensor) -> torch.Tensor:
    mean, std = latent_statistics(vae, pixels.device)
    stored = vae.encoder.conv_in.weight.dtype
    found = vae.encode(pixels.to(vae.dtype if stored.itemsize < 2 else stored)).latent_dist.mode()
    return (found.to(torch.float32) - mean) / std


def _decode_by_library(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    mean, std = latent_statistics(vae, latents.device)
    stored = vae.decoder.conv_in.weight.dtype
    plain = latents.to(torch.float32) * std + mean
    return vae.decode(plain.to(vae.dtype if stored.itemsize < 2 else stored)).sample.to(torch.float32).clamp(-1.0, 1.0)


class Encoder:
    """The encoder's call for one clip, on the device where its weights are at that time.

    Args:
        vae: its encoder's precision is the precision of the work; not a hooked one.
        strips: as in `encode_stream`.
    """

    def __init__(self, vae: AutoencoderKLWan, strips: int = 1) -> None:
        self.vae = vae
        self._encoder = StripEncoder(vae.encoder, strips)

    def __call__(self, chunk: torch.Tensor) -> torch.Tensor:
        """The next frames (B, 3, f, H, W) in [-1, 1], one first, then four -> their latent frame (B, C, 1, h, w)."""
        vae, weight = self.vae, self.vae.encoder.conv_in.weight
        mean, std = latent_statistics(vae, weight.device)
        pixels = chunk.to(weight.device, weight.dtype)
        if vae.config.patch_size is not None:
            pixels = patchify(pixels, patch_size=vae.config.patch_size)
        posterior_mean = vae.quant_conv(self._encoder(pixels)).chunk(2, dim=1)[0]
        return (posterior_mean.to(torch.float32) - mean) / std

    def move(self, device: torch.device | str) -> None:
        """What it remembers of the frames before to a device: away while others work, back before the next call."""
        self._encoder.move(device)


class Decoder:
    """The decoder's call for one clip, on the device where its weights are at that time.

    Args:
        vae: its decoder's precision is the precision of the work; not a hooked one.
        strips, steady: as in `decode_stream`.
    """

    def __init__(self, vae: AutoencoderKLWan, strips: int = 1, steady: LayerRun = run) -> None:
        self.vae = vae
        self._decoder = StripDecoder(vae.decoder, strips, steady)

    def __call__(self, latent: torch.Tensor) -> torch.Tensor:
        """The next latent frame (B, C, 1, h, w), normalised -> its frames (B, 3, f, H, W) fp32 in [-1, 1]."""
        vae, weight = self.vae, self.vae.decoder.conv_in.weight
        mean, std = latent_statistics(vae, weight.device)
        plain = latent.to(weight.device, torch.float32) * std + mean
        pixels = self._decoder(vae.post_quant_conv(plain.to(weight.dtype)))
        if vae.config.patch_size is not None:
            pixels = unpatchify(pixels, patch_size=vae.config.patch_size)
        return pixels.to(torch.float32).clamp(-1.0, 1.0)

    def fork(self) -> Decoder:
        """Another decoder of the same clip that remembers what this one does, on the host; both go on by themselves."""
        other = Decoder(self.vae)
        other._decoder = self._decoder.fork()
        return other

    def move(self, device: torch.device | str) -> None:
        """What it remembers of the frames before to a device: away while others work, back before the next call."""
        self._decoder.move(device)


def encode_stream(vae: AutoencoderKLWan, chunks: Iterable[torch.Tensor], strips: int = 1) -> Iterator[torch.Tensor]:
    """Frames to normalised latents, one latent frame at a time.

    Args:
        vae: its encoder's precision is the precision of the work.
        chunks: (B, 3, f, H, W) in [-1, 1]; one frame first, then as many as a latent frame covers (4).
        strips: the high-resolution half in that many vertical strips (vae_strips.py): less memory, the same result.

    Yields:
        (B, C, 1, H/s, W/s) fp32: `(mean of the posterior - latents_mean) / latents_std`, not sampled.
    """
    if is_hooked(vae):
        yield from _encode_by_library(vae, torch.cat(list(chunks), dim=2)).split(1, dim=2)
        return
    encoder = Encoder(vae, strips)
    for chunk in chunks:
        yield encoder(chunk)


def decode_stream(
    vae: AutoencoderKLWan, latents: torch.Tensor, strips: int = 1, steady: LayerRun = run
) -> Iterator[torch.Tensor]:
    """Normalised latents to frames, as they are decoded.

    Args:
        vae: its decoder's precision is the precision of the work.
        latents: (B, C, T, h, w) normalised.
        strips: the high-resolution half in that many vertical strips (vae_strips.py): less memory, the same result.
        steady: runs the layers from the second latent frame on; compiled or not (compilation.py).

    Yields:
        (B, 3, f, H, W) fp32 in [-1, 1]; one frame first, then as many as a latent frame covers (4).
    """
    if is_hooked(vae):
        sizes = [1] + [vae.config.scale_factor_temporal] * (latents.shape[2] - 1)
        yield from _decode_by_library(vae, latents).split(sizes, dim=2)
        return
    decoder = Decoder(vae, strips, steady)
    for index in range(latents.shape[2]):
        yield decoder(latents[:, :, index : index + 1])


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
