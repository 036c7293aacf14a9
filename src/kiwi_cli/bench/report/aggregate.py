"""Scores -> figures. Every mean has a name, an interval, and says how many of how many items it is of."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kiwi_cli.bench.judges.protocols import Protocol
from kiwi_cli.bench.suites.items import Benchmark, Item

RESAMPLES = 2000
SEED = 0
LEVEL = 95  # per cent

Scores = Mapping[str, Sequence[float]]
"""Item id -> its scores, in the order of the rubric."""


@dataclass(frozen=True)
class Figure:
    """A mean.

    Attributes:
        value: None when nothing was scored. low, high: 95 % bootstrap interval over items.
        scored, of: items.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    scored: int
    of: int

    @property
    def whole(self) -> bool:
        """Whether it is the mean of all it should be the mean of."""
        return self.scored == self.of and self.of > 0


@dataclass(frozen=True)
class Summary:
    """All figures of one judging.

    Attributes:
        categories: mean of all scores of a category's items. columns: mean of one score of one category.
        dimensions: mean of one score over all headline items that have it.
        over_categories, over_items, over_columns: of the headline's categories; `headline` is one of them.
        other: categories that do not count for the headline.
        floor: the headline if every missing item had the lowest score.
        capped: whether the second and later scores were held down to the first.
    """

    categories: tuple[Figure, ...]
    other: tuple[Figure, ...]
    columns: tuple[Figure, ...]
    dimensions: tuple[Figure, ...]
    over_categories: Figure
    over_items: Figure
    over_columns: Figure
    headline: Figure
    floor: float | None
    capped: bool


def mean(values: Sequence[float]) -> float | None:
    """Of nothing: None."""
    return math.fsum(values) / len(values) if values else None


def cap(scores: Sequence[float]) -> list[float]:
    """The second and later scores, at most the first."""
    return [scores[0], *(min(score, scores[0]) for score in scores[1:])]


def summarise(
    benchmark: Benchmark,
    protocol: Protocol,
    items: Sequence[Item],
    scores: Scores,
    names: Mapping[str, Sequence[str]],
    capped: bool = False,
    seed: int = SEED,
) -> Summary:
    """The figures of a run under one judge.

    Args:
        items: the whole data set; those without scores are missing, not ignored.
        names: category -> names of its scores.
        capped: apply `cap` first.
    """
    if capped:
        scores = {key: cap(values) for key, values in scores.items()}
    present = {item.category for item in items}
    wanted = tuple(sorted(present)) if protocol.all_categories else benchmark.headline_categories(present)
    by_category = {name: _Category(name, items, scores, seed) for name in [*wanted, *sorted(present - set(wanted))]}
    counted = [by_category[name] for name in wanted if name in present]
    columns, dimensions = _columns(counted, names)
    over_categories = _combine(
        f"mean of {len(counted)} categories", [(c.means, 1.0) for c in counted], counted, needs_all=True
    )
    over_items = _combine("mean over items", [(c.means, float(c.scored)) for c in counted], counted)
    parts = [(c.column(k), 1.0) for c in counted for k in range(c.width)]
    widest = max((c.width for c in counted), default=0)
    width = sum(c.width or widest for c in counted)
    over_columns = _combine(f"mean of {width} columns", parts, counted, needs_all=True)
    headline = {"categories": over_categories, "items": over_items, "columns": over_columns}[protocol.headline]
    return Summary(
        tuple(c.figure() for c in counted),
        tuple(by_category[name].figure() for name in by_category if name not in wanted),
        columns,
        dimensions,
        over_categories,
        over_items,
        over_columns,
        headline,
        _floor(counted, protocol.headline),
        capped,
    )


class _Category:
    """The scores of one category and their resampled means; item 0 of each array is the real one."""

    def __init__(self, name: str, items: Sequence[Item], scores: Scores, seed: int) -> None:
        inside = [item for item in items if item.category == name]
        rows = [scores[item.id] for item in inside if item.id in scores]
        self.name, self.of, self.scored = name, len(inside), len(rows)
        self.width = len(rows[0]) if rows else 0
        self.table = np.asarray(rows, dtype=np.float64).reshape(self.scored, self.width)  # (items, scores)
        # A generator for each category: adding one to a run moves no other's interval.
        random = np.random.default_rng([seed, zlib.crc32(name.encode())])
        drawn = random.integers(0, max(self.scored, 1), (RESAMPLES, self.scored))
        self._index = np.concatenate([np.arange(self.scored)[None], drawn]) if rows else drawn

    def column(self, k: int) -> np.ndarray:
        """(1 + RESAMPLES,) means of the k-th score."""
        return self.table[:, k][self._index].mean(axis=1)

    @property
    def means(self) -> np.ndarray:
        """(1 + RESAMPLES,) means of all scores."""
        return self.table.mean(axis=1)[self._index].mean(axis=1) if self.scored else np.empty(0)

    def figure(self) -> Figure:
        return _figure(self.name, self.means, self.scored, self.of)


