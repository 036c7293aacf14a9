"""Stage `edit`: every item of a run through the model, once.

An item is done when its result lies under its name; what is not there is made, by whichever worker comes to it
(kiwi_cli/batch). A failure is written down with its reason and tried again at the next start.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from kiwi_cli.base.events import SILENT, Events
from kiwi_cli.base.identity import hash_file
from kiwi_cli.base.option import rows
from kiwi_cli.base.version import __version__
from kiwi_cli.batch.crew import Crew, work_off
from kiwi_cli.batch.editors import ending_the_worker, load_editor, memory_given_back
from kiwi_cli.batch.jobs import Job, JobStore, job_id
from kiwi_cli.batch.records import Records, reopen
from kiwi_cli.batch.serve import Order
from kiwi_cli.batch.worker import Place, Told
from kiwi_cli.bench import editors
from kiwi_cli.bench.media import floor_size, write_clip
from kiwi_cli.bench.run import Run, open_run
from kiwi_cli.bench.suites.items import Item
from kiwi_cli.editing.plain import as_plain, from_plain
from kiwi_cli.editing.prepare import prepare
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.editing.session import Session
from kiwi_cli.editors.registry import kind_of
from kiwi_cli.engine.choice import ModelChoice, Sampling
from kiwi_cli.engine.memory import is_exact
from kiwi_cli.video import probe
from kiwi_cli.weights.lora import LoraSpec

GRID = 32  # pixels: what the model's sizes are multiples of
KIND = "benchmark items"


@dataclass(frozen=True)
class Profile:
    """How items are edited. The defaults are the settings of the published runs.

    Attributes:
        frames: at most, from the clip's first. max_pixels: larger clips are shrunk to it.
        size: 'WxH' instead of the clip's own, floored to multiples of 32.
        fit: the clip's middle is taken.
        steps, seed: None of an editor that has none.
        options: what else is not as published, of the model and the sampling, in words.
        sigma_min: the published runs' schedule ends at 0.
    """

    name: str = "published"
    frames: int = 81
    max_pixels: int = 1280 * 720
    size: str | None = None
    fit: str = "crop"
    steps: int | None = 50
    seed: int | None = 0
    sigma_min: float = 0.0
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, choice: ModelChoice, sampling: Sampling, **values: Any) -> Profile:
        """The published settings but for what was chosen."""
        used = kind_of(choice).uses(choice)
        own = {name: getattr(sampling, name) for name in ("steps", "seed") if name in used}
        profile = cls(steps=50 if "steps" in used else None, seed=0 if "seed" in used else None)
        profile = profile.changed(**own, **values)
        unlike = differences(choice, sampling)
        if not unlike:
            return profile
        words = ", ".join(f"{name} {value}" for name, value in unlike.items())
        joint = "," if " but " in profile.name else " but"
        return replace(profile, name=f"{profile.name}{joint} {words}", options=unlike)

    def changed(self, **values: Any) -> Profile:
        """With other values; the name says which."""
        given = {key: value for key, value in values.items() if value is not None and value != getattr(self, key)}
        if not given:
            return self
        words = ", ".join(f"{key} {value}" for key, value in given.items())
        return replace(self, name=f"{self.name} but {words}", **given)

    def describe(self) -> dict[str, Any]:
        """What a run remembers of it."""
        kept = asdict(self)
        return kept if self.options else {key: value for key, value in kept.items() if key != "options"}

    def __str__(self) -> str:
        size = self.size or f"the clip's size up to {self.max_pixels} pixels, floored to {GRID}"
        steps = "" if self.steps is None else f", {self.steps} steps"
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f"{self.name}: {self.frames} frames, {size}, {self.fit}{steps}{seed}"


def differences(choice: ModelChoice, sampling: Sampling) -> dict[str, str]:
    """What a run's results owe to options that are not as by default: name -> value, files with their sha256.

    The model, steps and seed are told elsewhere; what an output would not record, and where it was computed, is left
    out, as are memory levels that give the same result.
    """
    told = {"editor", "model", "revision", "steps", "seed", "dtype"}
    request = EditRequest(Path(), "", choice=choice, sampling=sampling)
    unlike = {}
    for each in (*fields(choice), *fields(sampling)):
        row, value = rows(EditRequest)[each.name], request[each.name]
        same = value == row.default or (row.name == "memory" and is_exact(value))
        if row.record is not None and row.name not in told and not same:
            unlike[row.name] = ", ".join(map(_lora, value)) if row.many else _file(value) if row.is_path else str(value)
    return unlike


def _file(path: Path, text: str | None = None) -> str:
    """A file in words, with what it holds."""
    return f"{text or path} (sha256 {hash_file(path)[:16]})" if path.is_file() else text or str(path)


def _lora(text: str) -> str:
    return _file(Path(LoraSpec.parse(text).source).expanduser(), text)


@dataclass
class EditSummary:
    """Outcome of a stage. `failures` maps item id to reason; `dollars` is what was paid now, None when unsaid."""

    done: int
    made: int
    failures: dict[str, str]
    seconds: float
    dollars: float | None = None


def edit_items(
    run: Run,
    items: Sequence[Item],
    choice: ModelChoice,
    sampling: Sampling,
    crew: Crew = Crew(),  # noqa: B008 (frozen)
    told: Told | None = None,
    events: Events = SILENT,
) -> tuple[EditSummary, list[str]]:
    """Make what is missing, and why workers could not go on. A model is loaded when a first item needs it, and once.

    Args:
        choice: the model. sampling: shortcuts, beside the profile's steps and seed.
        told: of each item. events: told of what a person should know of the model.
    """
    begin = time.perf_counter()
    todo = [job_of(run, item) for item in items if not run.edited(item).is_file()]
    if not todo:
        return EditSummary(len(items), 0, {}, 0.0), []
    store = JobStore(run.folder)
    store.begin(KIND)
    reopen(store, [job.id for job in todo])
    settings = {
        "folder": str(run.folder.absolute()),
        "data": str(run.data_root.absolute()),
        "request": as_plain(EditRequest(Path(), "", choice=choice, sampling=sampling)),
    }
    order = Order.of(store, todo, "kiwi_cli.bench.edit:make_work", settings)
    tally, troubles = work_off(order, todo, crew, told, ItemWork(run, choice, sampling, events))
    names = {job.id: job.label for job in todo}
    failures = {names[id]: reason for id, reason in tally.failures.items()}
    if tally.left:
        failures |= {
            item.id: "its worker ended early"
            for item in items
            if not run.edited(item).is_file() and item.id not in failures
        }
    done = len(run.complete(items))
    paid = sum(float(line["dollars"]) for line in outcomes(run, todo) if "dollars" in line)
    return EditSummary(done, tally.made, failures, time.perf_counter() - begin, paid or None), troubles


def job_of(run: Run, item: Item) -> Job:
    """An item as a job of its run. Whatever else decides the result is the run's, and never changes."""
    id = job_id("item", item.id, item.category)
    return Job(id, item.id, {"item": item.id}, run.edited(item).relative_to(run.folder).as_posix())


