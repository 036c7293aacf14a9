"""Everything a report says, as plain data: the same folders give the same data, and so the same files."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kiwi_cli.base.version import __version__
from kiwi_cli.bench.edit import changed, last_failures
from kiwi_cli.bench.judges.protocols import find_protocol
from kiwi_cli.bench.metrics.store import average_metrics, read_metrics
from kiwi_cli.bench.report.aggregate import LEVEL, RESAMPLES, Comparison, Figure, Summary, compare, mean, summarise
from kiwi_cli.bench.report.leaderboard import for_benchmark
from kiwi_cli.bench.report.scores import Judged, collect
from kiwi_cli.bench.run import Run
from kiwi_cli.bench.suites.items import BENCHMARKS
from kiwi_cli.errors import UsageError

DIGITS = 4


def build(runs: Sequence[Run], capped: bool = False, pair: tuple[Run, Run] | None = None) -> dict[str, Any]:
    """The report on some runs.

    Args:
        capped: hold the second and later scores of an item down to its first.
        pair: two runs to compare item by item.
    """
    judged = [collect(run) for run in runs]
    benchmarks = []
    for name in [name for name in BENCHMARKS if any(run.benchmark.name == name for run in runs)]:
        inside = [(run, found) for run, found in zip(runs, judged, strict=True) if run.benchmark.name == name]
        benchmarks.append(
            {
                "name": name,
                "title": BENCHMARKS[name].title,
                "licence": BENCHMARKS[name].licence,
                "rows": [row for run, found in inside for row in _rows(run, found, capped)],
                "runs": [_run(run) for run, _ in inside],
                "published": [_published(row) for row in for_benchmark(name)],
                "items": _items(inside),
            }
        )
    return {
        "kiwi": __version__,
        "capped": capped,
        "interval": f"{LEVEL} % bootstrap over items, {RESAMPLES} resamples",
        "benchmarks": benchmarks,
        "comparison": _comparison(*pair, capped) if pair is not None else None,
    }


def _rows(run: Run, found: Sequence[Judged], capped: bool) -> list[dict[str, Any]]:
    """One row for each judge that gave scores; a run nobody judged has none."""
    rows = []
    for judged in found:
        if not judged.scores and not judged.failed:
            continue
        protocol = find_protocol(judged.key.protocol, run.benchmark.name)
        summary = summarise(run.benchmark, protocol, run.items, judged.scores, judged.names, capped)
        rows.append(
            {
                "run": run.name,
                "model": run.identity["model"]["name"],
                "settings": run.identity["settings"]["name"],
                "protocol": judged.key.protocol,
                "rubric": judged.key.rubric,
                "judge": judged.key.label,
                "answered_by": judged.key.answered_by,
                "asked": judged.key.asked,
                "shown": judged.key.shown,
                "scale": list(protocol.scale),
                "judged_on": _days(judged),
                "scored": len(judged.scores),
                "failed": len(judged.failed),
                "stale": len(judged.stale),
                "of": len(run.items),
                "input_tokens": judged.input_tokens,
                "output_tokens": judged.output_tokens,
                **_summary(summary),
            }
        )
    return rows


def _days(judged: Judged) -> str:
    days = [
        datetime.datetime.fromtimestamp(when, datetime.timezone.utc).date().isoformat()
        for when in (judged.first_time, judged.last_time)
    ]
    return days[0] if days[0] == days[1] else " to ".join(days)


def _summary(summary: Summary) -> dict[str, Any]:
    return {
        "headline": figure(summary.headline),
        "floor": rounded(summary.floor),
        "over_categories": figure(summary.over_categories),
        "over_items": figure(summary.over_items),
        "over_columns": figure(summary.over_columns),
        "categories": [figure(entry) for entry in summary.categories],
        "other_categories": [figure(entry) for entry in summary.other],
        "columns": [figure(entry) for entry in summary.columns],
        "dimensions": [figure(entry) for entry in summary.dimensions],
    }


def figure(entry: Figure) -> dict[str, Any]:
    """A figure as data, rounded once and for all."""
    return {
        "name": entry.name,
        "value": rounded(entry.value),
        "low": rounded(entry.low),
        "high": rounded(entry.high),
        "scored": entry.scored,
        "of": entry.of,
    }


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


def _run(run: Run) -> dict[str, Any]:
    failures = last_failures(run)
    return {
        "run": run.name,
        "model": run.identity["model"],
        "settings": run.identity["settings"],
        "data": run.identity["data"],
        "items": len(run.items),
        "edited": len(run.complete(run.items)),
        "failures": dict(sorted(failures.items())),
        "changed": changed(run),
        "metrics": average_metrics(run),
    }


def _published(row: Any) -> dict[str, Any]:
    return {key: getattr(row, key) for key in row.__dataclass_fields__ if key != "benchmark"}


def _items(inside: Sequence[tuple[Run, Sequence[Judged]]]) -> list[dict[str, Any]]:
    """Every item with each run's result, scores and the judges' words; paths are absolute here."""
    order: dict[str, dict[str, Any]] = {}
    for run, found in inside:
        measured = read_metrics(run)
        failures = last_failures(run)
        for item in run.items:
            entry = order.setdefault(
                item.id,
                {
                    "id": item.id,
                    "category": item.category,
                    "instruction": item.instruction,
                    "source": str(run.source(item)),
                    "reference": str(run.reference(item)) if item.reference else None,
                    "edits": [],
                },
            )
            edited = run.edited(item)
            entry["edits"].append(
                {
                    "run": run.name,
                    "path": str(edited) if edited.is_file() else None,
                    "reason": "" if edited.is_file() else failures.get(item.id, "not edited"),
                    "metrics": measured.get(item.id, {}),
                    "judged": [_said(judged, item.id, item.category) for judged in found if _knows(judged, item.id)],
                }
            )
    for entry in order.values():
        means = [said["mean"] for edit in entry["edits"] for said in edit["judged"] if said["mean"] is not None]
        entry["mean"] = rounded(mean(means))
    return list(order.values())


def _knows(judged: Judged, item: str) -> bool:
    return item in judged.scores or item in judged.failed


def _said(judged: Judged, item: str, category: str) -> dict[str, Any]:
    scores = judged.scores.get(item)
    return {
        "judge": judged.key.label,
        "protocol": judged.key.protocol,
        "rubric": judged.key.rubric,
        "scores": dict(zip(judged.names.get(category, ()), scores, strict=False)) if scores else {},
        "mean": rounded(mean(scores)) if scores else None,
        "problem": "" if scores else judged.failed.get(item, ""),
        "words": judged.words.get(item, ""),
    }


def _comparison(first: Run, second: Run, capped: bool) -> dict[str, Any]:
    """A against B under every judge that both have.

    Raises:
        UsageError: they are of different data, or no judge saw both.
    """
    if first.identity["data"]["digest"] != second.identity["data"]["digest"]:
        raise UsageError(
            f"'{first.folder}' and '{second.folder}' are of different data", "compare two runs of one data set"
        )
    theirs = {judged.key: judged for judged in collect(second)}
    both = [(judged, theirs[judged.key]) for judged in collect(first) if judged.key in theirs]
    if not both:
        raise UsageError(
            f"no judge scored both '{first.folder}' and '{second.folder}'",
            "judge both by the same protocol, rubric and model",
        )
    from kiwi_cli.bench.report.aggregate import cap

    def scores(judged: Judged) -> dict[str, Sequence[float]]:
        return {key: cap(values) if capped else values for key, values in judged.scores.items()}

    judges = []
    for ours, other in both:
        result: Comparison = compare(first.items, scores(ours), scores(other))
        judges.append(
            {
                "judge": ours.key.label,
                "protocol": ours.key.protocol,
                "rubric": ours.key.rubric,
                "wins": result.wins,
                "losses": result.losses,
                "ties": result.ties,
                "difference": figure(result.difference),
                "better": rounded(result.better),
                "categories": [
                    {"name": name, "wins": wins, "losses": losses, "ties": ties, "difference": rounded(gap)}
                    for name, wins, losses, ties, gap in result.by_category
                ],
            }
        )
    return {"a": first.name, "b": second.name, "judges": judges}


def names_of(paths: Sequence[Path]) -> None:
    """That no two runs have the same name, which the report could not tell apart.

    Raises:
        UsageError.
    """
    seen: dict[str, Path] = {}
    for path in paths:
        name = path.resolve().name
        if name in seen:
            raise UsageError(f"two runs are called '{name}': '{seen[name]}' and '{path}'", "rename one of the folders")
        seen[name] = path
