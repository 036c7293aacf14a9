"""The page of a run: its rows with pictures, figures and verdicts, sortable, with thresholds to move. No network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from kiwi_cli.base.whole import whole_file, write_text
from kiwi_cli.data.reference.files import job_of, read_figures
from kiwi_cli.data.reference.recipe import STAGES, Recipe
from kiwi_cli.data.reference.triplets import Triplet
from kiwi_cli.data.reference.verdicts import RULES
from kiwi_cli.data.reference.writing import RECIPE, ROWS, pictures
from kiwi_cli.errors import UsageError

TEMPLATE = Path(__file__).with_name("look.html")
PAGE, STILLS = "look.html", "look"
SIDE = 192  # pixels of a still


def write_page(out: Path, limit: int | None, progress: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Write `look.html` and a folder of stills beside it; the page's path.

    Args:
        limit: most rows, the first ones; None: all.

    Raises:
        UsageError: no run in the folder. OSError: it cannot be written.
    """
    recipe, rows = _run_of(out)
    shown = list(islice(rows, limit))
    entries = []
    for number, row in enumerate(shown, start=1):
        entries.append(_entry(out, row, recipe))
        progress(number, len(shown))
    data = {
        "stages": list(STAGES),
        "rules": [asdict(rule) for rule in RULES],
        "thresholds": asdict(recipe.thresholds),
        "rows": entries,
    }
    # JSON that no HTML parser can take for the end of its script element.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    text = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    before, _, after = TEMPLATE.read_text(encoding="utf-8").partition("<!--kiwi:data-->")
    write_text(out / PAGE, before + text + after)
    return out / PAGE


def _run_of(out: Path) -> tuple[Recipe, Iterator[dict[str, Any]]]:
    try:
        recipe = Recipe.from_plain(json.loads((out / RECIPE).read_text(encoding="utf-8")))
        lines = (out / ROWS).open(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(
            f"no reference data in '{out}'", "pass the folder given to `kiwi data reference --out`"
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"'{out / RECIPE}' cannot be read: {error}", "run `kiwi data reference` again") from None

    def rows() -> Iterator[dict[str, Any]]:
        with lines:
            yield from map(json.loads, lines)

    return recipe, rows()


def _entry(out: Path, line: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """A row for the page: its words, the figures that there are by stage, and its stills."""
    nearest = line.pop("nearest", None)
    entry: dict[str, Any] = {"row": line["label"], "iid": line["iid"], "prompt": "", "kind": "", "figures": {}}
    if "reason" in line:  # of the table, before any stage
        return {**entry, "figures": {"read": {"unusable": line["reason"]}}, "stills": []}
    row = Triplet(**line)
    for stage in STAGES:
        figures = read_figures(out, stage, row.key, job_of(stage, row, recipe).id)
        if figures is None:
            break
        entry["figures"][stage] = figures
    if nearest is not None and "deduplicate" in entry["figures"]:
        entry["figures"]["deduplicate"] |= {"similarity": nearest[1], "nearest": nearest[0]}
    return {**entry, "prompt": row.prompt, "kind": row.kind, "stills": _stills(out, row, entry["figures"])}


def _stills(out: Path, row: Triplet, figures: dict[str, Any]) -> list[str]:
    """The names of a row's stills, '' where there is none."""
    names = []
    there = (True, True, "segment" in figures, "make" in figures)
    for name, picture, is_there in zip(
        ("source", "target", "mask", "reference"), pictures(out, row), there, strict=True
    ):
        if picture is None or not is_there:
            names.append("")
            continue
        path = Path(STILLS) / row.key[:2] / f"{row.key}-{name}.jpg"
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        with whole_file(out / path) as part:
            picture.save(part, format="JPEG", quality=88)
        names.append(path.as_posix())
    return names
