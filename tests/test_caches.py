"""Step caches: what they skip is counted and said, what they change is bounded, and nothing of them stays."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kiwi_cli import KiwiPipeline
from kiwi_cli.engine import memory as mem
from kiwi_cli.engine.compilation import compile_model, use_eager_blocks
from kiwi_cli.engine.residency import Residency
from kiwi_cli.engine.step_cache import KINDS, THRESHOLDS, CacheRun, EasyCache, StepCache
from kiwi_cli.errors import UsageError
from kiwi_cli.model.sampling import denoise, flow_sigmas, make_noise

from .conftest import CHECKPOINT, DATA, random_frames, read_cases, relative_error

STEPS = 50
RATIOS = (1.0, *[1.0 + 0.02 * (-1) ** step for step in range(STEPS - 1)])  # of the size measured on random weights
CASES = {call["name"]: call for call in read_cases()}

Denoise = Callable[..., torch.Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """Hundreds of steps of a tiny model: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cached() -> Any:
    return KiwiPipeline.from_pretrained(str(CHECKPOINT), device="cpu", dtype="float32")


@pytest.fixture(params=list(CASES))
def run(request: pytest.FixtureRequest, cached: Any) -> Denoise:
    """Denoise a recorded case: with or without reference tokens, last or first."""
    return runner(cached, request.param)


@pytest.fixture
def one(cached: Any) -> Denoise:
    return runner(cached, "reference")


def runner(pipe: Any, name: str) -> Denoise:
    recorded = load_file(DATA / "golden" / f"{name}.safetensors")
    inputs = [recorded.get(key) for key in ("noise", "context", "source_latents", "reference_latents")]

    def call(cache: StepCache | None = None, steps: int = STEPS, **options: Any) -> torch.Tensor:
        pipe.register_to_config(references_first=bool(CASES[name].get("ref_pad_first")))
        return pipe.denoise(*inputs, steps=steps, cache=cache, **options)

    call.case = name  # type: ignore[attr-defined]
    return call


@pytest.fixture(scope="module")
def exact(cached: Any) -> Callable[[str], torch.Tensor]:
    """What a recorded case is without a cache, computed once."""
    return cache(lambda case: runner(cached, case)())


def cache_of(kind: Any, threshold: float) -> StepCache:
    return StepCache(kind, threshold, RATIOS if kind == "mag" else None)


# -- what they change ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_threshold_of_zero_is_exact(run: Denoise, cached: Any, kind: str) -> None:
    assert torch.equal(run(cache_of(kind, 0.0), steps=4), run(steps=4))
    assert cached.cache_run.skipped == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_that_skips_nothing_changes_nothing(one: Denoise, cached: Any, kind: str) -> None:
    """Its hooks are there all the same."""
    cache = StepCache(kind, 1e-9, (2.0,) * 8 if kind == "mag" else None)
    exact = one(steps=8)
    assert torch.equal(one(cache, steps=8), exact)
    assert cached.cache_run.skipped == [] and "skipped none of 8" in cached.approximations[0]


# Measured over the five cases: worst error of the final latents, least and most steps skipped of 50.
BOUNDS = {
    ("first-block", 0.1): (2e-3, 8),  # 1.5e-3, 8 to 20
    ("first-block", 0.2): (2.5e-2, 40),  # 1.7e-2, 40 to 46
    ("easy", 0.2): (3.5e-2, 20),  # 2.7e-2, 21 to 29
    ("easy", 0.4): (1e-1, 35),  # 8.3e-2, 36 to 37
    ("mag", 0.06): (2e-2, 20),  # 1.4e-2, 29 to 30
    ("sea", 0.25): (1.5e-2, 30),  # 9.1e-3, 31 to 32
}


@pytest.mark.parametrize(("kind", "threshold"), BOUNDS)
def test_the_error_stays_below_what_is_stated(
    run: Any, exact: Callable[[str], torch.Tensor], cached: Any, kind: str, threshold: float
) -> None:
    limit, least = BOUNDS[kind, threshold]
    wanted = exact(run.case)  # before the run that is asked what it skipped
    error = relative_error(run(cache_of(kind, threshold)), wanted)
    assert 0 < error < limit and len(cached.cache_run.skipped) >= least, (error, cached.cache_run.skipped)


