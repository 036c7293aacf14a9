"""What a person asks for: `EditRequest`, and the checks that need no file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from kiwi_cli.errors import UsageError
from kiwi_cli.memory import check_level, parse_bytes
from kiwi_cli.parallel import team_size
from kiwi_cli.tasks import final_instruction

MAX_FRAMES = 81
"""What the released models are trained and published with; `--frames` goes beyond it."""
STEPS = 50
"""Of the released schedule. A model may say another number of its own, and how many frames (weights/settings.py)."""

# As sampling.py and caches.py have them, which need torch.
SOLVERS = ("euler", "unipc")
CACHES = ("off", "first-block", "easy", "mag", "sea")
BLOCK_CACHES = ("first-block", "mag", "sea")
"""They decide inside the blocks, which neither graphs nor several GPUs allow."""
WEIGHTS = ("as-stored", "int8", "fp8", "fp8-storage")
ATTENTIONS = ("auto", "sdpa", "cudnn", "flash", "flash3", "sage")


@dataclass(frozen=True)
class EditRequest:
    """One edit, not checked yet.

    Attributes:
        input: a video, a picture or a folder of numbered pictures.
        instruction: as typed. task: a kind of edit whose hint is added. raw: the instruction is left alone.
        references: pictures.
        output: None is beside the input, `clip-edited.mp4`.
        model: a variant's name, a Hub id or a folder. revision: branch, tag or commit of one on the Hub.
        loras: FILE or ID, each with an optional ':weight'.
        steps: of the schedule; None is the model's own number, or 50.
        start, duration: seconds. frames: at most this many go through the model, in one piece; None is 81, or all
            with a model that works on a few at a time.
        fps: frames a second given to the model, or None for all.
        size: working size as `working_size` takes it. fit: how the clip is placed in it.
        mask: 'x,y,w,h' or the path of a picture, video or folder; white is edited. feather: pixels.
        keep_rest: the frames before and after the edited ones are written too.
        compare: 'side' or 'wipe': source and result in one picture, in a file of its own.
        sheet: a contact sheet is written. sidecar: the settings are also written beside the output.
        solver: of the schedule. cache: step cache; cache_threshold: None is its own default.
        cache_ratios: of cache 'mag': a file of ratios.py. calibrate_cache: such a file to measure and write.
        memory, max_memory: what is on the device when, as `KiwiPipeline.manage`.
        gguf: a file that the transformer's weights come from instead. quantize: weights in 8 bits.
        attention: kernel. compile: the transformer's blocks are compiled.
        download: whether weights that are missing may be fetched.
    """

    input: Path
    instruction: str
    references: tuple[Path, ...] = ()
    output: Path | None = None
    model: str = ""
    revision: str | None = None
    loras: tuple[str, ...] = ()
    task: str | None = None
    raw: bool = False
    steps: int | None = None
    seed: int = 0
    start: float = 0.0
    duration: float | None = None
    frames: int | None = None
    size: str | None = None
    fit: str = "stretch"
    fps: float | None = None
    mask: str | None = None
    feather: int = 0
    keep_rest: bool = False
    codec: str | None = None
    quality: str | None = None
    sound: bool = True
    compare: str | None = None
    sheet: bool = False
    sidecar: bool = False
    device: str = "auto"
    dtype: str = "auto"
    solver: str = "euler"
    cache: str = "off"
    cache_threshold: float | None = None
    cache_ratios: Path | None = None
    calibrate_cache: Path | None = None
    memory: str = "auto"
    max_memory: str | None = None
    gguf: Path | None = None
    quantize: str = "as-stored"
    attention: str = "auto"
    compile: bool = False
    download: bool = True
    overwrite: bool = False
    allow_truncated: bool = False

    @property
    def prompt(self) -> str:
        """The instruction as the model gets it."""
        return final_instruction(self.instruction, self.task, self.raw)

    def check(self) -> None:
        """Refuse what cannot be meant, whatever the files hold.

        Raises:
            UsageError: the first such thing.
        """
        final_instruction(self.instruction, self.task, self.raw)
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"--steps must be at least 1, not {self.steps}", "50 is the released default")
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"--seed must be from 0 to 2**64 - 1, not {self.seed}", "any such number will do")
        check_modes(self.solver, self.cache, self.cache_threshold, self.quantize, self.attention, self.compile)
        self._check_ratios()
        for clash, why in (
            (self.gguf and self.loras, "--lora: its differences would be replaced"),
            (self.gguf and self.quantize != "as-stored", "--quantize: it brings its own format"),
        ):
            if clash:
                raise UsageError(f"--gguf does not go together with {why}", "leave one of them out")
        check_level(self.memory)
        if self.max_memory is not None:
            parse_bytes(self.max_memory)
        if self.feather and self.mask is None:
            raise UsageError("--feather needs --mask", "pass the mask whose edge is softened")

    def _check_ratios(self) -> None:
        """What step cache 'mag' works with, and what measuring it takes."""
        if self.cache == "mag" and self.cache_ratios is None:
            raise UsageError(
                "--cache mag needs ratios measured on this model, and none are published",
                "measure them in one edit with --calibrate-cache RATIOS.json, then pass --cache-ratios RATIOS.json",
            )
        if self.cache_ratios is not None and self.cache != "mag":
            raise UsageError("--cache-ratios needs --cache mag", "no other step cache has ratios")
        if self.calibrate_cache is None:
            return
        for option, clash in (
            ("--cache", self.cache != "off"),
            ("--compile", self.compile),
            ("torchrun", team_size() > 1),
        ):
            if clash:
                raise UsageError(f"--calibrate-cache does not go together with {option}", "measure without it")


def check_modes(
    solver: str, cache: str, cache_threshold: float | None, quantize: str, attention: str, compile: bool
) -> None:
    """Refuse ways to work that there are not, or not together.

    Raises:
        UsageError: the first such thing.
    """
    for option, value, known in (
        ("solver", solver, SOLVERS),
        ("cache", cache, CACHES),
        ("quantize", quantize, WEIGHTS),
        ("attention", attention, ATTENTIONS),
    ):
        if value not in known:
            raise UsageError(f"unknown --{option}: '{value}'", f"use one of {', '.join(known)}")
    if cache_threshold is not None and cache == "off":
        raise UsageError("--cache-threshold needs --cache", "say which step cache")
    if cache_threshold is not None and not (math.isfinite(cache_threshold) and cache_threshold >= 0):
        raise UsageError(f"--cache-threshold is a number from 0, not {cache_threshold}", "0 skips nothing")
    for option, clash, why in (
        ("--compile", compile and quantize == "fp8-storage", "--quantize fp8-storage"),
        ("--compile", compile and cache in BLOCK_CACHES, f"--cache {cache}; easy does"),
        ("torchrun", team_size() > 1 and cache in BLOCK_CACHES, f"--cache {cache}; easy does"),
    ):
        if clash:
            raise UsageError(f"{option} does not go together with {why}", "leave one of them out")
