"""Edits that are asked for -> jobs: every one is checked before the first is begun, and every fault is listed."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from kiwi_cli.base.events import Events
from kiwi_cli.base.identity import sampled, sampled_file
from kiwi_cli.base.text import format_seconds
from kiwi_cli.base.version import __version__
from kiwi_cli.batch.jobs import STATE, Job, job_id, sketch
from kiwi_cli.batch.looking import Looked, look
from kiwi_cli.batch.table import Asked, Fault
from kiwi_cli.editing.checks import check_words, length_warnings
from kiwi_cli.editing.paths import extras_of, name_like
from kiwi_cli.editing.plain import as_plain
from kiwi_cli.editing.prepare import prepare
from kiwi_cli.editing.references import check_header
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.editing.tasks import REPLACEMENTS
from kiwi_cli.editors.base import Found
from kiwi_cli.editors.registry import check_used, default_model, kind_of
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.engine.memory import is_exact
from kiwi_cli.errors import KiwiError, MediaError, UsageError
from kiwi_cli.video.partial import scratch_folder
from kiwi_cli.video.planning import container_of
from kiwi_cli.weights.catalog import DEFAULT_EDIT, DEFAULT_REF_EDIT
from kiwi_cli.weights.lora import LoraSpec

PLANNED = 200
"""Up to so many edits, each one's whole plan is made; of more, files are opened and options checked."""
PATIENCE = 9.0
"""Seconds that a check of many edits takes at most. What was not opened by then is opened when it is its turn."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic")
NOT_DECISIVE = ("output", "overwrite", "download", "device", "max_memory", "calibrate_cache")
FILES = ("input", "references", "mask", "gguf", "cache_ratios", "loras", "model", "revision")
"""Known by what is in them."""
KNOWN_OTHERWISE = {*NOT_DECISIVE, *FILES}
FileId = tuple[int, int]
"""Device and inode."""


@dataclass
class Planned:
    """What was found to be asked for.

    Attributes:
        jobs: in order, those of one model together. faults: of the others, in order.
        warnings: what a person must know before. missing: models that have to be fetched first.
        cautions: what a person must know of single edits -> where those are, in order.
    """

    jobs: list[Job] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    cautions: dict[str, list[str]] = field(default_factory=dict)


class Planner:
    """Makes jobs of edits.

    Args:
        out: the run's folder. defaults: options of all edits, by name. events: told of a download, and of files.
        fetch: whether models that are missing are fetched; without them there are no jobs, only faults.
        patience: seconds for many edits. threads: that open their files; None: as many as there are cores.
    """

    def __init__(
        self,
        out: Path,
        defaults: dict[str, Any],
        events: Events,
        fetch: bool = True,
        patience: float = PATIENCE,
        threads: int | None = None,
    ) -> None:
        self.out, self.defaults, self.events, self.fetch = out, defaults, events, fetch
        self.patience, self.threads = patience, threads
        self._models: dict[ModelChoice, Found | KiwiError] = {}
        self._editors: dict[ModelChoice, str] = {}
        self._names: dict[str, Asked] = {}  # name of a file that is written -> what asks for it
        self._inputs: dict[FileId, str] = {}
        self._sketch = cache(_sketch)
        self._header = cache(check_header)
        self._of_model = cache(_identity)

    def plan(self, asked: Sequence[Asked], faults: Sequence[Fault] = ()) -> Planned:
        """The jobs of edits.

        Args:
            faults: found already.
        """
        planned, requests, begin = Planned(faults=list(faults)), [], time.monotonic()
        for each in asked:
            try:
                requests.append((each, self._request(each)))
            except KiwiError as error:
                planned.faults.append(Fault(each.where, error.message, error.hint))
        order: dict[ModelChoice, list[Job]] = {}
        looked = self._looked([request for _, request in requests], planned, begin)
        with scratch_folder() as scratch:
            for each, request in requests:
                try:
                    self._check(each, request)
                    looked.check(request)
                    found = self._model(request.choice, planned)
                    if len(requests) <= PLANNED:
                        known = self._open(request, scratch)
                    else:
                        known = length_warnings(request, found.settings, None)
                    for line in known:
                        planned.cautions.setdefault(line, []).append(each.where)
                    job = self._job(request, found)
                except KiwiError as error:
                    message = error.message.replace(f"{scratch}{os.sep}", "")  # a plan's output is only tried there
                    planned.faults.append(Fault(each.where, message, error.hint))
                else:
                    order.setdefault(request.choice, []).append(job)
        planned.faults.sort(key=lambda fault: _line(fault.where))  # others as they came
        planned.jobs = [job for jobs in order.values() for job in jobs]
        return planned

    def _looked(self, requests: Sequence[EditRequest], planned: Planned, begin: float) -> Looked:
        """The files of edits that are too many for plans of their own. `begin`: of the check."""
        if len(requests) <= PLANNED:
            return Looked()
        now = time.monotonic()
        deadline = begin + self.patience - (now - begin)  # what is done with them later takes as long again
        looked = look(requests, self.events, deadline, self.threads, self._sketch)
        if looked.unopened:
            planned.warnings.append(
                f"{looked.unopened} of {looked.files} files were not opened in {format_seconds(self.patience)}: "
                "what is wrong with them is said when it is their turn"
            )
        return looked

    def _request(self, each: Asked) -> EditRequest:
        """The request of a row, and a place for what it writes."""
        options = {**self.defaults, **each.options}
        references = options.pop("references", ()) or ()
        if not options.get("model"):
            own = DEFAULT_REF_EDIT if references else DEFAULT_EDIT
            editor = options.get("editor") or "kiwi"
            options["model"] = own if editor == "kiwi" else default_model(editor)
        instruction = each.instruction or (REPLACEMENTS["subject"] if references else "")
        options["references"] = tuple(path.absolute() for path in references)
        request = EditRequest.of(each.input.absolute(), instruction, **options)
        request.check()
        check_words(request)
        check_used(request.choice, request.sampling)
        found = _stat(request.input)
        if found is None:
            in_table = "; a table's paths are seen from its own folder, or from --base" if _line(each.where) else ""
            raise UsageError(f"input not found: '{each.input}'", f"mend its path{in_table}")
        is_folder = stat.S_ISDIR(found.st_mode)
        name = each.output or name_like(request.input, _kind(request.input, is_folder))
        request = request.changed(output=Path(self._checked_name(name, is_folder)))
        for path in (request.output, *extras_of(request, Path(name)).values()):
            other = self._names.setdefault(str(path), each)
            if other is not each:
                hint = "give each its own in a column 'output' of a table for `kiwi batch`"
                raise UsageError(f"its output '{path}' is also that of {other.where}", hint)
        self._inputs.setdefault(_id(found), each.where)
        return _absolute(request)

    def _checked_name(self, name: str, is_folder: bool) -> str:
        """A result's name in the run's folder. `is_folder`: the input is a folder of pictures."""
        path = PurePosixPath(Path(name).as_posix())
        if path.is_absolute() or ".." in path.parts or not path.name or path.parts[0] == STATE:
            raise UsageError(f"its output leads out of the run's folder: '{name}'", "write a name such as day/a.mp4")
        if (container_of(name) == "folder") != is_folder:
            kinds = "a folder of pictures gives a folder" if is_folder else "name a file: .mp4, .png"
            raise UsageError(f"its output is of another kind than its input: '{name}'", kinds)
        return str(path)

    def _check(self, each: Asked, request: EditRequest) -> None:
        """What can be said when all rows are known."""
        there = _stat(self.out / str(request.output))
        target = _id(there) if there is not None else None
        reader = self._inputs.get(target) if target is not None else None
        if reader is not None:
            reason = f"its output '{request.output}' is the input of {reader}"
            raise UsageError(reason, "choose another --out-dir or name")
        for path in request.references:
            self._header(path)
            if target is not None and _id(path.stat()) == target:
                raise UsageError(f"its output '{request.output}' is its reference", "choose another --out-dir or name")

    def _model(self, choice: ModelChoice, planned: Planned) -> Found:
        """A model as it is here, looked for once; what is wrong with it is wrong with every row that wants it."""
        if choice not in self._models:
            try:
                self._models[choice] = self._found(choice, planned)
            except KiwiError as error:
                self._models[choice] = error
        found = self._models[choice]
        if isinstance(found, KiwiError):
            raise found
        return found

    def _found(self, choice: ModelChoice, planned: Planned) -> Found:
        kind = kind_of(choice)
        found = kind.find(choice)
        if found.missing:
            planned.missing.append(choice.model)
            if self.fetch:
                kind.admit(found, choice)
                found = kind.fetch(choice, self.events)
        return found

    def admit(self) -> None:
        """Refuse devices that are none for the models that are asked for; this takes the libraries.

        Raises:
            KiwiError.
        """
        for choice, found in self._models.items():
            if not isinstance(found, KiwiError):
                kind_of(choice).admit(found, choice)

    def _open(self, request: EditRequest, scratch: Path) -> list[str]:
        """What a person must know of an edit, after its whole plan was made for what is wrong with it."""
        assert request.output is not None
        request = request.changed(output=scratch / request.output.name, overwrite=True)
        plan = prepare(request, fetch=False, cut=False)  # looking for cuts would decode every clip whole
        return list(plan.warnings)

    def _job(self, request: EditRequest, found: Found) -> Job:
        plain = as_plain(request)
        decisive = {name: value for name, value in plain.items() if name not in KNOWN_OTHERWISE}
        if is_exact(request.choice.memory):
            decisive.pop("memory", None)
        files = [self._sketch(path) for path in (request.input, *request.references, request.choice.gguf) if path]
        files += [self._sketch(request.sampling.cache_ratios)] if request.sampling.cache_ratios else []
        mask = request.mask
        files.append(self._sketch(Path(mask)) if mask is not None and Path(mask).exists() else str(mask))
        loras = [self._lora(text) for text in request.choice.loras]
        model = self._of_model(found.folder) if found.folder else self._of_editor(request.choice, found)
        id = job_id(__version__, str(request.output), request.instruction, decisive, files, loras, model)
        del plain["output"]
        return Job(id, str(request.output), plain, str(request.output))

    def _of_editor(self, choice: ModelChoice, found: Found) -> Any:
        """What tells the results of an editor that has no folder of its own from others', looked at once."""
        if choice.editor == "kiwi":
            return [choice.model, choice.revision]
        if choice not in self._editors:
            self._editors[choice] = kind_of(choice).identify(found, choice)
        return self._editors[choice]

    def _lora(self, text: str) -> Any:
        spec = LoraSpec.parse(text)
        path = Path(spec.source)
        return [sampled_file(path) if path.is_file() else spec.source, spec.weight]


