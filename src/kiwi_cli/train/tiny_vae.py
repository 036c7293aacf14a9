"""The small autoencoder's own recipe: Wan 2.2's architecture at small width, trained to give back clips.

The stages of `kiwi train` take a trained VAE for granted. This makes one: 16x in space, 4x in time and 48 channels as
the released one, from squared error alone. It is for procedural clips at 64x64 and a CPU; it is no way to train a VAE
for real video.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResidualBlock, patchify, unpatchify
from safetensors.torch import load_file, save_file
from torch import nn

from kiwi_cli.base.whole import whole_file
from kiwi_cli.train.muon import MuonAdamW

CHANNELS = 48
ARCHITECTURE: dict[str, Any] = {
    "z_dim": CHANNELS,
    "base_dim": 32,
    "decoder_base_dim": 48,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "is_residual": True,
    "attn_scales": [],
    "patch_size": 4,  # the released one folds 2x2 pixels and halves three times: 16x as well
    "in_channels": 48,
    "out_channels": 48,
    "scale_factor_spatial": 16,
    "scale_factor_temporal": 4,
}
HELD_OUT_CLIPS = 128
WEIGHTS, CONFIG, CURVE = "vae.safetensors", "config.json", "curve.jsonl"


@dataclass(frozen=True)
class VaeConfig:
    """Settings of a run.

    Attributes:
        steps: the rate falls as a cosine over them, to `final` of its height.
        batch: clips a step. lr: of Muon and AdamW. warm_up: steps. clip: largest norm of the gradient.
        noise: standard deviation added to the latents in training, as a fraction of theirs: the transformer that is
            trained on them will not hit them exactly either.
        absolute: weight of the absolute error beside the squared one.
        every: steps between two held-out figures, and states to go on from.
    """

    steps: int = 1800
    batch: int = 16
    lr: float = 1e-2
    warm_up: int = 100
    final: float = 0.03
    clip: float = 1.0
    noise: float = 0.03
    absolute: float = 0.02
    every: int = 50
    seed: int = 0


def new_vae() -> AutoencoderKLWan:
    """Orthogonal kernels; the residual branches begin at zero, so that the whole begins nearly linear."""
    vae = AutoencoderKLWan(**ARCHITECTURE, latents_mean=[0.0] * CHANNELS, latents_std=[1.0] * CHANNELS)
    for module in vae.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.orthogonal_(module.weight.data.view(module.weight.shape[0], -1))
            assert module.bias is not None
            nn.init.zeros_(module.bias)
            # What oneDNN works in: 21.4 clips a second instead of 18.0, in batches of 16 on two cores.
            layout = torch.channels_last_3d if isinstance(module, nn.Conv3d) else torch.channels_last
            module.weight.data = module.weight.data.contiguous(memory_format=layout)
    for module in vae.modules():
        if isinstance(module, WanResidualBlock):
            nn.init.zeros_(module.conv2.weight)
    return vae


def encode(vae: AutoencoderKLWan, clips: torch.Tensor) -> torch.Tensor:
    """(B, 3, 4k + 1, H, W) in [-1, 1] -> the posterior's mean (B, C, k + 1, h, w), not normalised; with gradients."""
    cache = _empty_cache(vae.encoder)
    chunks = [clips[:, :, :1], *clips[:, :, 1:].split(4, dim=2)]
    hidden = [
        vae.encoder(patchify(chunk, patch_size=vae.config.patch_size), feat_cache=cache, feat_idx=[0])
        for chunk in chunks
        if chunk.shape[2]
    ]
    return torch.cat([vae.quant_conv(value).chunk(2, dim=1)[0] for value in hidden], dim=2)


