"""A long clip on its way through an editor that joins windows, and its state beside the output."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from kiwi_cli.base import processes
from kiwi_cli.base.whole import publish
from kiwi_cli.editing.clip_edit import no_frames
from kiwi_cli.editing.outputs import source_frames
from kiwi_cli.editing.plan import EditPlan
from kiwi_cli.editing.remaking import differences
from kiwi_cli.editing.work_folders import left_by, made_of, remember, work_folder, work_folders
from kiwi_cli.editors.base import Calibration, Denoising, Frames, LongClip, LongEditor, PartWork, Progress
from kiwi_cli.engine import kept_latents
from kiwi_cli.video import Damage
from kiwi_cli.video.failures import writing
from kiwi_cli.video.partial import partial_folder, remove_partial

if TYPE_CHECKING:
    from PIL import Image

    from kiwi_cli.engine.made import Made
    from kiwi_cli.engine.workspace import Workspace


class JointEdit:
    """One plan's frames through an editor, in windows that are denoised together; as `ClipEdit`.

    Args:
        decoded: False in a process that only helps another one: no frames come out.
        note: called with lines for the person.
    """

    source: None = None
    calibration: Calibration | None = None

    def __init__(
        self,
        plan: EditPlan,
        editor: LongEditor,
        denoising: Denoising,
        references: Sequence[Image.Image],
        progress: Progress,
        note: Callable[[str], None],
        decoded: bool = True,
    ) -> None:
        self.plan, self.editor, self.denoising, self.references = plan, editor, denoising, references
        self.progress, self.note, self.decoded = progress, note, decoded
        self.approximations: list[str] = []
        self.damage = Damage()  # nothing is read before the edit
        self._workspace: Workspace | None = None
        self._keep: Callable[[Made], None] | None = None

    def frames(self) -> Frames:
        """The edited frames in order, (f, H, W, 3) uint8, made as they are taken."""
        return self._edited(False)

    def pairs(self) -> Frames:
        """The edited frames, each with the source as the autoencoder gives it back: (f, 2, H, W, 3) uint8."""
        return self._edited(True)

    def _edited(self, round_trip: bool) -> Frames:
        from kiwi_cli.engine.workspace import Workspace

        windows = self.plan.windows
        assert windows is not None and windows.layout is not None
        clip = LongClip(
            self._frames_from,
            self.plan.size,
            windows.layout,
            windows.contexts == "window",
            self._workspace or Workspace(),
            self._parts(),
            self._kept(),
        )
        self.progress("instruction", 0, 1)
        done = self.editor.edit_long(
            clip,
            self.plan.told(self.plan.request),
            self.references,
            denoising=self.denoising,
            round_trip=round_trip,
            progress=self._told,
            notify=self.note,
        )
        self.approximations = list(done.approximations)
        if self._keep is not None:
            assert done.made is not None
            self._keep(done.made)
        stream = done.pairs if round_trip else done.frames
        assert stream is not None
        with closing(stream if self.decoded else no_frames()) as frames:
            yield from frames

    def _told(self, stage: str, done: int, total: int) -> None:
        if self.plan.kept is not None:
            self.plan.kept.let_go()
        self.progress(stage, done, total)

    def _parts(self) -> tuple[PartWork, ...]:
        """The parts that are made anew, as the editor is asked for them."""
        request = self.plan.request
        asked = [request.of_part(part) for part in request.parts]
        works = zip(self.plan.parts, asked, strict=True)
        return tuple(PartWork(rows, self.plan.told(own), own.sampling.seed) for rows, own in works)

    def _kept(self) -> Made | None:
        """What was made before, mapped from its file."""
        plan = self.plan
        if plan.kept is None:
            return None
        assert plan.windows is not None and plan.windows.layout is not None
        seeds = (plan.request.sampling.seed, *(part.seed for part in self._parts()[:-1]))
        return plan.kept.made(plan.windows.layout, plan.parts[:-1], seeds)

    @contextmanager
    def keeping_latents(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """Meanwhile, what the result is decoded from is written beside it, if it is to be kept; it gets its name when
        the block ends well, and is gone otherwise.

        Args:
            settings: what the output will carry.

        Raises:
            MediaError: it cannot be written.
        """
        path = self.plan.extras.get("latents")
        if path is None or not self.decoded:
            yield
            return
        with writing(path):
            folder = partial_folder(path)
        part = folder / "latents"

        def keep(made: Made) -> None:
            with writing(path):
                space = self._workspace
                kept_latents.write(part, made, settings, space.let_go if space is not None else lambda: None)
                with part.open("rb") as file:
                    os.fsync(file.fileno())

        self._keep = keep
        try:
            yield
            with writing(path):
                if self.plan.request.overwrite:
                    part.replace(path)
                else:
                    publish(part, path)
        finally:
            remove_partial(folder)

    def _frames_from(self, first: int) -> Frames:
        """The span's frames from that one on."""
        with closing(source_frames(self.plan)) as frames:
            for number, frame in enumerate(frames):
                if number >= first:
                    yield frame.rgb

    @contextmanager
    def going_on(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """Meanwhile, the work is saved beside the output now and then; what an earlier run saved is gone on with.

        After a whole run nothing is left; after any other what can be gone on with, and the person is told.

        Args:
            settings: what the output will carry; a state of other settings is thrown away.

        Raises:
            UsageError: something else is in the working folder's place.
        """
        import torch

        from kiwi_cli.engine import parallel
        from kiwi_cli.engine.workspace import Workspace

        if self.plan.kept is not None:  # a part is soon made: there is nothing to go on with
            told = differences(self.plan.kept.settings, settings)
            if told:
                self.note(f"frames outside the part may differ in their last bits from what they were: {told}")
            self._workspace = Workspace(work_folder(self.plan.output), rank=processes.rank())
            try:
                yield
            finally:
                self._workspace.clear_parts()
            return
        made = {**made_of(settings), "torch": torch.__version__}
        space = self._space(made)
        changed = space.found()
        if changed:
            self.note(f"an edit of other settings was begun here ({', '.join(changed)}): starting anew")
            space.clear()
        elif changed is not None:
            self.note(f"going on with what an earlier run left in '{space.folder}'")
        parallel.meet()  # nobody makes tables in a folder that is being cleared
        self._workspace = space
        try:
            yield
        except BaseException:
            space.clear_parts()
            space.rescue()
            if space.has_state and space.folder is not None:
                if self.plan.home is None and processes.is_first():
                    remember(made, space.folder)
                self.note(
                    f"the work so far is in '{space.folder}': the same command goes on with it, also with another "
                    "--output or --codec"
                )
            else:
                space.clear()
            raise
        space.clear()

    def _space(self, made: Mapping[str, Any]) -> Workspace:
        """Where the state lies that can be gone on with, else where one of this edit lies already, else beside the
        output."""
        from kiwi_cli.engine.workspace import Workspace

        places = work_folders(self.plan)
        left = left_by(made) if self.plan.home is None else None
        known = [*places, *([left] if left is not None else [])]
        spaces = [
            Workspace(place, made, self.plan.request.save_every, rank=processes.rank(), elsewhere=tuple(places[1:]))
            for place in known
        ]
        there = [space for space in spaces if space.folder is not None and space.folder.exists()]
        return next((space for space in there if space.found() == []), (there or spaces)[0])
