"""What will be done to a clip: `EditPlan`, the size it is worked at, and what is said of it beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kiwi_cli.record import sidecar_of
from kiwi_cli.request import STEPS, EditRequest
from kiwi_cli.video import Clip, Mask, Size, Span, padded_frame_count, requested_size, size_of_area, working_size
from kiwi_cli.weights.settings import ModelSettings
from kiwi_cli.windows import Windows


@dataclass(frozen=True)
class EditPlan:
    """A request that can be carried out, and what will be done.

    Attributes:
        size: working size. steps: of the schedule. output: the file or folder that will be written.
        extras: what else is written, by kind: 'comparison', 'sheet', 'sidecar', 'ratios'.
        model: the checkpoint's folder, or None while it has to be fetched or converted first.
        commit: of a model from the Hub, when known.
        parameters: of the model, stored; 0 when not known yet.
        notices: what is not as the clip was or as was asked for, in words.
        settings: what the model says of its use. windows: how the clip is cut for a model that takes a few frames at a
            time; None when it is edited in one piece.
    """

    request: EditRequest
    clip: Clip
    span: Span
    size: Size
    output: Path
    model: Path | None
    parameters: int
    notices: tuple[str, ...] = ()
    mask: Mask | None = None
    extras: dict[str, Path] = field(default_factory=dict)
    commit: str | None = None
    steps: int = STEPS
    settings: ModelSettings = field(default_factory=ModelSettings)
    windows: Windows | None = None


def changes(work: EditPlan) -> list[str]:
    """What happens to the picture on its way to the model and back."""
    notices = []
    asked = requested_size(work.request.size)
    if asked is not None and asked != work.size:
        notices.append(f"working at {work.size}, the nearest multiple of {work.settings.multiple} to {asked}")
    if own := worked(work):
        notices.append(own)
    elif work.size != work.clip.size:
        notices.append(f"the clip is {work.clip.size}; it is edited at {work.size} and scaled back")
    frames = work.span.frame_count
    if work.windows is not None:
        notices.append(f"worked in {work.windows}: each is an edit of its own, with the same seed")
    elif work.span.exact and (more := padded_frame_count(frames) - frames):
        times = "once" if more == 1 else f"{more} times"
        notices.append(f"the model works on {frames + more} frames: it sees the last one {times} more")
    return notices


def worked(work: EditPlan) -> str | None:
    """What a model's own working size does to the picture; None when it has none, or nothing is lost by it."""
    chosen = work.settings.pixels is not None and work.request.size is None
    if not chosen or work.size.width * work.size.height >= work.clip.width * work.clip.height:
        return None
    return f"worked at {work.size}, scaled to {work.clip.size}: the picture is softer than the source"


def size_for(clip: Clip, request: EditRequest, settings: ModelSettings) -> Size:
    """The working size: as asked for, else the model's own area, else the clip's size within the default budget."""
    if request.size is None and settings.pixels is not None:
        return size_of_area(*clip.display_size, settings.pixels, settings.multiple)
    return working_size(*clip.display_size, request.size, settings.multiple)


def default_output(clip: Clip) -> Path:
    """Beside the input, of the same kind."""
    suffix = clip.path.suffix.lower()
    if clip.kind == "sequence":
        return clip.path.with_name(clip.path.name + "-edited")
    known: Sequence[str] = (".mp4", ".mov", ".mkv", ".webm", ".gif", ".png", ".jpg", ".jpeg", ".webp")
    if suffix not in known:
        suffix = ".png" if clip.kind == "image" else ".mp4"
    return clip.path.with_name(f"{clip.path.stem}-edited{suffix}")


def extras_of(request: EditRequest, output: Path) -> dict[str, Path]:
    """What else is written, by kind."""
    extras = {}
    if request.compare is not None:
        extras["comparison"] = output.with_name(f"{output.stem}-compare{output.suffix}")
    if request.sheet:
        extras["sheet"] = output.with_name(f"{output.stem}-sheet.png")
    if request.sidecar:
        extras["sidecar"] = sidecar_of(output)
    if request.calibrate_cache is not None:
        extras["ratios"] = request.calibrate_cache
    return extras
