"""The report as one page that needs no network: styles, script, plots and data are in it, media are beside it."""

from __future__ import annotations

import base64
import json
import os
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kiwi_cli.base.text import count
from kiwi_cli.bench.judges.base import mime_of
from kiwi_cli.bench.judges.parse import HIGHEST, LOWEST
from kiwi_cli.bench.report.plots import Bar, bars, radar
from kiwi_cli.bench.report.text import APART, CAPPED, headline, own_table, published_table, show
from kiwi_cli.bench.suites.items import BENCHMARKS

TEMPLATE = Path(__file__).with_name("report_page.html")
USUAL = [LOWEST, HIGHEST]
MOST_PUBLISHED = 3  # in a radar


def render(report: dict[str, Any], folder: Path, embed: bool = False) -> str:
    """The page.

    Args:
        folder: where it will lie; media are named relative to it.
        embed: put the media into the page instead, for sending it around.
    """
    sections = [_section(benchmark) for benchmark in report["benchmarks"]]
    if report["comparison"]:
        sections.append(_comparison(report["comparison"]))
    items = [
        _item(item, benchmark["name"], folder, embed)
        for benchmark in report["benchmarks"]
        for item in benchmark["items"]
    ]
    note = f"{APART} Intervals: {report['interval']}." + (f" {CAPPED}" if report["capped"] else "")
    page = TEMPLATE.read_text(encoding="utf-8")
    # One pass: what is put in is never looked at again, whatever it contains.
    parts = {"note": escape(note), "sections": "".join(sections), "data": _script_data(items)}
    pieces = page.split("<!--kiwi:")
    out = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("-->")
        out.append(parts[name] + rest)
    return "".join(out)


