"""Exact strips: the memory-hungry half of the video autoencoder in vertical strips, with the whole's result.

In the Wan autoencoder only the middle attention looks across the whole frame. The blocks at high resolution,
which need nearly all the memory, are convolutions: a column of their result depends on a known number of columns
around it, the halo. So those blocks run on one strip after the other, each with its halo and its own causal
cache, and the strips are cut to what is right and joined. No blending, no seams. The library's `enable_tiling`
cuts through the attention as well and blends what differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResample, WanResidualBlock
from torch import nn

HIGH_RESOLUTION_STAGES = 2
"""Stages of each half that run in strips: the two at the highest resolution."""

Cache = list[Any]
"""One slot for each causal convolution, in order of execution: the last two frames it saw."""


def causal_cache(modules: Iterable[nn.Module]) -> Cache:
    """An empty cache for these modules."""
    return [None] * sum(isinstance(m, WanCausalConv3d) for module in modules for m in module.modules())


class StripDecoder:
    """The decoder's call for one clip: low-resolution blocks on the whole frame, the rest in strips.

    Args:
        decoder: of an `AutoencoderKLWan`.
        strips: how many; at most the columns there are.
    """

    def __init__(self, decoder: Any, strips: int) -> None:
        self.decoder, self.strips = decoder, strips
        split = max(0, len(decoder.up_blocks) - HIGH_RESOLUTION_STAGES)
        self.low = [decoder.conv_in, decoder.mid_block, *decoder.up_blocks[:split]]
        self.high = [*decoder.up_blocks[split:], decoder.conv_out]
        self.halo = math.ceil(_reach(self.high))
        self.low_cache = causal_cache(self.low)
        self.high_caches = [causal_cache(self.high) for _ in range(strips)]

    def __call__(self, hidden: torch.Tensor, first_chunk: bool) -> torch.Tensor:
        """One latent frame (B, C, 1, h, w), after `post_quant_conv` -> (B, 3 or 12, f, H, W)."""
        slot = [0]
        x = _causal(self.decoder.conv_in, hidden, self.low_cache, slot)
        x = self.decoder.mid_block(x, feat_cache=self.low_cache, feat_idx=slot)
        for block in self.low[2:]:
            x = block(x, feat_cache=self.low_cache, feat_idx=slot, first_chunk=first_chunk)

        def high(strip: torch.Tensor, cache: Cache) -> torch.Tensor:
            slot = [0]
            for block in self.high[:-1]:
                strip = block(strip, feat_cache=cache, feat_idx=slot, first_chunk=first_chunk)
            strip = self.decoder.nonlinearity(self.decoder.norm_out(strip))
            return _causal(self.decoder.conv_out, strip, cache, slot)

        return _in_strips(x, high, self.high_caches, self.halo, stride=1)


class StripEncoder:
    """The encoder's call for one clip: high-resolution blocks in strips, the rest on the whole frame.

    Args:
        encoder: of an `AutoencoderKLWan`.
        strips: how many; at most the columns there are.
    """

    def __init__(self, encoder: Any, strips: int) -> None:
        self.encoder = encoder
        samplers = [
            index
            for index, block in enumerate(encoder.down_blocks)
            if any(isinstance(module, WanResample) for module in block.modules())
        ]
        split = samplers[HIGH_RESOLUTION_STAGES - 1] + 1
        self.stride = 2**HIGH_RESOLUTION_STAGES
        self.high = [encoder.conv_in, *encoder.down_blocks[:split]]
        self.low = [*encoder.down_blocks[split:], encoder.mid_block, encoder.conv_out]
        self.halo = math.ceil(_reach(self.high) / self.stride) * self.stride
        self.high_caches = [causal_cache(self.high) for _ in range(strips)]
        self.low_cache = causal_cache(self.low)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3 or 12, f, H, W) -> (B, 2 * C, 1, h, w), before `quant_conv`."""

        def high(strip: torch.Tensor, cache: Cache) -> torch.Tensor:
            slot = [0]
            strip = _causal(self.encoder.conv_in, strip, cache, slot)
            for block in self.high[1:]:
                strip = block(strip, feat_cache=cache, feat_idx=slot)
            return strip

        x = _in_strips(pixels, high, self.high_caches, self.halo, self.stride)
        slot = [0]
        for block in self.low[:-1]:
            x = block(x, feat_cache=self.low_cache, feat_idx=slot)
        x = self.encoder.nonlinearity(self.encoder.norm_out(x))
        return _causal(self.encoder.conv_out, x, self.low_cache, slot)


def _in_strips(
    x: torch.Tensor,
    work: Callable[[torch.Tensor, Cache], torch.Tensor],
    caches: list[Cache],
    halo: int,
    stride: int,
) -> torch.Tensor:
    """`work` on x (..., W) strip by strip. It maps `stride` columns to one or more; so the cuts lie on multiples."""
    width = x.shape[-1]
    pieces = []
    for (left, right), cache in zip(_cuts(width // stride, len(caches)), caches, strict=False):
        left, right = left * stride, right * stride
        begin, end = max(0, left - halo), min(width, right + halo)
        result = work(x[..., begin:end].contiguous(), cache)
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


def _causal(conv: nn.Module, x: torch.Tensor, cache: Cache, slot: list[int]) -> torch.Tensor:
    """A convolution outside the library's blocks, with its cache kept as those keep theirs."""
    index = slot[0]
    seen = x[:, :, -2:].clone()
    if seen.shape[2] < 2 and cache[index] is not None:
        seen = torch.cat([cache[index][:, :, -1:], seen], dim=2)
    result = conv(x, cache[index])
    cache[index] = seen
    slot[0] += 1
    return result


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
