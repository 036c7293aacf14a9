"""Qwen's vision tower, asked in few calls and without waiting for the device.

The library cuts attention into one call for each window of each layer (144 windows and 28 layers for a clip of
1280x704), and reads the windows' lengths, the grids and the indices back from the device to do so. Here windows of one
length are one call, and all that is counted is counted on the host. Weights, layers and forward are the library's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from kiwi_cli.model.transfer import send

BATCHED = "kiwi_batched_sdpa"
"""Name of `attend_in_batches` among the library's attention implementations."""


@dataclass(frozen=True)
class Places:
    """Where the patches of pictures or clips lie, counted on the host, as a tower is told.

    Attributes:
        tokens: of each picture or clip. grids, windows, segments: on the host. positions, index: on the device.
    """

    tokens: list[int]
    grids: torch.Tensor
    windows: torch.Tensor
    segments: torch.Tensor
    positions: torch.Tensor
    index: torch.Tensor

    @classmethod
    def of(cls, tower: Any, grids: torch.Tensor, device: torch.device) -> Places:
        """The places of pictures or clips whose (time, height, width) in patches are `grids`, (n, 3) int64."""
        merge = tower.spatial_merge_size
        index, windows = get_vision_window_index(grids, merge, tower.window_size, tower.patch_size)
        return cls(
            (grids.prod(dim=1) // merge**2).tolist(),
            grids,
            windows,
            get_vision_cu_seqlens(grids),
            send(get_vision_position_ids(grids, merge), device),
            send(index, device),
        )


def look(tower: Any, pixels: torch.Tensor, grids: torch.Tensor) -> list[torch.Tensor]:
    """Features of pictures or clips, (tokens, D) each.

    Args:
        tower, pixels: as `look_at` takes them.
        grids: (n, 3) int64 of (time, height, width) patches, on the host.
    """
    places = Places.of(tower, grids, pixels.device)
    return list(look_at(tower, pixels, places).split(places.tokens))


def look_at(tower: Any, pixels: torch.Tensor, places: Places) -> torch.Tensor:
    """Features (tokens of all, D) of pictures or clips.

    Args:
        tower: a `Qwen2_5_VisionTransformerPretrainedModel`, as `batch_windows` leaves it.
        pixels: (patches of all, 3 * 2 * 14 * 14) on the device.
        places: of the patches.
    """
    return tower(
        pixels,
        grid_thw=places.grids,
        position_ids=places.positions,
        window_index=places.index,
        cu_window_seqlens=places.windows,
        cu_seqlens=places.segments,
    ).pooler_output


def batch_windows(tower: Any) -> None:
    """Let a tower's attention take segments of one length in one call. Its result stays what it was."""
    AttentionInterface.register(BATCHED, attend_in_batches)
    tower.set_attn_implementation(BATCHED)
    for block in tower.blocks:
        block.attn.register_forward_pre_hook(_keep_whole, with_kwargs=True)


def attend_in_batches(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    segments: torch.Tensor,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each segment of a sequence, (1, heads, S, head_dim) -> (1, S, heads, head_dim).

    Args:
        segments: (n + 1,) where each begins, and the end; on the host.
    """
    lengths = (segments[1:] - segments[:-1]).tolist()
    count = len(lengths)
    if len(set(lengths)) == 1:  # nothing is copied
        batches = [tensor[0].unflatten(1, (count, -1)).transpose(0, 1) for tensor in (query, key, value)]
        found, _ = sdpa_attention_forward(module, *batches, attention_mask, **options)
        return found.flatten(0, 1)[None], None
    pieces = [tensor[0].split(lengths, dim=1) for tensor in (query, key, value)]
    results: list[Any] = [None] * count
    for length in dict.fromkeys(lengths):
        alike = [number for number in range(count) if lengths[number] == length]
        batches = [torch.stack([piece[number] for number in alike]) for piece in pieces]
        found, _ = sdpa_attention_forward(module, *batches, attention_mask, **options)
        for number, result in zip(alike, found, strict=True):
            results[number] = result
    return torch.cat(results)[None], None


def _keep_whole(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Before a layer's attention: the library is told of one segment, `attend_in_batches` of those there are."""
    if module.config._attn_implementation != BATCHED:
        return None
    segments = kwargs["cu_seqlens"]
    return args, {**kwargs, "cu_seqlens": segments[:: len(segments) - 1], "segments": segments}
