"""What a person asks for: `EditRequest`, and the checks that need no file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from kiwi_cli.base.choices import codec_name
from kiwi_cli.base.option import CLIP, INPUTS, OUTPUT, RUN, WHERE, WORDS, described, option
from kiwi_cli.editing.parts import Part
from kiwi_cli.editing.previewing import Previewing
from kiwi_cli.editing.tasks import HINTS, final_instruction
from kiwi_cli.editing.windowing import Windowing
from kiwi_cli.engine.choice import ModelChoice, Sampling, check_together
from kiwi_cli.errors import UsageError

STEPS = 50
"""Of the released schedule. A model may say another number of its own (weights/settings.py)."""

SIZES = ("720p", "480p", "source")
FITS = ("stretch", "crop", "pad")
DETAILS = ("auto", "source", "model")
CODECS = ("h264", "hevc", "vp9", "av1", "prores", "ffv1", "h264_nvenc", "hevc_nvenc", "av1_nvenc")
QUALITIES = ("low", "medium", "high", "lossless")
COMPARISONS = ("side", "wipe")


_UNITS = re.compile(
    r"(?:(?P<hours>\d+(?:\.\d*)?)\s*h(?:(?:ou)?rs?)?)?\s*(?:(?P<minutes>\d+(?:\.\d*)?)\s*m(?:in(?:ute)?s?)?(?!s))?\s*"
    r"(?:(?P<seconds>\d+(?:\.\d*)?)\s*s(?:ec(?:ond)?s?)?)?\s*(?:(?P<thousandths>\d+(?:\.\d*)?)\s*ms(?:ecs?)?)?"
)
_LONGEST_TIME = 40  # letters: a float holds no more
_SECONDS = {"hours": 3600.0, "minutes": 60.0, "seconds": 1.0, "thousandths": 0.001}


def parse_time(text: str) -> float:
    """Seconds from '4', '4.5', '1:02.5' or '0:01:02', and from '500ms', '1.5s' or '1m30s'.

    Raises:
        UsageError: anything else.
    """
    named = _UNITS.fullmatch(text.strip().lower())
    if named is not None and any(named.groups()) and len(text) <= _LONGEST_TIME:
        return round(sum(_SECONDS[unit] * float(value) for unit, value in named.groupdict().items() if value), 9)
    if not re.fullmatch(r"\s*-?(\d+:)?(\d{1,2}:)?\d+(\.\d*)?\s*", text) or len(text) > _LONGEST_TIME:
        raise UsageError(f"not a time: '{text}'", "write seconds, such as 4.5, or 1:02.5, or 1m2.5s")
    seconds = 0.0
    for part in text.strip().lstrip("-").split(":"):
        seconds = 60 * seconds + float(part)
    return -seconds if text.strip().startswith("-") else seconds


@dataclass(frozen=True)
class EditRequest:
    """One edit, not checked yet.

    Attributes:
        input: a video, a picture or a folder of numbered pictures.
        instruction: as typed. task: a kind of edit whose hint is added. raw: the instruction is left alone.
        force: an instruction that a small model was not trained for is no error.
        references: pictures.
        output: None is beside the input, `clip-edited.mp4`.
        choice: the model. sampling: steps, seed and shortcuts. windowing: how a long clip is edited.
        previewing: what is only looked at.
        start, duration: seconds. to: the second that the edited part ends at, instead of `duration`.
        frames: at most this many go through the model; None is all.
        fps: frames a second given to the model, or None for all.
        size: working size as `working_size` takes it. fit: how the clip is placed in it.
        detail: 'source' gives the result the source's own detail, which is not exact; 'model' scales what the model
            made; 'auto' takes 'source' when the clip is larger than the working size, or the model asks for it.
        mask: 'x,y,w,h' or the path of a picture, video or folder; white is edited. feather: pixels.
        keep_rest: the frames before and after the edited ones are written too.
        compare: 'side' or 'wipe': source and result in one picture, in a file of its own.
        sheet: a contact sheet is written. sidecar: the settings are also written beside the output.
        keep_latents: what a long clip is decoded from is kept beside the output.
        parts: made anew one after the other when the whole is made.
        latents: a file of what was kept of an edit with all parts but the last one; None: the whole is made.
        save_every: seconds between two saved states of a long clip's work.
    """

    input: Path = field(
        metadata=described("--input", "Another source, or where it is now.", INPUTS, unit="PATH", record="input")
    )
    instruction: str = field(
        metadata=described("--instruction", "What to change, in words.", WORDS, unit="TEXT", record="typed")
    )
    references: tuple[Path, ...] = option(
        (), "--ref", "A reference picture; repeat for several.", WORDS, unit="IMAGE", record="references"
    )
    output: Path | None = option(
        None,
        ("-o", "--output"),
        "Where to write: .mp4, .mov, .mkv, .webm, .gif, .png, .jpg, .webp, or a folder of PNG.",
        OUTPUT,
        unit="PATH",
        unset="beside the input, 'clip-edited.mp4', or 'clip-edited-2.mp4' when that is there",
    )
    choice: ModelChoice = field(default_factory=ModelChoice)
    sampling: Sampling = field(default_factory=Sampling)
    windowing: Windowing = field(default_factory=Windowing)
    previewing: Previewing = field(default_factory=Previewing)
    task: str | None = option(
        None,
        "--task",
        f"Add a sentence that helps this kind of edit: {', '.join(HINTS)}. The final instruction is shown.",
        WORDS,
        unit="KIND",
        known=tuple(HINTS),
        record="task",
    )
    raw: bool = option(False, "--raw", "Pass the instruction on to the letter, spaces included.", WORDS, record="raw")
    start: float = option(
        0.0,
        "--start",
        "Edit from here on: seconds, minutes:seconds, or such as 1m30s or 500ms.",
        CLIP,
        unit="TIME",
        parser=parse_time,
        record="start",
    )
    duration: float | None = option(
        None,
        "--duration",
        "Edit this much: seconds, minutes:seconds, or such as 1m30s or 500ms.",
        CLIP,
        unit="TIME",
        unset="to the end",
        parser=parse_time,
        record="duration",
    )
    to: float | None = option(
        None,
        "--to",
        "Edit up to here, instead of --duration.",
        CLIP,
        unit="TIME",
        parser=parse_time,
    )
    frames: int | None = option(
        None,
        "--frames",
        "Edit at most this many frames.",
        CLIP,
        unit="N",
        unset="all",
        record="max_frames",
    )
    fps: float | None = option(
        None,
        "--fps",
        "Give the model this many frames a second; each stands until the next.",
        CLIP,
        unit="RATE",
        unset="all",
        record="fps",
    )
    keep_rest: bool = option(
        False,
        "--keep-rest",
        "Write the whole clip: frames outside the edited part as they are.",
        CLIP,
        record="keep_rest",
    )
    allow_truncated: bool = option(
        False,
        "--allow-truncated",
        "Use what can be read of a file that is cut off.",
        CLIP,
        record="allow_truncated",
    )
    mask: str | None = option(
        None,
        "--mask",
        "Edit only where it is white: a picture, a video, a folder, or x,y,width,height in pixels.",
        WHERE,
        unit="MASK",
        record="mask",
    )
    feather: int = option(
        0, "--feather", "Fade the edit in from the mask's edge, inwards.", WHERE, unit="PIXELS", record="feather"
    )
    size: str | None = option(
        None,
        "--size",
        "Size the model works at: 720p, 480p, source or WIDTHxHEIGHT. The result has the clip's own.",
        WHERE,
        unit="SIZE",
        unset="the clip's, up to 1280x720 pixels, or the model's own",
        env="KIWI_SIZE",
        known=SIZES,
        record="size",
    )
    fit: str = option(
        "stretch",
        "--fit",
        "How the clip fills that size: stretch (all of it), crop (its middle) or pad (all of it, between bars).",
        WHERE,
        unit="FIT",
        known=FITS,
        record="fit",
    )
    detail: str = option(
        "auto",
        "--detail",
        "Where fine detail comes from: source (the clip's own pixels in the edit's colours, which is not exact), model "
        "(scaled up, softer), or auto: source when the clip is larger than that size or the model asks for it.",
        WHERE,
        unit="FROM",
        env="KIWI_DETAIL",
        known=DETAILS,
        record="detail",
    )
    overwrite: bool = option(False, "--overwrite", "Replace what is there.", OUTPUT)
    codec: str | None = option(
        None,
        "--codec",
        "h264, hevc, vp9, av1, prores, ffv1, or a hardware encoder such as h264_nvenc.",
        OUTPUT,
        unit="CODEC",
        unset="h264; vp9 in .webm",
        parser=codec_name,
        known=CODECS,
        record="codec",
    )
    quality: str | None = option(
        None,
        "--quality",
        "low, medium, high, lossless, or a constant rate factor.",
        OUTPUT,
        unit="LEVEL",
        unset="high",
        known=QUALITIES,
        record="quality",
    )
    sound: bool = option(True, " /--no-sound", "Leave the clip's sound out.", OUTPUT, record="sound")
    compare: str | None = option(
        None,
        "--compare",
        "Also write 'NAME-compare': the source left of the result, or a divider moving over the two.",
        OUTPUT,
        unit="[side|wipe]",
        known=COMPARISONS,
    )
    sheet: bool = option(False, "--sheet", "Also write 'NAME-sheet.png': six frames above the edited ones.", OUTPUT)
    save_every: float = option(
        180.0,
        "--save-every",
        "Save the work on a long clip this often, so that the same command goes on after it was killed; 0 never does.",
        RUN,
        unit="TIME",
        parser=parse_time,
    )
    sidecar: bool = option(
        False, "--sidecar", "Also write 'OUTPUT.json': the settings that the output carries.", OUTPUT
    )
    keep_latents: bool = option(
        False,
        "--keep-latents",
        "Also write 'OUTPUT.latents.safetensors', which the result is decoded from: with it `kiwi rerun --span` makes "
        "a part anew and leaves the rest as it is.",
        OUTPUT,
    )
    parts: tuple[Part, ...] = ()
    latents: Path | None = None
    force: bool = option(
        False,
        "--force",
        "Edit although the model was trained for no such instruction: some other edit will come.",
        WORDS,
        record="force",
    )

    def __getitem__(self, name: str) -> Any:
        """The value of an option, wherever it belongs."""
        return getattr(getattr(self, _NESTED[name]) if name in _NESTED else self, name)

    @classmethod
    def of(cls, input: Path, instruction: str, **options: Any) -> EditRequest:
        """A request from options in one row, wherever they belong: `of(clip, "x", model="tiny", seed=3)`."""
        nested = _nested(options)
        return cls(input, instruction, **{part: _PARTS[part](**own) for part, own in nested.items()}, **options)

    def changed(self, **options: Any) -> EditRequest:
        """The request with other options, in one row as in `of`."""
        nested = _nested(options)
        return replace(self, **{part: replace(getattr(self, part), **own) for part, own in nested.items()}, **options)

    def of_part(self, part: Part) -> EditRequest:
        """The request as one of its parts is made: with its own seed and words."""
        words = self.instruction if part.instruction is None else part.instruction
        seed = self.sampling.seed if part.seed is None else part.seed
        return replace(self, instruction=words, sampling=replace(self.sampling, seed=seed), parts=(), latents=None)

    @property
    def needs_latents(self) -> bool:
        """Whether the edit is made by way of latents of the whole clip, however short that is."""
        return self.keep_latents or bool(self.parts)

    @property
    def settled(self) -> EditRequest:
        """The request with the end that it gives as a time said as a duration, as outputs record it."""
        if self.to is None:
            return self
        return replace(self, duration=round(self.to - self.start, 9), to=None)

    @property
    def prompt(self) -> str:
        """The instruction as the model gets it."""
        return final_instruction(self.instruction, self.task, self.raw)

    def check(self) -> None:
        """Refuse invalid values, whatever the files hold.

        Raises:
            UsageError: the first such thing.
        """
        final_instruction(self.instruction, self.task, self.raw)
        check_together(self.choice, self.sampling)
        self.windowing.check()
        self.previewing.check(self.sampling.seed)
        self._check_preview()
        if self.save_every < 0:
            raise UsageError(
                f"--save-every is a time from 0, not {self.save_every:g}", "180 is the default, in seconds"
            )
        if self.detail not in DETAILS:
            raise UsageError(f"unknown --detail: '{self.detail}'", f"use {', '.join(DETAILS[:-1])} or {DETAILS[-1]}")
        if self.output is not None and not self.output.name:
            raise UsageError(f"output is not a file name: '{self.output}'", "pass a file name with --output")
        if self.to is not None and self.duration is not None:
            raise UsageError("--to and --duration exclude each other", "give the end or the length, not both")
        if self.to is not None and self.to <= self.start:
            raise UsageError(f"--to is not after --start: {self.to:g} s and {self.start:g} s", "pass a later --to")
        for part in self.parts:
            own = self.of_part(part)
            own.sampling.check()
            final_instruction(own.instruction, own.task, own.raw)
        if self.feather and self.mask is None:
            raise UsageError("--feather needs --mask", "pass the mask whose edge is softened")

    def _check_preview(self) -> None:
        if not self.previewing.asked:
            return
        flag = self.previewing.flag
        if self.sampling.calibrate_cache is not None:
            raise UsageError(f"{flag} does not go together with --calibrate-cache", "measure in an edit of the clip")
        if self.choice.editor != "kiwi":
            raise UsageError(
                f"{flag} is for Kiwi's own models: moments do not show what '{self.choice.editor}' does, and takes",
                f"leave {flag} out; --duration 1 edits a part",
            )


_PARTS: dict[str, Any] = {"choice": ModelChoice, "sampling": Sampling, "windowing": Windowing, "previewing": Previewing}
_NESTED = {each.name: part for part, kind in _PARTS.items() for each in fields(kind)}
"""Name of an option -> the part of a request that holds it."""


def _nested(options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Options of a request's parts, which are taken out of `options`, by part."""
    found: dict[str, dict[str, Any]] = {}
    for name in [name for name in options if name in _NESTED]:
        found.setdefault(_NESTED[name], {})[name] = options.pop(name)
    return found
