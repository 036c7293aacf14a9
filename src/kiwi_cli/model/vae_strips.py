"""Exact strips: the memory-hungry half of the video autoencoder in vertical strips, with the whole's result.

In the Wan autoencoder only the middle attention looks across the whole frame. The blocks at high resolution,
which need nearly all the memory, are convolutions: a column of their result depends on a known number of columns
around it, the halo. So those blocks run on one strip after the other, each with its halo and the frames its
convolutions saw before, and the strips are cut to what is right and joined. No blending, no seams. The library's
`enable_tiling` cuts through the attention as well and blends what differs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from copy import copy
from fractions import Fraction
from itertools import pairwise
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResample, WanResidualBlock
from torch import nn

from kiwi_cli.model.vae_layers import Frames, LayerRun, flatten, layout_for, run

HIGH_RESOLUTION_STAGES = 2
"""Stages of each half that run in strips: the two at the highest resolution."""


class StripDecoder:
    """The decoder's call for one clip: low-resolution blocks on the whole frame, the rest in strips.

    Args:
        decoder: of an `AutoencoderKLWan`.
        strips: how many; at most the columns there are. In one, nothing is cut.
        steady: runs all chunks but the first, whose shapes are their own.
    """

    def __init__(self, decoder: Any, strips: int, steady: LayerRun = run) -> None:
        blocks = [decoder.conv_in, decoder.mid_block, *decoder.up_blocks, decoder.norm_out, decoder.conv_out]
        split = 2 + max(0, len(decoder.up_blocks) - HIGH_RESOLUTION_STAGES) if strips > 1 else 0
        self.halo = math.ceil(_reach(blocks[split:]))
        self._low, self._high = (_Part(flatten(part), steady) for part in (blocks[:split], blocks[split:]))
        self._low_frames: Frames = []
        self._high_frames: list[Frames] = [[] for _ in range(strips)]

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """One latent frame (B, C, 1, h, w), after `post_quant_conv` -> (B, 3 or 12, f, H, W)."""
        return _in_strips(self._low(hidden, self._low_frames), self._high, self._high_frames, self.halo, stride=1)

    def fork(self) -> StripDecoder:
        """The same with frames of its own, on the host, that are those remembered now."""
        other = copy(self)
        other._low_frames = _copied(self._low_frames)
        other._high_frames = [_copied(frames) for frames in self._high_frames]
        return other

    def move(self, device: torch.device | str) -> None:
        """The frames that are remembered to a device."""
        _move((self._low_frames, *self._high_frames), device)


class StripEncoder:
    """The encoder's call for one clip: high-resolution blocks in strips, the rest on the whole frame.

    Args:
        encoder: of an `AutoencoderKLWan`.
        strips: how many; at most the columns there are. In one, nothing is cut.
    """

    def __init__(self, encoder: Any, strips: int) -> None:
        blocks = [encoder.conv_in, *encoder.down_blocks, encoder.mid_block, encoder.norm_out, encoder.conv_out]
        samplers = [
            index
            for index, block in enumerate(blocks)
            if any(isinstance(module, WanResample) for module in block.modules())
        ]
        split = samplers[HIGH_RESOLUTION_STAGES - 1] + 1 if strips > 1 else len(blocks)
        self.stride = 2**HIGH_RESOLUTION_STAGES if strips > 1 else 1
        self.halo = math.ceil(_reach(blocks[:split]) / self.stride) * self.stride
        self._high, self._low = (_Part(flatten(part), run) for part in (blocks[:split], blocks[split:]))
        self._high_frames: list[Frames] = [[] for _ in range(strips)]
        self._low_frames: Frames = []

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3 or 12, f, H, W) -> (B, 2 * C, 1, h, w), before `quant_conv`."""
        return self._low(_in_strips(pixels, self._high, self._high_frames, self.halo, self.stride), self._low_frames)

    def move(self, device: torch.device | str) -> None:
        """The frames that are remembered to a device."""
        _move((self._low_frames, *self._high_frames), device)


def _move(remembered: Iterable[Frames], device: torch.device | str) -> None:
    for frames in remembered:
        frames[:] = [frame.to(device) for frame in frames]


def _copied(frames: Frames) -> Frames:
    return [frame.to("cpu", copy=True) for frame in frames]


class _Part:
    """Layers, with what runs them: `run` for the first chunk, `steady` from then on."""

    def __init__(self, layers: list[nn.Module], steady: LayerRun) -> None:
        self.layers, self.steady = layers, steady

    def __call__(self, x: torch.Tensor, frames: Frames) -> torch.Tensor:
        return (self.steady if frames else run)(self.layers, x, frames)


def _in_strips(x: torch.Tensor, part: _Part, frames: list[Frames], halo: int, stride: int) -> torch.Tensor:
    """Layers on x (..., W) strip by strip. They map `stride` columns to one or more; so the cuts lie on multiples."""
    if len(frames) == 1:
        return part(x, frames[0])
    width = x.shape[-1]
    pieces = []
    for (left, right), seen in zip(_cuts(width // stride, len(frames)), frames, strict=False):
        left, right = left * stride, right * stride
        begin, end = max(0, left - halo), min(width, right + halo)
        result = part(x[..., begin:end].contiguous(memory_format=layout_for(x.device)), seen)
        scale = Fraction(result.shape[-1], end - begin)
        start, stop = (left - begin) * scale, (right - begin) * scale
        assert start.denominator == stop.denominator == 1
        pieces.append(result[..., int(start) : int(stop)].contiguous())
        del result
    return torch.cat(pieces, dim=-1)


def _cuts(columns: int, strips: int) -> Iterator[tuple[int, int]]:
    """Even ranges of columns; fewer than `strips` when there are not as many columns."""
    strips = min(strips, columns)
    edges = [columns * index // strips for index in range(strips + 1)]
    yield from pairwise(edges)


def _reach(blocks: Iterable[nn.Module]) -> Fraction:
    """How many columns of the input, to either side, a column of the output depends on.

    A residual block holds two 3x3 convolutions; a resampling one 3x3 (with stride 2 it reaches one column beyond
    the two it covers); the convolutions at either end one. Each counts in pixels of the resolution it works at.
    """
    reach, pixel = Fraction(0), Fraction(1)
    for block in blocks:
        if isinstance(block, WanCausalConv3d):
            reach += pixel
            continue
        for module in block.modules():
            if isinstance(module, WanResidualBlock):
                reach += 2 * pixel
            elif isinstance(module, WanResample) and module.mode.startswith("upsample"):
                pixel /= 2
                reach += pixel
            elif isinstance(module, WanResample):
                reach += pixel
                pixel *= 2
    return reach
