"""The Wan video diffusion transformer with Kiwi-Edit's two structural conditions.

The released model is diffusers' `WanTransformer3DModel` with three changes, all in `forward`:

1. the embedded source latents, scaled by sigma, are added to the patch embedding (paper section 3.2: scaling
   by the timestep beats plain addition and channel concatenation);
2. the embedded reference latents join the token sequence, last or first, and leave it again at the end;
3. the instruction encoder's context enters the blocks directly: the T5 projection `text_embedder` is not used.

The forward is written inside a subclass, not as a loop over the blocks from outside, because the library's
attention backends, step caches, compilation, offload, quantisation, LoRA and context parallelism hook on there.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ModelMixin, WanTransformer3DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils import apply_lora_scale
from torch import nn

UNUSED_PREFIX = "condition_embedder.text_embedder."
"""Keys the released transformer file holds and the model never reads."""


_FP32_MODULES = frozenset(WanTransformer3DModel._keep_in_fp32_modules)


def keeps_fp32(key: str) -> bool:
    """Whether a weight of the transformer stays fp32 at every compute precision, as the library declares."""
    return not _FP32_MODULES.isdisjoint(key.split("."))


class ConditionEmbedder(ModelMixin, ConfigMixin):
    """Latents to transformer tokens: one Conv3d whose kernel and stride are the patch size.

    The released layout holds two, `source_embedder/` and `ref_embedder/`; the config of the latter says with
    `ref_pad_first` where the reference tokens go. `zero_init` records how training started it.
    """

    @register_to_config
    def __init__(
        self,
        in_dim: int = 48,
        dim: int = 3072,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        zero_init: bool = True,
        ref_pad_first: bool = False,
    ) -> None:
        super().__init__()
        patch = (patch_size[0], patch_size[1], patch_size[2])
        self.patch_embedding = nn.Conv3d(in_dim, dim, kernel_size=patch, stride=patch)
        if zero_init:
            nn.init.zeros_(self.patch_embedding.weight)
            assert self.patch_embedding.bias is not None
            nn.init.zeros_(self.patch_embedding.bias)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, C, T, h, w) normalised latents -> (B, D, T, h/2, w/2) features."""
        return self.patch_embedding(latents.to(self.patch_embedding.weight.dtype))


