"""KiwiPipeline: an edit as five steps. Read this first.

    context  = encode_instruction(frames, instruction, references)   # mllm.py
    source   = encode_source(frames)                                 # vae.py
    noise    = make_noise(source.shape, seed)                        # sampling.py
    latents  = denoise(noise, context, source, references)           # sampling.py, transformer.py
    frames   = decode(latents)                                       # vae.py

Reference edits are the same call with pictures: there is no second pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline
from PIL import Image

from kiwi_cli import checkpoint, sampling
from kiwi_cli import vae as wan_vae
from kiwi_cli.caches import CacheRun, StepCache, running
from kiwi_cli.coders import Run, run
from kiwi_cli.devices import choose_device, choose_dtype
from kiwi_cli.errors import DeviceError, UsageError
from kiwi_cli.frames import check_frames, chunk_frames, to_bytes, to_host, to_pixels
from kiwi_cli.memory import Stage, Unit, parse_bytes
from kiwi_cli.mllm import KiwiInstructionEncoder
from kiwi_cli.mllm_inputs import QUERY_TOKEN, VISION_END, VISION_START, InputBuilder, MLLMInputs
from kiwi_cli.pictures import as_picture, fit_on_white
from kiwi_cli.residency import Residency, count_work
from kiwi_cli.transformer import ConditionEmbedder, KiwiTransformer3DModel
from kiwi_cli.weights import locate

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total): stages 'instruction', 'encode', 'denoise', 'decode'; counted in calls of the
language model, latent frames, steps and latent frames."""

Output = Literal["frames", "latents", "stream"]


