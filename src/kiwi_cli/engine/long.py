"""An edit of a whole clip: its shots in windows that are denoised together. The pipeline's five steps, streamed.

    read      frames -> source latents and contexts     one pass; the device sees a latent frame, a prompt at a time
    denoise   noise -> latents                          joint.py; the device sees one window (window_model.py)
    decode    latents -> frames                         long_decode.py; each shot once, as the frames are taken

What grows with the clip is on the host: the tables of workspace.py, and a context for each shot or window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from PIL import Image

from kiwi_cli.engine.contexts import ContextReader, context_groups, given_frames, place
from kiwi_cli.engine.joint import JointDenoising, fill_noise
from kiwi_cli.engine.layout import STATES, STRIDE, Layout
from kiwi_cli.engine.made import Frames, Made
from kiwi_cli.engine.managed import let_go
from kiwi_cli.engine.pipeline import KiwiPipeline, Progress
from kiwi_cli.engine.schedule import set_steps
from kiwi_cli.engine.step_cache import StepCache
from kiwi_cli.engine.window_model import WindowModel
from kiwi_cli.engine.workspace import Tables, Workspace
from kiwi_cli.errors import KiwiError, UsageError
from kiwi_cli.model import sampling
from kiwi_cli.model.pixels import check_frames, to_pixels
from kiwi_cli.model.vae import Encoder, is_hooked
from kiwi_cli.video import Size

FramesFrom = Callable[[int], Frames]
"""A frame's number -> the clip's frames from there on, (H, W, 3) uint8 one at a time."""


@dataclass(frozen=True)
class LongSettings:
    """How a clip is edited; as the arguments of `KiwiPipeline.edit`.

    Attributes:
        window_contexts: each window has a context of its own; otherwise a shot's windows share one.
    """

    instruction: str
    pictures: tuple[Image.Image, ...] = ()
    steps: int = 50
    seed: int = 0
    sigma_min: float = sampling.SIGMA_MIN
    solver: str = "euler"
    cache: StepCache | None = None
    window_contexts: bool = False


class LongEdit:
    """One clip on its way through a pipeline.

    Args:
        frames_from: where the clip's frames come from; called once, and again where the device had too little memory.
        size: of a frame. layout: the clip's windows. workspace: where tables and states are kept.
        progress, notify: as of `KiwiPipeline.edit`.

    Raises:
        UsageError: a step cache or a way to use the device that does not go together with windows.
    """

    def __init__(
        self,
        pipe: KiwiPipeline,
        frames_from: FramesFrom,
        size: Size,
        layout: Layout,
        settings: LongSettings,
        workspace: Workspace,
        progress: Progress | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        self.pipe, self.frames_from, self.size, self.layout = pipe, frames_from, size, layout
        self.settings, self.workspace = settings, workspace
        self.report: Progress = workspace.watched(progress or (lambda stage, done, total: None))
        self.say = notify or (lambda line: None)
        self.contexts: list[torch.Tensor] = []
        self.references: torch.Tensor | None = None
        check_settings(pipe, settings, size)
        scale = pipe.vae.config.scale_factor_spatial
        shape = (pipe.vae.config.z_dim, size.height // scale, size.width // scale)
        table = (layout.rows, STATES[settings.solver], shape)
        self.sigmas = set_steps(pipe.schedule(), settings.steps, settings.sigma_min).cpu()
        saved = workspace.load(*table)
        self.tables: Tables = workspace.tables(*table)
        self.run = JointDenoising(layout, self.tables.states, self.sigmas, settings.solver)
        self._groups = context_groups(layout, settings.window_contexts)
        place(pipe, size, layout, self._groups, settings.instruction, settings.pictures, self.say)
        if saved is not None:
            self.run.step, self.run.window, self.run.pending = saved.step, saved.window, saved.pending
            self.contexts = [saved.fixed[f"context {number}"] for number in range(len(self._groups))]
            self.references = saved.fixed.get("references")
        self.resumed = saved is not None
        self.model: WindowModel | None = None  # once all that it is told is known

    # -- read ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def read(self) -> None:
        """Source latents of all rows, contexts and references; nothing where an earlier run has left them."""
        if self.resumed:
            return
        pictures = list(self.settings.pictures)
        if pictures:
            encoded = self.pipe._within_memory(lambda: self.pipe.encode_references(pictures, *self.size))
            self.references = encoded.cpu()
        with ExitStack() as stack:
            stream, done = stack.enter_context(closing(self.frames_from(0))), 0
            for number, shot in enumerate(self.layout.shots):
                while True:
                    try:
                        _Reader(self, number).read(stream)
                        break
                    except torch.OutOfMemoryError as error:
                        failure = let_go(error)
                    self.pipe._step_down(failure)  # outside the handler, where the error and what it holds are gone
                    stream = stack.enter_context(closing(self.frames_from(done)))  # the shot once more
                done += shot.frames
        fill_noise(self.tables.states[0], self.layout, self.settings.seed, self.workspace.let_go)
        fixed = {f"context {number}": context for number, context in enumerate(self.contexts)}
        self.workspace.keep(fixed if self.references is None else {**fixed, "references": self.references})

    # -- denoise ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def denoise(self) -> None:
        """Noise to latents, by way of all steps that are left."""

        self.model = model = WindowModel(
            self.pipe,
            self.layout,
            self.sigmas,
            self.tables.source,
            dict(enumerate(self.contexts)),
            self.references,
            self.settings.window_contexts,
            self.settings.cache,
        )

        def work() -> torch.Tensor:
            with self.pipe._stage("denoise") as device:
                return self.run.run(lambda *where: model.velocity(device, *where), self._after)

        self.pipe._within_memory(work)  # called again, it goes on with the window that had too little
        self.workspace.done = self.run
        if self.workspace.has_state and self.workspace.every and self.workspace.rank == 0:
            with suppress(KiwiError):  # no room: the state before stays, and the frames may have some
                self.workspace.save(self.run)

    def _after(self) -> None:
        self.report("denoise", self.run.done, self.run.total)
        if not (self.model and self.model.caches) and self.workspace.due(self.run):
            self.workspace.save(self.run)

    @property
    def approximations(self) -> tuple[str, ...]:
        """Why the result is not the model's exact one, after `denoise`."""
        return approximations(self.pipe, self.settings, self.model, self.run.total)

    @property
    def made(self) -> Made:
        """What the frames are decoded from, after `denoise`."""
        return Made(self.layout, self.settings.seed, self.run.latents, self.tables.source)


