"""Many small edits at once: what `KiwiPipeline` computes for each, in batches, for models that one clip leaves idle.

The parts and their arithmetic are the pipeline's own; prompts are padded on the left as in training. Sums of another
order make the last bits differ: `against_pipeline` says by how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from kiwi_cli.engine.pipeline import KiwiPipeline
from kiwi_cli.errors import UsageError
from kiwi_cli.model import sampling
from kiwi_cli.model import vae as wan_vae
from kiwi_cli.model.pictures import fit_on_white
from kiwi_cli.model.pixels import chunk_frames, to_pixels
from kiwi_cli.model.prompt import MLLMInputs
from kiwi_cli.train.batch import Prompt, Sample, collate
from kiwi_cli.train.model import KiwiTrainModel

BATCH = 32
"""Edits, or clips, worked on together."""


@dataclass(frozen=True)
class Task:
    """One edit. `source`: number of its clip; `reference`: (h, w, 3) uint8 or None; `seed`: of its noise."""

    source: int
    instruction: str
    reference: np.ndarray | None
    seed: int


class BatchEditor:
    """Edits clips of one size with the parts of a pipeline, on the CPU.

    Args:
        pipe: in fp32.
        steps: of the sampler, Euler's as in an edit.
    """

    def __init__(self, pipe: KiwiPipeline, steps: int, batch: int = BATCH) -> None:
        self.pipe, self.steps, self.batch = pipe, steps, batch
        self.model = KiwiTrainModel(
            pipe.transformer,
            pipe.mllm_encoder,
            pipe.source_embedder,
            pipe.ref_embedder,
            pipe.tokenizer,
            references_first=pipe.config.references_first,
        ).eval()

    @torch.no_grad()
    def __call__(self, sources: Sequence[np.ndarray], tasks: Sequence[Task]) -> list[np.ndarray]:
        """Edit clips.

        Args:
            sources: (F, H, W, 3) uint8 of one shape, F at least 2; each is encoded once.

        Returns:
            (F, H, W, 3) uint8 for each task.

        Raises:
            UsageError: single frames, whose prompts are of another form.
        """
        if len(sources[0]) < 2:
            raise UsageError("pictures are not edited in batches", "give clips of 5 frames")
        latents = self.encode(sources)
        inputs = [self._inputs(sources, task) for task in tasks]
        vision = self._video_features(tasks, inputs)
        results: list[np.ndarray | None] = [None] * len(tasks)
        for with_reference in (False, True):
            chosen = [number for number, task in enumerate(tasks) if (task.reference is not None) == with_reference]
            chosen.sort(key=lambda number: inputs[number].input_ids.shape[1])  # least padding
            for start in range(0, len(chosen), self.batch):
                numbers = chosen[start : start + self.batch]
                group = [tasks[number] for number in numbers]
                source = latents[[task.source for task in group]]
                built = [inputs[number] for number in numbers]
                edited = self._edit(group, built, source, vision, sources[0].shape[1:3])
                for number, clip in zip(numbers, self.decode(edited, len(sources[0])), strict=True):
                    results[number] = clip
        return [clip for clip in results if clip is not None]

    @torch.no_grad()
    def reconstruct(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What the autoencoder makes of clips: encoded and decoded."""
        found: list[np.ndarray] = []
        for start in range(0, len(clips), self.batch):
            found += self.decode(self.encode(clips[start : start + self.batch]), len(clips[0]))
        return found

    @torch.no_grad()
    def encode(self, clips: Sequence[np.ndarray]) -> torch.Tensor:
        """Clips (F, H, W, 3) uint8 -> normalised latents (B, C, T, h, w) fp32."""
        found = []
        for start in range(0, len(clips), self.batch):
            per_clip = [chunk_frames(clip, self.pipe.frames_per_latent) for clip in clips[start : start + self.batch]]
            chunks = (torch.cat([to_pixels(frames) for frames in together]) for together in zip(*per_clip, strict=True))
            found.append(torch.cat(list(wan_vae.encode_stream(self.pipe.vae, chunks)), dim=2))
        return torch.cat(found)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, frames: int) -> list[np.ndarray]:
        """Latents (B, C, T, h, w) -> (F, H, W, 3) uint8 each, `frames` of them."""
        pixels = torch.cat(list(wan_vae.decode_stream(self.pipe.vae, latents)), dim=2)[:, :, :frames]
        values = ((pixels + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return list(values.permute(0, 2, 3, 4, 1).contiguous().numpy())

    def _inputs(self, sources: Sequence[np.ndarray], task: Task) -> MLLMInputs:
        pictures = [] if task.reference is None else [Image.fromarray(task.reference)]
        return self.pipe.inputs(sources[task.source], task.instruction, pictures)

    def _video_features(self, tasks: Sequence[Task], inputs: Sequence[MLLMInputs]) -> dict[int, torch.Tensor]:
        """Vision features (V, D) of each source, computed once."""
        first: dict[int, MLLMInputs] = {}
        for task, built in zip(tasks, inputs, strict=True):
            first.setdefault(task.source, built)
        parts = [(built.pixel_values_videos, built.video_grid_thw) for built in first.values()]
        found = self._features(self.pipe.mllm_encoder.qwen.get_video_features, parts)
        return dict(zip(first, found, strict=True))

    @staticmethod
    def _features(read: Any, parts: Sequence[tuple[Any, Any]]) -> list[torch.Tensor]:
        pixels, grids = (torch.cat([part[number] for part in parts]) for number in (0, 1))
        return list(read(pixels, grids).pooler_output)

    def _edit(
        self,
        tasks: Sequence[Task],
        inputs: Sequence[MLLMInputs],
        source: torch.Tensor,
        vision: dict[int, torch.Tensor],
        size: tuple[int, int],
    ) -> torch.Tensor:
        features = [vision[task.source] for task in tasks]
        references = None
        if inputs[0].mode == "reference":
            parts = [(built.pixel_values, built.image_grid_thw) for built in inputs]
            pictures = self._features(self.pipe.mllm_encoder.qwen.get_image_features, parts)
            features = [torch.cat(pair) for pair in zip(features, pictures, strict=True)]
            shown = [Image.fromarray(task.reference) for task in tasks if task.reference is not None]
            references = self.encode([np.asarray(fit_on_white(picture, size[1], size[0]))[None] for picture in shown])
        samples = [
            Sample(Prompt(built.mode, built.input_ids[0], built.position_ids[:, 0], seen), target=latent)
            for built, seen, latent in zip(inputs, features, source, strict=True)
        ]
        velocity = sampling.velocity_of(
            self.pipe.transformer,
            self.pipe.compute_dtype,
            self.model.context(collate(samples, range(len(samples)), seed=0)),
            source_embeds=self.pipe.source_embedder(source),
            reference_embeds=None if references is None else self.pipe.ref_embedder(references),
            references_first=self.pipe.config.references_first,
        )
        noise = torch.cat([sampling.make_noise((1, *source.shape[1:]), task.seed) for task in tasks])
        return sampling.denoise(velocity, noise, sampling.flow_sigmas(self.steps, self.pipe.config.shift))

    def against_pipeline(self, sources: Sequence[np.ndarray], tasks: Sequence[Task]) -> int:
        """The largest difference of a pixel's channel, of 255, to the pipeline's own edits, one by one."""
        worst = 0
        for task, edited in zip(tasks, self(sources, tasks), strict=True):
            pictures = [] if task.reference is None else [task.reference]
            alone = self.pipe.edit(sources[task.source], task.instruction, pictures, steps=self.steps, seed=task.seed)
            worst = max(worst, int(np.abs(edited.astype(np.int16) - alone.astype(np.int16)).max()))
        return worst
