"""What a person chooses of a model and of sampling: nested in every request that needs it. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from kiwi_cli.base.option import MODEL, RUN, option
from kiwi_cli.base.processes import team_size
from kiwi_cli.engine.memory import LEVELS, check_level, parse_bytes
from kiwi_cli.errors import UsageError
from kiwi_cli.weights.catalog import complete_names

# As sampling.py, step_cache.py, quantize.py and attention.py have them, which need torch.
SOLVERS = ("euler", "unipc")
CACHES = ("off", "first-block", "easy", "mag", "sea")
BLOCK_CACHES = ("first-block", "mag", "sea")
"""These caches decide inside a transformer block, so they cannot be combined with --compile or several GPUs."""
WEIGHTS = ("as-stored", "int8", "fp8", "fp8-storage")
DEVICES = ("auto", "cuda", "mps", "cpu")
DTYPES = ("auto", "bfloat16", "float16", "float32")
MAX_STEPS = 10_000
"""Ten times the noise levels that the models were trained with: more of them is a slip of the keyboard."""
EDITORS = ("kiwi", "lucy-edit", "vace", "command:", "folder:", "runway", "fal:")
OF_OTHERS = {"editor_timeout", "editor_price"}
"""Choices that Kiwi's own models have no use for."""
ATTENTIONS = ("auto", "sdpa", "cudnn", "flash", "flash3", "sage")


@dataclass(frozen=True)
class ModelChoice:
    """The model of a request, and what is done to it for memory and speed.

    Attributes:
        model: a variant's name, a Hub id or a folder; '' is the editor's own. revision: branch, tag or commit of one
            on the Hub.
        loras: FILE or ID, each with an optional ':weight'.
        download: whether weights that are missing may be fetched.
        memory, max_memory: what is on the device when, as `KiwiPipeline.manage`.
        gguf: a file that the transformer's weights come from instead. quantize: weights in 8 bits.
        attention: kernel. compile: the transformer's blocks are compiled.
        editor: what edits, 'NAME' or 'NAME:MORE' (editors/registry.py has the names). Most of the others are for
            Kiwi's models; each editor says what it has a use for, and the rest is refused.
        editor_timeout: seconds that a program or a service may take for one clip. editor_price: dollars a second of
            the clip, of a service whose price is not known here.
    """

    model: str = option(
        "",
        "--model",
        "A model's name (kiwi download --list), a Hub id, or a checkpoint folder.",
        MODEL,
        unit="MODEL",
        env="KIWI_MODEL",
        known=complete_names,
        record="model",
    )
    revision: str | None = option(
        None,
        "--revision",
        "Branch, tag or commit of a model on the Hub.",
        MODEL,
        unit="REV",
        unset="main",
        record="revision",
    )
    loras: tuple[str, ...] = option(
        (),
        "--lora",
        "Merge a LoRA into the model: a file or a Hub id, with its weight if that is not 1, "
        "as in style.safetensors:0.8. Repeat for several.",
        MODEL,
        unit="LORA",
        record="loras",
    )
    download: bool = option(
        True, "--download/--no-download", "Whether missing weights may be fetched.", MODEL, env="KIWI_DOWNLOAD"
    )
    device: str = option(
        "auto", "--device", "auto, cuda, cuda:N, mps or cpu.", MODEL, unit="DEVICE", env="KIWI_DEVICE", known=DEVICES
    )
    dtype: str = option(
        "auto",
        "--dtype",
        "auto (bfloat16 on a GPU, float32 on the CPU), bfloat16, float16 or float32.",
        MODEL,
        unit="TYPE",
        env="KIWI_DTYPE",
        known=DTYPES,
        record="dtype",
    )
    memory: str = option(
        "auto",
        "--memory",
        "What stays on the device: auto, resident, release, swap, stream; or tiled, which is not exact.",
        MODEL,
        unit="LEVEL",
        env="KIWI_MEMORY",
        known=("auto", *LEVELS),
        record="memory",
    )
    max_memory: str | None = option(
        None,
        "--max-memory",
        "Plan with at most this much of the device's memory, such as 12GB.",
        MODEL,
        unit="SIZE",
        env="KIWI_MAX_MEMORY",
    )
    gguf: Path | None = option(
        None,
        "--gguf",
        "Take the transformer's weights from a GGUF file, which is not exact; needs the extra 'gguf'.",
        MODEL,
        unit="FILE",
        record="gguf",
    )
    quantize: str = option(
        "as-stored",
        "--quantize",
        "Weights in 8 bits, which is not exact: int8, fp8 (both need the extra 'quantize') or fp8-storage.",
        MODEL,
        env="KIWI_QUANTIZE",
        known=WEIGHTS,
        record="quantize",
    )
    attention: str = option(
        "auto",
        "--attention",
        "Attention kernel: auto, sdpa, cudnn, flash, flash3; or sage, which is not exact.",
        MODEL,
        unit="KERNEL",
        env="KIWI_ATTENTION",
        known=ATTENTIONS,
        record="attention",
    )
    compile: bool = option(
        False,
        "--compile",
        "Compile the transformer's blocks and the VAE's decoder: minutes once, then faster steps.",
        MODEL,
        env="KIWI_COMPILE",
        record="compile",
    )
    editor: str = option(
        "kiwi",
        "--editor",
        "What edits: kiwi, lucy-edit, vace, command:PROGRAM..., folder:DIR, runway, or fal:MODEL (docs/editors.md).",
        MODEL,
        unit="EDITOR",
        known=EDITORS,
        record="editor",
    )
    editor_timeout: float | None = option(
        None,
        "--editor-timeout",
        "How long a program or a service may take for one clip.",
        MODEL,
        unit="SECONDS",
        unset="1800",
    )
    editor_price: float | None = option(
        None,
        "--editor-price",
        "What a service takes for a second of the clip, where kiwi does not know.",
        MODEL,
        unit="DOLLARS",
    )

    @property
    def name(self) -> str:
        """What is shown as the model: its name, of other editors theirs."""
        if self.editor == "kiwi":
            return self.model
        return f"{self.editor} ({self.model})" if self.model else self.editor

    def check(self) -> None:
        """Refuse invalid values, whatever the files hold.

        Raises:
            UsageError: the first such thing.
        """
        for flag, number in (("--editor-timeout", self.editor_timeout), ("--editor-price", self.editor_price)):
            if number is not None and not (math.isfinite(number) and number > 0):
                raise UsageError(f"{flag} must be more than 0, not {number:g}", "pass a positive number")
        _check_names(("quantize", self.quantize, WEIGHTS), ("attention", self.attention, ATTENTIONS))
        if self.compile and self.quantize == "fp8-storage":
            raise UsageError("--compile does not go together with --quantize fp8-storage", "leave one of them out")
        for clash, why in (
            (self.gguf and self.loras, "--lora: its differences would be replaced"),
            (self.gguf and self.quantize != "as-stored", "--quantize: it brings its own format"),
        ):
            if clash:
                raise UsageError(f"--gguf does not go together with {why}", "leave one of them out")
        check_level(self.memory)
        if self.max_memory is not None:
            parse_bytes(self.max_memory)