def check_settings(pipe: KiwiPipeline, settings: LongSettings, size: Size) -> None:
    """Refuse what does not go together with windows, or with each other.

    Raises:
        UsageError: the first such thing.
    """
    sampling.check_run(settings.steps, settings.seed, settings.solver)
    check_frames(np.empty((1, size.height, size.width, 3), np.uint8), pipe.size_multiple)
    if is_hooked(pipe.vae):
        raise UsageError("the library's offload hooks do not go together with windows", "use `manage` instead")
    cache = settings.cache
    if cache is not None and (cache.kind != "easy" or cache.calibrate):
        raise UsageError(
            f"step cache '{cache.kind}' keeps its state in the transformer's blocks, of one window alone",
            "use --cache easy, or --windows independent",
        )


def approximations(
    pipe: KiwiPipeline, settings: LongSettings, model: WindowModel | None, total: int
) -> tuple[str, ...]:
    """Why what a model made in windows is not its exact result. `total`: steps of windows."""
    lines = [*pipe.alterations, sampling.APPROXIMATE_SOLVERS.get(settings.solver, "")]
    if settings.cache is not None:
        skipped = sum(len(cache.run.skipped) for cache in (model.caches.values() if model is not None else ()))
        lines.append(
            f"step cache {settings.cache.kind} at threshold {settings.cache.threshold:g}: NOT exact, "
            f"skipped {skipped} of {total} steps of windows"
        )
    return tuple(line for line in lines if line)


class _Reader:
    """One shot's frames on their way into tables and contexts; one that is read again after an error begins anew."""

    def __init__(self, edit: LongEdit, number: int) -> None:
        self.edit, self.shot, settings = edit, edit.layout.shots[number], edit.settings
        self.contexts = ContextReader(edit.pipe, edit._groups, number, settings.instruction, settings.pictures)

    def read(self, stream: Iterator[np.ndarray]) -> None:
        """All of the shot, whose frames come next in the stream."""
        edit, pipe, shot = self.edit, self.edit.pipe, self.shot
        strips = pipe.residency.placement.encode_strips if pipe.residency else 1
        encoder, restarts = Encoder(pipe.vae, strips), len(shot.segments) > 1
        anchors, done = dict(zip(shot.anchors, range(shot.start + shot.latents, shot.end), strict=True)), shot.start
        frames, chunk = given_frames(shot, stream, self.contexts), list[np.ndarray]()
        for row in range(shot.latents):
            anchor = anchors.get(STRIDE * (row - 1))
            if anchor is not None:  # a window begins here: the last frame is the one just before it
                fresh = self._anchored(chunk[-1:], anchor, strips)
                encoder, done = fresh if restarts else encoder, done + 1
                del fresh  # what it remembers would stay on the device up to the next window
            many = STRIDE if row else 1
            chunk = list(islice(frames, many))
            self._encode(encoder, chunk + [chunk[-1]] * (many - len(chunk)), shot.start + row)
            done += 1
            edit.report("encode", done, edit.layout.rows)
            for number, context in self.contexts.read():
                edit.contexts[number:] = [context]
                edit.report("instruction", len(edit.contexts), len(edit._groups))

    def _anchored(self, frame: list[np.ndarray], row: int, strips: int) -> Encoder:
        """The encoder of an anchor, which is encoded alone."""
        fresh = Encoder(self.edit.pipe.vae, strips)
        self._encode(fresh, frame, row)
        return fresh

    def _encode(self, encoder: Encoder, frames: list[np.ndarray], row: int) -> None:
        with self.edit.pipe._stage("encode") as device:
            latent = encoder(to_pixels(np.stack(frames), device))
            self.edit.tables.source[row] = latent[0, :, 0].cpu()
