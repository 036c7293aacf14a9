"""Where a pipeline's parts are: moved by residency.py for each edit anew, or left to the library's ways.

Three ways exclude each other: `manage` (ours), `to` (all parts for good), and the library's offload. Each ends the one
before.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline

from kiwi_cli.base.processes import team_size
from kiwi_cli.engine import finite, parallel
from kiwi_cli.engine.demand import Stage
from kiwi_cli.engine.memory import Unit, parse_bytes, way_out
from kiwi_cli.engine.residency import Residency
from kiwi_cli.errors import DeviceError
from kiwi_cli.model.vae import is_hooked

Result = TypeVar("Result")


class ManagedPipeline(DiffusionPipeline):
    """A pipeline whose parts are on the device when they are needed.

    Attributes:
        residency: what decides, or None while the library does.
    """

    model_cpu_offload_seq = "mllm_encoder->source_embedder->ref_embedder->transformer->vae"

    residency: Residency | None = None
    transformer: Any
    vae: Any
    mllm_encoder: Any
    source_embedder: Any
    ref_embedder: Any
    scheduler: Any
    compute_dtype: Any

    def manage(self, device: torch.device, memory: str = "auto", max_memory: str | int | None = None) -> None:
        """Let the pipeline decide what is on the device when, for each edit anew. The parts are on the CPU before.

        The alternatives are `to`, which places all parts for good, and the library's offload.

        Args:
            device: where work happens.
            memory: 'auto', or one of memory.py's `LEVELS`; 'tiled' is not exact.
            max_memory: bytes, or '12GB', of a device that has more.

        Raises:
            UsageError: not a known memory level, or not a valid amount.
        """
        limit = parse_bytes(max_memory) if isinstance(max_memory, str) else max_memory
        self._unmanage()  # what an earlier call put on the device would be taken for the host's
        self.residency = Residency(self.units, device, memory, limit)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As the library's: places all parts now, and ends what `manage` began."""
        self._unmanage()
        return super().to(*args, **kwargs)

    def enable_model_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """As the library's; ends what `manage` began."""
        self._unmanage()
        super().enable_model_cpu_offload(*args, **kwargs)

    def enable_sequential_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """As the library's; ends what `manage` began."""
        self._unmanage()
        super().enable_sequential_cpu_offload(*args, **kwargs)

    def enable_group_offload(self, *args: Any, **kwargs: Any) -> None:
        """As the library's; ends what `manage` began."""
        self._unmanage()
        super().enable_group_offload(*args, **kwargs)

    def _unmanage(self) -> None:
        self._off_device()
        self.residency = None

    def _off_device(self) -> None:
        """Take all units off the device that `manage` put there."""
        if self.residency is not None:
            for unit in tuple(self.residency.on_device):
                self.residency.evict(unit)

    def _finite(self, work: Callable[..., torch.Tensor]) -> torch.Tensor:
        """The latents that `work` makes, by smaller and smaller placements while the device has too little memory.

        Args:
            work: called with nothing, and once more with where to report its progress if its values are not finite.

        Raises:
            KiwiError: latents that are not finite, with the module, step and precision.
        """
        try:
            latents = self._within_memory(work)
            if finite.is_finite(latents):
                return latents
        except finite.NotFiniteError:
            pass  # it may have begun before the place that was looked at
        self._off_device()
        finite.explain(self._parts, self.compute_dtype, work)

    @property
    def _parts(self) -> dict[str, torch.nn.Module]:
        names = ("mllm_encoder", "vae", "source_embedder", "ref_embedder", "transformer")
        return {name: getattr(self, name) for name in names}

    @contextmanager
    def _rebuilding(self) -> Iterator[None]:
        """Meanwhile the parts are on the host and may get other modules; then they are managed as before."""
        before = self.residency
        self._unmanage()
        try:
            yield
        finally:
            if before is not None:
                self.manage(before.device, before.level, before.limit)

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
        with self._placed(stage) as device, ExitStack() as watch:
            if device.type == "cpu":
                watch.enter_context(finite.few_keys_watched(self._parts, self.compute_dtype))
            yield device

    @contextmanager
    def _placed(self, stage: Stage) -> Iterator[torch.device]:
        if self.residency is not None:
            with self.residency.stage(stage) as device:
                yield device
            return
        if stage in ("encode", "decode") and not is_hooked(self.vae):
            # The coders are driven from outside the VAE's own calls, where the library's offload hooks do not fire.
            hook = getattr(self.vae, "_hf_hook", None)
            if hook is not None:
                hook.pre_forward(self.vae)
        yield self._execution_device

    def _within_memory(self, work: Callable[[], Result]) -> Result:
        """The work's result, by smaller and smaller placements while the device has too little memory."""
        while True:
            try:
                return work()
            except torch.OutOfMemoryError as error:
                failure = let_go(error)
            except RuntimeError as error:
                if not parallel.alone(error):
                    raise
                raise DeviceError(
                    f"another of the {team_size()} processes ended, and this one cannot go on without it",
                    "see what that one says",
                ) from error
            self._step_down(failure)  # outside the handler, where the error and what it holds are gone

    def _step_down(self, failure: str) -> None:
        """Go on with a smaller placement, or say that there is none."""
        message = f"out of memory on {self.device}: {failure}"
        residency = self.residency
        if team_size() > 1 and (residency is None or residency.at in (None, "denoise")):
            raise DeviceError(
                f"{message.rstrip('.')}; the {team_size()} processes compute a step together: none can try it again",
                "start with a smaller --memory level, or --max-memory below what is free on each GPU",
            )
        if residency is not None and residency.step_down():
            return
        escape = ", or --memory auto" if residency is None else way_out(residency.level)
        raise DeviceError(message, f"use a smaller --size or fewer --frames{escape}")


def let_go(error: torch.OutOfMemoryError) -> str:
    """What an error's message says first, after the tensors in the frames that it went through are released. torch goes
    on with counts of its allocator and its own advice."""
    traceback.clear_frames(error.__traceback__)
    return str(error).splitlines()[0].split(" GPU ")[0]
