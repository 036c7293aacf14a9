"""Drawn rows with exact truth, and bad rows among them, each with the stage that should drop it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from kiwi_cli.synth.writer import Settings, write_clip, write_rows

KINDS = ("change", "add", "background", "reference-background")
SMALL = 4  # pixels a side: of 64x64 about 0.4 %


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def write_table(table: Path, rows: list[dict[str, str]]) -> Path:
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table


def drawn(folder: Path, count: int, seed: int = 0, kinds: tuple[str, ...] = KINDS) -> tuple[Path, Settings]:
    """Good rows."""
    settings = Settings(count, kinds=kinds, seed=seed)
    write_rows(folder, settings)
    return folder / "rows.csv", settings


def _too_small(folder: Path, name: str) -> dict[str, str]:
    """A thing of a few pixels comes to a still picture."""
    rng = np.random.default_rng(5)
    source = np.repeat(rng.integers(90, 110, (1, 64, 64, 3), np.uint8), 5, axis=0)
    target, mask = source.copy(), np.zeros_like(source)
    target[:, 30 : 30 + SMALL, 20 : 20 + SMALL] = (250, 30, 30)
    mask[:, 30 : 30 + SMALL, 20 : 20 + SMALL] = 255
    names = {}
    for column, frames in (("src_video", source), ("tgt_video", target), ("mask", mask)):
        write_clip(folder / f"{name}-{column}.mkv", frames, 24.0)
        names[column] = f"{name}-{column}.mkv"
    return {**names, "prompt": "add a tiny red square", "kind": "add"}


def plant(table: Path) -> dict[str, str]:
    """Add bad rows to a table; label of each -> the stage that should drop it."""
    rows = rows_of(table)
    first, other = rows[0], rows[len(rows) // 2]
    blank = dict.fromkeys(first, "")
    (table.parent / "broken.mkv").write_bytes((table.parent / first["tgt_video"]).read_bytes()[:300])
    (table.parent / "words.mp4").write_text("no clip")
    bad = [
        ("score", {**first, "tgt_video": rows[1]["tgt_video"]}),  # another row's target
        ("score", {**other, "tgt_video": rows[-1]["tgt_video"]}),
        ("read", {**first, "tgt_video": first["src_video"]}),  # unchanged
        ("check", {**blank, **_too_small(table.parent, "small")}),
        ("deduplicate", dict(first)),
        ("deduplicate", {**other, "prompt": other["prompt"] + " please"}),
        ("read", {**first, "tgt_video": "broken.mkv"}),
        ("read", {**first, "src_video": "words.mp4"}),
        ("read", {**first, "tgt_video": "gone.mkv"}),
        ("read", {**first, "prompt": "\ufffd\ufffd make it \ufffd"}),
        ("read", {**first, "prompt": "  "}),
        ("read", {**first, "prompt": "?!"}),
        ("ground", {**first, "kind": "remove"}),
    ]
    write_table(table, [*rows, *(row for _, row in bad)])
    return {f"row {len(rows) + number}": stage for number, (stage, _) in enumerate(bad, start=1)}
