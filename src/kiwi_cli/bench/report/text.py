"""The report for a terminal and as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from kiwi_cli.base.text import count as counted

APART = "Published rows are as their sources print them. Compare only rows of the same judge, protocol and average."
CAPPED = "Scores are capped: the second and later ones of an item are held down to its first."


def show(value: float | None) -> str:
    """Two decimals, as everybody prints scores."""
    return "-" if value is None else f"{value:.2f}"


def headline(figure: dict[str, Any]) -> str:
    """'3.11 (2.98 to 3.24)', and 'over 420 of 431 items' unless it is over all."""
    if figure["value"] is None:
        return f"none, with {figure['scored']} of {figure['of']} items scored"
    text = f"{show(figure['value'])} ({show(figure['low'])} to {show(figure['high'])})"
    if figure["scored"] != figure["of"]:
        text += f" over {figure['scored']} of {figure['of']} items"
    return text


def own_table(benchmark: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the runs' own table."""
    names = list(dict.fromkeys(entry["name"] for row in benchmark["rows"] for entry in row["categories"]))
    head = ["run", "judge", "protocol", "overall", "is", *names]
    lines = []
    for row in benchmark["rows"]:
        values = {entry["name"]: show(entry["value"]) for entry in row["categories"]}
        lines.append(
            [
                row["run"],
                row["judge"],
                f"{row['protocol']} ({row['rubric']}), {row['scale'][0]} to {row['scale'][1]}",
                headline(row["headline"]),
                row["headline"]["name"],
                *(values.get(name, "-") for name in names),
            ]
        )
    return head, lines


