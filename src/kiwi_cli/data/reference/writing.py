"""What comes out: the released parquet, a mask beside each row, every row's verdict, a card and a picture sheet."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from kiwi_cli.base.version import __version__
from kiwi_cli.base.whole import whole_file, write_text
from kiwi_cli.data.reference.files import place_of
from kiwi_cli.data.reference.recipe import STAGES, Recipe
from kiwi_cli.data.reference.running import Standing
from kiwi_cli.data.reference.triplets import BadTriplet, Triplet
from kiwi_cli.errors import UsageError

TABLE, VERDICTS, CARD, SHEET = "reference.parquet", "verdicts.jsonl", "card.md", "samples.png"
ROWS, RECIPE = "rows.jsonl", "recipe.json"
"""The rows as they went in, with their nearest ones, and the recipe of the last run: what the page is made from."""
GROUP = 256  # rows of a row group, whose pictures are in memory together
SAMPLES, TILE, HEADING = 6, 128, 28  # of each sort of row in the sheet; pixels


def write(out: Path, rows: Sequence[Triplet | BadTriplet], recipe: Recipe, standing: Standing) -> Path:
    """Write what a run that is whole gives; the path of the parquet.

    Raises:
        UsageError: pyarrow is missing. OSError: it cannot be written.
    """
    table = write_table(out, standing.rows)
    write_text(out / CARD, card(rows, recipe, standing))
    write_sheet(out, rows, standing)
    return table


def write_table(out: Path, rows: Sequence[Triplet]) -> Path:
    """Write the parquet: the released columns, then `mask` and `kind`; paths are relative to its folder.

    Raises:
        UsageError: pyarrow is missing.
    """
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter
    except ImportError:
        raise UsageError(
            "parquet tables need pyarrow, which is not installed", "install the extra: pip install 'kiwi-cli[data]'"
        ) from None
    texts = ("iid", "prompt", "src_video", "tgt_video")
    columns = [*((name, pa.string()) for name in texts), ("ref_image_bytes", pa.binary())]
    schema = pa.schema([*columns, ("mask", pa.string()), ("kind", pa.string())])
    with whole_file(out / TABLE) as part, ParquetWriter(part, schema) as writer:
        for start in range(0, len(rows), GROUP):
            lines = [_line(out, row) for row in rows[start : start + GROUP]]
            writer.write_table(pa.Table.from_pylist(lines, schema))
        if not rows:
            writer.write_table(schema.empty_table())
    return out / TABLE


def _line(out: Path, row: Triplet) -> dict[str, Any]:
    return {
        "iid": row.iid,
        "prompt": row.prompt,
        "src_video": _seen_from(out, row.source),
        "tgt_video": _seen_from(out, row.target),
        "ref_image_bytes": (out / place_of("make", row.key, ".png")).read_bytes(),
        "mask": place_of("segment", row.key, ".mkv"),
        "kind": row.kind,
    }


def _seen_from(out: Path, path: str) -> str:
    return Path(os.path.relpath(path, out.absolute())).as_posix()


def verdict_lines(rows: Sequence[Triplet | BadTriplet], standing: Standing) -> Iterator[dict[str, Any]]:
    """Each row in the table's order: its names, the stage that dropped it, or null, and why."""
    bad = {row.key for row in standing.bad}
    kept = {row.key for row in standing.rows}
    for row in rows:
        if isinstance(row, BadTriplet):
            stage, reason = ("read", row.reason) if row.key in bad else (None, "not looked at")
        else:
            stage, reason = standing.dropped.get(row.key, (None, None))  # type: ignore[assignment]
        line = {"iid": row.iid, "key": row.key, "row": row.label, "kept": row.key in kept}
        yield {**line, "stage": stage, "reason": reason}


def write_verdicts(out: Path, rows: Sequence[Triplet | BadTriplet], recipe: Recipe, standing: Standing) -> None:
    """Write `verdicts.jsonl`, a line a row, and beside it the rows and the recipe for the page."""
    _write_lines(out / VERDICTS, verdict_lines(rows, standing))
    _write_lines(out / ROWS, ({**vars(row), "nearest": standing.nearest.get(row.key)} for row in rows))
    write_text(out / RECIPE, json.dumps(recipe.as_plain(), indent=2) + "\n")


def _write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    with whole_file(path) as part, part.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def dropped_by(standing: Standing) -> dict[str, int]:
    """How many rows each stage dropped, the stages in their order."""
    counts = Counter(stage for stage, _ in standing.dropped.values())
    counts["read"] += len(standing.bad)
    return {stage: counts[stage] for stage in STAGES}


