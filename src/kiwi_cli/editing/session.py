"""A plan -> its file: the clip goes through an editor, and the result is written."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kiwi_cli.base import processes
from kiwi_cli.base.events import SILENT, Events
from kiwi_cli.base.hardware import peak_resident
from kiwi_cli.base.lock import claimed
from kiwi_cli.editing import cache_ratios, record
from kiwi_cli.editing.clip_edit import ClipEdit, denoising_of
from kiwi_cli.editing.detail import APPROXIMATE, detailed
from kiwi_cli.editing.fitting import check_fits, joins
from kiwi_cli.editing.joint_edit import JointEdit
from kiwi_cli.editing.kept import Keeper, Kept
from kiwi_cli.editing.outputs import open_comparison, open_output, read_clip, write_beside
from kiwi_cli.editing.plan import EditPlan
from kiwi_cli.editing.references import open_reference
from kiwi_cli.editing.unfinished import keeping
from kiwi_cli.editors.base import Editor, Frames, Identity, Progress
from kiwi_cli.editors.registry import kind_of
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.errors import UsageError
from kiwi_cli.video import Damage, FrameWriter, Size
from kiwi_cli.video.planning import try_place

STAGES = {
    "read": "read the clip",
    "load": "load the model",
    "instruction": "read the instruction",
    "encode": "encode the clip",
    "denoise": "denoise",
    "decode": "decode and write",
}
NO_MODEL = {"load": "open the editor", "denoise": "edit", "decode": "write"}


def stages_of(choice: ModelChoice) -> dict[str, str]:
    """The stages of an edit, in words: an editor that takes no steps (a program, folder or service) loads no model."""
    return STAGES if "steps" in kind_of(choice).uses(choice) else STAGES | NO_MODEL


@dataclass
class EditResult:
    """What was written, and how.

    Attributes:
        frames: written; 0 in a process that only helped the first one.
        seconds: of each of `STAGES`, and 'total'. settings: what the output carries in its metadata.
        memory: peaks in bytes: 'resident' of the process, 'allocated' and 'reserved' on a CUDA device.
        approximations: why it is not the released model's exact result; empty when it is.
    """

    output: Path
    frames: int
    size: Size
    device: str
    dtype: str
    seconds: dict[str, float] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    approximations: list[str] = field(default_factory=list)


class Session:
    """An editor, and the plans that go through it one after the other.

        with Session(events=console) as session:
            result = session.run(prepare(request, console))

    Args:
        editor: a loaded one, which is left open at the end; None: the first plan's own is loaded when that is run.
        events: told of stages, and of what a person should know.
    """

    def __init__(self, editor: Editor | None = None, events: Events = SILENT) -> None:
        self.events = events
        self._editor, self._owned = editor, editor is None
        self.latest: ClipEdit | None = None  # the edit that was begun last, and what it says of itself

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the editor, if the session loaded it."""
        if self._owned and self._editor is not None:
            self._editor.close()
            self._editor = None

    def run(self, plan: EditPlan, kept: Kept | None = None) -> EditResult:
        """Carry out a plan. The output appears whole or not at all.

        What the model made is kept in a file when it cannot be written, and the error names that.

        Args:
            kept: what was made of the plan before.

        Raises:
            UsageError: the editor is not the one that the plan asks for.
            KiwiError: whatever else went wrong, in words.
        """
        begin = time.perf_counter()
        self._check(plan)
        with ExitStack() as stack:
            keeper = None
            if processes.is_first():
                stack.enter_context(claimed(plan.output))
                try_place(plan.output)
                keeper = stack.enter_context(closing(Keeper(plan.output.absolute().parent)))
            return self._run(plan, begin, keeper, kept)

    def _run(self, plan: EditPlan, begin: float, keeper: Keeper | None, kept: Kept | None) -> EditResult:
        with self.events.stages(stages_of(plan.request.choice)) as stages:
            edit = self._begin(plan, stages, keeper=keeper, kept=kept)
            identity = edit.editor.identity()
            count = plan.span.frame_count if edit.source is None else len(edit.source)
            settings = record.describe(plan, identity, count, edit.damage)
            writers = _open_writers(plan, settings) if edit.decoded else []
            results = _results(plan, edit, identity.device, all(writer.deep for writer in writers))
            if isinstance(edit, JointEdit):  # it keeps its own state
                with edit.keeping_latents(settings), edit.going_on(settings):
                    _write(results, writers)
            elif keeper is None:
                _write(results, writers)
            else:
                with keeping(plan, keeper, settings, writers, self.events, kept):
                    _write(results, writers, keeper)
        if writers:
            record.note_damage(settings, plan.clip, writers[0].damaged)  # of windows it is known by now
            _write_beside(plan, edit, settings)
        told = [*plan.warnings, *plan.notices]
        told += [note for writer in writers for note in writer.notices if note not in told]
        told += self.latest.changes if self.latest is edit else []
        seconds = {"load": 0.0, **stages.seconds, "total": time.perf_counter() - begin}
        memory = peak_memory(identity.device)
        return replace(_made(plan, edit, identity, writers, seconds), notices=told, settings=settings, memory=memory)

    def frames(self, plan: EditPlan, sigma_min: float | None = None) -> Frames:
        """The edited frames of a plan at its working size, (f, H, W, 3) uint8; nothing is written.

        Args:
            sigma_min: end of the unwarped schedule; None is the released one.

        Raises:
            KiwiError: as `run`.
        """
        self._check(plan)
        return self._begin(plan, lambda stage, done, total: None, sigma_min).frames()

    def sample(self, plan: EditPlan) -> EditResult:
        """Carry out a plan of a moment, whose output is only looked at: no settings, no state, nothing beside it.

        Time that belongs to no stage is counted as decoding and writing.
        """
        begin = time.perf_counter()
        self._check(plan)
        with self.events.stages(STAGES) as stages:
            edit = self._begin(plan, stages)
            writers = _open_writers(plan, {}) if edit.decoded else []
            identity = edit.editor.identity()
            _write(_results(plan, edit, identity.device, all(writer.deep for writer in writers)), writers)
        seconds = {name: stages.seconds.get(name, 0.0) for name in STAGES}
        seconds["decode"] += time.perf_counter() - begin - sum(seconds.values())
        return _made(plan, edit, identity, writers, seconds)

    def _check(self, plan: EditPlan) -> None:
        """Refuse what can be refused before the clip is read."""
        if plan.request.previewing.asked:
            raise UsageError("the plan is one of a preview", "pass it to kiwi_cli.editing.preview.preview")
        if self._editor is not None:
            check_fits(plan, self._editor)
        else:
            kind_of(plan.request.choice).admit(plan.found, plan.request.choice)
        if plan.kept is not None:
            plan.kept.check_sums()

    def _begin(
        self,
        plan: EditPlan,
        progress: Progress,
        sigma_min: float | None = None,
        keeper: Keeper | None = None,
        kept: Kept | None = None,
    ) -> ClipEdit | JointEdit:
        """The clip and its references, read, and the editor, loaded if need be."""
        progress("read", 0, 1)
        damage = Damage()
        source = read_clip(plan, damage) if plan.windows is None else None  # windows are read as they are edited
        references = [open_reference(path) for path in plan.request.references]
        progress("read", 1, 1)
        if self._editor is None:
            progress("load", 0, 1)
            self._editor = kind_of(plan.request.choice).load(plan.found, plan.request.choice, self.events)
            progress("load", 1, 1)
        denoising, first = denoising_of(plan, sigma_min), processes.is_first()
        note = self.events.note
        if plan.windows is not None and plan.windows.layout is not None:
            assert joins(self._editor)  # check_fits saw to that
            self.latest = None
            return JointEdit(plan, self._editor, denoising, references, progress, note, first)
        given: Any = (denoising, source, references, progress, note, first, keeper, kept, damage)
        edit = ClipEdit(plan, self._editor, *given)
        self.latest = edit
        return edit