class KiwiPipeline(DiffusionPipeline):
    """Kiwi-Edit as one object; the library's offload, LoRA, caches and quantisation work on its parts.

    Args:
        transformer, vae, mllm_encoder, source_embedder, ref_embedder: the model's parts.
        tokenizer: Qwen2.5-VL's, with its chat template.
        colour: `mean` and `std` of the vision tower's input, three values each.
        references_first: reference tokens before the video's (`ref_pad_first` of the checkpoint).
        shift: of the schedule.
    """

    model_cpu_offload_seq = "mllm_encoder->transformer->vae"

    def __init__(
        self,
        transformer: KiwiTransformer3DModel,
        vae: AutoencoderKLWan,
        mllm_encoder: KiwiInstructionEncoder,
        source_embedder: ConditionEmbedder,
        ref_embedder: ConditionEmbedder,
        tokenizer: Any,
        colour: dict[str, Any] | None = None,
        references_first: bool = False,
        shift: float = sampling.SHIFT,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            vae=vae,
            mllm_encoder=mllm_encoder,
            source_embedder=source_embedder,
            ref_embedder=ref_embedder,
            tokenizer=tokenizer,
        )
        self.register_to_config(references_first=references_first, shift=shift)
        self.residency: Residency | None = None
        self.alterations: list[str] = []
        self.cache_run: CacheRun | None = None
        self.decode_steady: Run = run
        self._approximated: list[str] = []
        self.inputs = InputBuilder(
            tokenizer,
            mllm_encoder.query_counts,
            mllm_encoder.geometry(**(colour or {})),
            mllm_encoder.bounds,
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        memory: str = "auto",
        max_memory: str | int | None = None,
    ) -> KiwiPipeline:
        """Load a checkpoint in the released layout, or a raw training checkpoint.

        Args:
            name_or_path: a variant's name ('instruct-reference'), a Hub id or a folder.
            device: 'cuda', 'cuda:1', 'cpu', 'mps'; 'auto' takes the accelerator there is, else the CPU.
            dtype: 'bfloat16', 'float16' or 'float32'; 'auto' is bfloat16 on an accelerator, float32 on the CPU.
            memory, max_memory: as in `manage`.

        Raises:
            CheckpointError: not found, broken, or of another model.
            DeviceError: a device that is not there.
        """
        folder = locate(str(name_or_path))
        place = choose_device(device)
        # On the host the weights are mapped from the files and cost nothing; `manage` puts on the device what is
        # needed there.
        pipe = cls(**vars(checkpoint.load_parts(folder, choose_dtype(dtype, place), "cpu")))
        pipe.manage(place, memory, max_memory)
        return pipe

    # -- where the parts are --------------------------------------------------------------------------------

    def manage(self, device: torch.device, memory: str = "auto", max_memory: str | int | None = None) -> None:
        """Let the pipeline decide what is on the device when, for each edit anew. The parts are on the CPU before.

        The alternatives are `to`, which places all parts for good, and the library's offload.

        Args:
            device: where work happens.
            memory: 'auto', or a level of memory.py: 'resident', 'release', 'swap', 'stream', 'tiled' (not exact).
            max_memory: bytes, or '12GB', of a device that has more.

        Raises:
            UsageError: a level or an amount that is none.
        """
        limit = parse_bytes(max_memory) if isinstance(max_memory, str) else max_memory
        self.residency = Residency(self.units, device, memory, limit)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As the library's: places all parts now, and ends what `manage` began."""
        self._unmanage()
        return super().to(*args, **kwargs)

    def enable_model_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """As the library's; ends what `manage` began."""
        self._unmanage()
        super().enable_model_cpu_offload(*args, **kwargs)

    def _unmanage(self) -> None:
        if self.residency is not None:
            for unit in tuple(self.residency.on_device):
                self.residency.evict(unit)
            self.residency = None

    @property
    def units(self) -> dict[Unit, list[torch.nn.Module]]:
        """The parts as they are moved: the VAE's halves apart, the embedders with the transformer."""
        return {
            "mllm": [self.mllm_encoder],
            "vae_encoder": [self.vae.encoder, self.vae.quant_conv],
            "transformer": [self.transformer, self.source_embedder, self.ref_embedder],
            "vae_decoder": [self.vae.decoder, self.vae.post_quant_conv],
        }

    @property
    def device(self) -> torch.device:
        """Where work happens."""
        return super().device if self.residency is None else self.residency.device

    @contextmanager
    def _stage(self, stage: Stage) -> Iterator[torch.device]:
        """The device a stage's work happens on, with its parts there."""
        if self.residency is not None:
            with self.residency.stage(stage) as device:
                yield device
            return
        if stage in ("encode", "decode"):
            # The coders are driven from outside the VAE's own calls, where the library's offload hooks do not fire.
            hook = getattr(self.vae, "_hf_hook", None)
            if hook is not None:
                hook.pre_forward(self.vae)
        yield self._execution_device

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
        tiled = self.residency is not None and not self.residency.plan.exact
        return [*self.alterations, *(["VAE in blended tiles: NOT exact"] if tiled else []), *self._approximated]

    # -- one edit -------------------------------------------------------------------------------------------

    def __call__(
        self,
        frames: np.ndarray,
        instruction: str,
        references: Sequence[Image.Image | np.ndarray] = (),
        *,
        steps: int = 50,
        seed: int = 0,
        sigma_min: float = sampling.SIGMA_MIN,
        solver: str = "euler",
        cache: StepCache | None = None,
        output: Output = "frames",
        progress: Progress | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> Any:
        """Edit a clip, or a picture (one frame).

        Args:
            frames: (F, H, W, 3) uint8 RGB; H and W multiples of 32, F any number from 1.
            instruction: what to change.
            references: pictures of any size; the first also reaches the language model.
            steps: denoising steps, at least 1.
            seed: of the noise, from 0 to 2**64 - 1.
            sigma_min: end of the unwarped schedule; 0 for the published benchmark runs.
            solver: one of `sampling.SOLVERS`; all but 'euler' are approximate.
            cache: skip steps, approximately; `cache_run` says afterwards which.
            output: 'frames' (F, H, W, 3) uint8; 'latents' (1, C, T, h, w) fp32; 'stream' an iterator over
                (f, H, W, 3) uint8 in order, decoded as it is consumed.
            progress: called after each piece of work.
            notify: called with lines for the person: the memory plan, a step down from it, what was approximate.

        Raises:
            UsageError: frames, steps, seed, instruction or references that cannot be used.
            DeviceError: the edit does not fit the device, with what would.
        """
        check_frames(frames, self.size_multiple)
        sampling.check_run(steps, seed, solver)
        if output not in ("frames", "latents", "stream"):
            raise UsageError(f"unknown output '{output}'", "use 'frames', 'latents' or 'stream'")
        pictures = [as_picture(reference) for reference in references]
        report: Progress = progress or (lambda stage, done, total: None)

        inputs = self.inputs(frames, instruction, pictures)
        if self.residency is not None:
            self.residency.choose(count_work(self, frames, len(pictures), inputs), notify)

        def work() -> torch.Tensor:
            context = self.encode_inputs(inputs)
            report("instruction", 1, 1)
            source = self.encode_source(frames, report)
            height, width = frames.shape[1:3]
            reference = self.encode_references(pictures, width, height) if pictures else None
            noise = self.make_noise(source.shape, seed)
            return self.denoise(noise, context, source, reference, steps, sigma_min, report, solver, cache)

        try:
            latents = work()
        except torch.OutOfMemoryError as error:
            self._step_down(error)
            latents = work()
        if notify is not None:
            for line in self._approximated:
                notify(line)
        if output == "latents":
            return latents
        stream = self.decode(latents, len(frames), report)
        return stream if output == "stream" else np.concatenate(list(stream))

    def _step_down(self, error: torch.OutOfMemoryError) -> None:
        """Go on with a smaller memory plan, or say that there is none."""
        if self.residency is None or not self.residency.step_down():
            raise DeviceError(
                f"out of memory on {self.device}: {str(error).splitlines()[0]}",
                "use a smaller --size, fewer --frames, or --memory stream",
            ) from error

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
        strips = self.residency.plan.encode_strips if self.residency else 1
        with self._stage("encode"):
            for latent in wan_vae.encode_stream(self.vae, (to_pixels(chunk) for chunk in chunks), strips):
                latents.append(latent)
                if progress is not None:
                    progress("encode", len(latents), len(chunks))
        return torch.cat(latents, dim=2)

    @torch.no_grad()
    def encode_references(self, references: Sequence[Image.Image], width: int, height: int) -> torch.Tensor:
        """Pictures -> latents (1, C, R, h, w) fp32, each fitted into the frame on white and encoded alone."""
        frames = [np.asarray(fit_on_white(picture, width, height))[None] for picture in references]
        return torch.cat([self.encode_source(frame) for frame in frames], dim=2)

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
            solver, cache: as in `__call__`.
        """
        dtype = self.compute_dtype
        with self._stage("denoise") as device:
            velocity = sampling.velocity_of(
                self.transformer,
                dtype,
                context.to(device, dtype),
                # Both embeddings are the same at every step.
                source_embeds=self.source_embedder(source.to(device)),
                reference_embeds=None if references is None else self.ref_embedder(references.to(device)),
                references_first=self.config.references_first,
            )
            sigmas = sampling.flow_sigmas(steps, self.config.shift, sigma_min)
            on_step = None if progress is None else lambda done, total: progress("denoise", done, total)
            with running(cache, self.transformer, velocity, sigmas) as (velocity, self.cache_run):
                latents = sampling.denoise(velocity, noise.to(device), sigmas, on_step, solver)
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
                chunks = to_host(to_bytes(pixels) for pixels in self.decode_pixels(latents))
                for done, chunk in enumerate(chunks, start=1):
                    frames = chunk[max(0, sent - position) : max(0, total - position)]
                    position += len(chunk)
                    if progress is not None:
                        progress("decode", done, latents.shape[2])
                    if len(frames):
                        sent += len(frames)
                        yield frames
            except torch.OutOfMemoryError as error:
                self._step_down(error)  # then once more from the start, past the frames that are out already

    @torch.no_grad()
    def decode_pixels(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """Latents (1, C, T, h, w) -> (1, 3, f, H, W) fp32 in [-1, 1], one latent frame at a time."""
        plan = self.residency.plan if self.residency else None
        with self._stage("decode"):
            if plan is not None and not plan.exact:
                yield wan_vae.decode_tiled(self.vae, latents)
            else:
                strips = plan.decode_strips if plan else 1
                yield from wan_vae.decode_stream(self.vae, latents, strips, self.decode_steady)
