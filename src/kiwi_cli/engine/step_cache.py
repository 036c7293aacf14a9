"""Step caches: denoising steps whose model evaluation is replaced by what is known of earlier ones. NOT exact.

    first-block   the first block runs; when what it adds has hardly changed, the rest is taken from the last step
    easy          no block runs; the change of the velocity is estimated from the change of the latents
    mag           no block runs; by a curve of magnitudes that is calibrated once for a model
    sea           no block runs; by the change of the latents, filtered to what is signal at that noise level

`easy` is written here, around the whole model. The others are the library's, hooked on to the transformer's blocks
for one run and taken off again. A larger threshold skips more; a threshold of 0 skips nothing and changes nothing.
No threshold here has been judged on the released weights: the defaults are those of the papers and the library.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, SeaCacheConfig
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.mag_cache import _MAG_CACHE_LEADER_BLOCK_HOOK

from kiwi_cli.errors import UsageError
from kiwi_cli.model.sampling import Velocity

Kind = Literal["first-block", "easy", "mag", "sea"]
KINDS: tuple[Kind, ...] = get_args(Kind)

THRESHOLDS: dict[Kind, float] = {
    "first-block": 0.05,  # the library's default
    "easy": 0.05,  # the authors' for Wan 2.2 TI2V-5B
    "mag": 0.06,  # the paper's and the library's
    "sea": 0.25,  # the library's default
}

RETAINED = 7 / 50
"""Share of the steps at the start that `easy` always computes: 7 of 50 in the authors' code for TI2V-5B."""

_CONTEXT = "cond"  # the only trajectory there is: the model has no guidance
_WATCH = "kiwi_step_watch"


@dataclass(frozen=True)
class StepCache:
    """Which cache, and how much it may skip.

    Attributes:
        kind: one of `KINDS`.
        threshold: from 0; what it is compared with depends on the kind.
        ratios: of `mag`: one magnitude ratio for each step of the calibration; another number of steps takes the
            nearest.
        calibrate: of `mag`: compute every step and measure the ratios (`CacheRun.ratios`). The result is exact.

    Raises:
        UsageError: an unknown kind or an invalid threshold, or `mag` without ratios.
    """

    kind: Kind
    threshold: float
    ratios: tuple[float, ...] | None = None
    calibrate: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"unknown step cache: '{self.kind}'", f"use off, {', '.join(KINDS)}")
        if not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise UsageError(f"a cache threshold is a number from 0, not {self.threshold}", _advice(self.kind))
        if self.kind != "mag" and (self.ratios is not None or self.calibrate):
            raise UsageError(f"step cache '{self.kind}' takes no ratios", "ratios belong to mag")
        if self.kind == "mag" and not self.calibrate:
            if self.ratios is None:
                raise UsageError(
                    "step cache 'mag' needs ratios measured on these weights, and none are published for Kiwi-Edit",
                    "measure them with one calibration run (--calibrate-cache) and pass them, or use easy",
                )
            if not self.ratios or not all(math.isfinite(ratio) and ratio > 0 for ratio in self.ratios):
                raise UsageError("ratios of step cache 'mag' are positive numbers", "measure them again")

    @classmethod
    def of(cls, name: str, threshold: float | None = None, ratios: tuple[float, ...] | None = None) -> StepCache | None:
        """From the words of a command line: 'off' is None, and a threshold of None the kind's own.

        Raises:
            UsageError: as the class.
        """
        if name == "off":
            return None
        kind = cast(Kind, name)
        return cls(kind, THRESHOLDS.get(kind, 0.0) if threshold is None else threshold, ratios)

    def describe(self) -> str:
        """One line for the person, before a run."""
        if self.calibrate:
            return "step cache mag: calibration, every step is computed; exact"
        return f"step cache {self.kind} at threshold {self.threshold:g}: NOT exact, steps may be skipped"


def _advice(kind: Kind) -> str:
    return f"the default of {kind} is {THRESHOLDS[kind]:g}; 0 skips nothing"


@dataclass
class CacheRun:
    """What a cache did in one run.

    Attributes:
        cache: None when there was none.
        steps: of the run.
        skipped: step numbers, from 0, in order.
        ratios: measured by a calibration; one for each step.
    """

    cache: StepCache | None
    steps: int
    skipped: list[int] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def describe(self) -> str:
        """One line for the person, after a run; steps are counted from 1 there. Empty when it was exact by intent."""
        if self.cache is None or self.cache.calibrate:
            return ""
        name = f"step cache {self.cache.kind} at threshold {self.cache.threshold:g}"
        if not self.skipped:
            return f"{name}: approximate, but it skipped none of {self.steps} steps"
        return f"{name}: NOT exact, skipped {len(self.skipped)} of {self.steps} steps ({_ranges(self.skipped)})"