class ItemWork:
    """Edits the items of a run; loads the model for the first, and keeps it."""

    def __init__(self, run: Run, choice: ModelChoice, sampling: Sampling, events: Events = SILENT) -> None:
        self.run, self.choice, self.sampling, self.events = run, choice, sampling, events
        self.profile = Profile(**run.identity["settings"])
        self.items = {item.id: item for item in run.items}
        self._session: Session | None = None

    def __call__(self, job: Job, place: Place) -> dict[str, Any]:
        if self._session is None:
            with ending_the_worker():
                self._editor = load_editor(self.choice, self.events)
            self._session = Session(self._editor)
        with memory_given_back():
            item = self.items[job.work["item"]]
            output = place.folder / self.run.edited(item).name
            return edit_item(self._session, self.run, item, output, self.profile, self.choice, self.sampling)

    def close(self) -> None:
        if self._session is not None:
            self._editor.close()


def make_work(settings: dict[str, Any], device: str | None) -> ItemWork:
    """The same in another process."""
    request = from_plain(settings["request"])
    choice = request.choice if device is None else replace(request.choice, device=device)
    return ItemWork(open_run(Path(settings["folder"]), Path(settings["data"])), choice, request.sampling)


def edit_item(
    session: Session, run: Run, item: Item, output: Path, profile: Profile, choice: ModelChoice, sampling: Sampling
) -> dict[str, Any]:
    """Facts of one item's result, which is written: its 'frames', what the editor changed ('changes') and 'dollars'.

    The result has the working size, as the published results do: what the crop took away is not put back, because a
    judge would see an unedited edge. Its rate is the clip's own (the released script writes 15 frames a second).
    """
    editors.check_source_name(choice, run, item)
    source, reference = run.source(item), run.reference(item)
    run.edited(item).parent.mkdir(parents=True, exist_ok=True)
    size = profile.size
    if size is None and kind_of(choice).find(choice).settings.pixels is None:  # else the model has a size of its own
        size = str(floor_size(*probe(source).display_size, profile.max_pixels, GRID))
    request = EditRequest(
        source,
        item.instruction,
        (reference,) if reference else (),
        run.edited(item),  # its name says which item it is; the file is written where the worker wants it
        choice,
        replace(sampling, steps=profile.steps, seed=profile.seed or 0),
        raw=True,
        force=True,
        frames=1 if run.benchmark.kind == "image" else profile.frames,
        size=size,
        fit=profile.fit,
        detail="model",
        sound=False,
    )
    plan = prepare(request)
    stream = session.frames(plan, profile.sigma_min)
    note = json.dumps({"kiwi": __version__, "model": run.identity["model"].get("name"), "profile": profile.name})
    facts: dict[str, Any] = {"frames": write_clip(output, stream, plan.clip.fps, plan.size, note)}
    if session.latest is not None and session.latest.changes:
        facts["changes"] = session.latest.changes
    if session.latest is not None and session.latest.dollars is not None:
        facts["dollars"] = round(session.latest.dollars, 4)
    return facts


def outcomes(run: Run, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Facts of jobs that were done, as `edit_item` gave them, the last of each."""
    records = Records(JobStore(run.folder).journal, keep=True)
    records.refresh()
    done = ([line for line in records.outcomes(job.id) if line["state"] == "done"] for job in jobs)
    return [lines[-1].get("result") or {} for lines in done if lines]


def changed(run: Run) -> dict[str, int]:
    """What the editor did to clips beside the edit, in words -> to how many of those whose results are there."""
    lines = outcomes(run, [job_of(run, item) for item in run.complete(run.items)])
    return dict(Counter(str(said) for line in lines for said in line.get("changes", ())).most_common())


def last_failures(run: Run) -> dict[str, str]:
    """Item id -> why it could not be made, of items that still have no result."""
    records = Records(JobStore(run.folder).journal)
    records.refresh()
    reasons = {item.id: records.failure(job_of(run, item).id) for item in run.items if not run.edited(item).is_file()}
    return {key: reason for key, reason in reasons.items() if reason is not None}