def _absolute(request: EditRequest) -> EditRequest:
    """The request with paths that mean the same in every process."""
    values: dict[str, Any] = {}
    for name in ("gguf", "cache_ratios"):
        if request[name] is not None:
            values[name] = request[name].absolute()
    if request.mask is not None and Path(request.mask).exists():
        values["mask"] = str(Path(request.mask).absolute())
    model = _model_path(request.choice.model)
    if model != request.choice.model:
        values["model"] = model
    return request.changed(**values) if values else request


@cache
def _model_path(model: str) -> str:
    """A model's folder as an absolute path; any other name as it is."""
    path = Path(model).expanduser()
    return str(path.absolute()) if model and path.exists() else model


def _line(where: str) -> int:
    """The number of 'line 3'; 0 of anything else."""
    number = where.rpartition(" ")[2]
    return int(number) if number.isdigit() else 0


def _stat(path: Path) -> os.stat_result | None:
    """What the system says of a file that is there."""
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


def _id(found: os.stat_result) -> FileId:
    """The file itself, whatever path leads to it."""
    return found.st_dev, found.st_ino


def _kind(path: Path, is_folder: bool) -> str:
    """The kind of a clip, by its name alone."""
    return "sequence" if is_folder else "image" if path.suffix.lower() in PICTURES else "video"


def _sketch(path: Path) -> str:
    try:
        return sketch(path)
    except OSError as error:
        raise MediaError(f"cannot read '{path}': {error.strerror or error}", "check the file") from None


def _identity(folder: Path) -> str:
    return sampled(folder)
