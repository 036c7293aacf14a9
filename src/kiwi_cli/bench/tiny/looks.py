"""How well a small model makes looks: against exact truth on drawn, natural and filmed clips, and which pass.

A result is right when, of the truths of all looks, tints and styles and of the source, that of what was asked is the
nearest. Strengths are right when more was asked for and more came. What the model's own autoencoder makes of the
truth is the ceiling, as in `quality.py`: enlarged, where results are at full size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from kiwi_cli.bench.tiny.quality import SOURCE, mean_of, mse_of_all, psnr
from kiwi_cli.synth.edits import PAIRS, STYLE_OF, is_held_out
from kiwi_cli.synth.looks import AMOUNTS, LOOKS, TINTS, Strength, one_after_another, tint
from kiwi_cli.synth.phrases_looks import ADJECTIVES, STRENGTHS
from kiwi_cli.synth.scenes import Scene, to_bytes
from kiwi_cli.synth.wordings import SPLITS, Split, wording

NEAREST: Mapping[str, Mapping[Split, float]] = {
    "drawn": {"seen": 0.90, "held-out": 0.80},
    "natural": {"seen": 0.80, "held-out": 0.70},
    "filmed": {"seen": 0.80, "held-out": 0.70},
}
"""Least share of results nearest to the right truth, by where the clips are from and by wordings."""
GAP_DB = 3.0
"""How far below the ceiling the median result may be."""
LEAST_DB = 22.0
"""Least of the median result against the truth."""
ORDERED = 0.90
"""Least share of pairs of strengths in the right order, over all clips of a look."""
UNORDERED = ("noir",)
"""Looks of which more is not further from the source."""


@dataclass(frozen=True)
class Ask:
    """A look as it is asked for. `name`: of its truth; `slots`: what its words name; `pair`: the kinds of two looks."""

    name: str
    kind: str
    slots: Mapping[str, str] = field(default_factory=dict)
    pair: tuple[str, ...] = ()

    def frames(self, picture: np.ndarray, strength: Strength) -> np.ndarray:
        """The truth, (F, H, W, 3) uint8."""
        amount = AMOUNTS[strength]
        if self.kind == "tint":
            return to_bytes(tint(picture, amount, self.slots["colour"]))
        return to_bytes(one_after_another(picture, self.pair or (self.kind,), amount))

    def prompt(self, split: Split, strength: Strength, rng: np.random.Generator) -> str:
        """An instruction that asks for it."""
        said = {name: str(rng.choice(words)) for name, words in STRENGTHS[strength].items()}
        return wording(self.kind, {**said, **self.slots}, rng, split)


ASKS: tuple[Ask, ...] = (
    *(Ask(kind, kind) for kind in LOOKS),
    *(Ask(f"tint {colour}", "tint", {"colour": colour}) for colour in TINTS),
)

HELD_OUT_PAIRS = tuple(pair for pair in PAIRS if is_held_out(pair))


def pair_ask(number: int) -> Ask:
    """Two looks that no training clip has together: another pair for each scene, by its number."""
    first, second = HELD_OUT_PAIRS[number % len(HELD_OUT_PAIRS)]
    return Ask("two-looks", "two-looks", {"first": ADJECTIVES[first], "second": ADJECTIVES[second]}, (first, second))


def truths(scene: Scene) -> dict[str, np.ndarray]:
    """Every candidate, (F, H, W, 3) uint8: looks and tints of plain strength, the styles, the source."""
    found = {ask.name: ask.frames(scene.picture, "plain") for ask in ASKS}
    return {**found, **{name: to_bytes(style(scene)) for name, style in STYLE_OF.items()}, SOURCE: scene.source}


def amount_of(ask: Ask, scene: Scene, result: np.ndarray) -> float:
    """How much of a look a result has: 0 of the source, 1 of the most of it, along the line between them."""
    source = scene.source.astype(np.float32)
    way = ask.frames(scene.picture, "strong").astype(np.float32) - source
    return float(((result.astype(np.float32) - source) * way).sum() / max(1e-6, float((way * way).sum())))


def measure(
    ask: Ask,
    found: Mapping[str, np.ndarray],
    result: np.ndarray,
    ceiling: np.ndarray,
    detailed: np.ndarray,
    errors: Sequence[float] | None = None,
) -> dict[str, Any]:
    """The figures of one edit of plain strength.

    Args:
        found: the scene's `truths`. result, ceiling, detailed: the edit, the truth through the autoencoder, and that
            with the source's detail.
        errors: of the result against each of `found`, where they are known (`mse_of_all`).

    Returns:
        `nearest`, `right`; `result_db`, `ceiling_db`, `detailed_db` and `source_db` against the truth, `gap_db` between
        the first two.
    """
    known = dict(zip(found, mse_of_all([result], list(found.values()))[0] if errors is None else errors, strict=True))
    nearest = min(known, key=lambda name: known[name])
    truth = found[ask.name]
    result_db, ceiling_db = psnr(result, truth), psnr(ceiling, truth)
    return {
        "nearest": nearest,
        "right": nearest == ask.name,
        "result_db": result_db,
        "ceiling_db": ceiling_db,
        "detailed_db": psnr(detailed, truth),
        "gap_db": ceiling_db - result_db,
        "source_db": psnr(found[SOURCE], truth),
    }


@dataclass(frozen=True)
class Row:
    """A look on clips of one sort.

    Attributes:
        ordered: share of pairs of strengths in the right order, on clips of every sort; None: not measured.
        failures: what is not met, in words.
    """

    name: str
    footage: str
    count: int
    right: Mapping[Split, tuple[float, float | None]]
    result_db: float
    ceiling_db: float
    detailed_db: float
    gap_db: float
    ordered: float | None
    failures: tuple[str, ...]


def summarise(records: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Records, each `measure`'s figures with `ask`, `footage`, `split` and, of seen ones, `ordered`, to rows.

    Medians for dB, shares with their standard errors for what is right, the share of ordered pairs of strengths.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    pairs: dict[str, list[bool]] = {}
    for record in records:
        groups.setdefault((record["ask"], record["footage"]), []).append(record)
        pairs.setdefault(record["ask"], []).extend(record.get("ordered", ()))
    rows = []
    for (name, footage), group in sorted(groups.items(), key=lambda item: (item[0][1], item[0][0])):
        right, failures = {}, []
        for split in SPLITS:
            shares = [record["right"] for record in group if record["split"] == split]
            if shares:
                mean = mean_of(shares, share=True)
                right[split] = (mean.mean, mean.error)
                if mean.mean < NEAREST[footage][split]:
                    failures.append(f"{split} {100 * mean.mean:.0f} %, not {100 * NEAREST[footage][split]:.0f} %")
        ordered = sum(pairs[name]) / len(pairs[name]) if pairs[name] else None
        if ordered is not None and ordered < ORDERED:
            failures.append(f"strengths {100 * ordered:.0f} %, not {100 * ORDERED:.0f} %")
        result, ceiling, detailed, gap = (
            median(record[key] for record in group) for key in ("result_db", "ceiling_db", "detailed_db", "gap_db")
        )
        if gap > GAP_DB:
            failures.append(f"{gap:.1f} dB below the ceiling, not {GAP_DB:.0f}")
        if result < LEAST_DB:
            failures.append(f"{result:.1f} dB, not {LEAST_DB:.0f}")
        scenes = len({record["scene"] for record in group})
        figures = (result, ceiling, detailed, gap)
        rows.append(Row(name, footage, scenes, right, *figures, ordered, tuple(failures)))
    return rows


def passing(rows: Iterable[Row]) -> list[str]:
    """Kinds whose every row meets what is asked; of tints, those of every colour."""
    table = list(rows)
    kinds = dict.fromkeys(row.name.split(" ")[0] for row in table)
    failed = {row.name.split(" ")[0] for row in table if row.failures}
    return [kind for kind in kinds if kind not in failed]


def markdown(rows: Iterable[Row]) -> str:
    """The table: shares in % ± standard errors, medians in dB, and what is not met."""
    lines = ["| look | clips | n | seen | held-out | result | ceiling | with detail | strengths | verdict |"]
    lines.append("|---|---|" + "---:|" * 7 + "---|")
    for row in rows:
        shares = [_share(*row.right[split]) if split in row.right else "" for split in SPLITS]
        order = "" if row.ordered is None else f"{100 * row.ordered:.0f}"
        figures = [f"{value:.1f}" for value in (row.result_db, row.ceiling_db, row.detailed_db)]
        cells = [row.name, row.footage, str(row.count), *shares, *figures, order, "; ".join(row.failures) or "pass"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _share(mean: float, error: float | None) -> str:
    return f"{100 * mean:.0f}" if error is None else f"{100 * mean:.0f} ± {100 * error:.0f}"
