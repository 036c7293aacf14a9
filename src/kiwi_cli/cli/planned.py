"""`--dry-run`: the plan of an edit in words and as JSON. Nothing is loaded and nothing written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kiwi_cli import estimate, machine, shapes
from kiwi_cli.console import aligned, count, format_bytes, format_seconds
from kiwi_cli.editplan import EditPlan, changes
from kiwi_cli.memory import parse_bytes
from kiwi_cli.variants import find_variant
from kiwi_cli.video import container_of, padded_frame_count

ITEM = {"float32": 4, "float16": 2, "bfloat16": 2}  # bytes
EXTRAS = ("comparison", "sheet", "sidecar", "ratios")
LABEL = 13  # columns


def text(work: EditPlan) -> str:
    """The plan, a line for each thing."""
    found, shape_known = _estimate(work)
    place, said = _device(work), changes(work)  # the rows say it already
    rate = estimate.seconds(found, place)
    rows = [
        ("input", f"'{work.request.input}': {_clip(work)}"),
        ("sound", _sound(work)),
        ("read", _span(work)),
        ("resized", f"{work.clip.size} -> {work.size} ({work.request.fit}), and back"),
        *((("windows", f"{work.windows}"),) if work.windows else ()),
        ("padded", _padding(work)),
        ("tokens", f"{found.tokens:,}, and {found.context:,} of instruction"),
        ("instruction", work.request.prompt),
        *(("reference", f"'{path}'") for path in work.request.references),
        *((("mask", f"{work.request.mask}, feather {work.request.feather} px"),) if work.mask else ()),
        ("model", _model(work)),
        *(("lora", text) for text in work.request.loras),
        ("steps", f"{work.steps}, seed {work.request.seed}"),
        ("work", f"{_tflop(found.tflop)} in all, {_tflop(found.step_tflop)} a step (estimate)"),
        ("memory", _memory(work, found, shape_known)),
        ("time", _time(place, rate)),
        ("write", f"'{work.output}': {_written(work)}"),
        *((f"{kind}", f"'{path}'") for kind, path in work.extras.items()),
        *(("note", notice) for notice in work.notices if notice not in said),
    ]
    return aligned(rows, LABEL)


def data(work: EditPlan) -> dict[str, Any]:
    """The plan as one object; its keys are documented in docs/json.md."""
    found, shape_known = _estimate(work)
    place = _device(work)
    rate = estimate.seconds(found, place)
    return {
        "dry_run": True,
        "input": str(work.request.input),
        "clip": {
            "kind": work.clip.kind,
            "width": work.clip.width,
            "height": work.clip.height,
            "frames": work.clip.frame_count,
            "fps": float(work.clip.fps),
            "duration": float(work.clip.duration),
            "codec": work.clip.codec,
            "rotation": work.clip.rotation,
            "variable_rate": work.clip.variable_rate,
            "audio": [track.codec for track in work.clip.audio],
        },
        "start": float(work.span.start),
        "frames": work.span.frame_count,
        "padded_frames": padded_frame_count(_at_once(work)),
        "windows": work.windows.data if work.windows else None,
        "working_size": str(work.size),
        "fit": work.request.fit,
        "instruction": work.request.prompt,
        "model": work.request.model,
        "model_path": None if work.model is None else str(work.model),
        "steps": work.steps,
        "seed": work.request.seed,
        "estimate": {
            **estimate.describe(found),
            "level": _level(work, found),
            "of_this_checkpoint": shape_known,
            "device": place,
            "seconds": None if rate is None else round(rate[0], 1),
            "seconds_source": None if rate is None else rate[1].source,
        },
        "output": str(work.output),
        **{kind: str(path) if (path := work.extras.get(kind)) else None for kind in EXTRAS},
        "notices": list(work.notices),
    }


def _estimate(work: EditPlan) -> tuple[estimate.Estimate, bool]:
    """The counts, and whether they are of this checkpoint; one that is not here is taken to be a 5B."""
    shape = shapes.RELEASED_5B if work.model is None else shapes.read_shape(work.model)
    on_cpu = work.request.device == "cpu" or not machine.gpus()
    item = ITEM.get(work.request.dtype, 4 if on_cpu else 2)
    references, quantize = len(work.request.references), work.request.quantize
    found = estimate.estimate(shape, work.size, _at_once(work), references, work.steps, item, quantize)
    if work.windows is not None:
        found = replace(found, tflop=found.tflop * work.windows.count)
    return found, work.model is not None


def _at_once(work: EditPlan) -> int:
    """Frames that the model is given at a time."""
    return work.span.frame_count if work.windows is None else work.windows.frames


def _device(work: EditPlan) -> str:
    cards = machine.gpus()
    return cards[0].name if cards and work.request.device != "cpu" else "CPU"


def _clip(work: EditPlan) -> str:
    clip = work.clip
    if clip.kind == "image":
        return f"a picture of {clip.size} ({clip.container})"
    rate = "variable rate, about " if clip.variable_rate else ""
    about = "" if clip.frame_count_exact else "about "
    return (
        f"{clip.size}, {about}{count(clip.frame_count, 'frame')}, {rate}{float(clip.fps):.6g} frames/s, "
        f"{float(clip.duration):.3f} s, {clip.codec}"
    )


def _sound(work: EditPlan) -> str:
    if not work.clip.audio:
        return "none"
    tracks = ", ".join(f"{track.codec} {track.layout}" for track in work.clip.audio)
    return tracks if work.request.sound else f"{tracks}: left out"


def _span(work: EditPlan) -> str:
    start, length = float(work.span.start), float(work.span.duration)
    about = "" if work.span.exact else "about "
    return f"{about}{count(work.span.frame_count, 'frame')}, {start:.3f} s to {start + length:.3f} s"


def _padding(work: EditPlan) -> str:
    padded = padded_frame_count(_at_once(work))
    latents = count((padded - 1) // 4 + 1, "latent frame")
    return f"to {count(padded, 'frame')} (4k + 1): {latents}{' a window' if work.windows else ''}"


def _model(work: EditPlan) -> str:
    name = work.request.model
    if work.model is not None:
        return f"{name}, here in '{work.model}'" if str(work.model) != name else f"'{name}', here"
    variant = find_variant(name)
    size = f", about {format_bytes(variant.bytes)}" if variant and variant.bytes else ""
    return f"{name}, NOT here: to be fetched{size}"


def _memory(work: EditPlan, found: estimate.Estimate, shape_known: bool) -> str:
    label = f"(estimate{'' if shape_known else ', of a 5B model'})"
    room = _room(work)
    if room is None:
        has = machine.memory()
        machines = f"; this machine has {format_bytes(has[0])}" if has else ""
        return f"{format_bytes(found.levels['resident'])} {label}{machines}"
    levels = ", ".join(f"{level} {format_bytes(size)}" for level, size in found.levels.items())
    fits = found.plan(room, work.request.memory)
    strips = f" in {count(fits.decode_strips, 'strip')}" if fits and fits.decode_strips > 1 else ""
    return f"{levels} {label}; {format_bytes(room)} free: {fits.level + strips if fits else 'too little'}"


def _room(work: EditPlan) -> int | None:
    """Bytes that the edit may take on its device; None on a CPU, unless --max-memory says so."""
    cards = [] if work.request.device == "cpu" else machine.gpus()
    limits = [cards[0].free] if cards else []
    if work.request.max_memory is not None:
        limits.append(parse_bytes(work.request.max_memory))
    return min(limits, default=None)


def _level(work: EditPlan, found: estimate.Estimate) -> str | None:
    """The memory level that would be chosen; None when nothing fits."""
    room = _room(work)
    if room is None:
        return "resident" if work.request.memory == "auto" else work.request.memory
    fits = found.plan(room, work.request.memory)
    return fits.level if fits else None


def _time(place: str, rate: tuple[float, estimate.Recorded] | None) -> str:
    if rate is None:
        return f"no figure recorded for this device ({place})"
    return f"about {format_seconds(rate[0])} on {place} (estimate, from {rate[1].source})"


def _tflop(number: float) -> str:
    for unit in ("TFLOP", "GFLOP"):
        if number >= 1:
            return f"{number:,.0f} {unit}" if number >= 10 else f"{number:.1f} {unit}"
        number *= 1000
    return f"{number:.3g} MFLOP"


def _written(work: EditPlan) -> str:
    clip, kind = work.clip, container_of(work.output)
    if kind in ("png", "jpeg", "webp"):
        return f"a picture of {clip.size}"
    frames = clip.frame_count if work.request.keep_rest else work.span.source_frames
    what = "PNG files" if kind == "folder" else work.request.codec or ""
    return f"{count(frames, 'frame')} of {clip.size}{f', {what}' if what else ''}"
