"""The published models: listed, removed, completed in the shell, and all of them in the documentation."""

from __future__ import annotations

import json
from pathlib import Path

from ..conftest import CHECKPOINT
from .conftest import Kiwi
from .hub_server import Hub


def test_list_and_remove(hub: Hub, kiwi: Kiwi, repo_folder: Path) -> None:
    before = kiwi("download", "--list", setup="import sys\nsys.modules['torch'] = None")
    assert before.returncode == 0 and "instruct-reference" in before.stdout and "stage3-720p" in before.stdout
    assert "3.11" in before.stdout and not hub.requests
    assert kiwi("download").returncode == 0
    rows = {row["name"]: row for row in json.loads(kiwi("download", "--list", "--json").stdout)["models"]}
    assert rows["instruct-reference"]["cached"] == "yes" and rows["reference-only"]["cached"] == "no"
    assert rows["instruct-reference"]["cached_bytes"] > 5_000_000
    verbose = kiwi("download", "--list", "-v").stdout
    assert "Apache-2.0" in verbose and "Gemini-2.5-Pro" in verbose and "mean of 5 categories" in verbose
    assert "freed 5." in kiwi("download", "--remove").stdout and not repo_folder.exists()
    nothing = kiwi("download", "--remove")
    assert nothing.returncode == 1 and "nothing of" in nothing.stderr


def test_names_complete_in_the_shell() -> None:
    from kiwi_cli.weights.catalog import VARIANTS, complete_names

    assert [name for name, _ in complete_names("stage3")] == ["stage3-720p", "stage3-reference"]
    assert len({v.name for v in VARIANTS} | {v.repo for v in VARIANTS if v.repo}) == 8 + 9
    assert all((v.kind == "embedded") == (not v.repo) for v in VARIANTS)
    for variant in VARIANTS:
        for score in variant.scores:
            mean = sum(value for _, value in score.columns) / len(score.columns)
            if score.average.startswith("mean of"):
                assert abs(mean - score.overall) < 0.011, (variant.name, score)


def test_the_documentation_names_every_model_and_score() -> None:
    from kiwi_cli.weights.catalog import VARIANTS

    text = (CHECKPOINT.parents[1] / "docs" / "weights.md").read_text(encoding="utf-8")
    for variant in VARIANTS:
        scored, placed = [line for line in text.splitlines() if line.startswith(f"| `{variant.name}`")]
        assert all(f"{score.overall:.2f}" in scored for score in variant.scores)
        assert (f"`{variant.repo}`" if variant.repo else "part of the package") in placed
        assert all((kind in scored) == (variant.kind == kind) for kind in ("raw", "embedded"))


def test_the_list_fits_a_terminal_of_80_columns(hub: Hub, kiwi: Kiwi) -> None:
    lines = kiwi("download", "--list", COLUMNS="80").stdout.splitlines()
    assert len(lines) == 10 and max(map(len, lines)) <= 80
    assert "snow" not in lines[-1] and "snow" in kiwi("download", "--list", "-v").stdout
