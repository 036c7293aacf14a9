"""Editors that stand for a loaded model, put where kiwi looks for editors: a row of its registry.

`edit` is one edit from Python, `commands_use` is for the command line, `loads` hands over a pipeline that is loaded
already. No torch is imported before it is needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from kiwi_cli.base.events import SILENT, Events, Silent, Stages
from kiwi_cli.base.identity import fingerprint
from kiwi_cli.editing.plan import EditPlan
from kiwi_cli.editing.prepare import prepare
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.editing.session import EditResult, Session
from kiwi_cli.editors import kiwi, registry
from kiwi_cli.editors.base import Calibration, Edited, Editor, Found, Frames, Identity
from kiwi_cli.engine.choice import ModelChoice

from .conftest import CHECKPOINT

STAGES = ("instruction", "encode", "denoise", "decode")


class FakeEditor:
    """Gives back the frames it gets, or what `change` makes of them, in chunks as a decoder does.

    Attributes:
        seen: the arguments of each call. closed: how often it was closed.
        choice, checkpoint: what it says that it was loaded with.
    """

    name, multiple, most_frames, takes_references, gives_round_trip = "fake", 1, None, True, False
    joins_windows = False

    def __init__(self, change: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        self.change = change
        self.seen: list[dict[str, Any]] = []
        self.closed = 0
        self.choice = ModelChoice()
        self.checkpoint: str | None = None

    def identity(self) -> Identity:
        return Identity(self.choice, self.checkpoint)

    def edit(self, frames: np.ndarray, instruction: str, references: Sequence[Any] = (), **options: Any) -> Edited:
        self.seen.append({"frames": frames, "instruction": instruction, "references": references, **options})
        return Edited(self.chunks(frames))

    def chunks(self, frames: np.ndarray) -> Frames:
        for start, end in [(0, 1), *((start, start + 4) for start in range(1, len(frames), 4))]:
            yield frames[start:end] if self.change is None else self.change(frames[start:end])

    def close(self) -> None:
        self.closed += 1


class SlowEditor(FakeEditor):
    """Reports every stage; denoising takes `steps` steps of 20 ms."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def edit(self, *arguments: Any, **options: Any) -> Edited:
        for stage in STAGES:
            total = self.steps if stage == "denoise" else 1
            for done in range(total):
                options["progress"](stage, done + 1, total)
                time.sleep(0.02)
        return super().edit(*arguments, **options)


class FailingEditor(FakeEditor):
    """Raises `error` when it is called."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def edit(self, *arguments: Any, **options: Any) -> Edited:
        raise self.error


class CalibratingEditor(FakeEditor):
    """Measures ratios for step cache `mag` when asked to: those of `measured` in turn, one list for each call."""

    def __init__(self, measured: list[list[float]], shift: float) -> None:
        super().__init__()
        self.measured, self.shift = iter(measured), shift

    def edit(self, *arguments: Any, **options: Any) -> Edited:
        assert options["denoising"].calibrate
        done = super().edit(*arguments, **options)
        return Edited(done.frames, calibration=Calibration(tuple(next(self.measured)), self.shift))


class ApproximateEditor(FakeEditor):
    """Says of its edits in turn why they are not exact, a tuple of lines for each."""

    def __init__(self, lines: Sequence[tuple[str, ...]]) -> None:
        super().__init__()
        self.lines = iter(lines)

    def edit(self, *arguments: Any, **options: Any) -> Edited:
        lines = next(self.lines)
        for line in lines:
            options["notify"](line)
        return Edited(super().edit(*arguments, **options).frames, approximations=lines)


class FakeKind:
    """Has models as kiwi's own editors do, found and checked by their files; what is loaded is the fake.

    Attributes:
        loaded: the models that were asked for.
    """

    def __init__(self, editor: FakeEditor) -> None:
        self.editor = editor
        self.gives_round_trip = editor.gives_round_trip
        self.loaded: list[str] = []

    def claims(self, choice: ModelChoice) -> bool:
        return True

    def uses(self, choice: ModelChoice) -> Collection[str]:
        return kiwi.uses(choice)

    def identify(self, found: Found, choice: ModelChoice) -> str:
        return kiwi.identify(found, choice)

    def find(self, choice: ModelChoice) -> Found:
        return replace(
            kiwi.find(choice), gives_round_trip=self.gives_round_trip, joins_windows=self.editor.joins_windows
        )

    def admit(self, found: Found, choice: ModelChoice) -> None:
        """Any device will do: none is used."""

    def fetch(self, choice: ModelChoice, events: Events) -> Found:
        return kiwi.fetch(choice, events)

    def load(self, found: Found, choice: ModelChoice, events: Events) -> Editor:
        self.loaded.append(choice.model)
        self.editor.choice = choice
        self.editor.checkpoint = None if found.folder is None else fingerprint(found.folder)
        return self.editor


class LoadedKind(FakeKind):
    """As a fake, with a pipeline that is loaded already."""

    def __init__(self, pipe: Any) -> None:
        super().__init__(FakeEditor())
        self.pipe, self.gives_round_trip, self.editor.joins_windows = pipe, True, True

    def load(self, found: Found, choice: ModelChoice, events: Events) -> Editor:
        self.loaded.append(choice.model)
        return kiwi.KiwiEditor(self.pipe, choice, found.folder)


class Listener(Silent):
    """Events that are remembered.

    Attributes:
        notes: lines. progress: (stage, done, total).
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.progress: list[tuple[str, int, int]] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    @contextmanager
    def stages(self, labels: dict[str, str]) -> Iterator[Stages]:
        listener = self

        class Heard(Stages):
            def show(self, stage: str, done: int, total: int, elapsed: float) -> None:
                listener.progress.append((stage, done, total))

        yield Heard(labels)


def plan(source: Path, output: Path, **options: Any) -> EditPlan:
    """The plan of an edit: nothing is loaded, everything is checked."""
    defaults = {"instruction": "as it is", "model": str(CHECKPOINT), "output": output}
    return prepare(EditRequest.of(source, **{**defaults, **options}))


def edit(source: Path, output: Path, editor: Any = None, events: Events = SILENT, **options: Any) -> EditResult:
    """The result of a whole edit from Python; an editor that changes nothing is used unless another is given.

    Args:
        editor: a fake, or a loaded pipeline. options: a request's.
    """
    with registered(kind_for(editor or FakeEditor())), Session(events=events) as session:
        return session.run(plan(source, output, **options))


def kind_for(editor: Any) -> FakeKind:
    return FakeKind(editor) if isinstance(editor, FakeEditor) else LoadedKind(editor)


@contextmanager
def registered(kind: Any) -> Iterator[None]:
    """Meanwhile, the registry of editors has one more row."""
    with mock.patch.dict(registry.EDITORS, {"test": kind}):
        yield


@contextmanager
def commands_use(editor: FakeEditor) -> Iterator[FakeEditor]:
    """Meanwhile, the commands of this process edit with this editor; the model is found and checked, but not loaded."""
    with registered(FakeKind(editor)):
        yield editor


@contextmanager
def loads(pipe: Any) -> Iterator[list[str]]:
    """Meanwhile, whatever loads an editor gets this pipeline; the names of what it asked for are in the list."""
    kind = LoadedKind(pipe)
    with registered(kind):
        yield kind.loaded
