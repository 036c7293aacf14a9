"""The model as it is trained: cached latents and vision features in, a loss for each sample out.

The same modules and the same arithmetic as in an edit (mllm.py, transformer.py), for a batch of prompts: shorter ones
are padded on the left, because the context is what stands at the end.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint as checkpointed

from kiwi_cli.model import checkpoint
from kiwi_cli.model.mllm import KiwiInstructionEncoder
from kiwi_cli.model.prompt import QUERY_TOKEN, VISION_END, VISION_START, InputBuilder
from kiwi_cli.model.sampling import SHIFT
from kiwi_cli.model.transformer import ConditionEmbedder, KiwiTransformer3DModel
from kiwi_cli.train.batch import Batch
from kiwi_cli.train.objective import noised, velocity_loss

SHORT = 1024
"""Latent positions of a clip up to which attention on a CPU is computed as plain products, whose memory grows with
the square of the length: on two cores, a backward pass of the embedded model took 0.53 s so and 0.66 s with the fused
kernel."""


class KiwiTrainModel(nn.Module):
    """Instruction encoder, transformer and embedders; the VAE and the vision tower work before, in the cache.

    Args:
        tokenizer: with the model's special tokens.
        colour: `mean` and `std` of the vision tower's input.
        references_first: reference tokens before the video's.
        shift: of the schedule that timesteps are drawn from.

    Attributes:
        uses_source: whether source latents condition the transformer (the alignment stage has none).
    """

    def __init__(
        self,
        transformer: KiwiTransformer3DModel,
        mllm_encoder: KiwiInstructionEncoder,
        source_embedder: ConditionEmbedder,
        ref_embedder: ConditionEmbedder,
        tokenizer: Any,
        colour: dict[str, Any] | None = None,
        references_first: bool = False,
        shift: float = SHIFT,
    ) -> None:
        super().__init__()
        self.transformer, self.mllm_encoder = transformer, mllm_encoder
        self.source_embedder, self.ref_embedder = source_embedder, ref_embedder
        self.tokenizer, self.colour = tokenizer, colour or {}
        self.references_first, self.shift = references_first, shift
        self.uses_source = True
        query, start, end = (
            int(tokenizer.convert_tokens_to_ids(token)) for token in (QUERY_TOKEN, VISION_START, VISION_END)
        )
        self._tokens, self._plain_attention = (query, start, end), False

    @classmethod
    def from_folder(cls, folder: Path, dtype: torch.dtype = torch.float32) -> KiwiTrainModel:
        """The parts of a checkpoint in the released layout, on the CPU.

        Raises:
            CheckpointError: a folder that is no checkpoint, or one with broken or mismatched parts.
        """
        parts = checkpoint.load_parts(folder, dtype, "cpu")
        return cls(
            parts.transformer,
            parts.mllm_encoder,
            parts.source_embedder,
            parts.ref_embedder,
            parts.tokenizer,
            parts.colour,
            parts.references_first,
            parts.shift,
        )

    @property
    def inputs(self) -> InputBuilder:
        """Builds this model's prompts."""
        mllm = self.mllm_encoder
        return InputBuilder(self.tokenizer, mllm.query_counts, mllm.geometry(**self.colour), mllm.bounds)

    def enable_checkpointing(self) -> None:
        """Compute activations again in the backward pass instead of keeping them."""

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            # What is computed again must take the kernels it took first; `forward` is over by then.
            return nullcontext(), _attention(self._plain_attention)

        settings: dict[str, Any] = {"use_reentrant": False, "context_fn": contexts}
        self.transformer.enable_gradient_checkpointing(partial(checkpointed, **settings))
        self.mllm_encoder.qwen.language_model.gradient_checkpointing_enable(settings)

    def _compute_dtype(self, device: torch.device) -> torch.dtype:
        """Precision of the features between the layers: autocast's where it is on, else that of the weights."""
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
        return self.transformer.patch_embedding.weight.dtype

    def context(self, batch: Batch) -> torch.Tensor:
        """Context tokens (B, N, D): N queries; in reference mode the reference picture's tokens before them."""
        padded = not bool(batch.attention_mask.all())
        return self.mllm_encoder.read(
            batch.mode,
            batch.input_ids,
            batch.position_ids,
            batch.vision,
            self._tokens,
            batch.attention_mask if padded else None,
            self._compute_dtype(batch.input_ids.device),
        )

    def velocity(self, batch: Batch, latents: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Velocity (B * K, C, T, h, w) of noisy latents of the same shape."""

        def repeated(value: torch.Tensor) -> torch.Tensor:
            return value if batch.draws == 1 else value.repeat_interleave(batch.draws, dim=0)

        source = batch.source if self.uses_source else None
        dtype = self._compute_dtype(latents.device)
        return self.transformer(
            latents.to(dtype),
            batch.timestep,
            repeated(context.to(dtype)),
            source_embeds=None if source is None else repeated(self.source_embedder(source)),
            reference_embeds=None if batch.references is None else repeated(self.ref_embedder(batch.references)),
            sigma=batch.sigma,
            references_first=self.references_first,
            return_dict=False,
        )[0]

    def forward(self, batch: Batch) -> torch.Tensor:
        """(B,) fp32: each sample's weighted squared error, averaged over its draws."""
        clean = batch.target.repeat_interleave(batch.draws, dim=0)
        weight = None if batch.weight is None else batch.weight.repeat_interleave(batch.draws, dim=0)
        latents = noised(clean, batch.noise, batch.sigma)
        positions = clean.shape[2] * clean.shape[3] * clean.shape[4]
        self._plain_attention = clean.device.type == "cpu" and positions <= SHORT
        with _attention(self._plain_attention):
            velocity = self.velocity(batch, latents, self.context(batch))
        losses = velocity_loss(velocity, clean, batch.noise, batch.timestep_weight, weight)
        return losses.view(-1, batch.draws).mean(dim=1)


def _attention(plain: bool) -> AbstractContextManager[None]:
    return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()
