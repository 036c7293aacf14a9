"""The clip that an edit reads, and the files that it writes."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi_cli.editing import record
from kiwi_cli.editing.plan import EditPlan
from kiwi_cli.video import Damage, FrameWriter, SourceFrame, open_writer, read_frames, write_sheet

if TYPE_CHECKING:
    import numpy as np


def read_clip(plan: EditPlan, damage: Damage) -> np.ndarray:
    """The frames of the span at the working size, (F, H, W, 3) uint8, in one allocation; what is broken is counted."""
    import numpy as np

    shape = (plan.span.frame_count, plan.size.height, plan.size.width, 3)
    frames = np.empty(shape, dtype=np.uint8)
    count = 0
    for frame in source_frames(plan, damage):
        if count == len(frames):  # the count was an estimate
            frames = np.concatenate([frames, np.empty_like(frames[: max(1, count // 4)])])
        frames[count] = frame.rgb
        count += 1
    return frames[:count]


def source_frames(plan: EditPlan, damage: Damage | None = None) -> Generator[SourceFrame, None, None]:
    """The span's frames at the working size, one at a time."""
    fit: Any = plan.request.fit
    return read_frames(plan.clip, plan.span, size=plan.size, fit=fit, damage=damage, walked=plan.walked)


def open_output(
    plan: EditPlan, path: Path, text: dict[str, str] | None = None, compare: str | None = None
) -> FrameWriter:
    request = plan.request
    return open_writer(
        path,
        plan.clip,
        plan.span,
        size=plan.size,
        fit=request.fit,  # type: ignore[arg-type]
        scaled=plan.detail == "source",
        keep_rest=request.keep_rest,
        mask=plan.mask,
        compare=compare,  # type: ignore[arg-type]
        codec=request.codec,
        quality=request.quality,
        sound=request.sound,
        metadata=text,
        overwrite=request.overwrite or request.previewing.asked,  # a preview leaves it alone
        walked=plan.walked,
    )


def open_comparison(plan: EditPlan, text: dict[str, str] | None = None) -> FrameWriter:
    return open_output(plan, plan.extras["comparison"], text, plan.request.compare)


def write_beside(plan: EditPlan, settings: dict[str, Any]) -> None:
    """The sheet and the sidecar, when they are wanted."""
    if "sheet" in plan.extras:
        write_sheet(
            plan.extras["sheet"],
            plan.clip,
            plan.span,
            plan.output,
            keep_rest=plan.request.keep_rest,
            overwrite=plan.request.overwrite,
        )
    if "sidecar" in plan.extras:
        record.write_sidecar(plan.extras["sidecar"], settings, plan.request.overwrite)
