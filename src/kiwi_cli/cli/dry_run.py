"""`--dry-run`: the plan of an edit in words and as JSON. Nothing is loaded and nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kiwi_cli.base import hardware
from kiwi_cli.base.text import aligned, count, format_bytes, format_seconds
from kiwi_cli.editing.counted import contexts_of, counted, item_of, shape_of
from kiwi_cli.editing.plan import EditPlan, changes, detail_note
from kiwi_cli.editing.remaking import kept_bytes
from kiwi_cli.editing.work_folders import work_folder
from kiwi_cli.engine import estimate, last_runs
from kiwi_cli.engine.last_runs import LastRun
from kiwi_cli.engine.memory import parse_bytes
from kiwi_cli.video import container_of, padded_frame_count
from kiwi_cli.weights.catalog import find_variant

EXTRAS = ("comparison", "sheet", "sidecar", "latents", "ratios")
LABEL = 13  # columns


def text(plan: EditPlan, verbose: bool = False) -> str:
    """The plan, a line for each thing; what only those ask for who know the model is there when `verbose`."""
    said = changes(plan)  # the rows say it already
    own = plan.request.choice.editor == "kiwi"
    rows = [
        ("input", f"'{plan.request.input}': {_clip(plan)}"),
        ("sound", _sound(plan)),
        ("read", _span(plan)),
        ("resized", f"{plan.clip.size} -> {plan.size} ({plan.request.fit}), and back"),
        ("detail", (detail_note(plan) or "of the model").removeprefix("detail ")),
        *((("windows", f"{plan.in_windows}"),) if plan.in_windows else ()),
        *((("padded", padding),) if own and (padding := _padding(plan, verbose)) else ()),
        *((("tokens", _tokens(plan)),) if own and verbose else ()),
        ("instruction", plan.told(plan.asked)),
        *(("reference", f"'{path}'") for path in plan.request.references),
        *((("mask", f"{plan.request.mask}, feather {plan.request.feather} px"),) if plan.mask else ()),
        *(_counted(plan, verbose) if own else (("editor", plan.request.choice.name),)),
        ("write", f"'{plan.output}': {_written(plan)}"),
        *((f"{kind}", f"'{path}'{_size(plan, kind)}") for kind, path in plan.extras.items()),
        *(("note", notice) for notice in plan.notices if notice not in said),
    ]
    return aligned(rows, LABEL)


def _tokens(plan: EditPlan) -> str:
    found = counted(plan)[0]
    return f"{found.tokens:,}, and {found.context:,} of instruction"


def _counted(plan: EditPlan, verbose: bool) -> list[tuple[str, str]]:
    """What is counted from a model of Kiwi's; what another editor will do is not known beforehand."""
    found, shape_known = counted(plan)
    return [
        ("model", _model(plan)),
        *(("lora", text) for text in plan.request.choice.loras),
        ("steps", f"{plan.steps}, seed {plan.asked.sampling.seed}"),
        *((("work", _work(found)),) if verbose else ()),
        ("memory", _memory(plan, found, shape_known)),
        *((("latents", _latents(plan, kept)),) if (kept := _on_host(plan)) else ()),
        ("time", _time(plan, found)),
    ]


def data(plan: EditPlan) -> dict[str, Any]:
    """The plan as one object; its keys are documented in docs/json.md."""
    kept = _on_host(plan)
    return {
        "dry_run": True,
        "input": str(plan.request.input),
        "clip": {
            "kind": plan.clip.kind,
            "width": plan.clip.width,
            "height": plan.clip.height,
            "frames": plan.clip.frame_count,
            "fps": float(plan.clip.fps),
            "duration": float(plan.clip.duration),
            "codec": plan.clip.codec,
            "rotation": plan.clip.rotation,
            "variable_rate": plan.clip.variable_rate,
            "audio": [track.codec for track in plan.clip.audio],
        },
        "start": float(plan.span.start),
        "frames": plan.span.frame_count,
        "padded_frames": padded_frame_count(plan.at_once),
        "windows": plan.in_windows.data if plan.in_windows else None,
        "parts": [{"first": part.first, "frames": part.last - part.first} for part in plan.parts],
        "latents_bytes": None if kept is None else kept.total,
        "disk_bytes": None if kept is None else kept.on_disk(_saves(plan)),
        "kept_bytes": kept_bytes(plan),
        "working_size": str(plan.size),
        "fit": plan.request.fit,
        "detail": plan.detail,
        "instruction": plan.told(plan.asked),
        "editor": plan.request.choice.editor,
        "model": plan.request.choice.model,
        "model_path": None if plan.model is None else str(plan.model),
        "steps": plan.steps,
        "seed": plan.asked.sampling.seed,
        "estimate": _estimated(plan) if plan.request.choice.editor == "kiwi" else None,
        "output": str(plan.output),
        **{kind: str(path) if (path := plan.extras.get(kind)) else None for kind in EXTRAS},
        "notices": [*plan.warnings, *plan.notices],
    }


