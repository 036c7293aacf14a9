"""A part of an edit made anew: the request for it, what of the plan it is, and the latents that are kept for it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi_cli.base.option import OUTPUT, rows
from kiwi_cli.base.text import count, format_bytes
from kiwi_cli.editing import record
from kiwi_cli.editing.counted import shape_of
from kiwi_cli.editing.parts import Part, frames_of, times_of
from kiwi_cli.editing.paths import latents_of
from kiwi_cli.editing.plan import EditPlan
from kiwi_cli.editing.request import EditRequest, parse_time
from kiwi_cli.engine.estimate import latent_shape
from kiwi_cli.engine.kept_latents import KeptLatents
from kiwi_cli.engine.part_rows import part_rows
from kiwi_cli.errors import CheckpointError, KiwiError, UsageError

if TYPE_CHECKING:
    from kiwi_cli.engine.part_rows import PartRows

CHANGEABLE = ("input", "seed", "instruction", "force", "device", "memory", "max_memory", "download")
"""What may be another than it was when a part is made anew, beside what concerns the output alone."""


def parse_span(text: str) -> tuple[float, float]:
    """Two times in seconds, from such as '00:12-00:15', '12-15.5' or '1m2s-1m4s'.

    Raises:
        UsageError: it is none, or does not end after it begins.
    """
    start, dash, end = text.partition("-")
    if not dash or not start.strip() or not end.strip() or end.strip().startswith("-"):
        raise UsageError(f"not a span: '{text}'", "write two times with a dash between, such as 00:12-00:15")
    times = parse_time(start), parse_time(end)
    if times[1] <= times[0]:
        raise UsageError(f"the span ends before it begins: '{text}'", "write the earlier time first")
    return times


def part_request(
    settings: dict[str, Any], made: Path, base: Path, span: tuple[float, float], changed: dict[str, Any]
) -> EditRequest:
    """The request that makes a part of an output anew.

    Args:
        settings: that the output carries. made: the output. base: what the settings' paths are seen from.
        span: seconds of the output. changed: options that are given.

    Raises:
        UsageError: an option that is of the whole clip, or an input that is another. MediaError, CheckpointError,
            KiwiError: the output's latents are not there, or not its own.
    """
    table, whole = rows(EditRequest), record.request_from(settings, base)
    for name, value in changed.items():
        if name not in CHANGEABLE and table[name].option.group != OUTPUT and value != whole[name]:
            flag = table[name].option.flags[0].partition("/")[0]
            raise UsageError(
                f"{flag} is for the whole clip, and --span makes a part of it anew, in step with the rest",
                "leave it out: a part can have another --seed and other words",
            )
    again = f"make the clip once more and keep them, then its part: kiwi rerun '{made}' --keep-latents"
    kept = KeptLatents(latents_of(made), again)
    if kept.settings != settings:
        raise CheckpointError(f"the latents in '{kept.path}' are of another edit than '{made}'", again)
    words, seed = changed.pop("instruction", None), changed.pop("seed", None)
    request = whole.changed(**changed)
    record.check_unchanged(settings, request, base)
    if request.input != whole.input:  # it was moved, and must be the same
        record.check_same(request.input, settings["input"]["sha256"], "input")
    before = _before(request)
    part = Part(round(float(span[0] + before), 9), round(float(span[1] + before), 9), seed, words)
    return request.changed(parts=(*whole.parts, part), latents=kept.path)


def _before(request: EditRequest) -> Fraction:
    """Seconds of the clip before the output begins."""
    if request.keep_rest:
        return Fraction(0)
    from kiwi_cli.video import probe, select

    clip = probe(request.input, allow_truncated=request.allow_truncated)
    span = select(clip, start=request.start, duration=request.duration, fps=request.fps)
    return times_of(clip, span)[0][0]


# -- in the plan ------------------------------------------------------------------------------------------------


def check_parts(plan: EditPlan) -> None:
    """Refuse to keep latents, or to make a part anew, where there are none or no parts.

    Raises:
        UsageError: with the reason.
    """
    request = plan.request
    if not request.needs_latents:
        return
    asked = "--span" if request.parts else "--keep-latents"
    if plan.clip.kind == "image":
        raise UsageError(f"{asked} is for parts of a clip, and '{request.input}' is a picture", "leave it out")
    if not plan.found.joins_windows:
        raise UsageError(f"{asked} needs latents, and '{request.choice.name}' gives none", "leave it out")
    if request.windowing.windows in ("independent", "off"):
        raise UsageError(
            f"{asked} needs windows that are denoised together, not --windows {request.windowing.windows}",
            f"leave one of them out, or pass --windows joint with {asked}",
        )


def with_parts(plan: EditPlan) -> EditPlan:
    """The plan with the parts that are made anew, and the latents that are kept of the rest.

    Raises:
        UsageError: a part that is not in the clip. CheckpointError: the latents are of another clip or model, or
            damaged. KiwiError: no room for the latents that are to be kept.
    """
    if not plan.request.needs_latents:
        return plan
    windows = plan.windows
    if windows is None or windows.layout is None:
        raise UsageError("this model's windows cannot be joined", "leave --keep-latents out")
    layout = windows.layout
    parts = tuple(part_rows(layout, *frames_of(part, plan.clip, plan.span)) for part in plan.request.parts)
    plan = replace(plan, parts=parts)
    if plan.kept is not None:
        plan.kept.check_form(layout, parts[:-1], latent_shape(shape_of(plan), plan.size))
    if "latents" in plan.extras:
        _check_room(plan.extras["latents"], kept_bytes(plan) or 0)
    return plan


def kept_latents(request: EditRequest) -> KeptLatents | None:
    """The latents that a request goes on from; None where it makes all of them.

    Raises:
        KiwiError, CheckpointError: they are not there any more, or damaged.
    """
    return None if request.latents is None else KeptLatents(request.latents, "make the whole clip again")


def kept_bytes(plan: EditPlan) -> int | None:
    """Bytes of the latents that are kept beside the output; None when none are."""
    if "latents" not in plan.extras or plan.windows is None or plan.windows.layout is None:
        return None
    channels, height, width = latent_shape(shape_of(plan), plan.size)
    latents = 2 * plan.windows.layout.rows + sum(len(part.rows) for part in plan.parts)
    return 4 * latents * channels * height * width


def part_notes(plan: EditPlan) -> list[str]:
    """What is made anew, in words; of the newest part alone where the rest is kept."""
    if not plan.parts:
        return []
    times = times_of(plan.clip, plan.span)
    shown = plan.parts if plan.kept is None else plan.parts[-1:]
    notes = [f"made anew: {_frames(part, times)}" for part in shown]
    if plan.kept is not None:
        notes[-1] += "; latent frames are made whole, and all other frames stay what they are, to the bit"
        asked = plan.request.parts[-1]
        if asked.seed is None and asked.instruction is None:
            notes.append("the same seed and the same words: the part will look much as it did; --seed gives another")
    return notes


def _frames(part: PartRows, times: list[tuple[Fraction, Fraction]]) -> str:
    last = min(part.last, len(times)) - 1
    begin, end = times[min(part.first, last)][0], sum(times[last])
    return f"{count(part.last - part.first, 'frame')}, {float(begin):.3f} s to {float(end):.3f} s of the clip"


def _check_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.absolute().parent).free
    if free < needed:
        raise KiwiError(
            f"the latents take {format_bytes(needed)} beside the output, and {format_bytes(free)} are free there",
            "make room there, pass an --output on another disk, or leave --keep-latents out",
        )


def differences(kept: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Why frames that were kept may not come out as they did, in words; empty when they do."""
    told = [
        f"{name} {kept.get(name)} then, {now.get(name)} now"
        for name in ("kiwi", "device", "dtype")
        if kept.get(name) != now.get(name)
    ]
    return "; ".join(told)
