"""What will be done to a clip: `EditPlan`, the size it is worked at, and what is said of it beforehand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from kiwi_cli.editing.request import STEPS, EditRequest
from kiwi_cli.editing.windows import Windows
from kiwi_cli.editing.wording import told
from kiwi_cli.editors.base import Found
from kiwi_cli.engine.kept_latents import KeptLatents
from kiwi_cli.engine.noise import NoisePart
from kiwi_cli.engine.part_rows import PartRows
from kiwi_cli.errors import UsageError
from kiwi_cli.video import (
    Clip,
    Framing,
    Mask,
    Size,
    Span,
    Walked,
    framing,
    padded_frame_count,
    requested_size,
    size_of_area,
    working_size,
)
from kiwi_cli.weights.settings import ModelSettings


@dataclass(frozen=True)
class EditPlan:
    """A request that can be carried out, and what will be done.

    Attributes:
        size: working size. steps: of the schedule. output: the file or folder that will be written.
        extras: what else is written, by kind: 'comparison', 'sheet', 'sidecar', 'latents', 'ratios'.
        detail: 'source' or 'model': where the result's detail comes from.
        found: the model. windows: how the clip is cut for one that takes a few frames at a time; None when it is
            edited in one piece.
        noise: of which longer edit this is a moment; None of an edit by itself.
        parts: made anew after the whole. kept: what the whole and all parts but the last are in, when they are made.
        home: the folder that the output will lie in, when it is written somewhere else first; None: its own.
        notices: what is not as the clip was or as was asked for, in words. warnings: what a person must know before.
        walked: the clip's times, for the writer, once it has been read.
    """

    request: EditRequest
    clip: Clip
    span: Span
    size: Size
    output: Path
    found: Found
    steps: int = STEPS
    windows: Windows | None = None
    detail: str = "model"
    warnings: tuple[str, ...] = ()
    mask: Mask | None = None
    extras: dict[str, Path] = field(default_factory=dict)
    parts: tuple[PartRows, ...] = ()
    kept: KeptLatents | None = None
    home: Path | None = None
    notices: tuple[str, ...] = ()
    noise: NoisePart | None = None
    walked: Walked = field(default_factory=Walked, compare=False, repr=False)

    @property
    def model(self) -> Path | None:
        """The checkpoint's folder; None while it is not here, and of an editor that has none."""
        return self.found.folder

    @property
    def at_once(self) -> int:
        """Frames that the model is given at a time."""
        frames = self.span.frame_count if self.windows is None else self.windows.frames
        return max(frames, self.least)

    @property
    def least(self) -> int:
        """Fewest of them: a model that is made for a number of frames gets that many, or as few as it says, but for a
        picture that it knows as one."""
        alone = self.span.frame_count == 1 and not self.request.references and self.settings.pictures
        return 1 if alone else self.settings.least or self.settings.frames or 1

    @property
    def asked(self) -> EditRequest:
        """The request as what is made now is asked for: the last part's words and seed where the rest is kept."""
        return self.request if self.kept is None else self.request.of_part(self.request.parts[-1])

    def told(self, request: EditRequest) -> str:
        """The instruction of it as the model is given it."""
        return told(request, self.settings)

    @property
    def in_windows(self) -> Windows | None:
        """How the clip is cut; None when it is edited in one piece, or in one window, which is the same."""
        return None if self.windows is None or self.windows.is_one else self.windows

    @property
    def rate(self) -> Fraction:
        """Frames a second that the editor is given."""
        return self.clip.fps if self.span.fps is None else min(self.span.fps, self.clip.fps)

    @property
    def settings(self) -> ModelSettings:
        """What the model says of its use."""
        return self.found.settings

    @property
    def place(self) -> Framing:
        """Where the clip's pixels lie in the working frame."""
        return framing(self.clip.size, self.size, self.request.fit, self.clip.pixel_aspect)  # type: ignore[arg-type]


def with_detail(plan: EditPlan) -> EditPlan:
    """The plan with `detail` as the request, the clip and the model have it.

    Raises:
        UsageError: 'source' is asked for, and the model gives no round trip.
    """
    gives = plan.found.gives_round_trip
    if plan.request.detail == "source" and not gives:
        raise UsageError(
            f"--detail source needs the source as the model's autoencoder gives it back: "
            f"'{plan.request.choice.name}' gives no such frames",
            "leave --detail out, or pass --detail model",
        )
    return replace(plan, detail="source" if gives and _wants_source(plan) else "model")


