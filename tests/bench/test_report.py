"""The report: the same from the same ledger, honest about what is missing, and a page that works from the disk."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from kiwi_cli.batch.journal import Journal
from kiwi_cli.bench import run as runs
from kiwi_cli.bench.judges.base import hash_media

from .browser import browse, find
from .conftest import Kiwi, edited_run

EVIL = (
    "</script><script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\"> <!--kiwi:data-->"
)


def give_scores(run: runs.Run, shift: int = 0, skip: tuple[str, ...] = (), **more: Any) -> None:
    """A ledger as the judge stage writes it, with known scores."""
    with Journal(run.folder, "judgements") as journal:
        for number, item in enumerate(run.items):
            if item.category in skip:
                continue
            first = 1 + (number + shift) % 5
            record = {
                "kind": "answer",
                "time": 1_790_000_000.0 + number,
                "request": f"{number:064x}",
                "item": item.id,
                "category": item.category,
                "protocol": "house",
                "rubric": "house-1",
                "backend": "gemini",
                "asked": "gemini-3-flash-preview",
                "answered_by": "gemini-3-flash-preview",
                "settings": {"media": "file"},
                "edited": hash_media(run.edited(item)),
                "text": f"Why: item {number} {EVIL if number == 0 else ''}\nInstruction: {first}",
                "scores": {"Instruction": first, "Preservation": 3, "Quality": max(1, first - 1)},
                "input_tokens": 10,
                "output_tokens": 2,
            }
            journal.append(record | more)


@pytest.fixture
def two_runs(tmp_path: Path, openve_data: Path) -> tuple[Path, Path]:
    for name, shift in (("before", 0), ("after", 1)):
        give_scores(edited_run(tmp_path / name, "openve", openve_data, name), shift)
    return tmp_path / "before", tmp_path / "after"


FILES = ("report.html", "report.json", "report.md", "summary.csv", "items.csv")


def test_the_same_ledger_gives_the_same_files(kiwi: Kiwi, two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    contents = []
    for _ in range(2):
        code, out, err = kiwi("bench", "report", *two_runs, "--out", tmp_path / "report")
        assert code == 0, err
        contents.append([out, *((tmp_path / "report" / name).read_bytes() for name in FILES)])
        time.sleep(1.1)  # another second on the clock
    assert contents[0] == contents[1]
    assert not list((tmp_path / "report").glob(".*"))


def test_tables_name_judge_average_and_count(kiwi: Kiwi, two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    code, out, err = kiwi("bench", "report", two_runs[0], "--out", tmp_path / "report")
    assert code == 0 and "report.html" in err
    for words in ("OpenVE-Bench: your runs", "mean of 5 categories", "OpenVE-Bench: published", "Runway Aleph"):
        assert words in out
    markdown = (tmp_path / "report/report.md").read_text()
    assert "mean over items" in markdown and "mean of 15 columns" in markdown
    assert "judged 2026-09-21" in markdown and "gemini-3-flash-preview" in markdown
    rows = list(csv.DictReader(io.StringIO((tmp_path / "report/summary.csv").read_text())))
    assert {row["kind"] for row in rows} == {"run", "published"}
    assert all(row["source"] for row in rows if row["kind"] == "published")
    items = list(csv.DictReader(io.StringIO((tmp_path / "report/items.csv").read_text())))
    assert len(items) == 8 and all(row["judge"] == "gemini-3-flash-preview" for row in items)
    data = json.loads((tmp_path / "report/report.json").read_text())
    row = data["benchmarks"][0]["rows"][0]
    assert row["headline"]["name"] == "mean of 5 categories" and row["headline"]["of"] == 5
    expected = sum(((first := 1 + k % 5) + 3 + max(1, first - 1)) / 3 for k in range(5)) / 5
    assert row["headline"]["value"] == pytest.approx(expected, abs=1e-4)


def test_json_on_stdout_is_the_report(kiwi: Kiwi, two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    code, out, _ = kiwi("bench", "report", two_runs[0], "--out", tmp_path / "r", "--json")
    assert code == 0 and json.loads(out) == json.loads((tmp_path / "r/report.json").read_text())


def test_missing_items_are_in_the_headline(kiwi: Kiwi, tmp_path: Path, openve_data: Path) -> None:
    run = edited_run(tmp_path / "run", "openve", openve_data)
    give_scores(run, skip=("local_add",))
    assert kiwi("bench", "report", run.folder, "-q")[0] == 0
    markdown = (run.folder / "report/report.md").read_text()
    assert "none, with 4 of 5 items scored" in markdown and "over 4 of 5 items" in markdown
    assert "if all that is missing were scored 1" in markdown


def test_two_judges_are_two_rows(kiwi: Kiwi, tmp_path: Path, openve_data: Path) -> None:
    run = edited_run(tmp_path / "run", "openve", openve_data)
    give_scores(run)
    give_scores(
        run, 2, answered_by="gemini-2.5-pro-002", asked="gemini-2.5-pro", rubric="Kiwi-Edit-223572d", protocol="kiwi"
    )
    give_scores(run, 3, answered_by="", asked="local-thing", backend="openai")
    assert kiwi("bench", "report", run.folder, "-q")[0] == 0
    data = json.loads((run.folder / "report/report.json").read_text())
    rows = [(row["protocol"], row["rubric"], row["judge"]) for row in data["benchmarks"][0]["rows"]]
    assert rows == [
        ("house", "house-1", "gemini-3-flash-preview"),
        ("house", "house-1", "openai, version not said (asked: local-thing)"),
        ("kiwi", "Kiwi-Edit-223572d", "gemini-2.5-pro-002"),
    ]


def test_compare_and_cap(kiwi: Kiwi, two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    code, out, err = kiwi("bench", "report", "--compare", *two_runs, "--out", tmp_path / "r")
    assert code == 0, err
    assert "A = before, B = after" in out and "paired bootstrap" in out
    data = json.loads((tmp_path / "r/report.json").read_text())["comparison"]["judges"][0]
    assert data["wins"] + data["losses"] + data["ties"] == 8 and data["losses"] > data["wins"]
    code, out, _ = kiwi("bench", "report", two_runs[0], "--cap", "--out", tmp_path / "c")
    assert code == 0 and "Scores are capped" in out
    plain, capped = (
        json.loads((tmp_path / name / "report.json").read_text())["benchmarks"][0]["rows"][0]["headline"]["value"]
        for name in ("r", "c")
    )
    assert capped < plain


def test_bad_input(kiwi: Kiwi, two_runs: tuple[Path, Path], tmp_path: Path, refvie_data: Path) -> None:
    other = edited_run(tmp_path / "other", "refvie", refvie_data)
    (tmp_path / "deep").mkdir()
    two_runs[0].rename(tmp_path / "deep/after")
    for arguments, words in (
        ((), "no run given"),
        ((tmp_path,), "no run in"),
        ((tmp_path / "deep/after", two_runs[1]), "two runs are called 'after'"),
        (("--compare", two_runs[1], two_runs[1]), "compared with itself"),
        (("--compare", two_runs[1], other.folder), "of different data"),
    ):
        code, out, err = kiwi("bench", "report", *arguments)
        assert code == 2 and out == "" and words in err, err
    (two_runs[1] / "run.json").write_text("{")
    assert kiwi("bench", "report", two_runs[1])[0] == 2


def test_plots_are_escaped_and_whole() -> None:
    from xml.etree import ElementTree

    from kiwi_cli.bench.report.plots import Bar, bars, radar

    text = bars("<t>", [Bar("a & <b>", 3.0, 2.5, 3.5, True), Bar("c", 9.0)])
    ElementTree.fromstring(text)
    assert "a &amp; &lt;b&gt;: 3.00" in text
    shape = radar("r", ["x", "y", "z"], [("one", [1, 3, 5]), ("two", [2, None, 4])])
    ElementTree.fromstring(shape)
    assert shape.count("<circle") == 5 and shape.count("polygon") == 4 + 2
    assert radar("r", ["x", "y"], [("one", [1, 2])]) == ""


@pytest.mark.parametrize("embed", [False, True])
def test_the_page_in_a_browser(kiwi: Kiwi, two_runs: tuple[Path, Path], tmp_path: Path, embed: bool) -> None:
    find()
    report = tmp_path / "the report & more"
    options = ("--embed",) if embed else ()
    assert kiwi("bench", "report", *two_runs, "--out", report, "-q", *options)[0] == 0
    with browse() as page:
        page.open(report / "report.html")
        assert page.run("document.title") == "kiwi benchmark report"  # nothing in the data was run
        assert page.run("document.querySelectorAll('.card').length") == 8
        assert page.run("document.querySelectorAll('svg.plot').length") >= 4
        assert "</script><script>" in page.run("document.querySelector('.words').textContent")

        # Every clip and both edits of each item have a player with a picture in it.
        ready = "new Promise(r => {const t = setInterval(() => {const v = [...document.querySelectorAll('video')];"
        ready += " if (v.every(e => e.readyState >= 1)) {clearInterval(t); r(v.map(e => e.videoWidth))}}, 50)})"
        assert page.run(ready) == [64] * 24
        play = "new Promise(r => {const c = document.querySelector('.card'); c.querySelector('button.play').click();"
        play += " setTimeout(() => r([...c.querySelectorAll('video')].map(v => v.currentTime > 0 && !v.paused)), 400)})"
        assert page.run(play) == [True] * 3
        picture = page.screenshot(tmp_path / "page.png")
        assert len(picture) > 20_000

        # Sorting a table: by number, both ways.
        column = "[...document.querySelectorAll('[data-name=published] tbody tr')].map(r => r.cells[2].textContent)"
        page.run("document.querySelectorAll('[data-name=published] th button')[2].click()")
        said = page.run(column)  # a figure that is not known comes last, both ways
        values = [float(text) for text in said if text != "-"]
        assert "-" not in said[: len(values)]
        assert values == sorted(values, reverse=True) and len(values) > 20
        page.run("document.querySelectorAll('[data-name=published] th button')[2].click()")
        assert [float(text) for text in page.run(column)[: len(values)]] == sorted(values)

        # Filtering and ordering the items.
        def choose(name: str, value: str) -> list[str]:
            page.run(f"(() => {{const e = document.getElementById('{name}'); e.value = {json.dumps(value)};"
                     " e.dispatchEvent(new Event('input'))})()")  # fmt: skip
            return page.run("[...document.querySelectorAll('.card')].map(c => c.dataset.id)")

        assert len(choose("category", "local_add")) == 1
        assert page.run("document.getElementById('count').textContent") == "1 of 8 items"
        assert len(choose("category", "")) == 8
        worst, best = choose("order", "worst"), choose("order", "best")
        assert worst != best and set(worst) == set(best)
        assert choose("search", "item 3 ")[0].startswith("3-0") and len(choose("search", "nowhere")) == 0
        choose("search", "")
        assert 0 < len(choose("least", "3")) < 8
        choose("least", "")
        choose("run", "after")
        assert page.run("document.querySelectorAll('video').length") == 16
        away = [url for url in page.requests if not re.match(r"(file|data|blob):", url)]
        assert not away and not page.errors, (away, page.errors)
        if embed:
            assert {url for url in page.requests if url.startswith("file:")} == {(report / "report.html").as_uri()}