def card(rows: Sequence[Any], recipe: Recipe, standing: Standing) -> str:
    """The card, in Markdown: counts, thresholds, models and licences."""
    lines = ["# Reference data", "", f"Made by kiwi {__version__} (`kiwi data reference`).", "", "## Rows", ""]
    lines += ["| | rows |", "|---|---|", f"| in the table | {len(rows)} |"]
    lines += [f"| dropped by {stage} | {number} |" for stage, number in dropped_by(standing).items()]
    lines += [
        f"| kept | {len(standing.rows)} |",
        "",
        "## Models",
        "",
        "| stage | | model | licence |",
        "|---|---|---|---|",
    ]
    for stage in STAGES:
        part = asdict(getattr(recipe, stage))
        how = part.get("by") or part.get("features") or part.get("background") or ""
        for name in [key for key in part if key == "model" or key.endswith("_model") or key == "detector"]:
            if part[name]:
                before = {"model": "", "detector": "detector_"}.get(name, "judge_")
                revision = f" at {part[f'{before}revision']}" if part[f"{before}revision"] else ""
                licence = part[f"{before}licence"] or "not stated in the recipe"
                lines.append(f"| {stage} | {how} | {part[name]}{revision} | {licence} |")
        if not part.get("model"):
            lines.append(f"| {stage} | {how} | none | |")
    lines += ["", "## Thresholds", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value:g} |" for name, value in asdict(recipe.thresholds).items()]
    return "\n".join([*lines, ""])


def write_sheet(out: Path, rows: Sequence[Triplet | BadTriplet], standing: Standing) -> None:
    """Write `samples.png`: a few rows of each stage that dropped some, and of those kept."""
    sorts: dict[str, list[Triplet]] = {stage: [] for stage in (*STAGES, "kept")}
    kept = {row.key for row in standing.rows}
    for row in rows:
        if isinstance(row, BadTriplet):
            continue
        stage = "kept" if row.key in kept else standing.dropped.get(row.key, ("", ""))[0]
        if stage and len(sorts[stage]) < SAMPLES:
            sorts[stage].append(row)
    bands: list[Image.Image] = []
    for name, some in sorts.items():
        if some:
            bands.append(_band(HEADING, name if name == "kept" else f"dropped by {name}"))
            bands += [_row_band(out, row, standing.dropped.get(row.key, ("", ""))[1]) for row in some]
    heights = [band.height for band in bands]
    sheet = Image.new("RGB", (4 * TILE + 420, max(HEADING, sum(heights))), "white")
    for band, top in zip(bands, accumulate(heights, initial=0), strict=False):
        sheet.paste(band, (0, top))
    with whole_file(out / SHEET) as part:
        sheet.save(part, format="PNG")


def _band(height: int, title: str) -> Image.Image:
    """A strip of the sheet with the names of a sort of rows and of the columns."""
    band = Image.new("RGB", (4 * TILE + 420, height), "#e8eaed")
    draw, font = ImageDraw.Draw(band), ImageFont.load_default(13)
    for place, name in enumerate(("source", "target", "mask", "reference", title)):
        draw.text((place * TILE + (8 if name == title else 2), 6), name, "black", font)
    return band


def _row_band(out: Path, row: Triplet, why: str) -> Image.Image:
    """A strip of the sheet with a row's pictures, each as large as its tile, and its words."""
    room = (TILE - 4, TILE - 4)
    tiles = [None if picture is None else ImageOps.contain(picture, room) for picture in pictures(out, row)]
    height = max([64, *(tile.height + 4 for tile in tiles if tile is not None)])  # 64: four lines of words
    band = Image.new("RGB", (4 * TILE + 420, height), "white")
    draw, font = ImageDraw.Draw(band), ImageFont.load_default(13)
    for place, tile in enumerate(tiles):
        if tile is not None:
            at = (place * TILE + 2, 2)
            band.paste(tile, at)
            draw.rectangle((at[0], at[1], at[0] + tile.width - 1, at[1] + tile.height - 1), outline="#c0c4c9")
    draw.multiline_text((4 * TILE + 8, 2), _wrapped(f"{row.label}: {row.prompt}\n{why}", 60), "black", font, spacing=2)
    return band


def _wrapped(text: str, width: int) -> str:
    import textwrap

    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, width)][:4]
    # The built-in font has these letters only.
    return "\n".join(lines).encode("latin-1", "replace").decode("latin-1")


def pictures(out: Path, row: Triplet) -> list[Image.Image | None]:
    """Source, target, mask and reference of a row, their first frames; None of what is not there or cannot be read."""
    found = [_first_frame(Path(path)) for path in (row.source, row.target)]
    found.append(_first_frame(out / place_of("segment", row.key, ".mkv")))
    try:
        with Image.open(out / place_of("make", row.key, ".png")) as opened:
            found.append(opened.convert("RGB"))
    except OSError:
        found.append(None)
    return found


def _first_frame(path: Path) -> Image.Image | None:
    from kiwi_cli.errors import KiwiError
    from kiwi_cli.video import probe, read_frames

    if not path.exists():
        return None
    try:
        return Image.fromarray(next(iter(read_frames(probe(path), count=1))).rgb)
    except (KiwiError, StopIteration):
        return None