def _on_host(plan: EditPlan) -> estimate.OnHost | None:
    """What a long clip keeps on the host; None of any other."""
    if plan.windows is None or plan.windows.layout is None:
        return None
    layout, solver, references = plan.windows.layout, plan.request.sampling.solver, len(plan.request.references)
    contexts, rows = plan.windows.contexts_read, layout.rows
    if plan.kept is not None:  # of the part alone: the rest is decoded where it lies
        contexts, rows = contexts_of(plan, plan.parts[-1]), len(plan.parts[-1].own_layout(layout)[1])
    return estimate.on_host(shape_of(plan), plan.size, layout, solver, contexts, references, item_of(plan), rows)


def _size(plan: EditPlan, kind: str) -> str:
    """How large something beside the output will be, where that may be much."""
    size = kept_bytes(plan) if kind == "latents" else None
    return "" if size is None else f": {format_bytes(size)} (estimate)"


def _saves(plan: EditPlan) -> bool:
    """Whether the work is saved now and then; that of a part is not."""
    return plan.kept is None and plan.request.save_every > 0


def _latents(plan: EditPlan, kept: estimate.OnHost) -> str:
    """Where what grows with a long clip is kept, how often it is saved, and what that takes on the disk."""
    size, every, folder = format_bytes(kept.total), plan.request.save_every, work_folder(plan.output)
    if plan.kept is not None:
        return f"{size} of the part (estimate); of the rest as they are in '{plan.kept.path}'"
    place = f"in files in '{folder}'" if kept.mapped else "in memory"
    room = "" if kept.mapped else f" with up to {format_bytes(kept.on_disk(True))}"
    saved = f"; saved in '{folder}' every {format_seconds(every)}{room}, and gone at the end" if every else ""
    return f"{size} {place}{saved} (estimate)"


def _estimated(plan: EditPlan) -> dict[str, Any]:
    found, shape_known = counted(plan)
    taken = _seconds(plan, found)
    return {
        **estimate.describe(found),
        "level": _level(plan, found),
        "of_this_checkpoint": shape_known,
        "device": _device(plan),
        "seconds": None if taken is None else round(taken[0], 1),
        "seconds_source": None if taken is None else taken[1],
    }


def last_run(plan: EditPlan, load: float = 0.0, total: float = 0.0, writing: float = 0.0) -> LastRun:
    """An edit as it is remembered: seconds to load the model, in all, and to decode and write."""
    request, choice = plan.request, plan.request.choice
    windows = "" if plan.windows is None else f" in {count(plan.windows.count, 'window')}"
    references = f" with {count(len(request.references), 'reference')}" if request.references else ""
    anew = f", {count(plan.parts[-1].last - plan.parts[-1].first, 'frame')} of them anew" if plan.kept else ""
    return LastRun(
        device=_device(plan),
        model=_named(choice.model),
        mode=" ".join((_dtype(plan), choice.quantize, choice.memory, choice.attention, request.sampling.cache))
        + (" compiled" if choice.compile else ""),
        shape=f"{plan.size}, {count(plan.span.frame_count, 'frame')}{windows}{references}{anew}",
        tflop=counted(plan)[0].tflop,
        load=load,
        work=total - load,
        writing=writing,
        pixels=plan.span.frame_count * plan.clip.size.width * plan.clip.size.height,
    )


def _seconds(plan: EditPlan, found: estimate.Estimate) -> tuple[float, str] | None:
    """How long the edit takes, and from what that is known: edits made here before, else rates that are recorded."""
    here = last_runs.expected(last_run(plan))
    if here is not None:
        return here
    rate = estimate.seconds(found, _device(plan))
    return None if rate is None else (rate[0], rate[1].source)


def _named(model: str) -> str:
    """A model's name; of a folder, from wherever it is named, the whole path."""
    folder = Path(model).expanduser()
    return str(folder.resolve()) if model and folder.exists() else model


def _dtype(plan: EditPlan) -> str:
    """The precision that is worked in: a record names the one that 'auto' was."""
    named = plan.request.choice.dtype
    return ("float32" if _device(plan) == "CPU" else "bfloat16") if named == "auto" else named


def _device(plan: EditPlan) -> str:
    cards = hardware.gpus()
    return cards[0].name if cards and plan.request.choice.device != "cpu" else "CPU"


