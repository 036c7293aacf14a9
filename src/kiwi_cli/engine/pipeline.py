"""KiwiPipeline: an edit as five steps. Read this first.

    context  = encode_instruction(frames, instruction, references)   # mllm.py
    source   = encode_source(frames)                                 # vae.py
    noise    = make_noise(source.shape, seed)                        # sampling.py
    latents  = denoise(noise, context, source, references)           # sampling.py, transformer.py
    frames   = decode(latents)                                       # vae.py

Reference edits are the same call with pictures: there is no second pipeline. `edit` is the whole, as a stream.

What a diffusers pipeline has to have lies beside this file: library_call.py (`pipe(video=..., prompt=...)`), opening.py
(`from_pretrained`, `save_pretrained`), adapters.py (LoRA), schedule.py (the scheduler), managed.py (what is on the
device when).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from PIL import Image

from kiwi_cli.engine import finite
from kiwi_cli.engine.adapters import Adapters
from kiwi_cli.engine.demand import demand_of
from kiwi_cli.engine.library_call import LibraryCall
from kiwi_cli.engine.managed import let_go
from kiwi_cli.engine.noise import NoisePart
from kiwi_cli.engine.opening import Opening
from kiwi_cli.engine.schedule import check_schedule, set_steps
from kiwi_cli.engine.step_cache import CacheRun, StepCache, running
from kiwi_cli.errors import UsageError
from kiwi_cli.model import sampling
from kiwi_cli.model import vae as wan_vae
from kiwi_cli.model.mllm import KiwiInstructionEncoder
from kiwi_cli.model.pictures import as_picture, fit_on_white
from kiwi_cli.model.pixels import check_frames, chunk_frames, to_bytes, to_host, to_pixels
from kiwi_cli.model.prompt import QUERY_TOKEN, VISION_END, VISION_START, InputBuilder, MLLMInputs
from kiwi_cli.model.transfer import send
from kiwi_cli.model.transformer import ConditionEmbedder, KiwiTransformer3DModel
from kiwi_cli.model.vae_layers import LayerRun, run

if TYPE_CHECKING:
    from typing_extensions import Unpack

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total): stages 'instruction', 'encode', 'denoise', 'decode'; counted in calls of the
language model, latent frames, steps and latent frames."""

Output = Literal["frames", "latents", "pair", "stream"]


Pictures = Sequence[Image.Image | np.ndarray]


class EditOptions(TypedDict, total=False):
    """What `KiwiPipeline.edit` takes by name, whatever its output."""

    steps: int
    seed: int
    noise: NoisePart | None
    sigma_min: float
    solver: str
    cache: StepCache | None
    progress: Progress | None
    notify: Callable[[str], None] | None


