"""A request -> its plan: everything that can be checked without a model is, and nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from kiwi_cli.base.events import SILENT, Events
from kiwi_cli.editing import cache_ratios, paths, references
from kiwi_cli.editing.checks import check_understood, check_words, length_warnings
from kiwi_cli.editing.fitting import check_joint, check_room, check_takes
from kiwi_cli.editing.outputs import open_comparison, open_output
from kiwi_cli.editing.paths import default_output, extras_of, numbered
from kiwi_cli.editing.plan import EditPlan, changes, cost_of, made_for, size_for, with_detail
from kiwi_cli.editing.remaking import check_parts, kept_latents, part_notes, with_parts
from kiwi_cli.editing.request import STEPS, EditRequest
from kiwi_cli.editing.windowing import most_frames, windows_of
from kiwi_cli.editing.wording import meant, understood
from kiwi_cli.editors.base import Found
from kiwi_cli.editors.registry import check_used, kind_of
from kiwi_cli.errors import UsageError
from kiwi_cli.video import Clip, Mask, check_output, for_output, load_mask, probe, refuse_source, select
from kiwi_cli.weights.reserved import check_reserved

OF_NO_CLIP = ("sidecar", "latents", "ratios")
"""What is written beside an output and is neither a clip nor a picture."""


def prepare(request: EditRequest, events: Events = SILENT, *, fetch: bool = True, cut: bool = True) -> EditPlan:
    """The plan of an edit, checked against the files that the request names, with its model on this machine.

    A model that is not here is fetched or converted when all else is known to be in order and the device is one for
    it; what it says of its own size, length and steps is in the plan.

    Args:
        events: told of a download, and of looking for cuts.
        fetch: False plans with what is known of a model that is not here; such a plan can be shown, not run.
        cut: False leaves out the windows, and with them the looking for cuts, which decodes all of a long clip.

    Raises:
        UsageError, MediaError, CheckpointError, DeviceError: the first thing that cannot be, with what to do about it.
    """
    request.check()
    check_words(request)
    for part in request.parts:
        check_words(request.of_part(part))
    request = request.settled
    check_used(request.choice, request.sampling)
    files = _check_files(request)
    kind = kind_of(request.choice)
    found = kind.find(request.choice)
    if found.missing and fetch:
        _plan(request, files, found, events, cut=False)  # 19 GB are not fetched for a codec that there is not
        kind.admit(found, request.choice)
        found = kind.fetch(request.choice, events)
    return _plan(request, files, found, events, cut)


@dataclass(frozen=True)
class _Files:
    """What a request reads, opened, and what it writes; `told`: what a person should know of its references."""

    clip: Clip
    output: Path
    extras: dict[str, Path]
    mask: Mask | None
    told: tuple[str, ...]


def _check_files(request: EditRequest) -> _Files:
    clip = probe(request.input, allow_truncated=request.allow_truncated)
    output = request.output or numbered(request, default_output(clip))
    extras = extras_of(request, output)
    for path in (output, *extras.values()):
        refuse_source(path, (request.input, *request.references, *_mask_file(request)))
    for path in (output, *(path for kind, path in extras.items() if kind not in OF_NO_CLIP)):
        # a preview is made of an edit whose output may be there
        check_output(path, overwrite=request.overwrite or (path == output and request.previewing.asked))
    if request.sampling.calibrate_cache is not None:
        cache_ratios.check_new(request.sampling.calibrate_cache, request.overwrite, paths.sidecar_of(output))
    for path in (extras[kind] for kind in ("sidecar", "latents") if kind in extras):
        if path.exists() and not request.overwrite:
            raise UsageError(f"output exists: '{path}'", "pass --overwrite, or another --output")
    mask = load_mask(request.mask, clip, feather=request.feather) if request.mask is not None else None
    told = tuple(note for path in request.references for note in references.notices(path))
    return _Files(for_output(clip, output), output, extras, mask, told)


def _mask_file(request: EditRequest) -> list[Path]:
    """The mask's path, unless it is a rectangle."""
    return [Path(request.mask)] if request.mask is not None and Path(request.mask).exists() else []


def _plan(request: EditRequest, files: _Files, found: Found, events: Events, cut: bool = True) -> EditPlan:
    clip, settings = files.clip, found.settings
    span = select(
        clip,
        start=request.start,
        duration=request.duration,
        frames=most_frames(request.windowing, request.frames, found),
        fps=request.fps,
    )
    plan = EditPlan(
        request,
        clip,
        span,
        size_for(clip, request, settings),
        files.output,
        found,
        steps=request.sampling.steps or settings.steps or STEPS,
        mask=files.mask,
        extras=files.extras,
        kept=kept_latents(request),
    )
    for words in (request, *map(request.of_part, request.parts)):
        check_reserved(words.prompt, found.reserved)
    check_takes(plan, request.choice.name, found.takes_references)
    check_parts(plan)
    plan = with_detail(plan)
    if cut:
        open_output(plan, plan.output)  # a codec or quality that there is not is refused before all of a clip is read
        plan = with_parts(_in_windows(plan, events))
        check_room(plan)
    warnings = length_warnings(request, plan.settings, plan.span.frame_count, plan.span.exact)
    warnings += [line for asked in _each_asked(plan) for line in check_understood(asked)]
    return replace(plan, notices=tuple(_notices(plan, files.told)), warnings=tuple(dict.fromkeys(warnings)))


def _each_asked(plan: EditPlan) -> list[EditPlan]:
    """The plan as the whole is made, and as each part is."""
    parts = [replace(plan, request=plan.request.of_part(part)) for part in plan.request.parts]
    return parts if plan.kept is not None else [plan, *parts]


def _in_windows(plan: EditPlan, events: Events) -> EditPlan:
    """The plan with its windows, after the shots were looked for."""
    windowing, found = plan.request.windowing, plan.found
    with events.stages({"shots": "look for cuts"}) as stages:
        span, windows = windows_of(
            windowing,
            plan.clip,
            plan.span,
            found,
            lambda done, total: stages("shots", done, total),
            plan.request.needs_latents,
            () if plan.kept is None else plan.kept.shots,
        )
    plan = replace(plan, span=span, windows=windows)
    check_joint(plan)
    return plan


def _notices(plan: EditPlan, of_references: tuple[str, ...]) -> list[str]:
    """What is not as the clip was or as was asked for, in words."""
    notices = [*plan.clip.notices, *plan.span.notices, *of_references, *changes(plan), *part_notes(plan)]
    if line := made_for(plan):
        notices.append(line)
    if plan.found.price is not None:
        notices.append(cost_of(plan.found.price(plan.span.frame_count, plan.rate)))
    if plan.request.sampling.cache_ratios is not None:
        notices += cache_ratios.for_request(plan.request, plan.model, plan.steps)[1]
    found = understood(plan.request, plan.settings)
    if found is not None and found.understood:
        notices.append(meant(plan.request, plan.settings, found))
    elif plan.settings.offers:
        notices.append(f"the model was trained for no more than: {plan.settings.good_for}")
    notices += open_output(plan, plan.output).notices
    if "comparison" in plan.extras:
        notices += [note for note in open_comparison(plan).notices if note not in notices]
    return notices
