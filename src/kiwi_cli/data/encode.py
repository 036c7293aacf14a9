"""What is encoded once for all epochs: latents by the model's own VAE, features by the language model's vision tower.

Both are frozen in every stage, so a cache of them is exact. The language model itself is trained: its work is not
cached. Clips of one size are encoded together, never more pixels at a time than a 720p clip has.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from kiwi_cli.data.keys import digest
from kiwi_cli.data.views import SHRINK, shrink_on_white
from kiwi_cli.errors import DeviceError
from kiwi_cli.model import vae as wan_vae
from kiwi_cli.model.pixels import check_frames, chunk_frames, to_pixels
from kiwi_cli.model.prompt import InputBuilder
from kiwi_cli.model.vision import look

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

    from kiwi_cli.engine.pipeline import KiwiPipeline
    from kiwi_cli.model.mllm import KiwiInstructionEncoder

STORES = ("float32", "bfloat16")
"""Precisions a cache is kept in. The work is in fp32 for latents whichever."""

BATCH_CLIPS = 64
"""Most clips encoded together: beyond it the time for one stays the same."""
BATCH_PIXELS = 1280 * 720
"""Pixels of a frame times clips: activations stay those of one 720p clip."""

STRIPS = 4
"""The autoencoder's high-resolution half works in that many strips once the whole frame did not fit: exact, slower."""


