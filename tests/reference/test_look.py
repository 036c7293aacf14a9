"""The page of a run, in a browser without network: the same verdicts as the command's, before and after a change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kiwi_cli.data.reference.recipe import drawn
from kiwi_cli.data.reference.running import Going, go_through
from kiwi_cli.data.reference.triplets import read_triplets
from kiwi_cli.data.reference.writing import dropped_by, write_verdicts

from ..bench.browser import browse, find
from ..cli.terminal import inside
from . import planted

STATES = "Object.fromEntries([...document.querySelectorAll('article')].map(n => [n.dataset.row, n.className]))"


def move(name: str, value: float) -> str:
    return (
        f"(() => {{ const i = document.getElementById('t-{name}'); i.value = {value}; "
        "i.dispatchEvent(new Event('input')); })()"
    )


def choose(id: str, value: str) -> str:
    return (
        f"(() => {{ const s = document.getElementById('{id}'); s.value = {json.dumps(value)}; "
        "s.dispatchEvent(new Event('input')); return s.value; })()"
    )


def test_the_page_shows_what_the_command_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    find()
    table, _ = planted.drawn(tmp_path / "rows", 6)
    rows = planted.rows_of(table)
    rows[0]["prompt"] = "</script><script>document.title = 'taken'</script> & <b>turn</b> it pink"
    planted.write_table(table, rows)
    bad = planted.plant(table)
    triplets, out = list(read_triplets(table)), tmp_path / "out"
    standing, _ = go_through(out, triplets, drawn(), Going())
    write_verdicts(out, triplets, drawn(), standing)
    code, said, _ = inside(capsys, "data", "look", out)
    assert (code, said) == (0, f"{out / 'look.html'}\n")
    with browse() as page:
        page.open(out / "look.html")
        states = page.run(STATES)
        kept = {row.label for row in standing.rows}
        assert {name for name, state in states.items() if state == "card kept"} == kept and kept
        assert {name for name, state in states.items() if state == "card dropped"} == set(bad)
        assert page.run("document.title") == "kiwi reference data"
        assert page.run("document.querySelector('article h2').textContent").endswith("<b>turn</b> it pink")
        loaded = "[...document.images].every(i => (i.loading = 'eager', i.complete ? i.naturalWidth > 0 : true))"
        assert page.run(loaded) and page.run("document.images.length") >= 4 * len(kept)
        assert page.run(choose("state", "check")) == "check" and len(page.run(STATES)) == 1
        page.run(choose("state", ""))
        page.run(choose("order", "read changed"))
        page.run(choose("way", "-1"))
        order = page.run("[...document.querySelectorAll('article')].map(n => n.dataset.row)")
        figures = {label: page_figure(out, triplets, label) for label in order}
        known = [figures[label] for label in order if figures[label] is not None]
        assert known == sorted(known, reverse=True) and len(known) > 6
        tight = replace(drawn(), thresholds=replace(drawn().thresholds, aspect=1.02, largest=0.15))
        page.run(move("aspect", 1.02))
        page.run(move("largest", 0.15))
        fewer, _ = go_through(out, triplets, tight, Going(stages=()))
        now = {name for name, state in page.run(STATES).items() if state == "card kept"}
        assert now == {row.label for row in fewer.rows} and len(now) < len(kept) and dropped_by(fewer)["check"] > 1
        assert page.run("document.getElementById('said').textContent") == (
            "--set thresholds.aspect=1.02 --set thresholds.largest=0.15"
        )
        assert page.errors == [] and all(url.startswith("file:") for url in page.requests)


def page_figure(out: Path, rows: list, label: str) -> float | None:  # type: ignore[type-arg]
    """What the run's file says."""
    from kiwi_cli.data.reference.files import place_of

    key = next(row.key for row in rows if row.label == label)
    path = out / place_of("read", key, ".json")
    return json.loads(path.read_text())["figures"].get("changed") if path.exists() else None


def test_no_run_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = inside(capsys, "data", "look", tmp_path)
    assert code == 2 and "no reference data in" in err