def _ranges(numbers: list[int]) -> str:
    """[4, 5, 6, 9] -> '5-7, 10'."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0] + 1}-{run[-1] + 1}" if len(run) > 1 else str(run[0] + 1) for run in runs)


@contextmanager
def running(
    cache: StepCache | None, model: Any, velocity: Velocity, sigmas: torch.Tensor
) -> Iterator[tuple[Velocity, CacheRun]]:
    """A cache for one run; hooks and state are removed on exit, also after an error.

    Args:
        model: the transformer that `velocity` calls.
        sigmas: (steps + 1,) fp32 on the CPU.

    Yields:
        The velocity to use instead, and the record that fills up meanwhile.

    Raises:
        UsageError: a cache that hooks on to the blocks, and blocks that are compiled or split over GPUs.
    """
    run = CacheRun(cache, len(sigmas) - 1)
    if cache is None or (cache.threshold == 0 and not cache.calibrate):
        yield velocity, run
    elif cache.kind == "easy":
        yield EasyCache(velocity, cache.threshold, run), run
    else:
        _check_blocks(cache, model)
        with _watched(model.blocks[-1]) as watch, _enabled(model, cache, run):
            yield _in_context(model, velocity, sigmas.tolist(), watch, run), run


# -- easy ---------------------------------------------------------------------------------------------------


class EasyCache:
    """EasyCache (Zhou et al. 2025, arXiv 2507.02860) around a velocity, which it can stand in for.

    Between neighbouring steps the velocity changes about k times as much as the latents do, and k itself changes
    slowly. So k is measured between the last two computed steps (mean absolute change of the velocity over that of
    the latents), and from then on each step adds k * |change of the latents| / |last computed velocity| to an
    estimate of the relative error. While that stays below the threshold the step is skipped: its velocity is its
    latents plus the difference of velocity and latents at the last computed step. A computed step sets the
    estimate back. The first steps (`RETAINED`, at least two: k needs them) and the last are always computed.

    Deciding waits for the device once a step. With several GPUs all of them decide the same, from the whole latents.
    """

    def __init__(self, velocity: Velocity, threshold: float, run: CacheRun) -> None:
        self.velocity, self.threshold, self.run = velocity, threshold, run
        self.retained = max(2, round(RETAINED * run.steps))
        self.rate: torch.Tensor | None = None  # k
        self.error: torch.Tensor | float = 0.0
        self.before: torch.Tensor | None = None  # latents of the last step
        self.computed: tuple[torch.Tensor, torch.Tensor] | None = None  # latents and velocity of the last computed one

    def __call__(self, latents: torch.Tensor, sigma: torch.Tensor, step: int) -> torch.Tensor:
        """As the velocity it was given; fp32."""
        skip = self._may_skip(latents, step)
        self.before = latents
        if skip:
            assert self.computed is not None
            self.run.skipped.append(step)
            old_latents, old_velocity = self.computed
            return latents + (old_velocity - old_latents)
        self.error = 0.0
        velocity = self.velocity(latents, sigma, step).to(torch.float32)
        if self.computed is not None:
            self.rate = _mean(velocity - self.computed[1]) / _mean(latents - self.computed[0])
        self.computed = latents, velocity
        return velocity

    def move(self, device: torch.device | str) -> None:
        """What is remembered of earlier steps to a device: away while other windows work, back before the next call."""
        if self.before is not None:
            self.before = self.before.to(device)
        if self.computed is not None:
            self.computed = self.computed[0].to(device), self.computed[1].to(device)
        self.rate = None if self.rate is None else self.rate.to(device)
        self.error = self.error.to(device) if isinstance(self.error, torch.Tensor) else self.error

    def _may_skip(self, latents: torch.Tensor, step: int) -> bool:
        if step < self.retained or step >= self.run.steps - 1:
            return False
        assert self.rate is not None and self.before is not None and self.computed is not None
        self.error = self.error + self.rate * _mean(latents - self.before) / _mean(self.computed[1])
        return bool(self.error < self.threshold)  # not a number: computed


def _mean(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.abs().mean()


# -- the library's ------------------------------------------------------------------------------------------


def _check_blocks(cache: StepCache, model: Any) -> None:
    """The library's caches decide inside the blocks' calls, which neither a full graph nor a split sequence allows."""
    if model.compiled:
        raise UsageError(f"step cache '{cache.kind}' does not work with compiled blocks", "use easy, or no --compile")
    if getattr(model, "_parallel_config", None) is not None:
        raise UsageError(f"step cache '{cache.kind}' does not work over several GPUs", "use easy")


def _config(cache: StepCache, steps: int) -> Any:
    if cache.kind == "first-block":
        return FirstBlockCacheConfig(threshold=cache.threshold)
    if cache.kind == "sea":
        return SeaCacheConfig(threshold=cache.threshold)
    if cache.calibrate:
        # One step more than there are: at the last one the library prints its ratios and forgets them.
        return MagCacheConfig(calibrate=True, num_inference_steps=steps + 1)
    return MagCacheConfig(
        threshold=cache.threshold, num_inference_steps=steps, mag_ratios=torch.tensor(cache.ratios, dtype=torch.float64)
    )


class _Watch(ModelHook):
    """Counts the calls that reach a block's own forward: under a cache's hook, those that were not skipped."""

    calls = 0

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return args, kwargs


@contextmanager
def _watched(block: torch.nn.Module) -> Iterator[_Watch]:
    registry = HookRegistry.check_if_exists_or_initialize(block)
    watch = _Watch()
    registry.register_hook(watch, _WATCH)
    try:
        yield watch
    finally:
        registry.remove_hook(_WATCH, recurse=False)


@contextmanager
def _enabled(model: Any, cache: StepCache, run: CacheRun) -> Iterator[None]:
    model.enable_cache(_config(cache, run.steps))
    try:
        yield
        if cache.calibrate:
            hook = HookRegistry.check_if_exists_or_initialize(model.blocks[0]).get_hook(_MAG_CACHE_LEADER_BLOCK_HOOK)
            run.ratios.extend(hook.state_manager._state_cache[_CONTEXT].calibration_ratios)
    finally:
        model.disable_cache()


def _in_context(model: Any, velocity: Velocity, sigmas: list[float], watch: _Watch, run: CacheRun) -> Velocity:
    """A velocity that tells the hooks which step it is, and the record which steps did not reach the last block."""

    def cached(latents: torch.Tensor, sigma: torch.Tensor, step: int) -> torch.Tensor:
        before = watch.calls
        with model.cache_context(_CONTEXT, step_index=step, num_inference_steps=run.steps, sigma=sigmas[step]):
            prediction = velocity(latents, sigma, step)
        if watch.calls == before:
            run.skipped.append(step)
        return prediction

    return cached
