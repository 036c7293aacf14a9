"""A part as latent frames and windows, and rows that are held while others move."""

from __future__ import annotations

import random

import pytest
import torch

from kiwi_cli.engine.joint import Held, JointDenoising, fill_noise, noise_of
from kiwi_cli.engine.layout import ANCHORS, STATES, Anchor, lay_out
from kiwi_cli.engine.made import Made, Patch
from kiwi_cli.engine.part_rows import frame_of, latent_of, part_rows
from kiwi_cli.model.sampling import SOLVERS, flow_sigmas

SHAPE = (2, 3, 4)
LONG = (61, 9, 1)
SIGMAS = flow_sigmas(4)


def velocity(latents: torch.Tensor, step: int, window: int) -> torch.Tensor:
    return torch.sin(latents * (1 + step)) + 0.3 * latents.mean(dim=2, keepdim=True)


def test_a_part_is_rounded_out_to_latent_frames() -> None:
    layout = lay_out(LONG, 5, 2, "frame")
    for first, last, frames in ((0, 1, (0, 1)), (1, 2, (1, 5)), (6, 8, (5, 9)), (0, 9, (0, 9)), (60, 62, (57, 62))):
        part = part_rows(layout, first, last)
        assert (part.first, part.last) == frames
    assert part_rows(layout, 0, 71).rows == tuple(range(layout.rows))
    assert [latent_of(frame) for frame in range(10)] == [0, 1, 1, 1, 1, 2, 2, 2, 2, 3]
    assert [frame_of(latent) for latent in range(4)] == [0, 1, 5, 9]


def test_frames_that_only_a_model_is_given_go_with_the_last_of_the_shot() -> None:
    layout = lay_out((2,), 2, 0, "frame", least=5)
    assert part_rows(layout, 0, 2).rows == (0, 1) and part_rows(layout, 1, 2).last == 2


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("restarts", [False, True])
def test_every_window_with_a_say_is_one_of_the_parts(anchor: Anchor, restarts: bool) -> None:
    layout, draw = lay_out(LONG, 5, 2, anchor, restarts=restarts), random.Random(3)
    for _ in range(30):
        first = draw.randrange(sum(LONG))
        part = part_rows(layout, first, draw.randrange(first + 1, sum(LONG) + 1))
        weights = dict.fromkeys(part.rows, 0.0)
        for number in part.windows:
            window = layout.windows[number]
            for row, weight in zip(window.rows, window.weights, strict=True):
                if row in weights:
                    weights[row] += weight
        assert all(abs(total - 1) < 1e-6 for total in weights.values())
        own, seen = part.own_layout(layout)
        assert set(part.rows) <= set(seen) and len(own.windows) == len(part.windows)
        covered = 0
        for shot in layout.shots:
            for segment in shot.segments:
                places = part.within(segment)
                assert {segment.rows[place] for place in places} == set(part.rows) & set(segment.rows)
                covered += len(places)
        assert covered <= len(part.rows)


def test_an_anchor_before_the_part_and_one_at_its_end_stay() -> None:
    layout = lay_out((33,), 2, 0, "frame", restarts=True)  # one latent frame a window, each behind an anchor
    part = part_rows(layout, 9, 17)
    anchors = {frame: layout.shots[0].latents + place for place, frame in enumerate(layout.shots[0].anchors)}
    assert part.rows == (3, 4, anchors[12])  # anchors of frames 8 and 16 belong to what is on either side


def test_a_part_comes_in_and_goes_where_neighbours_of_its_shot_are() -> None:
    layout = lay_out((61, 33), 5, 2, "frame")
    inside, at_a_cut, short = (part_rows(layout, *frames) for frames in ((9, 25), (41, 77), (1, 9)))
    assert [9 * inside.weight(frame) for frame in range(8, 17)] == pytest.approx([0, 1, 2, 3, 4, 5, 6, 7, 8])
    assert [9 * inside.weight(frame) for frame in range(17, 26)] == pytest.approx([8, 7, 6, 5, 4, 3, 2, 1, 0])
    assert at_a_cut.last == 78 and at_a_cut.weight(60) == at_a_cut.weight(61) == 1
    assert [9 * at_a_cut.weight(frame) for frame in (69, 70, 77)] == pytest.approx([9, 8, 1])
    assert short.fades == (2, 2) and part_rows(layout, 0, 61).fades == (0, 0)


@pytest.mark.parametrize("shots", [LONG, (13,)])
def test_the_noise_of_single_rows_is_that_of_the_table(shots: tuple[int, ...]) -> None:
    layout = lay_out(shots, 5, 2, "frame")
    table = torch.empty((layout.rows, 1, *SHAPE))
    fill_noise(table, layout, 4)
    rows = random.Random(2).sample(range(layout.rows), 4)
    assert torch.equal(noise_of(layout, rows, SHAPE, 4), table[rows, 0])


@pytest.mark.parametrize("solver", SOLVERS)
def test_held_rows_end_as_they_were_and_the_model_sees_them_on_their_way(solver: str) -> None:
    layout, held = lay_out((33,), 5, 2, "none"), (0, 1, 6)
    clean, noise = torch.full((3, *SHAPE), 5.0), torch.full((3, *SHAPE), -1.0)
    tables = tuple(torch.zeros((layout.rows, STATES[solver], *SHAPE)) for _ in range(2))
    seen: list[float] = []

    def looked(latents: torch.Tensor, step: int, window: int) -> torch.Tensor:
        if window == 0:
            seen.append(float(latents[0, 0, 0, 0, 0]))
        return velocity(latents, step, window)

    run = JointDenoising(layout, tables, SIGMAS, solver, Held(held, clean, noise))  # type: ignore[arg-type]
    result = run.run(looked)
    assert torch.equal(result[list(held)], clean) and not run.pending
    assert seen == [pytest.approx(float(5 * (1 - sigma) - sigma)) for sigma in SIGMAS[:-1]]
    assert bool((result[[2, 3, 4, 5]] != 0).all())


def test_what_was_made_last_is_what_a_part_sees() -> None:
    layout = lay_out((33,), 5, 2, "none")
    made = Made(layout, 1, torch.zeros((layout.rows, *SHAPE)), torch.zeros((layout.rows, *SHAPE)))
    for number, (first, last) in enumerate(((1, 9), (5, 13)), start=1):
        part = part_rows(layout, first, last)
        made.patches.append(Patch(part, 10 * number, part.rows, torch.full((len(part.rows), *SHAPE), float(number))))
    assert made.newest(range(5)).mean(dim=(1, 2, 3)).tolist() == [0, 1, 2, 2, 0]
    by = [noise_of(layout, [row], SHAPE, seed)[0] for row, seed in enumerate((1, 10, 20, 20, 1))]
    assert torch.equal(made.noise(range(5)), torch.stack(by))
