"""Instruction encoder: instruction, source frames and reference picture -> context tokens for the transformer.

Qwen2.5-VL reads the prompt once, without generating. Learnable queries stand in it as placeholders; what the
last layer holds at their place, projected by a connector, is the context (paper section 3.1).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

from kiwi_cli.model.prompt import MLLMInputs, Mode, VisionGeometry
from kiwi_cli.model.transfer import send
from kiwi_cli.model.vision import batch_windows, look
from kiwi_cli.model.vision_sizes import PixelBounds

QWEN_RENAMES = (("visual.", "qwen.visual."), ("model.", "qwen.language_model."))
"""Key prefixes of the released Qwen shards -> ours. `lm_head` is tied and absent, and not needed."""


def rename_qwen_key(key: str) -> str:
    """Released shard key -> key of `KiwiInstructionEncoder`."""
    for released, ours in QWEN_RENAMES:
        if key.startswith(released):
            return ours + key[len(released) :]
    return key


def _connector(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width_out), nn.GELU(approximate="tanh"), nn.Linear(width_out, width_out))


class KiwiInstructionEncoder(ModelMixin, ConfigMixin):
    """Qwen2.5-VL without its language head, three sets of queries and two connectors.

    One module whose work happens in `forward`, because the library's offload hooks fire only there.

    Args:
        qwen_config: Qwen2.5-VL's own config (`processor/qwen_config.json` in the released layout).
        dit_dim: width of the context tokens.
        hidden_size: width of the language model.
        num_image_queries, num_video_queries, num_ref_queries: learnable queries for each mode.
        max_object_token: largest number of vision tokens of the reference picture.
        max_frames, max_pixels_per_frame: limits on the source frames it is shown.
        min_visual_tokens: the least number of vision tokens of a frame or picture; None (released models): the
            constants of `prompt`, 128 tokens for a frame of a video.
    """

    @register_to_config
    def __init__(
        self,
        qwen_config: dict[str, Any],
        dit_dim: int = 3072,
        hidden_size: int = 2048,
        num_image_queries: int = 256,
        num_video_queries: int = 512,
        num_ref_queries: int = 768,
        max_object_token: int = 768,
        max_frames: int = 16,
        max_pixels_per_frame: int = 262144,
        min_visual_tokens: int | None = None,
    ) -> None:
        super().__init__()
        PixelBounds(max_frames, max_pixels_per_frame, max_object_token, min_visual_tokens)  # refuses what cannot be
        config = Qwen2_5_VLConfig(**qwen_config)
        config.text_config.use_cache = False
        self.qwen = Qwen2_5_VLModel._from_config(config)
        batch_windows(self.qwen.visual)
        self.image_queries = nn.Parameter(torch.randn(num_image_queries, hidden_size) * 0.02)
        self.video_queries = nn.Parameter(torch.randn(num_video_queries, hidden_size) * 0.02)
        self.ref_queries = nn.Parameter(torch.randn(num_ref_queries, hidden_size) * 0.02)
        self.connector = _connector(hidden_size, dit_dim)
        self.ref_connector = _connector(hidden_size, dit_dim)

    @property
    def query_counts(self) -> dict[Mode, int]:
        """Number of queries for each mode."""
        return {mode: len(queries) for mode, queries in self._queries().items()}

    @property
    def bounds(self) -> PixelBounds:
        """Limits on what the language model is shown."""
        config = self.config
        return PixelBounds(
            config.max_frames, config.max_pixels_per_frame, config.max_object_token, config.min_visual_tokens
        )

    def geometry(self, **colour: Any) -> VisionGeometry:
        """Patch sizes of the vision tower; `mean` and `std` of its input may be given."""
        vision = self.qwen.config.vision_config
        return VisionGeometry(
            vision.patch_size,
            vision.temporal_patch_size,
            vision.spatial_merge_size,
            vision.tokens_per_second,
            **colour,
        )

    def _queries(self) -> dict[Mode, nn.Parameter]:
        return {"image": self.image_queries, "video": self.video_queries, "reference": self.ref_queries}

    def forward(self, inputs: MLLMInputs, query_token: int, vision_start: int, vision_end: int) -> torch.Tensor:
        """Context tokens of one prompt.

        Args:
            inputs: as `InputBuilder` makes them, moved to this module's device.
            query_token, vision_start, vision_end: token ids.

        Returns:
            (1, N, dit_dim): N queries; in reference mode the reference picture's tokens come before them.
        """
        seen = (inputs.pixel_values_videos, inputs.video_grid_thw), (inputs.pixel_values, inputs.image_grid_thw)
        features: list[torch.Tensor] = []  # in the order of their placeholders
        for pixels, grids in seen:
            if pixels is not None and grids is not None:
                features += look(self.qwen.visual, pixels, grids)
        tokens = (query_token, vision_start, vision_end)
        return self.read(inputs.mode, inputs.input_ids, inputs.position_ids, torch.cat(features), tokens)

    def read(
        self,
        mode: Mode,
        ids: torch.Tensor,
        positions: torch.Tensor,
        vision: torch.Tensor,
        tokens: tuple[int, int, int],
        attention_mask: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Context tokens of prompts of one mode whose pictures the vision tower has seen: `forward` without it.

        Args:
            ids: (B, L) int64, on the host, or its places are read back from the device. positions: (3, B, L) on the
                device. Shorter prompts are padded on the left, where `attention_mask` (B, L) is 0; their reference
                pictures have the same number of tokens.
            vision: (V, D) features of all prompts, in the order of their placeholders: a prompt's video, then its
                picture.
            tokens: ids of the query, of the start and of the end of a vision block.
            dtype: of the features between the layers; None is that of the weights.

        Returns:
            (B, N, dit_dim).
        """
        query_token, vision_start, vision_end = tokens
        embeds = self.qwen.get_input_embeddings()(send(ids, positions.device))
        embeds = embeds if dtype is None else embeds.to(dtype)
        ids = ids.cpu()  # from here on, it only says where things are
        seen = (ids == self.qwen.config.video_token_id) | (ids == self.qwen.config.image_token_id)
        embeds = self._fill(embeds, seen, vision)
        queries = self._queries()[mode]
        embeds = self._fill(embeds, ids == query_token, queries.repeat(len(ids), 1))

        # After the final norm; no cache, no language head, no hidden states of other layers kept.
        hidden = self.qwen.language_model(
            inputs_embeds=embeds, position_ids=positions, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state

        # The last N positions: the chat template ends the turn with two more tokens, so the window starts two
        # placeholders late and ends on those. The model was trained this way.
        context = self.connector(hidden[:, -len(queries) :])
        if mode == "reference":
            # Padded on the left, the picture's tokens stand at the same places of every prompt.
            start = int((ids[0] == vision_start).nonzero()[-1]) + 1
            end = int((ids[0] == vision_end).nonzero()[-1])
            context = torch.cat([self.ref_connector(hidden[:, start:end]), context], dim=1)
        return context

    @staticmethod
    def _fill(embeds: torch.Tensor, where: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, L, D) with rows (n, D) at the n places where `where` (B, L), on the host, is True."""
        places = where.flatten().nonzero()[:, 0]
        assert len(places) == len(rows), "placeholders and features differ in number"
        filled = embeds.flatten(0, 1).index_copy(0, send(places, embeds.device), rows.to(embeds.dtype))
        return filled.view_as(embeds)