def decode(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """The inverse of `encode`; with gradients, and not clamped."""
    cache = _empty_cache(vae.decoder)
    frames = [
        vae.decoder(latent, feat_cache=cache, feat_idx=[0], first_chunk=number == 0)
        for number, latent in enumerate(vae.post_quant_conv(latents).split(1, dim=2))
    ]
    return torch.cat([unpatchify(value, patch_size=vae.config.patch_size) for value in frames], dim=2)


def _empty_cache(coder: nn.Module) -> list[Any]:
    """A slot for each causal convolution: the library keeps the last two frames it saw there."""
    return [None] * sum(isinstance(module, WanCausalConv3d) for module in coder.modules())


def to_clips(frames: np.ndarray) -> torch.Tensor:
    """(B, F, H, W, 3) uint8 -> (B, 3, F, H, W) fp32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 4, 1, 2, 3).to(torch.float32) / 127.5 - 1.0


def psnr(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each clip in dB, (B,); both in [-1, 1]."""
    return -10.0 * ((first - second) / 2).square().flatten(1).mean(dim=1).log10()


@torch.no_grad()
def held_out_psnr(vae: AutoencoderKLWan, clips: torch.Tensor) -> tuple[float, float]:
    """Mean over clips in dB: of all frames, and of the first frames alone."""
    with torch.autocast("cpu", torch.bfloat16):
        back = torch.cat([decode(vae, encode(vae, part)).float().clamp(-1, 1) for part in clips.split(32)])
    return float(psnr(back, clips).mean()), float(psnr(back[:, :, :1], clips[:, :, :1]).mean())


def train_vae(config: VaeConfig, train: np.ndarray, held_out: np.ndarray, out: Path) -> None:
    """Train from nothing and write weights, config and curve to `out`; goes on where an earlier run stopped.

    Args:
        train, held_out: (N, 5, H, W, 3) uint8, mapped or in memory.
    """
    if (out / WEIGHTS).exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    vae = new_vae().train()
    optimiser = MuonAdamW(vae.named_parameters(), config.lr, weight_decay=0.01, betas=(0.9, 0.99))
    step, spent = _resume(out, vae, optimiser)
    rng = np.random.default_rng([config.seed, step])
    picked = np.sort(np.random.default_rng(1).choice(len(held_out), min(HELD_OUT_CLIPS, len(held_out)), replace=False))
    check = to_clips(held_out[picked])
    since = time.perf_counter() - spent
    while step < config.steps:
        cosine = config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        for group in optimiser.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / config.warm_up) * cosine
        clips = to_clips(train[rng.integers(0, len(train), config.batch)])
        if rng.random() < 0.5:
            clips = clips.flip(-1)
        with torch.autocast("cpu", torch.bfloat16):
            latents = encode(vae, clips)
            spread = latents.detach().float().std()
            back = decode(vae, latents + config.noise * spread * torch.randn_like(latents))
        error = back.float() - clips
        loss = error.square().mean() + config.absolute * error.abs().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), config.clip)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        if step % config.every == 0 or step == config.steps:
            whole, first = held_out_psnr(vae, check)
            elapsed = time.perf_counter() - since
            line = {"seconds": round(elapsed), "step": step, "loss": loss.item(), "held_out_db": whole, "first": first}
            with (out / CURVE).open("a") as file:
                file.write(json.dumps(line) + "\n")
            _save_state(out, vae, optimiser, step, elapsed)
    finish(vae, train, out, asdict(config))


@torch.no_grad()
def finish(vae: AutoencoderKLWan, train: np.ndarray, out: Path, record: dict[str, Any]) -> None:
    """Measure the latents' mean and standard deviation on 512 training clips, and write weights and config."""
    vae.eval()
    picked = np.linspace(0, len(train) - 1, min(512, len(train))).astype(int)
    latents = torch.cat([encode(vae, to_clips(train[part])) for part in np.array_split(picked, 16)])
    mean, std = latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4))
    config = {**ARCHITECTURE, "latents_mean": mean.tolist(), "latents_std": std.tolist()}
    (out / CONFIG).write_text(json.dumps({**config, "_training": record}, indent=2) + "\n")
    with whole_file(out / WEIGHTS) as part:
        save_file({name: value.contiguous() for name, value in vae.state_dict().items()}, part)


def load_vae(folder: Path) -> AutoencoderKLWan:
    """What `train_vae` wrote."""
    config = json.loads((folder / CONFIG).read_text())
    vae = AutoencoderKLWan(**{key: value for key, value in config.items() if not key.startswith("_")})
    vae.load_state_dict(load_file(folder / WEIGHTS))
    return vae.eval()


def _save_state(out: Path, vae: AutoencoderKLWan, optimiser: MuonAdamW, step: int, elapsed: float) -> None:
    names = {id(value): name for name, value in vae.named_parameters()}
    tensors = {f"weight/{name}": value.detach().contiguous() for name, value in vae.named_parameters()}
    for parameter, fields in optimiser.state.items():
        tensors |= {f"state/{names[id(parameter)]}/{key}": value.contiguous() for key, value in fields.items()}
    tensors["progress"] = torch.tensor([step, elapsed], dtype=torch.float64)
    with whole_file(out / "state.safetensors") as part:
        save_file(tensors, part)


def _resume(out: Path, vae: AutoencoderKLWan, optimiser: MuonAdamW) -> tuple[int, float]:
    """Load the last state: (steps, seconds) done; (0, 0) when there is none."""
    if not (out / "state.safetensors").exists():
        return 0, 0.0
    tensors = load_file(out / "state.safetensors")
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            parameter.copy_(tensors[f"weight/{name}"])
            prefix = f"state/{name}/"
            optimiser.state[parameter] = {
                key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
            }
    step, elapsed = tensors["progress"].tolist()
    return int(step), elapsed
