"""Figures: the published ones follow from their columns, ours from the scores, and nothing missing is hidden."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kiwi_cli.bench.judges.protocols import find_protocol
from kiwi_cli.bench.report.aggregate import cap, compare, summarise
from kiwi_cli.bench.report.leaderboard import Published, agrees, published, recompute
from kiwi_cli.bench.suites.items import BENCHMARKS, Item

ROWS = published()
WITH_COLUMNS = [row for row in ROWS if row.columns]


@pytest.mark.parametrize("row", WITH_COLUMNS, ids=lambda row: f"{row.system}-{row.source[-9:]}-{row.overall}")
def test_every_published_overall_follows_from_its_columns(row: Published) -> None:
    """By the averaging it names, through the code that averages our own runs."""
    benchmark = BENCHMARKS[row.benchmark]
    # Items whose scores have the printed means: one item a category, scores as they are.
    if row.benchmark == "openve":
        items = [Item(name, name, "x", "y") for name in row.columns]
        scores = {name: [value] * 3 for name, value in row.columns.items()}
        names = {name: ("a", "b", "c") for name in row.columns}
    else:
        values = list(row.columns.values())
        items = [Item("subject", "subject", "x", "y"), Item("background", "background", "x", "y")]
        scores = {"subject": values[:3], "background": values[3:]}
        names = {"subject": ("a", "b", "c"), "background": ("d", "e", "f")}
    summary = summarise(benchmark, find_protocol("kiwi", row.benchmark), items, scores, names)  # type: ignore[arg-type]
    assert summary.headline.name == row.averaging
    assert summary.headline.value is not None
    assert math.fabs(summary.headline.value - row.overall) <= 0.0051  # printed with two decimals
    assert agrees(row) and summary.headline.value == pytest.approx(recompute(row))


def test_a_wrong_overall_would_be_noticed() -> None:
    row = WITH_COLUMNS[0]
    assert agrees(Published(**{**vars(row), "overall": row.overall + 0.05})) is False


def test_the_table_has_every_named_system_with_source_judge_and_average() -> None:
    systems = " ".join(row.system for row in ROWS)
    for name in (
        "VACE",
        "OmniVideo",
        "InsViE",
        "Lucy-Edit",
        "ICVE",
        "DITTO",
        "OpenVE-Edit",
        "Runway Aleph",
        "Kling-O1",
    ):
        assert name in systems
    for name in ("GRNEdit", "JoyAI-Video-Edit", "Bernini"):
        assert all(row.self_reported for row in ROWS if row.system.startswith(name)) and name in systems
    aleph = [row for row in ROWS if row.system == "Runway Aleph"]
    assert len(aleph) == 2 and {row.state for row in aleph} == {"published; no longer measurable"}
    for name in ("UniVideo", "ReCo", "Bernini", "Mamoda2.5", "VINO", "SAMA", "Kling O1", "ReCo-Ref"):
        assert name in systems
    assert sum("Kiwi-Edit" in row.system for row in ROWS) >= 5
    for row in ROWS:
        assert row.source and row.date and row.averaging.startswith("mean ")
        assert row.judge or not row.columns
        assert row.overall is not None or "not known" in row.note
        assert 1 <= (row.overall or 1) <= 5 and all(1 <= value <= 5 for value in row.columns.values())


def openve_items(per_type: int = 4) -> list[Item]:
    return [Item(f"{name}-{k}", name, "x", "y") for name in BENCHMARKS["openve"].categories for k in range(per_type)]


NAMES = {name: ("first", "second", "third") for name in BENCHMARKS["openve"].categories}


def some_scores(items: list[Item], seed: int = 0) -> dict[str, list[int]]:
    rng = np.random.default_rng(seed)
    return {item.id: [int(value) for value in rng.integers(1, 6, 3)] for item in items}


def test_means_are_the_means() -> None:
    items = openve_items()
    scores = some_scores(items)
    summary = summarise(BENCHMARKS["openve"], find_protocol("kiwi", "openve"), items, scores, NAMES)
    five = BENCHMARKS["openve"].headline
    by_hand = {name: np.mean([scores[i.id] for i in items if i.category == name]) for name in NAMES}
    assert [figure.name for figure in summary.categories] == list(five)
    for figure in (*summary.categories, *summary.other):
        assert figure.value == pytest.approx(by_hand[figure.name]) and figure.whole
        assert figure.low is not None and figure.high is not None and figure.low <= figure.value <= figure.high
    assert summary.headline.name == "mean of 5 categories"
    assert summary.headline.value == pytest.approx(np.mean([by_hand[name] for name in five]))
    assert (summary.headline.scored, summary.headline.of) == (20, 20)
    authors = summarise(BENCHMARKS["openve"], find_protocol("openve", "openve"), items, scores, NAMES)
    assert authors.headline.name == "mean over items" and authors.headline.of == 32
    assert authors.headline.value == pytest.approx(np.mean([np.mean(values) for values in scores.values()]))


def test_over_items_and_over_categories_differ_when_categories_do() -> None:
    items = [Item(f"s{k}", "subject", "x", "y") for k in range(7)] + [
        Item(f"b{k}", "background", "x", "y") for k in range(4)
    ]
    scores = {item.id: [4, 4, 4] if item.category == "subject" else [2, 2, 2] for item in items}
    names = {"subject": ("a", "b", "c"), "background": ("d", "e", "f")}
    summary = summarise(BENCHMARKS["refvie"], find_protocol("kiwi", "refvie"), items, scores, names)
    assert summary.over_columns.value == pytest.approx(3.0) and summary.over_columns.name == "mean of 6 columns"
    assert summary.over_items.value == pytest.approx((7 * 4 + 4 * 2) / 11)
    assert [figure.name for figure in summary.columns] == [
        "subject: a", "subject: b", "subject: c", "background: d", "background: e", "background: f"
    ]  # fmt: skip


def test_what_is_missing_is_said_and_cannot_raise_the_headline_unseen() -> None:
    items = openve_items()
    scores = {item.id: [5, 5, 5] for item in items}
    whole = summarise(BENCHMARKS["openve"], find_protocol("kiwi", "openve"), items, scores, NAMES)
    assert whole.headline.value == 5 == whole.floor
    del scores[items[0].id]
    part = summarise(BENCHMARKS["openve"], find_protocol("kiwi", "openve"), items, scores, NAMES)
    assert (part.headline.scored, part.headline.of, part.headline.whole) == (19, 20, False)
    assert part.floor == pytest.approx((4 + 5 * 4) / 5)  # its category: (1 + 5 + 5 + 5) / 4
    for item in items[1:4]:
        del scores[item.id]
    none = summarise(BENCHMARKS["openve"], find_protocol("kiwi", "openve"), items, scores, NAMES)
    assert none.headline.value is None and none.over_items.value == 5  # a category without scores has no mean
    empty = summarise(BENCHMARKS["openve"], find_protocol("kiwi", "openve"), items, {}, NAMES)
    assert empty.headline.value is None and empty.headline.scored == 0 and empty.floor == 1


def test_capping_is_off_and_only_lowers() -> None:
    assert cap([2, 5, 1]) == [2, 2, 1]
    items = openve_items(1)
    scores = {item.id: [2, 5, 1] for item in items}
    protocol = find_protocol("kiwi", "openve")
    plain = summarise(BENCHMARKS["openve"], protocol, items, scores, NAMES)
    capped = summarise(BENCHMARKS["openve"], protocol, items, scores, NAMES, capped=True)
    assert plain.headline.value == pytest.approx(8 / 3) and not plain.capped
    assert capped.headline.value == pytest.approx(5 / 3) and capped.capped


def test_intervals_are_seeded_narrow_with_more_items_and_cover() -> None:
    protocol = find_protocol("kiwi", "openve")

    def width(per_type: int) -> float:
        items = openve_items(per_type)
        figure = summarise(BENCHMARKS["openve"], protocol, items, some_scores(items), NAMES).headline
        assert figure.low is not None and figure.high is not None
        return figure.high - figure.low

    assert width(5) == width(5)
    assert width(80) < width(5) / 2
    # One-sample check against the normal theory of a mean: 1.96 standard errors each way.
    items = [Item(f"s{k}", "global_style", "x", "y") for k in range(200)]
    scores = some_scores(items)
    figure = summarise(BENCHMARKS["openve"], find_protocol("openve", "openve"), items, scores, NAMES).headline
    means = [np.mean(values) for values in scores.values()]
    expected = 2 * 1.96 * np.std(means) / np.sqrt(len(means))
    assert figure.low is not None and figure.high is not None
    assert figure.high - figure.low == pytest.approx(expected, rel=0.08)


def test_comparison_pairs_items() -> None:
    items = openve_items(2)
    first = {item.id: [3, 3, 3] for item in items}
    second = {item.id: [3, 3, 3] for item in items}
    first[items[0].id], first[items[1].id], second[items[2].id] = [5, 5, 5], [4, 3, 3], [4, 4, 4]
    del second[items[3].id]
    result = compare(items, first, second)
    assert (result.wins, result.losses, result.ties) == (2, 1, 12)
    assert result.difference.value == pytest.approx((2 + 1 / 3 - 1) / 15) and result.difference.of == 16
    assert result.better is not None and 0.5 < result.better < 1
    assert compare(items, first, first).difference.value == 0 and compare(items, first, {}).better is None
