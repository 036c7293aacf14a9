"""Denoising over windows: one window is no windows, to the bit; merged windows are what their weights say."""

from __future__ import annotations

import pytest
import torch

from kiwi_cli.engine.joint import JointDenoising, fill_noise
from kiwi_cli.engine.layout import ANCHORS, STATES, Anchor, Layout, lay_out
from kiwi_cli.model.sampling import SOLVERS, denoise, flow_sigmas, make_noise

SHAPE = (3, 4, 5)  # channels, height and width


def tables(layout: Layout, solver: str = "euler", seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    made = tuple(torch.full((layout.rows, STATES[solver], *SHAPE), torch.nan) for _ in range(2))
    fill_noise(made[0], layout, seed)
    return made  # type: ignore[return-value]


def field(latents: torch.Tensor, step: int, window: int = 0) -> torch.Tensor:
    """A velocity that hangs together over the window, as a model's does."""
    mean = latents.mean(dim=2, keepdim=True)
    return torch.sin(latents * (1 + step)) + 0.3 * mean


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("frames", [1, 5, 17, 81])
def test_one_window_is_no_windows_to_the_bit(frames: int, solver: str) -> None:
    layout, sigmas = lay_out((frames,), 21, 6, "frame"), flow_sigmas(7)
    noise = make_noise((1, SHAPE[0], layout.latents, *SHAPE[1:]), 3)
    whole = denoise(lambda x, sigma, step: field(x, step), noise, sigmas, solver=solver)
    joined = JointDenoising(layout, tables(layout, solver, 3), sigmas, solver).run(field)
    assert torch.equal(joined.transpose(0, 1)[None], whole)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("anchor", ANCHORS)
def test_windows_of_a_model_that_looks_at_single_frames_are_no_windows(anchor: Anchor, solver: str) -> None:
    """Where a frame's velocity does not depend on its neighbours, it matters not how the clip is cut."""
    layout, sigmas = lay_out((101, 30), 6, 2, anchor), flow_sigmas(6)
    start = tables(layout, solver)
    noise = start[0][:, 0].clone()
    joined = JointDenoising(layout, start, sigmas, solver).run(lambda x, step, window: torch.sin(x * (1 + step)))
    alone = denoise(lambda x, sigma, step: torch.sin(x * (1 + step)), noise, sigmas, solver=solver)
    assert torch.allclose(joined, alone, atol=2e-5)


def test_velocities_are_merged_by_their_weights() -> None:
    layout = lay_out((65,), 11, 4, "none")
    start = tables(layout)
    noise = start[0][:, 0].clone()

    def velocity(latents: torch.Tensor, step: int, window: int) -> torch.Tensor:
        return torch.full_like(latents, float(window))

    moved = JointDenoising(layout, start, torch.tensor([1.0, 0.0])).run(velocity)
    share = (noise - moved).mean(dim=(1, 2, 3))  # of the second window
    assert torch.allclose(share, torch.tensor([0.0] * 6 + [n / 6 for n in range(1, 6)] + [1.0] * 6), atol=1e-5)


def test_windows_of_a_step_see_the_same_step() -> None:
    layout, sigmas = lay_out((41,), 4, 2, "first"), flow_sigmas(3)
    run = JointDenoising(layout, tables(layout), sigmas)
    before: dict[int, torch.Tensor] = {}

    def velocity(latents: torch.Tensor, step: int, window: int) -> torch.Tensor:
        if window == 0:
            before[step] = run.latents.clone()
        assert torch.equal(latents[0].transpose(0, 1), before[step][list(layout.windows[window].rows)])
        return torch.sin(latents)

    run.run(velocity)
    assert sorted(before) == [0, 1, 2]


def test_noise_is_a_function_of_seed_and_place() -> None:
    short, long = lay_out((201,), 6, 2, "frame"), lay_out((401, 201), 6, 2, "frame")
    one, other, again = (tables(each, seed=seed)[0][:, 0] for each, seed in ((short, 1), (long, 1), (short, 2)))
    assert torch.equal(one[: short.latents], other[: short.latents])
    second = long.shots[1]
    assert torch.equal(one, other[second.start : second.end])
    assert (one != again).float().mean() > 0.99
    assert abs(float(other.std()) - 1) < 0.05 and len({float(row.sum()) for row in one}) == short.rows


def test_windows_that_share_nothing_begin_with_the_same_noise() -> None:
    layout = lay_out((25,), 3, 0, "frame")
    noise = tables(layout)[0][:, 0]
    (first, *others) = [noise[list(window.rows)] for window in layout.windows]
    assert len(others) == 2 and all(torch.equal(first, each) for each in others)


@pytest.mark.parametrize("solver", SOLVERS)
def test_it_goes_on_from_any_window(solver: str) -> None:
    layout, sigmas = lay_out((61, 9), 5, 2, "latent"), flow_sigmas(5)
    whole = JointDenoising(layout, tables(layout, solver), sigmas, solver)
    result, total = whole.run(field).clone(), whole.total
    assert whole.done == total
    for stop in range(1, total, 3):
        run = JointDenoising(layout, tables(layout, solver), sigmas, solver)

        class Killed(Exception):
            pass

        def after(run: JointDenoising = run, stop: int = stop) -> None:
            if run.done == stop:
                raise Killed

        with pytest.raises(Killed):
            run.run(field, after)
        again = JointDenoising(layout, run.tables, sigmas, solver)
        again.step, again.window, again.pending = run.step, run.window, run.pending
        assert torch.equal(again.run(field), result)
