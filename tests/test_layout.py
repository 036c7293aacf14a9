"""Windows over shots: every latent frame is covered, weights add up, and what they cost is what was promised."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest

from kiwi_cli.engine.layout import ANCHORS, Anchor, lay_out

LENGTHS = [1, 2, 4, 5, 6, 9, 17, 80, 81, 82, 85, 200, 300, 301, 302, 303]


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize(("length", "overlap"), [(2, 0), (2, 1), (5, 0), (5, 2), (5, 3), (21, 6), (21, 20), (1, 0)])
def test_every_latent_frame_is_covered_and_weights_add_up(length: int, overlap: int, anchor: Anchor) -> None:
    for frames in LENGTHS:
        layout = lay_out((frames, 7, frames), length, overlap, anchor)
        sums: Counter[int] = Counter()
        for window in layout.windows:
            assert len(window.rows) == len(window.weights) == len(set(window.rows))
            assert len(window.rows) <= max(length, 2)
            shot = layout.shots[window.shot]
            assert all(shot.start <= row < shot.end for row in window.rows)
            for row, weight in zip(window.rows, window.weights, strict=True):
                sums[row] += weight  # type: ignore[assignment]
        assert all(math.isclose(sums[row], 1.0) for row in range(layout.rows))
        assert layout.latents == sum(1 + math.ceil((n - 1) / 4) for n in (frames, 7, frames))


@pytest.mark.parametrize("anchor", ANCHORS)
def test_a_shot_that_fits_is_one_window_with_full_weight(anchor: Anchor) -> None:
    for frames in (1, 5, 78, 81):
        (window,) = lay_out((frames,), 21, 6, anchor).windows
        assert window.rows == tuple(range(1 + math.ceil((frames - 1) / 4))) and set(window.weights) == {1.0}
        assert (window.first, window.last) == (0, frames)


def test_neighbours_share_what_was_asked_for() -> None:
    layout = lay_out((300,), 21, 6, "frame")
    assert (layout.latents, len(layout.windows), layout.longest) == (76, 5, 21)
    assert layout.evaluations / layout.latents <= 1.4
    owns = [set(window.rows) - set(range(76, 80)) for window in layout.windows]
    assert all(len(one & other) >= 6 for one, other in itertools.pairwise(owns))
    assert not owns[0] & owns[2]


def test_weights_are_ramps_where_windows_meet_and_flat_elsewhere() -> None:
    first, second = lay_out((65,), 11, 4, "none").windows  # 17 latent frames: 0-10 and 6-16, five shared
    assert first.weights[:6] == (1.0,) * 6 and second.weights[5:] == (1.0,) * 6
    assert first.weights[6:] == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert second.weights[:5] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])


def test_anchors_are_in_front_and_the_clip_takes_nothing_of_them() -> None:
    for anchor, row in (("latent", 1), ("first", 0)):
        _, second, *_ = lay_out((21,), 3, 1, anchor).windows  # type: ignore[arg-type]
        assert second.rows == (row, 2, 3) and second.weights[0] == 0.0
    layout = lay_out((9, 21), 3, 1, "frame")
    _, _, second, *_ = layout.windows
    shot = layout.shots[1]
    assert second.rows == (shot.start + 6, shot.start + 2, shot.start + 3) and second.weights[0] == 1.0
    assert shot.anchors[0] == 4 and second.first == 5  # the frame just before those that the window covers


def test_an_autoencoder_that_knows_a_window_begins_anew_with_each() -> None:
    (whole,) = lay_out((30,), 5, 1, "frame").shots[0].segments
    assert (whole.rows, whole.lead, whole.frames) == (tuple(range(9)), False, 30)
    (shot,) = lay_out((30,), 5, 1, "frame", restarts=True).shots
    assert [segment.rows for segment in shot.segments] == [(0, 1, 2), (9, 3, 4), (10, 5, 6, 7, 8)]
    assert [segment.lead for segment in shot.segments] == [False, True, True]
    assert [segment.frames for segment in shot.segments] == [9, 8, 13]
    assert shot.anchors == (8, 16)  # the frames just before 9 and 17


def test_shots_do_not_share_windows() -> None:
    apart = [lay_out((frames,), 5, 2, "frame") for frames in (33, 6, 90)]
    whole = lay_out((33, 6, 90), 5, 2, "frame")
    assert len(whole.windows) == sum(len(layout.windows) for layout in apart)
    shifted = [tuple(row - whole.shots[w.shot].start for row in w.rows) for w in whole.windows]
    assert shifted == [window.rows for layout in apart for window in layout.windows]


def test_a_long_clip_costs_what_is_counted_and_keeps_what_is_planned() -> None:
    """At full size: at most 1.4 times the denoising of the clip's own windows; a few GB on the host for ten minutes."""
    from kiwi_cli.engine.estimate import estimate, on_host
    from kiwi_cli.model.shape import RELEASED_5B
    from kiwi_cli.video import Size

    size, layout = Size(1280, 704), lay_out((300,), 21, 6, "frame")
    window = estimate(RELEASED_5B, size, 81, 0, 50)
    found = window.joined(layout, 1, 0)
    assert found.stages["denoise"] == pytest.approx(5 * window.stages["denoise"])  # five windows of that length
    assert found.stages["denoise"] <= 1.4 * layout.latents / 21 * window.stages["denoise"]
    assert found.stages["decode"] == pytest.approx(76 / 21 * window.stages["decode"])
    assert found.stages["encode"] == pytest.approx(80 / 21 * window.stages["encode"])
    assert found.levels == window.levels  # on the device, as one window
    long = lay_out((14_400,), 21, 6, "frame")
    held = on_host(RELEASED_5B, size, long, "euler", 1, 0, 2).total
    latent = 4 * 48 * 44 * 80
    assert held == 3 * long.rows * latent + 512 * 3072 * 2 and 7e9 < held < 9e9


def test_windows_say_how_far_they_are_apart() -> None:
    from kiwi_cli.editing.windows import Windows

    layout = lay_out((30, 3, 17), 2, 0, "frame", 5, restarts=True)
    assert Windows(5, len(layout.windows), layout=layout).apart == 4  # the first frame of each is an anchor
    assert Windows(5, 6).apart == 5
    one = lay_out((5, 5), 2, 0, "frame", 5)
    assert Windows(5, 2, layout=one).apart == 5
