"""Figures of edits against exact truth: each says what it claims to, and the bounds decide as they are written."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest

from kiwi_cli.bench.tiny import quality
from kiwi_cli.bench.tiny.quality import Case, Mean, make_case, measure, mse, mse_of_all, summarise
from kiwi_cli.synth.edits import LOCAL, STYLES
from kiwi_cli.synth.wordings import KINDS, SPLITS, WORDINGS, fill, written


@cache
def case(number: int) -> Case:
    return make_case(number)


def blurred(clip: np.ndarray, strength: int = 3) -> np.ndarray:
    """What a lossy autoencoder might make of a clip."""
    found = clip.astype(np.float32)
    for _ in range(strength):
        for axis in (1, 2):
            found = (found + np.roll(found, 1, axis) + np.roll(found, -1, axis)) / 3
    return found.astype(np.uint8)


def record(kind: str, split: str, **figures: Any) -> dict[str, Any]:
    """Figures that pass, but for those that are given."""
    good: dict[str, Any] = {"right": True, "ceiling_right": True, "result_db": 24.0, "ceiling_db": 26.0}
    good |= {"gap_db": 2.0, "source_db": 10.0, "edges": 0.8, "ceiling_edges": 0.9}
    if kind in LOCAL:
        good |= {"gain_db": 9.0, "outside_gap_db": 1.0}
    if kind in quality.REFERENCES:
        good["follows"] = True
    return {"kind": kind, "split": split, "scene": 0, **good, **figures}


def test_a_case_is_held_out_and_its_words_are_apart_from_its_pictures() -> None:
    made = make_case(1)
    assert made.scene.held_out and set(made.edits) == set(KINDS) and set(made.others) == set(quality.REFERENCES)
    assert np.array_equal(made.scene.source, case(1).scene.source)
    assert not np.array_equal(made.scene.source, case(2).scene.source)
    for kind in KINDS:
        assert np.array_equal(made.edits[kind].target, case(1).edits[kind].target)
        for split in SPLITS:
            templates = WORDINGS[kind].seen if split == "seen" else WORDINGS[kind].held_out
            forms = {
                written(fill(template, made.edits[kind].slots), capital, stop, american)
                for template in templates
                for capital in (False, True)
                for stop in (False, True)
                for american in (False, True)
            }
            assert made.prompt(kind, split) in forms


def test_no_two_truths_that_may_be_chosen_apart_are_the_same_picture() -> None:
    free = [kind for kind in KINDS if kind not in STYLES]
    for number in range(8):
        edits = case(number).edits
        for place, kind in enumerate(free):
            for other in free[:place]:
                where = edits[kind].mask | edits[other].mask
                assert quality.mse(edits[kind].target, edits[other].target, where) >= quality.LEAST_RMS**2
        for kind, other_edit in case(number).others.items():
            assert not np.array_equal(other_edit.reference, edits[kind].reference)
            assert other_edit.slots == edits[kind].slots  # the instruction is the same


def test_psnr_is_of_the_chosen_pixels() -> None:
    first = np.zeros((2, 4, 4, 3), np.uint8)
    second = first.copy()
    second[0, 0, 0] = 51  # a fifth of the range in one pixel of 32
    where = np.zeros(first.shape[:3], bool)
    where[0, 0, 0] = True
    assert quality.psnr(first, second, where) == pytest.approx(-20 * np.log10(0.2))
    assert quality.psnr(first, second) == pytest.approx(-10 * np.log10(0.04 / 32))
    assert quality.psnr(first, second, ~where) == 100.0


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_as_the_autoencoder_shows_it_is_the_ceiling(kind: str) -> None:
    made = case(0)
    ceiling = blurred(made.edits[kind].target, 1)
    other = made.others[kind].target if kind in quality.REFERENCES else None
    found = measure(made, kind, ceiling, ceiling, other)
    assert found["right"] and found["nearest"] == kind and found["ceiling_right"]
    assert found["gap_db"] == 0.0 and found["edges"] == found["ceiling_edges"] > 0.3
    if kind in LOCAL:
        assert found["outside_gap_db"] == 0.0 and found["gain_db"] > quality.GAIN_DB
    if kind in quality.REFERENCES:
        assert found["follows"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_that_was_not_edited_is_never_right(kind: str) -> None:
    made = case(0)
    source = blurred(made.scene.source, 1)
    found = measure(made, kind, source, made.edits[kind].target, source)
    assert not found["right"]
    if kind in LOCAL:
        assert found["nearest"] == quality.SOURCE and found["gain_db"] < quality.GAIN_DB
    if kind in quality.REFERENCES:
        same = made.edits[kind].target  # the first reference again: the other one is not followed
        assert not measure(made, kind, same, same, same)["follows"]


def test_formless_colour_may_be_nearest_but_has_no_edges() -> None:
    made = case(0)
    truth = made.edits["night"].target
    formless = np.broadcast_to(truth.mean(axis=(0, 1, 2)).astype(np.uint8), truth.shape)
    found = measure(made, "night", formless, blurred(truth, 1))
    assert found["right"] and found["edges"] == 0.0 < found["ceiling_edges"]


def test_what_happens_outside_the_region_counts_only_there() -> None:
    made = case(0)
    edit = made.edits["remove"]
    ceiling = blurred(edit.target, 1)
    spoilt, missed = ceiling.copy(), ceiling.copy()
    spoilt[~edit.mask] = 128
    missed[edit.mask] = made.scene.source[edit.mask]
    whole, outside, inside = (measure(made, "remove", clip, ceiling) for clip in (ceiling, spoilt, missed))
    assert outside["gain_db"] == whole["gain_db"] and outside["outside_gap_db"] > quality.OUTSIDE_GAP_DB
    assert inside["outside_gap_db"] == 0.0 and inside["gain_db"] == 0.0 < whole["gain_db"]


def test_means_have_their_standard_errors() -> None:
    assert quality.mean_of([True, True, True, False], share=True) == Mean(0.75, pytest.approx(0.2165, abs=1e-4))
    assert quality.mean_of([1.0, 3.0]) == Mean(2.0, pytest.approx(1.0))
    assert quality.mean_of([1.0]).error is None


@pytest.mark.parametrize(
    ("kind", "split", "figure", "good", "bad"),
    [
        ("night", "seen", "right", [True] * 9 + [False], [True] * 8 + [False] * 2),
        ("night", "held-out", "right", [True] * 3 + [False], [True] * 2 + [False] * 2),
        ("night", "seen", "gap_db", [6.0, 6.0], [6.0, 6.2]),
        ("reference-background", "seen", "gap_db", [5.0], [7.0]),
        ("reference-background", "seen", "follows", [True] * 4 + [False], [True] * 3 + [False]),
        ("remove", "seen", "gain_db", [2.0], [1.9]),
        ("add", "held-out", "outside_gap_db", [3.0], [3.1]),
        ("reference-subject", "seen", "follows", [True] * 8 + [False] * 2, [True] * 7 + [False] * 3),
    ],
)
def test_each_bound_decides(kind: str, split: str, figure: str, good: list[Any], bad: list[Any]) -> None:
    for values, failures in ((good, 0), (bad, 1)):
        (row,) = summarise([record(kind, split, **{figure: value}) for value in values])
        assert row.count == len(values) and len(row.failures) == failures
        assert (quality.passing([row]) == [kind]) == (failures == 0)


def test_a_local_kind_is_not_held_to_the_whole_frame() -> None:
    (row,) = summarise([record("change", "seen", gap_db=20.0)])
    assert not row.failures


def test_a_kind_passes_with_both_sorts_of_wordings_or_not_at_all() -> None:
    records = [record(kind, split) for kind in ("night", "snow") for split in SPLITS]
    rows = summarise([*records, *(record("snow", "held-out", right=False) for _ in range(3))])
    assert [(row.kind, row.split) for row in rows] == [(kind, split) for kind in ("night", "snow") for split in SPLITS]
    assert quality.passing(rows) == ["night"]
    assert not quality.enough(rows)
    many = [record("night", split) for split in SPLITS for _ in range(quality.LEAST_COUNT)]
    assert quality.enough(summarise(many)) and not quality.enough(summarise(many[1:]))


def test_the_table_says_what_is_not_met() -> None:
    rows = summarise([record("night", "seen", right=right) for right in (True, False)])
    table = quality.markdown(rows)
    assert "| night | seen | 2 | 50 ± 35 |" in table and "nearest to the right truth 50 %, not 90 %" in table
    plain = json.loads(json.dumps(quality.as_json(rows)))
    assert plain["passing"] == [] and plain["rows"][0]["figures"]["right"]["mean"] == 0.5


def test_errors_of_many_clips_at_once_are_those_of_each() -> None:
    rng = np.random.default_rng(0)
    clips = list(rng.integers(0, 256, (3, 5, 24, 40, 3), np.uint8))
    others = [*clips[:2], np.clip(clips[0], 3, 255).astype(np.uint8)]
    expected = [[mse(clip, other) for other in others] for clip in clips]
    assert mse_of_all(clips, others) == pytest.approx(np.array(expected), rel=1e-5, abs=1e-7)