def _figure(name: str, values: np.ndarray, scored: int, of: int) -> Figure:
    if not len(values):
        return Figure(name, None, None, None, scored, of)
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(values[1:], [tail, 100 - tail])
    return Figure(name, float(values[0]), float(low), float(high), scored, of)


def _combine(
    name: str, parts: Sequence[tuple[np.ndarray, float]], counted: Sequence[_Category], needs_all: bool = False
) -> Figure:
    """A weighted mean of resampled means. With `needs_all`, a category without scores leaves no mean of all."""
    scored, of = sum(c.scored for c in counted), sum(c.of for c in counted)
    present = [(values, weight) for values, weight in parts if len(values)]
    empty = [c.name for c in counted if not c.scored]
    if not present or (needs_all and empty):
        return Figure(name, None, None, None, scored, of)
    total = sum(weight for _, weight in present)
    return _figure(name, np.sum([values * (weight / total) for values, weight in present], axis=0), scored, of)


def _columns(
    counted: Sequence[_Category], names: Mapping[str, Sequence[str]]
) -> tuple[tuple[Figure, ...], tuple[Figure, ...]]:
    columns: list[Figure] = []
    gathered: dict[str, list[tuple[np.ndarray, float, _Category]]] = {}
    for category in counted:
        for k, name in enumerate(list(names.get(category.name, ()))[: category.width]):
            values = category.column(k)
            columns.append(_figure(f"{category.name}: {name}", values, category.scored, category.of))
            gathered.setdefault(name, []).append((values, float(category.scored), category))
    dimensions = [
        _combine(name, [(values, weight) for values, weight, _ in parts], [c for _, _, c in parts])
        for name, parts in gathered.items()
    ]
    return tuple(columns), tuple(dimensions)


def _floor(counted: Sequence[_Category], headline: str) -> float | None:
    """The headline with a 1 for everything that is missing: no real result can be lower."""
    if not counted or not all(c.of for c in counted):
        return None
    sums = [(float(c.table.mean(axis=1).sum()) if c.scored else 0.0) + (c.of - c.scored) for c in counted]
    if headline == "items":
        return math.fsum(sums) / sum(c.of for c in counted)
    return mean([total / c.of for total, c in zip(sums, counted, strict=True)])


@dataclass(frozen=True)
class Comparison:
    """Run A against run B on the items that both have.

    Attributes:
        difference: mean of A - B over items, with its paired bootstrap interval.
        better: share of resamples in which A is ahead.
    """

    wins: int
    losses: int
    ties: int
    difference: Figure
    better: float | None
    by_category: tuple[tuple[str, int, int, int, float], ...]


def compare(items: Sequence[Item], first: Scores, second: Scores, seed: int = SEED) -> Comparison:
    """Pair the items that both runs have scores for."""
    paired = [item for item in items if item.id in first and item.id in second]
    gaps = np.asarray([np.mean(first[item.id]) - np.mean(second[item.id]) for item in paired], dtype=np.float64)
    gaps[np.abs(gaps) < 1e-9] = 0.0
    count = len(paired)
    values = np.empty(0)
    if count:
        drawn = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
        values = gaps[np.concatenate([np.arange(count)[None], drawn])].mean(axis=1)
    rows = []
    for name in sorted({item.category for item in paired}):
        inside = np.asarray([item.category == name for item in paired])
        part = gaps[inside]
        rows.append((name, int((part > 0).sum()), int((part < 0).sum()), int((part == 0).sum()), float(part.mean())))
    return Comparison(
        int((gaps > 0).sum()),
        int((gaps < 0).sum()),
        int((gaps == 0).sum()),
        _figure("A - B, mean over items", values, count, len(items)),
        float((values[1:] > 0).mean()) if count else None,
        tuple(rows),
    )