def _script_data(data: Any) -> str:
    """JSON that no HTML parser can take for the end of its script element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _table(head: list[str], lines: list[list[str]], name: str) -> str:
    cells = "".join(f'<th><button type="button">{escape(text)}</button></th>' for text in head)
    body = "".join(
        "<tr>" + "".join(f"<td{_number(cell)}>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines
    )
    table = f'<table class="sortable" data-name="{name}"><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="wide">{table}</div>'


def _number(cell: str) -> str:
    first = cell.split(" ", 1)[0]
    return ' class="n"' if first.replace(".", "", 1).replace("-", "", 1).isdigit() else ""


def _section(benchmark: dict[str, Any]) -> str:
    out = [f"<section><h2>{escape(benchmark['title'])}</h2>"]
    if benchmark["rows"]:
        out += ["<h3>Your runs</h3>", _table(*own_table(benchmark), "runs")]
        details = "".join(f"<li>{escape(_about(row))}</li>" for row in benchmark["rows"])
        out.append(f"<ul>{details}</ul>")
    else:
        out.append("<p>No scores yet.</p>")
    out += _plots(benchmark)
    for run in benchmark["runs"]:
        if run["failures"]:
            lines = "".join(f"<li><code>{escape(k)}</code>: {escape(v)}</li>" for k, v in run["failures"].items())
            title = f"{run['run']}: {count(len(run['failures']), 'item')} could not be edited"
            out.append(f"<details><summary>{escape(title)}</summary><ul>{lines}</ul></details>")
        if run["metrics"]:
            values = [[e["name"], f"{e['value']:.4f}", f"{e['scored']} of {e['of']}"] for e in run["metrics"]]
            out.append(f"<h3>{escape(run['run'])}: figures without a judge, no ranking</h3>")
            out.append(_table(["figure", "mean", "items"], values, "metrics"))
    if benchmark["published"]:
        out += ["<h3>Published, by others' judges</h3>", _table(*published_table(benchmark), "published")]
    return "".join([*out, "</section>"])


def _about(row: dict[str, Any]) -> str:
    means = "; ".join(
        f"{row[key]['name']} {headline(row[key])}" for key in ("over_categories", "over_items", "over_columns")
    )
    floor = ""
    if row["floor"] is not None and row["headline"]["scored"] != row["headline"]["of"]:
        floor = f"; {show(row['floor'])} if all that is missing were scored 1"
    return (
        f"{row['run']} ({row['model']}, {row['settings']}), judged {row['judged_on']} by {row['judge']}, protocol "
        f"{row['protocol']}, rubric {row['rubric']}: {row['scored']} of {row['of']} items scored, {row['failed']} "
        f"failed; {means}{floor}"
    )


def _plots(benchmark: dict[str, Any]) -> list[str]:
    out = []
    for low, high in dict.fromkeys(tuple(row["scale"]) for row in benchmark["rows"]):  # no two scales in one picture
        own = [
            Bar(
                f"{row['run']} ({row['judge']})",
                e["value"],
                e["low"],
                e["high"],
                True,
                f"{e['scored']} of {e['of']} items",
            )
            for row in benchmark["rows"]
            if (e := row["headline"])["value"] is not None and row["scale"] == [low, high]
        ]
        if own:
            scale = "" if [low, high] == USUAL else f", from {low} to {high}"
            out.append(bars(f"Your runs, overall{scale}", own))
    kinds = list(dict.fromkeys(row["averaging"] for row in benchmark["published"]))
    for kind in kinds:
        theirs = [
            Bar(_system(row), row["overall"], note=row["source"])
            for row in benchmark["published"]
            if row["averaging"] == kind and row["overall"] is not None
        ]
        if theirs:
            out.append(bars(f"Published, {kind}, judge {_judges(benchmark, kind)}", theirs))
    key = BENCHMARKS[benchmark["name"]].axes
    axes = list(dict.fromkeys(e["name"] for row in benchmark["rows"] for e in row[key]))
    lines = [
        (f"{row['run']} ({row['judge']})", [{e["name"]: e["value"] for e in row[key]}.get(axis) for axis in axes])
        for row in benchmark["rows"]
        if row["scale"] == USUAL
    ]
    out.append(radar("Your runs by " + ("category" if key == "categories" else "column"), axes, lines))
    whole = [row for row in benchmark["published"] if row["columns"]][:MOST_PUBLISHED]
    if whole:
        axes = list(whole[0]["columns"])
        lines = [(_system(row), [row["columns"].get(axis) for axis in axes]) for row in whole]
        out.append(radar("Published, the first rows", axes, lines))
    return [f"<figure>{plot}</figure>" for plot in out if plot]


def _system(row: dict[str, Any]) -> str:
    """Enough to tell a published row from the others."""
    words = ", ".join(part for part in (row["system"], row["size"]) if part)
    return f"{words} ({row['date'].removesuffix(' (read)')})"


def _judges(benchmark: dict[str, Any], kind: str) -> str:
    names = {row["judge"] for row in benchmark["published"] if row["averaging"] == kind}
    return ", ".join(sorted(name or "not known" for name in names))


def _comparison(comparison: dict[str, Any]) -> str:
    from kiwi_cli.bench.report.text import _comparison as table

    title, head, lines = table(comparison)
    return f"<section><h2>{escape(title)}</h2>{_table(head, lines, 'comparison')}</section>"


def _item(item: dict[str, Any], benchmark: str, folder: Path, embed: bool) -> dict[str, Any]:
    return {
        **{key: item[key] for key in ("id", "category", "instruction", "mean")},
        "benchmark": benchmark,
        "source": media(item["source"], folder, embed),
        "reference": media(item["reference"], folder, embed),
        "edits": [{**edit, "path": media(edit["path"], folder, embed)} for edit in item["edits"]],
    }


def media(path: str | None, folder: Path, embed: bool) -> str | None:
    """A file as the page names it: relative to the page, or as a data URL; None when it is not there."""
    if path is None or not Path(path).is_file():
        return None
    if embed:
        return f"data:{mime_of(Path(path))};base64,{base64.b64encode(Path(path).read_bytes()).decode()}"
    return quote(Path(os.path.relpath(Path(path).resolve(), folder.resolve())).as_posix())