@pytest.mark.parametrize("kind", KINDS)
def test_a_larger_threshold_skips_more(one: Denoise, cached: Any, kind: str) -> None:
    counts = []
    for threshold in (1e-4, 0.1, 0.2, 1.0):
        one(cache_of(kind, threshold))
        counts.append(len(cached.cache_run.skipped))
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] > 20


@pytest.mark.parametrize("solver", ["euler", "unipc"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_skipped_steps_are_those_whose_blocks_did_not_run(
    one: Denoise, cached: Any, kind: str, solver: str
) -> None:
    computed: list[int] = []
    done = [0]
    hook = cached.transformer.blocks[-1].ffn.register_forward_hook(lambda *_: computed.append(done[0]))
    try:
        one(cache_of(kind, 0.2), solver=solver, progress=lambda stage, count, total: done.__setitem__(0, count))
    finally:
        hook.remove()
    assert cached.cache_run.skipped and computed[0] == 0
    assert sorted(computed + cached.cache_run.skipped) == list(range(STEPS))


# -- easy ---------------------------------------------------------------------------------------------------


def test_easy_skips_by_the_papers_rule() -> None:
    """Against the rule written down once more, on a field of one number: velocity 2x, so k is 2 throughout."""
    steps, threshold = 20, 0.3
    sigmas = flow_sigmas(steps)
    run = CacheRun(None, steps)
    denoise(EasyCache(lambda x, sigma, step: 2 * x, threshold, run), torch.ones(1), sigmas)

    x, before, offset, last, error, expected = 1.0, 1.0, 0.0, 2.0, 0.0, []
    for step in range(steps):
        error += 2 * abs(x - before) / abs(last)
        before = x
        if 3 <= step < steps - 1 and error < threshold:
            expected.append(step)
            velocity = x + offset
        else:
            velocity, error = 2 * x, 0.0
            last, offset = velocity, velocity - x
        x += velocity * float(sigmas[step + 1] - sigmas[step])
    assert run.skipped == expected and 5 < len(expected) < 16


@pytest.mark.parametrize(("steps", "first"), [(2, 2), (3, 2), (20, 3), (50, 7)])
def test_easy_computes_the_first_steps_and_the_last(steps: int, first: int) -> None:
    run = CacheRun(None, steps)
    denoise(EasyCache(lambda x, sigma, step: x, 1e9, run), make_noise((1, 1, 1, 2, 2), 0), flow_sigmas(steps))
    assert run.skipped == list(range(first, steps - 1))


def test_easy_computes_when_there_is_nothing_to_estimate_from() -> None:
    """A velocity of zero: the change of the latents is zero, and no number comes out of the rule."""
    run = CacheRun(None, 10)
    denoise(EasyCache(lambda x, sigma, step: 0 * x, 1.0, run), make_noise((1, 1, 1, 2, 2), 0), flow_sigmas(10))
    assert run.skipped == []


# -- mag ----------------------------------------------------------------------------------------------------


def test_a_calibration_is_exact_quiet_and_gives_a_ratio_for_each_step(
    one: Denoise, cached: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert torch.equal(one(StepCache("mag", 0.0, calibrate=True)), one())
    one(StepCache("mag", 0.0, calibrate=True))
    assert cached.approximations == [] and cached.cache_run.skipped == []
    ratios = cached.cache_run.ratios
    assert len(ratios) == STEPS and ratios[0] == 1.0 and all(0.9 < ratio < 1.1 for ratio in ratios)
    one(StepCache("mag", 0.06, tuple(ratios)), steps=20)  # another number of steps takes the nearest
    assert cached.cache_run.skipped
    assert capsys.readouterr().out == ""


def test_mag_without_ratios_is_refused() -> None:
    with pytest.raises(UsageError, match="none are published") as error:
        StepCache.of("mag")
    assert "easy" in error.value.hint
    for ratios in ((), (1.0, float("nan")), (0.0,)):
        with pytest.raises(UsageError, match="positive"):
            StepCache("mag", 0.06, ratios)


# -- nothing stays ------------------------------------------------------------------------------------------


def hooks_of(pipe: Any) -> list[str]:
    modules = pipe.transformer.modules()
    return [name for module in modules if hasattr(module, "_diffusers_hook") for name in module._diffusers_hook.hooks]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_reproducible_and_leaves_no_trace(cached: Any, one: Denoise, kind: str) -> None:
    exact = one()
    first = one(cache_of(kind, 0.2))
    skipped = cached.cache_run.skipped
    other = runner(cached, "image")
    other(cache_of(kind, 0.2))  # another shape in between
    assert torch.equal(one(cache_of(kind, 0.2)), first) and cached.cache_run.skipped == skipped
    assert torch.equal(one(), exact) and cached.approximations == [] and cached.cache_run.cache is None
    assert not cached.transformer.is_cache_enabled and hooks_of(cached) == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_leaves_no_trace(cached: Any, one: Denoise, kind: str) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one(cache_of(kind, 0.2), progress=stop)
    assert not cached.transformer.is_cache_enabled and hooks_of(cached) == []


@pytest.mark.parametrize("kind", KINDS)
def test_another_pipeline_is_not_touched(one: Denoise, pipe: Any, kind: str) -> None:
    other = runner(pipe, "reference")
    exact = other(steps=4)
    seen: list[torch.Tensor] = []

    def between(stage: str, done: int, total: int) -> None:
        if done == 30:
            seen.append(other(steps=4))

    expected = one(cache_of(kind, 0.2))
    assert torch.equal(one(cache_of(kind, 0.2), progress=between), expected)
    assert torch.equal(seen[0], exact)


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_weights_give_the_same(kind: str) -> None:
    pipe = KiwiPipeline.from_pretrained(str(CHECKPOINT), device="cpu", dtype="float32")
    pipe.to("cpu")
    call = runner(pipe, "reference")
    expected = call(cache_of(kind, 0.2))
    skipped = pipe.cache_run.skipped
    pipe.residency = Residency(pipe.units, torch.device("cpu"), "stream")
    pipe.residency.adopt(mem.Placement(mem.LEVELS["stream"]))
    streaming = hooks_of(pipe)
    assert torch.equal(call(cache_of(kind, 0.2)), expected) and pipe.cache_run.skipped == skipped
    assert hooks_of(pipe) == streaming


# -- what is said -------------------------------------------------------------------------------------------


def test_an_edit_says_what_was_skipped(cached: Any) -> None:
    cached.register_to_config(references_first=False)
    said: list[str] = []
    options = {"steps": 20, "output": "latents", "notify": said.append}
    cached.edit(random_frames(1), "make it snowy", cache=StepCache.of("easy", 1.0), **options)
    assert said == cached.approximations
    assert said[0].startswith("step cache easy at threshold 1: NOT exact, skipped 1")
    assert "of 20 steps (4-" in said[0]


def test_steps_are_told_in_ranges_from_one() -> None:
    run = CacheRun(StepCache("sea", 0.25), 20, skipped=[3, 4, 5, 8, 10, 11])
    assert run.describe() == "step cache sea at threshold 0.25: NOT exact, skipped 6 of 20 steps (4-6, 9, 11-12)"
    assert "NOT exact" in StepCache("easy", 0.05).describe()


def test_words_of_a_command_line() -> None:
    assert StepCache.of("off") is None
    for kind in ("first-block", "easy", "sea"):
        assert StepCache.of(kind) == StepCache(kind, THRESHOLDS[kind])  # type: ignore[arg-type]
    assert StepCache.of("mag", 0.1, RATIOS) == StepCache("mag", 0.1, RATIOS)
    with pytest.raises(UsageError, match="'teacache'") as error:
        StepCache.of("teacache")
    assert "first-block" in error.value.hint
    for threshold in (-0.1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="from 0") as error:
            StepCache.of("easy", threshold)
        assert "0.05" in error.value.hint
    with pytest.raises(UsageError, match="takes no ratios"):
        StepCache.of("easy", 0.1, RATIOS)


@pytest.mark.parametrize("kind", ["first-block", "mag", "sea"])
def test_what_cannot_go_together_is_refused(one: Denoise, cached: Any, kind: str) -> None:
    """Compiled to full graphs, or split over GPUs, blocks cannot be skipped one by one; `easy` works with both."""
    compile_model(cached, backend="eager")
    try:
        with pytest.raises(UsageError, match="compiled") as error:
            one(cache_of(kind, 0.2))
        assert "easy" in error.value.hint
        one(StepCache("easy", 0.2))
        assert cached.cache_run.skipped
    finally:
        use_eager_blocks(cached.transformer)
    cached.transformer._parallel_config = object()
    try:
        with pytest.raises(UsageError, match="several GPUs"):
            one(cache_of(kind, 0.2))
    finally:
        cached.transformer._parallel_config = None