class Encoder:
    """The frozen parts of a model.

    Args:
        vae: its encoder in fp32, on the device where it works.
        mllm: only its vision tower is used; on the device where it works.
        inputs: builds the prompt the vision tower's input is part of.
        patch: of the transformer, in latent positions: frames must be whole patches.
        store: one of `STORES`.
    """

    def __init__(
        self,
        vae: AutoencoderKLWan,
        mllm: KiwiInstructionEncoder,
        inputs: InputBuilder,
        patch: int,
        store: str = "float32",
    ) -> None:
        self.vae, self.mllm, self.inputs = vae, mllm, inputs
        self.frames_per_latent: int = vae.config.scale_factor_temporal
        self.reduction: int = vae.config.scale_factor_spatial
        self.size_multiple = self.reduction * patch
        self.store, self.strips = store, 1
        self._dtype = getattr(torch, store)
        self.settings = self._settings()

    @classmethod
    def from_pipeline(cls, pipe: KiwiPipeline, store: str = "float32") -> Encoder:
        """The parts of a pipeline, where they are now."""
        patch = pipe.transformer.config.patch_size[1]
        return cls(pipe.vae, pipe.mllm_encoder, pipe.inputs, patch, store)

    @classmethod
    def from_folder(cls, folder: Path, device: torch.device, dtype: torch.dtype, store: str = "float32") -> Encoder:
        """A checkpoint's VAE encoder and vision tower on the device; the rest of it stays on the disk.

        Args:
            dtype: of the vision tower. The VAE's encoder works in fp32.

        Raises:
            CheckpointError: as `checkpoint.load_parts`.
        """
        from kiwi_cli.model import checkpoint
        from kiwi_cli.weights import check_layout, read_json

        check_layout(folder)
        vae = checkpoint.load_vae(folder / "vae", dtype, "cpu")
        mllm = checkpoint.load_mllm(folder, dtype, "cpu")
        tokenizer, colour = checkpoint.load_processor(folder / "processor")
        vae.encoder.to(device)
        vae.quant_conv.to(device)
        mllm.qwen.visual.to(device)
        inputs = InputBuilder(tokenizer, mllm.query_counts, mllm.geometry(**colour), mllm.bounds)
        patch = read_json(folder / "transformer/config.json").get("patch_size", [1, 2, 2])[1]
        return cls(vae, mllm, inputs, patch, store)

    def _settings(self) -> dict[str, Any]:
        encoder = {"encoder": self.vae.encoder, "quant_conv": self.vae.quant_conv}
        statistics = [list(self.vae.config.latents_mean), list(self.vae.config.latents_std)]
        return {
            "vae": digest(weights_fingerprint(encoder), statistics),
            "vision": vision_digest(self.mllm, self.inputs),
            "vision_dtype": str(self.mllm.qwen.visual.dtype).removeprefix("torch."),
            "store": self.store,
        }

    # -- latents --------------------------------------------------------------------------------------------

    def batch_size(self, frames: np.ndarray) -> int:
        """How many clips of this (F, H, W, 3) are encoded together."""
        return min(BATCH_CLIPS, max(1, BATCH_PIXELS // (frames.shape[1] * frames.shape[2])))

    @torch.no_grad()
    def latents(self, clips: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Clips (F, H, W, 3) uint8 of one shape -> normalised latents (C, T, h, w) each, in the stored precision.

        What `KiwiPipeline.encode_source` computes for each; the last frame is repeated to 4k + 1.

        Raises:
            UsageError: frames that are not of a multiple of the model's size. DeviceError: out of memory.
        """
        for clip in clips:
            check_frames(clip, self.size_multiple)
        try:
            latents = self._encoded(clips)
        except torch.OutOfMemoryError as error:
            if self.strips == STRIPS:
                raise _no_room(error) from error
            self.strips = STRIPS
            return [latent for clip in clips for latent in self.latents([clip])]
        return list(latents.to(self._dtype).cpu())

    def _encoded(self, clips: Sequence[np.ndarray]) -> torch.Tensor:
        device = self.vae.encoder.conv_in.weight.device
        per_clip = zip(*(chunk_frames(clip, self.frames_per_latent) for clip in clips), strict=True)
        chunks = (torch.cat([to_pixels(frames, device) for frames in together]) for together in per_clip)
        return torch.cat(list(wan_vae.encode_stream(self.vae, chunks, self.strips)), dim=2)

    def reference_views(
        self, pictures: Sequence[Image.Image], width: int, height: int, seeds: Sequence[str], views: int
    ) -> list[torch.Tensor]:
        """References as the transformer sees them in training: (views, C, 1, h, w) each, each view of its own size.

        Args:
            width, height: of the frames, pixels.
            seeds: of each picture's draws.
        """
        canvases = []
        for picture, seed in zip(pictures, seeds, strict=True):
            draw = random.Random(seed)
            shrunk = [shrink_on_white(picture, width, height, draw.uniform(*SHRINK)) for _ in range(views)]
            canvases += [np.asarray(canvas)[None] for canvas in shrunk]
        step = self.batch_size(canvases[0])
        encoded = [latent for at in range(0, len(canvases), step) for latent in self.latents(canvases[at : at + step])]
        return list(torch.stack(encoded).unflatten(0, (len(pictures), views)))

    # -- vision features ------------------------------------------------------------------------------------

    @torch.no_grad()
    def vision(self, clips: Sequence[np.ndarray], as_video: bool) -> list[torch.Tensor]:
        """Clips (F, H, W, 3) uint8 of one shape -> features of the source in the prompt, (t, h, w, D) each.

        Args:
            as_video: as in a prompt with a reference, where a single frame is a video too; without one, a single
                frame is a picture.
        """
        blank = [Image.new("RGB", (28, 28), "white")] if as_video else []
        built = [self.inputs(clip, "-", blank) for clip in clips]
        if built[0].mode == "image":
            return self._features([(part.pixel_values, part.image_grid_thw) for part in built])
        return self._features([(part.pixel_values_videos, part.video_grid_thw) for part in built])

    @torch.no_grad()
    def reference_vision(self, pictures: Sequence[Image.Image]) -> list[torch.Tensor]:
        """Reference pictures -> features of each in the prompt, (1, h, w, D)."""
        frame = np.zeros((1, 28, 28, 3), np.uint8)
        built = [self.inputs(frame, "-", [picture]) for picture in pictures]
        return self._features([(part.pixel_values, part.image_grid_thw) for part in built])

    def _features(self, parts: Sequence[tuple[Any, Any]]) -> list[torch.Tensor]:
        device = next(self.mllm.qwen.visual.parameters()).device
        pixels = torch.cat([pixels for pixels, _ in parts]).to(device)
        grids = torch.cat([grid for _, grid in parts])
        merge = self.inputs.geometry.merge
        found = []
        try:
            per_block = look(self.mllm.qwen.visual, pixels, grids)
        except torch.OutOfMemoryError as error:
            if len(parts) == 1:
                raise _no_room(error) from error
            return [features for part in parts for features in self._features([part])]
        for features, (time, height, width) in zip(per_block, grids.tolist(), strict=True):
            shaped = features.reshape(time, height // merge, width // merge, -1)
            found.append(shaped.to(self._dtype if self.store == "bfloat16" else shaped.dtype).cpu())
        return found

    # -- masks ----------------------------------------------------------------------------------------------

    def coverage(self, mask: np.ndarray) -> torch.Tensor:
        """How much of each latent position the edit covers: (F, H, W), 0 or False where it does not, to (T, h, w).

        Mean over the pixels and frames that a latent position stands for: the first frame alone, then four at a
        time, the last repeated to fill up. fp32 in 0..1.
        """
        scale = np.float32(1.0 if mask.dtype == bool else 1.0 / 255.0)
        step = self.reduction
        found = []
        for chunk in chunk_frames(mask, self.frames_per_latent):
            frames, height, width = chunk.shape
            cells = chunk.reshape(frames, height // step, step, width // step, step)
            found.append(cells.mean((0, 2, 4), dtype=np.float32) * scale)
        return torch.from_numpy(np.stack(found))


def _no_room(error: torch.OutOfMemoryError) -> DeviceError:
    return DeviceError(f"out of memory: {str(error).splitlines()[0]}", "use a smaller --max-pixels, or --device cpu")


def vision_digest(mllm: KiwiInstructionEncoder, inputs: InputBuilder) -> str:
    """What the vision features depend on besides the pixels: the tower's weights and config, and the sizing rules."""
    config = mllm.qwen.config.vision_config.to_dict()
    kept = {key: value for key, value in config.items() if isinstance(value, (int, float, list))}
    weights = weights_fingerprint({"visual": mllm.qwen.visual})
    return digest(weights, kept, vars(inputs.geometry), vars(inputs.bounds))


def weights_fingerprint(modules: Mapping[str, torch.nn.Module]) -> str:
    """sha256 of parameters' names, shapes and values, rounded to bf16: loading in bf16 or in fp32 is the same."""
    found = hashlib.sha256()
    for prefix, module in sorted(modules.items()):
        for name, value in sorted(module.state_dict().items()):
            found.update(f"{prefix}.{name}\0{tuple(value.shape)}\0".encode())
            rounded = value.detach().to(torch.bfloat16).contiguous().cpu().reshape(-1)
            found.update(memoryview(rounded.view(torch.uint8).numpy()))
    return found.hexdigest()