class KiwiTransformer3DModel(WanTransformer3DModel):
    """`WanTransformer3DModel` with source and reference conditioning; same config, same keys.

    Attributes:
        compiled: whether the blocks run as graphs (compilation.py).
        products: how the blocks multiply: 'plain', 'int8' or 'fp8' (quantize.py).
    """

    compiled = False
    products = "plain"

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As the library's, without the T5 text projection (44 MB of the released file, never used)."""
        built = super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)
        model = built[0] if return_unused_kwargs else built
        model.condition_embedder.text_embedder = None
        return built

    def embed_timestep(self, timestep: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Time embedding and its projection to the blocks' six modulation vectors.

        Args:
            timestep: (B,) 1000 * sigma. It is rounded to bfloat16 first, at every compute precision: the released
                model was trained and is run that way.
            dtype: compute precision of the result.

        Returns:
            (B, D) embedding and (B, 6, D) modulation.
        """
        embedder = self.condition_embedder
        half = self.config.freq_dim // 2
        exponents = torch.arange(half, dtype=torch.float64, device=timestep.device) / -half
        angles = timestep.to(torch.bfloat16).to(torch.float64)[:, None] * torch.pow(10000.0, exponents)
        sinusoid = torch.cat([angles.cos(), angles.sin()], dim=-1)
        weight_dtype = embedder.time_embedder.linear_1.weight.dtype
        if not weight_dtype.is_floating_point or weight_dtype.itemsize < 2:  # quantised storage
            weight_dtype = dtype
        temb = embedder.time_embedder(sinusoid.to(weight_dtype)).to(dtype)
        modulation = embedder.time_proj(embedder.act_fn(temb)).unflatten(1, (6, -1))
        return temb, modulation

    def _tokens(
        self,
        latents: torch.Tensor,
        source_embeds: torch.Tensor | None,
        reference_embeds: torch.Tensor | None,
        sigma: torch.Tensor | None,
        references_first: bool,
    ) -> torch.Tensor:
        """Tokens (B, N, D) of the noisy latents with the scaled source added, and of the references beside them."""
        dtype = latents.dtype
        embedded = self.patch_embedding(latents)
        if source_embeds is not None:
            assert sigma is not None, "source_embeds are scaled by sigma"
            scale = sigma.view(-1, 1, 1, 1, 1).to(torch.float32)
            embedded = (embedded + source_embeds * scale).to(dtype)
        tokens = embedded.flatten(2).transpose(1, 2)
        if reference_embeds is not None:
            pair = [tokens, reference_embeds.to(dtype).flatten(2).transpose(1, 2)]
            tokens = torch.cat(pair[::-1] if references_first else pair, dim=1)
        return tokens.contiguous()

    def _project(self, tokens: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """The last block's tokens (B, N, D), normalised and modulated, as patches (B, N, C * p_t * p_h * p_w)."""
        # Offloaded over several devices, the last block may sit elsewhere than the first.
        table = self.scale_shift_table.to(tokens.device)
        shift, scale = (table + temb.to(tokens.device).unsqueeze(1)).chunk(2, dim=1)
        return self.proj_out((self.norm_out(tokens.float()) * (1 + scale) + shift).to(tokens.dtype))

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        source_embeds: torch.Tensor | None = None,
        reference_embeds: torch.Tensor | None = None,
        sigma: torch.Tensor | None = None,
        references_first: bool = False,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Velocity of the latents at one sigma.

        Args:
            hidden_states: (B, C, T, h, w) noisy latents, in compute precision.
            timestep: (B,) 1000 * sigma.
            encoder_hidden_states: (B, N, D) context tokens of the instruction encoder.
            source_embeds: (B, D, T, h/2, w/2) `ConditionEmbedder` of the source latents, or None.
            reference_embeds: (B, D, R, h/2, w/2) the same of R reference pictures, or None.
            sigma: (B,) fp32, needed with `source_embeds`; not rounded.
            references_first: reference tokens before the video's (`ref_pad_first`). The rotary grid covers
                T + R frames either way and starts with whatever comes first.
            return_dict: False returns a plain tuple.
            attention_kwargs: as in the library; `scale` sets the LoRA scale.

        Returns:
            (B, C, T, h, w) velocity, in compute precision.
        """
        batch, _, frames, height, width = hidden_states.shape
        p_t, p_h, p_w = self.config.patch_size
        grid, dtype = (frames // p_t, height // p_h, width // p_w), hidden_states.dtype
        references = 0 if reference_embeds is None else reference_embeds.shape[2]

        # The rotary table depends on the shape alone: a stride-0 view covers the reference frames for free.
        shape_only = hidden_states.new_empty(1).expand(batch, 1, frames + references * p_t, height, width)
        rotary_emb = self.rope(shape_only)
        hidden_states = self._tokens(hidden_states, source_embeds, reference_embeds, sigma, references_first)

        temb, modulation = self.embed_timestep(timestep, dtype)
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            for block in self.blocks:
                hidden_states = self._gradient_checkpointing_func(
                    block, hidden_states, encoder_hidden_states, modulation, rotary_emb
                )
        else:
            for block in self.blocks:
                hidden_states = block(hidden_states, encoder_hidden_states, modulation, rotary_emb)

        hidden_states = self._project(hidden_states, temb)

        # Only after the projection: context parallelism gathers the token sequence there.
        video_tokens = grid[0] * grid[1] * grid[2]
        start = hidden_states.shape[1] - video_tokens if references_first else 0
        hidden_states = hidden_states[:, start : start + video_tokens]

        patches = hidden_states.reshape(batch, *grid, p_t, p_h, p_w, -1)
        velocity = patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)