def _clip(plan: EditPlan) -> str:
    clip = plan.clip
    if clip.kind == "image":
        return f"a picture of {clip.size} ({clip.container})"
    rate = "variable rate, about " if clip.variable_rate else ""
    about = "" if clip.frame_count_exact else "about "
    return (
        f"{clip.size}, {about}{count(clip.frame_count, 'frame')}, {rate}{float(clip.fps):.6g} frames/s, "
        f"{float(clip.duration):.3f} s, {clip.codec}"
    )


def _sound(plan: EditPlan) -> str:
    if not plan.clip.audio:
        return "none"
    tracks = ", ".join(f"{track.codec} {track.layout}" for track in plan.clip.audio)
    return tracks if plan.request.sound else f"{tracks}: left out"


def _span(plan: EditPlan) -> str:
    start, length = float(plan.span.start), float(plan.span.duration)
    about = "" if plan.span.exact else "about "
    return f"{about}{count(plan.span.frame_count, 'frame')}, {start:.3f} s to {start + length:.3f} s"


def _padding(plan: EditPlan, verbose: bool) -> str:
    """How many frames the model is given; empty when it is given the clip's own, and those are not asked for."""
    padded = padded_frame_count(plan.at_once)
    latents = count((padded - 1) // 4 + 1, "latent frame")
    if verbose:
        return f"to {count(padded, 'frame')} (4k + 1): {latents}{' a window' if plan.windows else ''}"
    more = padded - plan.span.frame_count
    return "" if plan.windows or more <= 0 else f"to {count(padded, 'frame')}: the model is shown the last one again"


def _model(plan: EditPlan) -> str:
    name = plan.request.choice.model
    if plan.model is not None:
        return f"{name}, here in '{plan.model}'" if str(plan.model) != name else f"'{name}', here"
    variant = find_variant(name)
    size = f", about {format_bytes(variant.bytes)}" if variant and variant.bytes else ""
    return f"{name}, NOT here: to be fetched{size}"


def _memory(plan: EditPlan, found: estimate.Estimate, shape_known: bool) -> str:
    label = f"(estimate{'' if shape_known else ', of a 5B model'})"
    room = _room(plan)
    if room is None:
        has = hardware.memory()
        machines = f"; this machine has {format_bytes(has[0])}" if has else ""
        at_most = found.place(None, plan.request.choice.memory)
        return f"{format_bytes(at_most.peak if at_most else 0)} {label}{machines}"
    levels = ", ".join(f"{level} {format_bytes(size)}" for level, size in found.levels.items())
    fits = found.place(room, plan.request.choice.memory)
    strips = f" in {count(fits.decode_strips, 'strip')}" if fits and fits.decode_strips > 1 else ""
    return f"{levels} {label}; {format_bytes(room)} free: {fits.level.name + strips if fits else 'too little'}"


def _room(plan: EditPlan) -> int | None:
    """Bytes that the edit may take on its device; None on a CPU, unless --max-memory says so."""
    cards = [] if plan.request.choice.device == "cpu" else hardware.gpus()
    limits = [cards[0].free] if cards else []
    if plan.request.choice.max_memory is not None:
        limits.append(parse_bytes(plan.request.choice.max_memory))
    return min(limits, default=None)


def _level(plan: EditPlan, found: estimate.Estimate) -> str | None:
    """The memory level that would be chosen; None when nothing fits."""
    fits = found.place(_room(plan), plan.request.choice.memory)
    return fits.level.name if fits else None


def _time(plan: EditPlan, found: estimate.Estimate) -> str:
    place, taken = _device(plan), _seconds(plan, found)
    if taken is None:
        return f"no figure recorded for this device ({place})"
    return f"about {format_seconds(taken[0])} on {place} (estimate, from {taken[1]})"


def _work(found: estimate.Estimate) -> str:
    return f"{_tflop(found.tflop)} in all, {_tflop(found.step_tflop)} a step (estimate)"


def _tflop(number: float) -> str:
    for unit in ("TFLOP", "GFLOP"):
        if number >= 1:
            return f"{number:,.0f} {unit}" if number >= 10 else f"{number:.1f} {unit}"
        number *= 1000
    return f"{number:.3g} MFLOP"


def _written(plan: EditPlan) -> str:
    clip, kind = plan.clip, container_of(plan.output)
    if kind in ("png", "jpeg", "webp"):
        return f"a picture of {clip.size}"
    frames = clip.frame_count if plan.request.keep_rest else plan.span.source_frames
    what = "PNG files" if kind == "folder" else plan.request.codec or ""
    return f"{count(frames, 'frame')} of {clip.size}{f', {what}' if what else ''}"
