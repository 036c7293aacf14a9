"""A part of an edited clip made anew, in step with what is on either side.

    read      frames -> contexts      of the shots that the part is in; their source's latents are known
    denoise   noise -> latents        all windows that the part is in, as in joint.py

Latent frames of these windows that are not the part's stay what they are: at every step the model sees them on the
straight way from their own noise to what was made of them, so it makes what fits between them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import torch

from kiwi_cli.engine.contexts import ContextReader, context_groups, given_frames, place
from kiwi_cli.engine.joint import Held, JointDenoising, noise_of
from kiwi_cli.engine.layout import STATES
from kiwi_cli.engine.long import FramesFrom, LongSettings, approximations, check_settings
from kiwi_cli.engine.made import Made, Patch
from kiwi_cli.engine.managed import let_go
from kiwi_cli.engine.part_rows import PartRows
from kiwi_cli.engine.pipeline import KiwiPipeline, Progress
from kiwi_cli.engine.schedule import set_steps
from kiwi_cli.engine.window_model import WindowModel
from kiwi_cli.engine.workspace import Workspace
from kiwi_cli.video import Size


class PartEdit:
    """One part on its way through a pipeline.

    Args:
        frames_from: as of `LongEdit`. made: the clip as it is. part: what of it.
        settings: the part's own words and seed, and all else as the clip was made.
        workspace: where the part's tables lie when they are large; the result lies there too.
        progress, notify: as of `KiwiPipeline.edit`.

    Raises:
        UsageError: as of `LongEdit`.
    """

    def __init__(
        self,
        pipe: KiwiPipeline,
        frames_from: FramesFrom,
        size: Size,
        made: Made,
        part: PartRows,
        settings: LongSettings,
        workspace: Workspace,
        progress: Progress | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        self.pipe, self.frames_from, self.made, self.part = pipe, frames_from, made, part
        self.settings, self.workspace = settings, workspace
        self.report: Progress = workspace.watched(progress or (lambda stage, done, total: None))
        check_settings(pipe, settings, size)
        self.layout, self.seen = part.own_layout(made.layout)
        groups = context_groups(made.layout, settings.window_contexts)
        self._groups = [groups[number] for number in part.windows] if settings.window_contexts else groups
        place(pipe, size, self.layout, self._groups, settings.instruction, settings.pictures, notify or _silent)
        self.size = size
        self.contexts: dict[int, torch.Tensor] = {}
        self.references: torch.Tensor | None = None
        self.model: WindowModel | None = None
        self._total = 0

    @torch.no_grad()
    def read(self) -> None:
        """Contexts of the shots that the part is in, and the references."""
        pictures = list(self.settings.pictures)
        if pictures:
            encoded = self.pipe._within_memory(lambda: self.pipe.encode_references(pictures, *self.size))
            self.references = encoded.cpu()
        shots = sorted({window.shot for window in self.layout.windows})
        for done, shot in enumerate(shots, start=1):
            while True:
                try:
                    self._read_shot(shot)
                    break
                except torch.OutOfMemoryError as error:
                    failure = let_go(error)
                self.pipe._step_down(failure)  # outside the handler, where the error and what it holds are gone
            self.report("instruction", done, len(shots))

    def _read_shot(self, number: int) -> None:
        shots = self.made.layout.shots
        reader = ContextReader(self.pipe, self._groups, number, self.settings.instruction, self.settings.pictures)
        with closing(self.frames_from(sum(shot.frames for shot in shots[:number]))) as stream:
            for _ in given_frames(shots[number], stream, reader):
                self.contexts.update(reader.read())
                if reader.done:
                    return

    @torch.no_grad()
    def denoise(self) -> Patch:
        """The part's latents, by way of all steps."""
        settings, own = self.settings, set(self.part.rows)
        sigmas = set_steps(self.pipe.schedule(), settings.steps, settings.sigma_min).cpu()
        shape: tuple[int, int, int] = tuple(self.made.latents.shape[1:])  # type: ignore[assignment]
        tables = self.workspace.tables(len(self.seen), STATES[settings.solver], shape)
        free = [number for number, row in enumerate(self.seen) if row in own]
        for number, row in enumerate(self.seen):
            tables.source[number] = self.made.source[row]
        tables.states[0][free, 0] = noise_of(self.made.layout, self.part.rows, shape, settings.seed)
        run = JointDenoising(self.layout, tables.states, sigmas, settings.solver, self._held(own))
        self._total = run.total
        self.model = model = WindowModel(
            self.pipe,
            self.layout,
            sigmas,
            tables.source,
            self.contexts,
            self.references,
            settings.window_contexts,
            settings.cache,
        )

        def work() -> torch.Tensor:
            with self.pipe._stage("denoise") as device:
                return run.run(
                    lambda *where: model.velocity(device, *where), lambda: self.report("denoise", run.done, run.total)
                )

        return Patch(self.part, settings.seed, self.seen, self.pipe._within_memory(work))

    def _held(self, own: set[int]) -> Held | None:
        """Rows of the windows that are not the part's."""
        places = tuple(number for number, row in enumerate(self.seen) if row not in own)
        rows = [self.seen[number] for number in places]
        return Held(places, self.made.newest(rows), self.made.noise(rows)) if rows else None

    @property
    def approximations(self) -> tuple[str, ...]:
        """Why the part is not the model's exact result, after `denoise`."""
        return approximations(self.pipe, self.settings, self.model, self._total)


def _silent(line: str) -> None:
    """Nobody is told."""