@dataclass(frozen=True)
class Sampling:
    """How the noise becomes a clip.

    Attributes:
        steps: of the schedule; None is the model's own number, or 50.
        solver: of the schedule. cache: step cache; cache_threshold: None is its own default.
        cache_ratios: of cache 'mag': a file of cache_ratios.py. calibrate_cache: such a file to measure and write.
    """

    steps: int | None = option(
        None,
        "--steps",
        "Denoising steps; fewer is faster and rougher.",
        RUN,
        unit="N",
        unset="50, or the model's own number",
        env="KIWI_STEPS",
        record="steps",
    )
    seed: int = option(0, "--seed", "Another seed gives another edit.", RUN, unit="N", record="seed")
    solver: str = option(
        "euler",
        "--solver",
        "euler as released; or unipc, which needs fewer steps and is not exact.",
        RUN,
        env="KIWI_SOLVER",
        known=SOLVERS,
        record="solver",
    )
    cache: str = option(
        "off",
        "--cache",
        "Skip steps that would change little: off, first-block, easy, mag or sea. Not exact.",
        RUN,
        env="KIWI_CACHE",
        known=CACHES,
        record="cache",
    )
    cache_threshold: float | None = option(
        None,
        "--cache-threshold",
        "How much the step cache may skip; its own default, 0 skips nothing.",
        RUN,
        record="cache_threshold",
    )
    cache_ratios: Path | None = option(
        None,
        "--cache-ratios",
        "What --cache mag goes by: ratios that --calibrate-cache measured on this model.",
        RUN,
        unit="FILE",
        record="cache_ratios",
    )
    calibrate_cache: Path | None = option(
        None,
        "--calibrate-cache",
        "Measure the ratios for --cache mag in this edit, which stays exact, and write them to a .json file.",
        RUN,
        unit="FILE",
    )

    def check(self) -> None:
        """Refuse invalid values, whatever the files hold.

        Raises:
            UsageError: the first such thing.
        """
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"--steps must be at least 1, not {self.steps}", "50 is the released default")
        if self.steps is not None and self.steps > MAX_STEPS:
            raise UsageError(f"--steps must be at most {MAX_STEPS}, not {self.steps}", "50 is the released default")
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"--seed must be from 0 to 2**64 - 1, not {self.seed}", "any such number will do")
        _check_names(("solver", self.solver, SOLVERS), ("cache", self.cache, CACHES))
        threshold = self.cache_threshold
        if threshold is not None and self.cache == "off":
            raise UsageError("--cache-threshold needs --cache", "say which step cache")
        if threshold is not None and not (math.isfinite(threshold) and threshold >= 0):
            raise UsageError(f"--cache-threshold is a number from 0, not {threshold}", "0 skips nothing")
        self._check_ratios()

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
        for name, clash in (("--cache", self.cache != "off"), ("torchrun", team_size() > 1)):
            if clash:
                raise UsageError(f"--calibrate-cache does not go together with {name}", "measure without it")


def check_together(choice: ModelChoice, sampling: Sampling) -> None:
    """Refuse invalid values of either, and combinations that cannot be.

    Raises:
        UsageError: the first such thing.
    """
    choice.check()
    sampling.check()
    if choice.compile and sampling.calibrate_cache is not None:
        raise UsageError("--calibrate-cache does not go together with --compile", "measure without it")
    for name, clash in (("--compile", choice.compile), ("torchrun", team_size() > 1)):
        if clash and sampling.cache in BLOCK_CACHES:
            raise UsageError(
                f"{name} does not go together with --cache {sampling.cache}; easy does", "leave one of them out"
            )


def _check_names(*options: tuple[str, str, tuple[str, ...]]) -> None:
    for name, value, known in options:
        if value not in known:
            raise UsageError(f"unknown --{name}: '{value}'", f"use one of {', '.join(known)}")