def _made(
    plan: EditPlan,
    edit: ClipEdit | JointEdit,
    identity: Identity,
    writers: Sequence[FrameWriter],
    seconds: dict[str, float],
) -> EditResult:
    """What an edit has written and how, without what was said and recorded of it."""
    return EditResult(
        plan.output,
        writers[0].frames_written if writers else 0,
        plan.clip.size,
        identity.device,
        identity.dtype,
        seconds,
        approximations=[*([APPROXIMATE] if plan.detail == "source" else []), *edit.approximations],
    )


def _open_writers(plan: EditPlan, settings: dict[str, Any]) -> list[FrameWriter]:
    """Of the output, and of the comparison when there is one. Nothing is written yet."""
    text = {"kiwi": json.dumps(settings, ensure_ascii=False)}
    writers = [open_output(plan, plan.output, text)]
    if "comparison" in plan.extras:
        writers.append(open_comparison(plan, text))
    return writers


def _results(plan: EditPlan, edit: ClipEdit | JointEdit, device: str, deep: bool) -> Frames:
    """What is written: the edited frames, at full size already when they take the source's detail."""
    return edit.frames() if plan.detail == "model" else detailed(plan, edit.pairs(), device, deep)


def _write(stream: Frames, writers: Sequence[FrameWriter], keeper: Keeper | None = None) -> None:
    with closing(stream):
        try:
            with ExitStack() as stack:
                for writer in reversed(writers):  # the output itself is finished first
                    stack.enter_context(writer)
                for chunk in stream:
                    for writer in writers:
                        writer.write(chunk)
        except Exception:  # of any kind, and it goes on: only an interruption waits for no more decoding
            if keeper is not None:  # before the stream is closed, and what is in it lost
                keeper.finish()
            raise


def _write_beside(plan: EditPlan, edit: ClipEdit | JointEdit, settings: dict[str, Any]) -> None:
    """The sheet, the sidecar and the ratios, when they are wanted."""
    write_beside(plan, settings)
    path, measured = plan.request.sampling.calibrate_cache, edit.calibration
    if path is not None:
        assert plan.found.folder is not None and measured is not None
        shift = {"shift": measured.shift}
        cache_ratios.write(path, measured.ratios, plan.request, plan.found.folder, settings | shift)


def peak_memory(device: str) -> dict[str, int]:
    """Peaks in bytes since the process began, of a loaded torch's device too."""
    resident = peak_resident()
    if resident is None:
        return {}
    peaks = {"resident": resident}
    if device.startswith("cuda"):
        import torch

        peaks["allocated"] = torch.cuda.max_memory_allocated(device)
        peaks["reserved"] = torch.cuda.max_memory_reserved(device)
    return peaks