def _wants_source(plan: EditPlan) -> bool:
    return plan.request.detail == "source" or (plan.request.detail == "auto" and bool(_reason(plan)))


def _reason(plan: EditPlan) -> str:
    """Why 'auto' takes the source's detail; empty when it does not."""
    shown, worked = plan.place.source.size, plan.place.target.size
    # 720 lines that became 704 were only rounded: what the model made is as fine as the clip, and exact.
    if any(side - own >= plan.settings.multiple for side, own in zip(shown, worked, strict=True)):
        return "the clip is larger than what the model works at"
    return "the model asks for it" if plan.settings.detail else ""


def cost_of(dollars: float | None) -> str:
    """What an edit will cost, in words."""
    if dollars is None:
        return "it costs money, how much is not known here: --editor-price DOLLARS, a second of the clip, says it"
    return f"it costs about {dollars:.2f} dollars at list price"


def detail_note(plan: EditPlan) -> str | None:
    """What is to be said of where the detail comes from; None when it is the model's, as it was asked to be."""
    if plan.detail == "source":
        why = f" ({_reason(plan)})" if plan.request.detail == "auto" else ""
        return f"detail from the source{why}: NOT exact; --detail model leaves it out"
    if _wants_source(plan):
        return f"detail of the model alone: '{plan.request.choice.name}' does not give the source back beside the edit"
    return None


def changes(plan: EditPlan) -> list[str]:
    """What happens to the picture on its way to the model and back."""
    notices = []
    asked = requested_size(plan.request.size)
    if asked is not None and asked != plan.size:
        notices.append(f"the model works at {plan.size}, the nearest multiple of {plan.settings.multiple} to {asked}")
    if own := worked(plan):
        notices.append(own)
    elif plan.size != plan.clip.size:
        notices.append(f"the clip is {plan.clip.size}; it is edited at {plan.size} and scaled back")
    if note := detail_note(plan):
        notices.append(note)
    frames = plan.span.frame_count
    if plan.in_windows is not None:
        apart = ": each is an edit of its own, with the same seed" if plan.in_windows.layout is None else ""
        notices.append(f"the clip is edited in {plan.in_windows}{apart}")
    elif plan.found.pads and plan.span.exact and (more := padded_frame_count(plan.at_once) - frames):
        times = "once" if more == 1 else f"{more} times"
        notices.append(f"the model works on {frames + more} frames: it sees the last one {times} more")
    return notices


def worked(plan: EditPlan) -> str | None:
    """What a model's own working size does to the picture; None when it has none, or nothing is lost by it."""
    chosen = plan.settings.pixels is not None and plan.request.size is None
    if not chosen or plan.size.width * plan.size.height >= plan.clip.width * plan.clip.height:
        return None
    softer = ": the picture is softer than the source" if plan.detail == "model" else ""
    return f"the model works at {plan.size}; the result is scaled to {plan.clip.size}{softer}"


def made_for(plan: EditPlan) -> str | None:
    """What it means that a model with a working size of its own is given another one; None when it is not."""
    if plan.settings.pixels is None or plan.request.size is None:
        return None
    own = size_for(plan.clip, plan.request.changed(size=None), plan.settings)
    if own == plan.size:
        return None
    times = plan.size.width * plan.size.height / (own.width * own.height)
    # Seen with tiny at 64x32 to 832x480: larger is as good, smaller has blots where the look is strong.
    what = ": fewer pixels, and a strong look may come out in blots" if times < 1 else ""
    what = f": {times:.2g} times the pixels, which takes longer" if times >= 1.5 else what
    return f"the model was made for {own}, its size without --size, and works at {plan.size}{what}"


def size_for(clip: Clip, request: EditRequest, settings: ModelSettings) -> Size:
    """The working size: as asked for, else the model's own area, else the clip's size within the default budget."""
    if request.size is None and settings.pixels is not None:
        return size_of_area(*clip.display_size, settings.pixels, settings.multiple)
    return working_size(*clip.display_size, request.size, settings.multiple)
