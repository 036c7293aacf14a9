"""How a clip that is longer than one of the model's windows is edited: the options, their defaults, and the plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kiwi_cli.base.option import CLIP, option
from kiwi_cli.editing.windows import Windows
from kiwi_cli.editors.base import Found
from kiwi_cli.engine.layout import ANCHORS, STRIDE, lay_out
from kiwi_cli.errors import UsageError

if TYPE_CHECKING:
    from kiwi_cli.video import Clip, Span

MAX_FRAMES = 81
"""Of a window: what the released models are trained and published with."""

KINDS = ("joint", "independent", "off")
CONTEXTS = ("shot", "window")


@dataclass(frozen=True)
class Settings:
    """What joint windows are made with. overlap: latent frames; anchor, contexts: as the options."""

    overlap: int
    anchor: str
    contexts: str


def usual(latents: int) -> Settings:
    """What is chosen where nothing is asked for, by the latent frames of a window.

    Of windows of two, as `tiny` has, it was measured on that; of longer ones it was not (docs/long-clips.md).
    """
    return Settings((latents - 1) * 3 // 10, "frame", "shot")


@dataclass(frozen=True)
class Windowing:
    """How a long clip is edited.

    Attributes:
        windows: one of `KINDS`; None is 'joint' with an editor that can, else what it was made for.
        overlap: frames that neighbouring windows share at least. anchor: one of `ANCHORS`. contexts: of `CONTEXTS`.
    """

    windows: str | None = option(
        None,
        "--windows",
        "How a clip longer than the model's window is edited: joint (shot by shot, in windows that are denoised "
        "together), independent (each window an edit of its own), or off (all in one piece).",
        CLIP,
        unit="HOW",
        unset="joint",
        known=KINDS,
        record="windows",
    )
    overlap: int | None = option(
        None,
        "--overlap",
        "Frames that neighbouring joint windows share at least.",
        CLIP,
        unit="FRAMES",
        unset="24 of 81; fewer where windows are shorter",
        record="overlap",
    )
    anchor: str | None = option(
        None,
        "--anchor",
        "What a joint window sees in front of its own frames: frame (the source's frame before them), latent (the "
        "edit's latent frame before them), first (the shot's first one), or none.",
        CLIP,
        unit="WHAT",
        unset="frame",
        known=ANCHORS,
        record="anchor",
    )
    contexts: str | None = option(
        None,
        "--contexts",
        "What the instruction is read with: shot (frames from all of the shot, once) or window (each window's own).",
        CLIP,
        unit="OF",
        unset="shot",
        known=CONTEXTS,
        record="contexts",
    )

    def check(self) -> None:
        """Refuse invalid values, whatever the files hold.

        Raises:
            UsageError: the first such thing.
        """
        for name, value, known in (
            ("windows", self.windows, KINDS),
            ("anchor", self.anchor, ANCHORS),
            ("contexts", self.contexts, CONTEXTS),
        ):
            if value is not None and value not in known:
                raise UsageError(f"unknown --{name}: '{value}'", f"use one of {', '.join(known)}")
        if self.overlap is not None and self.overlap < 0:
            raise UsageError(
                f"--overlap is a number of frames from 0, not {self.overlap}", "24 is a quarter of a window"
            )
        asked = [f"--{name}" for name in ("overlap", "anchor", "contexts") if getattr(self, name) is not None]
        if asked and self.windows in ("independent", "off"):
            raise UsageError(f"{asked[0]} needs joint windows", "leave it out, or pass --windows joint")


def kind_of_windows(asked: Windowing, found: Found) -> str | None:
    """How a clip that is longer than one window is edited: one of `KINDS`; None when only a window of it is.

    Raises:
        UsageError: joint windows of an editor that has none.
    """
    length = found.settings.frames
    joins = found.joins_windows and (length is None or length > STRIDE)
    if asked.windows == "joint" and not joins:
        raise UsageError("this model's windows cannot be joined", "pass --windows independent")
    return asked.windows or ("joint" if joins else "independent" if length is not None else None)


def most_frames(asked: Windowing, frames: int | None, found: Found) -> int | None:
    """Frames of a clip that are edited at most; None is all."""
    return MAX_FRAMES if frames is None and kind_of_windows(asked, found) is None else frames


def windows_of(
    asked: Windowing,
    clip: Clip,
    span: Span,
    found: Found,
    progress: Callable[[int, int], None] | None = None,
    always: bool = False,
    known: tuple[int, ...] = (),
) -> tuple[Span, Windows | None]:
    """The windows over a span, None when it is edited in one piece; and the span, its frames counted if need be.

    Shots are looked for when a clip is longer than one window, which takes decoding it once.

    Args:
        progress: of looking for shots: (frames done, frames expected).
        always: a clip of one window has that laid out too.
        known: frames of each shot, when they were looked for before.
    """
    kind, own = kind_of_windows(asked, found), found.settings.frames
    if kind in (None, "off"):
        return span, None
    if kind == "independent":
        return span, Windows.of(span.frame_count, own or MAX_FRAMES, span.exact)
    latents = 1 + ((own or MAX_FRAMES) - 1) // STRIDE
    length = 1 + STRIDE * (latents - 1)
    shots = known
    if not shots and span.exact and span.frame_count <= length:
        if not always:
            return span, None
        shots = (span.frame_count,)
    if not shots:
        from kiwi_cli.video import find_shots

        shots = find_shots(clip, span, progress).lengths
        if sum(shots) <= length:
            shots = (sum(shots),)  # as if it had been known to be that short
    span = replace(span, frame_count=sum(shots), exact=True)
    if sum(shots) <= length and not always:
        return span, None
    chosen = settings_for(asked, latents)
    layout = lay_out(
        shots,
        latents,
        chosen.overlap,
        chosen.anchor,  # type: ignore[arg-type]
        min(own, length) if own is not None else 1,
        restarts=own is not None,  # it knows no more than that: its autoencoder neither
    )
    if len(layout.windows) == 1:
        length = layout.shots[0].given
    return span, Windows(length, len(layout.windows), layout=layout, contexts=chosen.contexts)


def settings_for(asked: Windowing, latents: int) -> Settings:
    """What was asked for, and the rest by the length of a window in latent frames.

    Raises:
        UsageError: windows that share all of their frames.
    """
    by_default = usual(latents)
    chosen = Settings(
        by_default.overlap if asked.overlap is None else -(-asked.overlap // STRIDE),
        asked.anchor or by_default.anchor,
        asked.contexts or by_default.contexts,
    )
    own = latents - (chosen.anchor != "none")
    if chosen.overlap >= own:
        most = STRIDE * max(0, own - 1)
        raise UsageError(
            f"--overlap {asked.overlap}: windows that have {STRIDE * own} frames of their own would not get on",
            f"pass --overlap {most}{' or less' if most else ''}",
        )
    return chosen