def published_table(benchmark: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the published table."""
    names = list(dict.fromkeys(name for row in benchmark["published"] for name in row["columns"]))
    head = ["system", "params", "overall", "is", *names, "judge", "remarks", "source", "date"]
    lines = [
        [
            row["system"],
            row["params"] or "-",
            show(row["overall"]),
            row["averaging"],
            *(show(row["columns"].get(name)) for name in names),
            row["judge"] or "not known",
            remarks(row),
            row["source"],
            row["date"],
        ]
        for row in benchmark["published"]
    ]
    return head, lines


def remarks(row: dict[str, Any]) -> str:
    """What is to be known of a published row: whose figure it is, and whether it can be measured again."""
    return "; ".join(part for part in ("self-reported" if row["self_reported"] else "", row["state"]) if part) or "-"


def terminal(report: dict[str, Any], width: int) -> str:
    """Tables for stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    buffer = io.StringIO()
    console = Console(file=buffer, width=width, no_color=True, legacy_windows=False)

    def table(title: str, head: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
        made = Table(title=title, title_justify="left")
        for name in head:
            made.add_column(Text(name), overflow="fold")
        for line in lines:
            made.add_row(*(Text(cell) for cell in line))
        console.print(made)

    for benchmark in report["benchmarks"]:
        if benchmark["rows"]:
            table(f"{benchmark['title']}: your runs", *own_table(benchmark))
        else:
            console.print(f"{benchmark['title']}: no scores yet")
        for row in benchmark["rows"]:
            console.print(Text(_about(row)))
        for run in benchmark["runs"]:
            if run["metrics"]:
                table(f"{run['run']}: figures without a judge, no ranking", *_metrics(run))
        if benchmark["published"]:
            head, lines = published_table(benchmark)
            short = [head.index(name) for name in ("system", "params", "overall", "is", "judge", "remarks", "date")]
            table(
                f"{benchmark['title']}: published",
                [head[k] for k in short],
                [[line[k] for k in short] for line in lines],
            )
    if report["comparison"]:
        table(*_comparison(report["comparison"]))
    console.print(Text(APART + (f" {CAPPED}" if report["capped"] else "")))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def _about(row: dict[str, Any]) -> str:
    parts = [
        f"{row['run']}: {row['scored']} of {row['of']} items scored, {row['failed']} failed",
        *(f"{entry['name']} {headline(entry)}" for entry in _means(row)),
    ]
    if row["stale"]:
        parts.append(f"{row['stale']} scores are of results since replaced, and left out")
    if row["floor"] is not None and row["headline"]["scored"] != row["headline"]["of"]:
        parts.append(f"{show(row['floor'])} if all that is missing were scored 1")
    return "; ".join(parts)


def _means(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The three averages, each by its name, without repeating equal ones."""
    means = {row[key]["name"]: row[key] for key in ("over_categories", "over_items", "over_columns")}
    return list(means.values())


def _metrics(run: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    return ["figure", "mean", "items"], [
        [entry["name"], f"{entry['value']:.4f}", f"{entry['scored']} of {entry['of']}"] for entry in run["metrics"]
    ]


def _comparison(comparison: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    lines = []
    for judge in comparison["judges"]:
        gap = judge["difference"]
        share = "-" if judge["better"] is None else f"{100 * judge['better']:.1f} %"
        total = [str(judge[key]) for key in ("wins", "losses", "ties")]
        lines.append([judge["judge"], "all", *total, headline(gap), share])
        for entry in judge["categories"]:
            counts = [str(entry[key]) for key in ("wins", "losses", "ties")]
            lines.append([judge["judge"], entry["name"], *counts, show(entry["difference"]), ""])
    head = ["judge", "items", "wins", "losses", "ties", "A - B (paired bootstrap)", "A ahead in"]
    return f"A = {comparison['a']}, B = {comparison['b']}", head, lines


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    out = ["# Benchmark report", "", APART, f"Intervals: {report['interval']}."]
    if report["capped"]:
        out += ["", f"**{CAPPED}**"]
    for benchmark in report["benchmarks"]:
        out += ["", f"## {benchmark['title']}", ""]
        for run in benchmark["runs"]:
            out.append(
                f"- `{run['run']}`: model `{run['model']['name']}`, settings {run['settings']['name']}; "
                f"{run['edited']} of {run['items']} items edited"
            )
            out += [f"  - in {counted(count, 'clip')}: {_cell(line)}" for line, count in run["changed"].items()]
            out += [f"  - `{name}` failed: {_cell(reason)}" for name, reason in run["failures"].items()]
        if benchmark["rows"]:
            out += ["", "### Your runs", "", *_table(*own_table(benchmark)), ""]
            out += [f"- {_cell(_about(row))}; judged {row['judged_on']}" for row in benchmark["rows"]]
            for row in benchmark["rows"]:
                entries = [*row["categories"], *row["other_categories"], *row["columns"], *row["dimensions"]]
                lines = [[e["name"], headline(e), f"{e['scored']} of {e['of']}"] for e in entries]
                out += ["", f"#### {_cell(row['run'])}, {_cell(row['judge'])}", ""]
                out += _table(["figure", "mean (interval)", "items"], lines)
        for run in benchmark["runs"]:
            if run["metrics"]:
                out += ["", f"### {_cell(run['run'])}: figures without a judge, no ranking", ""]
                out += _table(*_metrics(run))
        if benchmark["published"]:
            out += ["", "### Published", "", *_table(*published_table(benchmark))]
            notes = [
                f"- {row['system']} ({row['source']}): {row['note']}" for row in benchmark["published"] if row["note"]
            ]
            out += ["", *notes] if notes else []
    if report["comparison"]:
        title, head, lines = _comparison(report["comparison"])
        out += ["", f"## {_cell(title)}", "", *_table(head, lines)]
    return "\n".join(out) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    rows = [head, ["---"] * len(head), *lines]
    return ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]


def summary_csv(report: dict[str, Any]) -> str:
    """Every figure of every run and every published row, one a line."""
    head = (
        "benchmark",
        "kind",
        "system",
        "judge",
        "protocol",
        "figure",
        "value",
        "low",
        "high",
        "scored",
        "of",
        "source",
    )
    lines: list[Sequence[Any]] = []
    for benchmark in report["benchmarks"]:
        for row in benchmark["rows"]:
            base = (benchmark["name"], "run", row["run"], row["judge"], f"{row['protocol']} ({row['rubric']})")
            entries = [*_means(row), *row["categories"], *row["other_categories"], *row["columns"], *row["dimensions"]]
            for e in entries:
                lines.append((*base, e["name"], e["value"], e["low"], e["high"], e["scored"], e["of"], ""))
        for run in benchmark["runs"]:
            for e in run["metrics"]:
                base = (benchmark["name"], "diagnostic", run["run"], "", "")
                lines.append((*base, e["name"], e["value"], None, None, e["scored"], e["of"], ""))
        for row in benchmark["published"]:
            base = (benchmark["name"], "published", row["system"], row["judge"], row["protocol"])
            for name, value in {row["averaging"]: row["overall"], **row["columns"]}.items():
                lines.append((*base, name, value, None, None, None, None, f"{row['source']}, {row['date']}"))
    return _csv(head, lines)


def items_csv(report: dict[str, Any]) -> str:
    """Every item of every run under every judge, one a line."""
    head = (
        "benchmark",
        "item",
        "category",
        "instruction",
        "run",
        "judge",
        "protocol",
        "rubric",
        "scores",
        "mean",
        "problem",
    )
    lines: list[Sequence[Any]] = []
    for benchmark in report["benchmarks"]:
        for item in benchmark["items"]:
            base = (benchmark["name"], item["id"], item["category"], item["instruction"])
            for edit in item["edits"]:
                for said in edit["judged"]:
                    scores = "; ".join(f"{name} {value}" for name, value in said["scores"].items())
                    judge = (said["judge"], said["protocol"], said["rubric"])
                    lines.append((*base, edit["run"], *judge, scores, said["mean"], said["problem"]))
                if not edit["judged"]:
                    lines.append((*base, edit["run"], "", "", "", "", None, edit["reason"] or "not judged"))
    return _csv(head, lines)


def _csv(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    for line in lines:
        # A cell that begins so would be run as a formula by a spreadsheet.
        writer.writerow(["'" + c if isinstance(c, str) and c[:1] in ("=", "+", "-", "@", "\t") else c for c in line])
    return buffer.getvalue()


def as_json(report: dict[str, Any]) -> str:
    """The report's data."""
    return json.dumps(report, indent=1, ensure_ascii=False) + "\n"
