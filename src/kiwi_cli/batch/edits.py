"""Edits as jobs: the work function that a worker does them with. One editor at a time, kept from job to job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from kiwi_cli.base.events import SILENT, Events, Silent, Stages
from kiwi_cli.batch.editors import ending_the_worker, load_editor, memory_given_back
from kiwi_cli.batch.jobs import Job
from kiwi_cli.batch.worker import Place
from kiwi_cli.editing.plain import from_plain
from kiwi_cli.editing.prepare import prepare
from kiwi_cli.editing.session import Session
from kiwi_cli.editors.base import Editor
from kiwi_cli.engine.choice import ModelChoice

MAKER = "kiwi_cli.batch.edits:make_work"


class EditWork:
    """Does edits. The editor stays until a job wants another one.

    Args:
        out: the run's folder. device: instead of the jobs' own. events: told of what a person should know of a model.
    """

    def __init__(self, out: Path, device: str | None = None, events: Events = SILENT) -> None:
        self.out, self.device, self.events = out, device, events
        self._choice: ModelChoice | None = None
        self._editor: Editor | None = None

    def __call__(self, job: Job, place: Place) -> dict[str, Any]:
        request = from_plain(job.work)
        if self.device is not None:
            request = request.changed(device=self.device)
        with memory_given_back():
            request = request.changed(output=place.folder / PurePosixPath(job.output or "").name, overwrite=True)
            plan = replace(prepare(request), home=self.out / job.beside)
            place.progress("load", 0, 1)
            with Session(self._loaded(request.choice), _Forward(place.progress)) as session:
                result = session.run(plan)
        return {
            "frames": result.frames,
            "size": str(result.size),
            "device": result.device,
            "seconds": {stage: round(value, 3) for stage, value in result.seconds.items()},
            "notices": result.notices,
            "approximations": result.approximations,
        }

    def _loaded(self, choice: ModelChoice) -> Editor:
        if self._editor is None or choice != self._choice:
            self.close()
            with ending_the_worker():
                self._editor, self._choice = load_editor(choice, self.events), choice
        assert self._editor is not None
        return self._editor

    def close(self) -> None:
        if self._editor is not None:
            self._editor.close()
        self._editor = self._choice = None


def make_work(settings: dict[str, Any], device: str | None) -> EditWork:
    """The work of another process."""
    return EditWork(Path(settings["out"]), device)


class _Forward(Silent):
    """Hands the stages of an edit on as progress of its job."""

    def __init__(self, progress: Callable[[str, int, int], None]) -> None:
        self.progress = progress

    @contextmanager
    def stages(self, labels: dict[str, str]) -> Iterator[Stages]:
        forward = self

        class Forwarded(Stages):
            def show(self, stage: str, done: int, total: int, elapsed: float) -> None:
                forward.progress(stage, done, total)

        yield Forwarded(labels)
