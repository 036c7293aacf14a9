"""The pipeline's call by the library's names: `pipe(video=..., prompt=..., image=...)`, as any diffusers pipeline.

The same five steps as `KiwiPipeline.edit`, for several prompts at once, with the library's scheduler, generators,
callbacks, progress bar and kinds of output. The whole result is in memory at the end; `edit` streams it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from kiwi_cli.engine import finite
from kiwi_cli.engine.demand import demand_of
from kiwi_cli.engine.managed import ManagedPipeline
from kiwi_cli.engine.schedule import set_steps
from kiwi_cli.errors import UsageError
from kiwi_cli.model import sampling
from kiwi_cli.model.clips import OUTPUTS, as_frames, as_output, as_pictures, is_nested, stack_outputs
from kiwi_cli.model.pixels import check_frames
from kiwi_cli.model.prompt import MLLMInputs

Generators = torch.Generator | list[torch.Generator] | None
OnStepEnd = Callable[[Any, int, torch.Tensor, dict[str, Any]], dict[str, Any]]


@dataclass
class KiwiPipelineOutput(BaseOutput):
    """What a call returns.

    Attributes:
        frames: an edited clip for each prompt. 'pil': lists of pictures; 'np': (B, F, H, W, 3) from 0 to 1; 'pt':
            (B, F, 3, H, W) from 0 to 1; 'latent': (B, C, T, h, w) fp32.
    """

    frames: Any


@dataclass(frozen=True)
class Edits:
    """Several edits of one size, done at once.

    Attributes:
        clips, prompts, pictures: of each edit; the same object where they share it.
    """

    clips: list[np.ndarray]
    prompts: list[str]
    pictures: list[list[Image.Image]]

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass
class StepEnd:
    """What is called after each step, and with which tensors."""

    call: Any
    tensors: Sequence[str]

    @classmethod
    def of(cls, call: OnStepEnd | None, tensors: Sequence[str], known: Sequence[str]) -> StepEnd:
        """The library's callbacks say themselves which tensors they want.

        Raises:
            UsageError: a tensor that the pipeline does not hand out.
        """
        if isinstance(call, PipelineCallback | MultiPipelineCallbacks):
            tensors = call.tensor_inputs
        for name in tensors:
            if name not in known:
                raise UsageError(f"a callback gets no tensor '{name}'", f"use {' or '.join(known)}")
        return cls(call, tensors)


class LibraryCall(ManagedPipeline):
    """`__call__` as the library's pipelines have it."""

    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "prompt_embeds"]

    _interrupt = False
    _num_timesteps = 0
    _current_timestep: torch.Tensor | None = None
    _attention_kwargs: dict[str, Any] | None = None

    # Of KiwiPipeline.
    inputs: Any
    encode_inputs: Callable[[MLLMInputs], torch.Tensor]
    encode_source: Callable[[np.ndarray], torch.Tensor]
    encode_references: Callable[[Sequence[Image.Image], int, int], torch.Tensor]
    decode_pixels: Callable[[torch.Tensor], Iterable[torch.Tensor]]
    schedule: Callable[[], Any]
    embed_conditions: Callable[..., dict[str, Any]]
    size_multiple: Any
    _approximated: list[str]

    @property
    def interrupt(self) -> bool:
        """Whether the steps that are left are skipped; a callback sets `_interrupt`."""
        return self._interrupt

    @property
    def num_timesteps(self) -> int:
        """Steps of the last call."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> torch.Tensor | None:
        """Of the step that is computed now, for the library's caches; None between calls."""
        return self._current_timestep

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        """Of the last call."""
        return self._attention_kwargs

    @torch.no_grad()
    def __call__(
        self,
        video: Any,
        prompt: str | list[str],
        image: Any = None,
        num_inference_steps: int = 50,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        attention_kwargs: dict[str, Any] | None = None,
        sigma_min: float = sampling.SIGMA_MIN,
    ) -> KiwiPipelineOutput | tuple[Any]:
        """An edited clip for each prompt.

        Args:
            video: one clip, or a list of one for each prompt: PIL pictures, arrays or tensors as `clips.as_frames`
                takes them, uint8 or floats from 0 to 1; height and width multiples of 32.
            prompt: what to change, or a list: several edits at once, each of which needs memory.
            image: reference pictures of all edits: one, or several in a list; a list of lists has those of each.
            num_inference_steps: at least 1.
            generator: of the noise; a list has one for each prompt. None is another noise with each call.
            latents: noise (B, C, T, h, w) to start with instead.
            output_type: 'pil', 'np', 'pt' or 'latent', as `KiwiPipelineOutput` says.
            return_dict: False returns a plain tuple.
            callback_on_step_end: called with (pipeline, step, timestep, tensors) after each step, returns the tensors
                to go on with; `pipe._interrupt = True` in it skips the steps that are left.
            callback_on_step_end_tensor_inputs: which tensors it gets: 'latents', 'prompt_embeds'.
            attention_kwargs: {'scale': ...} of the LoRAs.
            sigma_min: end of the unwarped schedule; 0 for the published benchmark runs.

        Raises:
            UsageError: arguments that cannot be used.
            DeviceError: the edit does not fit the device, with what would.
            KiwiError: values that are not finite, with where they began.
        """
        edits = self._read(video, prompt, image)
        sampling.check_run(num_inference_steps, 0, "euler")
        if output_type not in OUTPUTS:
            raise UsageError(f"unknown output_type '{output_type}'", f"use {', '.join(OUTPUTS)}")
        if isinstance(generator, list) and len(generator) != len(edits):
            raise UsageError(f"{len(generator)} generators for {len(edits)} prompts", "pass one for each, or one")
        end = StepEnd.of(callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        self._interrupt, self._attention_kwargs, self._approximated = False, attention_kwargs, []

        result = self._denoised(edits, latents, generator, (num_inference_steps, sigma_min), end)
        frames = result if output_type == "latent" else self._frames(result, len(edits.clips[0]), output_type)
        self.maybe_free_model_hooks()
        return KiwiPipelineOutput(frames=frames) if return_dict else (frames,)

    def _denoised(
        self, edits: Edits, latents: torch.Tensor | None, generator: Generators, steps: tuple[int, float], end: StepEnd
    ) -> torch.Tensor:
        """Latents (B, C, T, h, w) of the edits, by smaller placements while there is too little."""
        inputs = [self.inputs(*edit) for edit in zip(edits.clips, edits.prompts, edits.pictures, strict=True)]
        if self.residency is not None:
            work = demand_of(self, edits.clips[0], len(edits.pictures[0]), inputs[0])
            count = len(edits)
            self.residency.choose(replace(work, tokens=count * work.tokens, latent_bytes=count * work.latent_bytes))
        noise: list[torch.Tensor] = []  # drawn once, also where less memory is tried

        def denoised(report: Callable[[str, int, int], None] = lambda stage, done, total: None) -> torch.Tensor:
            context = self._contexts(inputs)
            source, references = self._conditions(edits)
            if not noise:
                noise.append(self._start(latents, source.shape, generator))
            return self._walk(noise[0], context, source, references, steps, end, report)

        return self._finite(denoised)

    def _read(self, video: Any, prompt: str | list[str], image: Any) -> Edits:
        """The call's edits, in the forms the pipeline works with."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts or not all(isinstance(each, str) for each in prompts):
            raise UsageError("the prompt is not a text, or a list of texts", "say what to change")
        clips = [as_frames(each) for each in video] if is_nested(video) else [as_frames(video)]
        pictures = [as_pictures(each) for each in image] if is_nested(image) else [as_pictures(image)]
        for name, found in (("clips", clips), ("lists of images", pictures)):
            if len(found) not in (1, len(prompts)):
                raise UsageError(f"{len(found)} {name} for {len(prompts)} prompts", "pass one for each, or one for all")
        if len({clip.shape for clip in clips}) > 1:
            raise UsageError("the clips differ in size or length", "edit them one by one")
        if len({len(each) for each in pictures}) > 1:
            raise UsageError("the prompts have different numbers of images", "edit them one by one")
        check_frames(clips[0], self.size_multiple)
        count = len(prompts)
        return Edits(clips * (count // len(clips)), prompts, pictures * (count // len(pictures)))

    def _contexts(self, inputs: list[MLLMInputs]) -> torch.Tensor:
        """Context tokens of all prompts, (B, N, D)."""
        contexts = [self.encode_inputs(each) for each in inputs]
        if len({context.shape for context in contexts}) > 1:
            raise UsageError("the prompts' images differ too much in size to be edited at once", "edit them one by one")
        return torch.cat(contexts)

    def _conditions(self, edits: Edits) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Latents of the clips (B, C, T, h, w) and of their references; what edits share is encoded once."""
        height, width = edits.clips[0].shape[1:3]
        sources = {id(clip): clip for clip in edits.clips}
        found = {key: self.encode_source(clip) for key, clip in sources.items()}
        source = torch.cat([found[id(clip)] for clip in edits.clips])
        if not edits.pictures[0]:
            return source, None
        lists = {id(pictures): pictures for pictures in edits.pictures}
        seen = {key: self.encode_references(pictures, width, height) for key, pictures in lists.items()}
        return source, torch.cat([seen[id(pictures)] for pictures in edits.pictures])

    @staticmethod
    def _start(latents: torch.Tensor | None, shape: torch.Size, generator: Generators) -> torch.Tensor:
        if latents is None:
            first = generator[0] if isinstance(generator, list) else generator
            device = torch.device("cpu") if first is None else first.device
            return randn_tensor(shape, generator, device, torch.float32)
        if latents.shape != shape:
            raise UsageError(f"latents must be {tuple(shape)}, not {tuple(latents.shape)}", "leave them out")
        return latents.to(torch.float32)

    def _walk(
        self,
        noise: torch.Tensor,
        context: torch.Tensor,
        source: torch.Tensor,
        references: torch.Tensor | None,
        steps: tuple[int, float],
        end: StepEnd,
        report: Callable[[str, int, int], None],
    ) -> torch.Tensor:
        """The scheduler's steps from noise to latents, with the library's caches, callback and progress bar."""
        with self._stage("denoise") as device:
            conditions = self.embed_conditions(source.to(device), None if references is None else references.to(device))
            if self._attention_kwargs is not None:
                conditions["attention_kwargs"] = self._attention_kwargs
            context = context.to(device, self.compute_dtype)
            scheduler = self.schedule()
            sigmas = set_steps(scheduler, *steps, device=device)
            levels, count = sigmas.tolist(), len(scheduler.timesteps)
            self._num_timesteps = count
            latents = noise.to(device)
            with self.progress_bar(total=count) as bar:
                for step, timestep in enumerate(scheduler.timesteps):
                    if self.interrupt:
                        continue
                    self._current_timestep = timestep
                    velocity = sampling.velocity_of(self.transformer, self.compute_dtype, context, **conditions)
                    place = {"step_index": step, "num_inference_steps": count, "sigma": levels[step]}
                    with self.transformer.cache_context("cond", **place):
                        moved = velocity(latents, sigmas[step], step).to(torch.float32)
                    latents = scheduler.step(moved, timestep, latents, return_dict=False)[0]
                    if end.call is not None:
                        held = {"latents": latents, "prompt_embeds": context}
                        given = end.call(self, step, timestep, {name: held[name] for name in end.tensors}) or {}
                        latents, context = given.get("latents", latents), given.get("prompt_embeds", context)
                    report("denoise", step + 1, count)
                    bar.update()
            self._current_timestep = None
        return latents

    def _frames(self, latents: torch.Tensor, count: int, kind: str) -> Any:
        """Latents (B, C, T, h, w) as the library gives clips of `count` frames."""

        def decoded(one: torch.Tensor) -> torch.Tensor:
            pixels = finite.watched(self.decode_pixels(one), {"vae": self.vae}, self.compute_dtype)
            return torch.cat(list(pixels), dim=2)[:, :, :count]

        clips = [as_output(self._within_memory(lambda one=one: decoded(one)), kind) for one in latents.split(1)]  # type: ignore[misc]
        return stack_outputs(clips, kind)