class KiwiPipeline(LibraryCall, Opening, Adapters):
    """Kiwi-Edit as one object; the library's offload, LoRA, caches and quantisation work on its parts.

    Args:
        transformer, vae, mllm_encoder, source_embedder, ref_embedder: the model's parts.
        tokenizer: Qwen2.5-VL's, with its chat template.
        scheduler: the schedule's shift, and what else the library's Euler scheduler has.
        colour: `mean` and `std` of the vision tower's input, three values each.
        references_first: reference tokens before the video's (`ref_pad_first` of the checkpoint).
        shift: of the schedule, instead of the scheduler's own.
    """

    def __init__(
        self,
        transformer: KiwiTransformer3DModel,
        vae: AutoencoderKLWan,
        mllm_encoder: KiwiInstructionEncoder,
        source_embedder: ConditionEmbedder,
        ref_embedder: ConditionEmbedder,
        tokenizer: Any,
        scheduler: FlowMatchEulerDiscreteScheduler,
        colour: dict[str, Any] | None = None,
        references_first: bool = False,
        shift: float | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            vae=vae,
            mllm_encoder=mllm_encoder,
            source_embedder=source_embedder,
            ref_embedder=ref_embedder,
            tokenizer=tokenizer,
            scheduler=scheduler,
        )
        colour = {name: list(values) for name, values in (colour or {}).items()}
        self.register_to_config(references_first=references_first, colour=colour)
        if shift is not None:
            self.register_to_config(shift=shift)
        self.alterations: list[str] = []
        self.cache_run: CacheRun | None = None
        self.decode_steady: LayerRun = run
        self._approximated: list[str] = []
        self.inputs = InputBuilder(
            tokenizer,
            mllm_encoder.query_counts,
            mllm_encoder.geometry(**{name: tuple(values) for name, values in colour.items()}),
            mllm_encoder.bounds,
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "scheduler":
            check_schedule(value)
        super().__setattr__(name, value)
        if name == "scheduler":
            self.register_to_config(shift=value.config.shift)

    def schedule(self) -> FlowMatchEulerDiscreteScheduler:
        """The scheduler in force: the registered one, with the config's shift where that was changed."""
        if self.config.shift == self.scheduler.config.shift:
            return self.scheduler
        return type(self.scheduler).from_config(self.scheduler.config, shift=self.config.shift)

    # -- shapes ---------------------------------------------------------------------------------------------

    @property
    def size_multiple(self) -> int:
        """What H and W must be multiples of: the VAE's reduction times the transformer's patch (32)."""
        return self.vae.config.scale_factor_spatial * self.transformer.config.patch_size[1]

    @property
    def frames_per_latent(self) -> int:
        """Frames a latent frame covers, after the first (4)."""
        return self.vae.config.scale_factor_temporal

    @property
    def compute_dtype(self) -> torch.dtype:
        """Precision of the transformer's work."""
        return self.transformer.patch_embedding.weight.dtype

    @property
    def approximations(self) -> list[str]:
        """Why the last edit is not the released model's exact result, a line for each reason; empty if it is.

        `alterations` hold what was changed for good (quantised weights); the rest is of the last `denoise`.
        """
        tiled = self.residency is not None and not self.residency.placement.level.exact
        return [*self.alterations, *(["VAE in blended tiles: NOT exact"] if tiled else []), *self._approximated]

    # -- one edit -------------------------------------------------------------------------------------------

    @overload
    def edit(
        self, frames: np.ndarray, instruction: str, references: Pictures = ..., **options: Unpack[EditOptions]
    ) -> np.ndarray: ...
    @overload
    def edit(
        self,
        frames: np.ndarray,
        instruction: str,
        references: Pictures = ...,
        *,
        output: Literal["frames"],
        **options: Unpack[EditOptions],
    ) -> np.ndarray: ...
    @overload
    def edit(
        self,
        frames: np.ndarray,
        instruction: str,
        references: Pictures = ...,
        *,
        output: Literal["latents"],
        **options: Unpack[EditOptions],
    ) -> torch.Tensor: ...
    @overload
    def edit(
        self,
        frames: np.ndarray,
        instruction: str,
        references: Pictures = ...,
        *,
        output: Literal["pair"],
        **options: Unpack[EditOptions],
    ) -> tuple[torch.Tensor, torch.Tensor]: ...
    @overload
    def edit(
        self,
        frames: np.ndarray,
        instruction: str,
        references: Pictures = ...,
        *,
        output: Literal["stream"],
        **options: Unpack[EditOptions],
    ) -> Iterator[np.ndarray]: ...
    def edit(
        self,
        frames: np.ndarray,
        instruction: str,
        references: Pictures = (),
        *,
        steps: int = 50,
        seed: int = 0,
        noise: NoisePart | None = None,
        sigma_min: float = sampling.SIGMA_MIN,
        solver: str = "euler",
        cache: StepCache | None = None,
        output: Output = "frames",
        progress: Progress | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> np.ndarray | torch.Tensor | tuple[torch.Tensor, torch.Tensor] | Iterator[np.ndarray]:
        """The edited clip, or picture (one frame).

        Args:
            frames: (F, H, W, 3) uint8 RGB; H and W multiples of 32, F any number from 1.
            instruction: what to change. references: pictures of any size; the first also reaches the language model.
            steps: denoising steps, at least 1.
            seed: of the noise, from 0 to 2**64 - 1. noise: of which longer edit these frames are a moment.
            sigma_min: end of the unwarped schedule; 0 for the published benchmark runs.
            solver: one of `sampling.SOLVERS`; all but 'euler' are approximate.
            cache: skip steps, approximately; `cache_run` says afterwards which.
            output: 'frames' (F, H, W, 3) uint8; 'latents' (1, C, T, h, w) fp32; 'pair' those and the source's; 'stream'
                of frames as they are decoded.
            progress: called after each piece of work. notify: called with lines for the person.

        Raises:
            KiwiError: arguments that cannot be used; no room on the device; values that are not finite.
        """
        check_frames(frames, self.size_multiple)
        sampling.check_run(steps, seed, solver)
        _check_output(output)
        pictures = [as_picture(reference) for reference in references]
        report: Progress = progress or (lambda stage, done, total: None)
        say = notify or (lambda line: None)
        inputs = self.inputs(frames, instruction, pictures)
        if self.residency is not None:
            self.residency.choose(demand_of(self, frames, len(pictures), inputs), say)
        source = torch.empty(0)

        def work(report: Progress = report) -> torch.Tensor:
            nonlocal source
            context = self.encode_inputs(inputs)
            report("instruction", 1, 1)
            source = self.encode_source(frames, report)
            reference = self.encode_references(pictures, *frames.shape[2:0:-1]) if pictures else None
            start = (noise or self.make_noise)(source.shape, seed)
            return self.denoise(start, context, source, reference, steps, sigma_min, report, solver, cache)

        latents = self._finite(work)
        for line in self._approximated:
            say(line)
        if output in ("latents", "pair"):
            return latents if output == "latents" else (latents, source)
        stream = self.decode(latents, len(frames), report)
        return stream if output == "stream" else np.concatenate(list(stream))

    @torch.no_grad()
    def encode_instruction(
        self, frames: np.ndarray, instruction: str, references: Sequence[Image.Image] = ()
    ) -> torch.Tensor:
        """Frames (F, H, W, 3) uint8, text and pictures -> context tokens (1, N, D) in compute precision."""
        return self.encode_inputs(self.inputs(frames, instruction, references))

    @torch.no_grad()
    def encode_inputs(self, inputs: MLLMInputs) -> torch.Tensor:
        """A prompt that is built already -> context tokens (1, N, D)."""
        ids = [self.inputs.token_id(token) for token in (QUERY_TOKEN, VISION_START, VISION_END)]
        with self._stage("instruction") as device:
            return self.mllm_encoder(inputs.to(device), *ids)

    @torch.no_grad()
    def encode_source(self, frames: np.ndarray, progress: Progress | None = None) -> torch.Tensor:
        """Frames (F, H, W, 3) uint8 -> normalised latents (1, C, T, h, w) fp32, T = 1 + ceil((F - 1) / 4).

        The last frame is repeated until the count is 4k + 1.
        """
        chunks = list(chunk_frames(frames, self.frames_per_latent))
        latents = []
        strips = self.residency.placement.encode_strips if self.residency else 1
        with self._stage("encode") as device:
            for latent in wan_vae.encode_stream(self.vae, (to_pixels(chunk, device) for chunk in chunks), strips):
                latents.append(latent)
                if progress is not None:
                    progress("encode", len(latents), len(chunks))
        return torch.cat(latents, dim=2)

    @torch.no_grad()
    def encode_references(self, references: Sequence[Image.Image], width: int, height: int) -> torch.Tensor:
        """Pictures -> latents (1, C, R, h, w) fp32, each fitted into the frame on white and encoded alone."""
        frames = [np.asarray(fit_on_white(picture, width, height))[None] for picture in references]
        return torch.cat([self.encode_source(frame) for frame in frames], dim=2)

    def embed_conditions(self, source: torch.Tensor, references: torch.Tensor | None) -> dict[str, Any]:
        """What the transformer is told beside the context, the same at every step. All on the device of the work."""
        return {
            "source_embeds": self.source_embedder(source),
            "reference_embeds": None if references is None else self.ref_embedder(references),
            "references_first": self.config.references_first,
        }

    @staticmethod
    def make_noise(shape: Sequence[int], seed: int) -> torch.Tensor:
        """fp32 on the CPU, of the source latents' shape."""
        return sampling.make_noise(tuple(shape), seed)

    @torch.no_grad()
    def denoise(
        self,
        noise: torch.Tensor,
        context: torch.Tensor,
        source: torch.Tensor,
        references: torch.Tensor | None = None,
        steps: int = 50,
        sigma_min: float = sampling.SIGMA_MIN,
        progress: Progress | None = None,
        solver: str = "euler",
        cache: StepCache | None = None,
    ) -> torch.Tensor:
        """Noise (1, C, T, h, w) -> latents of the same shape, fp32 on the device.

        Args:
            noise, source: fp32 latents of the video; references: (1, C, R, h, w) or None.
            context: (1, N, D) tokens.
            solver, cache: as in `edit`.
        """
        dtype = self.compute_dtype
        with self._stage("denoise") as device:
            conditions = self.embed_conditions(source.to(device), None if references is None else references.to(device))
            velocity = sampling.velocity_of(self.transformer, dtype, context.to(device, dtype), **conditions)
            sigmas = set_steps(self.schedule(), steps, sigma_min)
            on_step = None if progress is None else lambda done, total: progress("denoise", done, total)
            with running(cache, self.transformer, velocity, sigmas) as (velocity, self.cache_run):
                latents = sampling.denoise(velocity, send(noise, device), sigmas, on_step, solver)
        lines = (sampling.APPROXIMATE_SOLVERS.get(solver, ""), self.cache_run.describe())
        self._approximated = [line for line in lines if line]
        return latents

    def decode(
        self, latents: torch.Tensor, frame_count: int | None = None, progress: Progress | None = None
    ) -> Iterator[np.ndarray]:
        """Latents (1, C, T, h, w) -> (f, H, W, 3) uint8 RGB as they are decoded, `frame_count` frames in all."""
        total = 1 + (latents.shape[2] - 1) * self.frames_per_latent
        total = total if frame_count is None else min(total, frame_count)
        sent = 0
        while sent < total:
            position = 0
            try:
                pixels = finite.watched(self.decode_pixels(latents), {"vae": self.vae}, self.compute_dtype)
                chunks = to_host(to_bytes(chunk) for chunk in pixels)
                for done, chunk in enumerate(chunks, start=1):
                    frames = chunk[max(0, sent - position) : max(0, total - position)]
                    position += len(chunk)
                    if progress is not None:
                        progress("decode", done, latents.shape[2])
                    if len(frames):
                        sent += len(frames)
                        yield frames
                return
            except torch.OutOfMemoryError as error:
                failure = let_go(error)
            self._step_down(failure)  # then once more from the start, past the frames that are out already

    @torch.no_grad()
    def decode_pixels(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """Latents (1, C, T, h, w) -> (1, 3, f, H, W) fp32 in [-1, 1], one latent frame at a time."""
        placement = self.residency.placement if self.residency else None
        with self._stage("decode") as device:
            if placement is not None and not placement.level.exact:
                yield wan_vae.decode_tiled(self.vae, latents.to(device))
            else:
                if wan_vae.is_hooked(self.vae):  # decoded whole
                    latents = latents.to(device)
                strips = placement.decode_strips if placement else 1
                yield from wan_vae.decode_stream(self.vae, latents, strips, self.decode_steady)


def _check_output(output: str) -> None:
    if output not in ("frames", "latents", "pair", "stream"):
        raise UsageError(f"unknown output '{output}'", "use 'frames', 'latents', 'pair' or 'stream'")
