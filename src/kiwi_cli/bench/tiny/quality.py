"""How good edits of synthetic clips are: figures against the exact truth, their means, and which kinds pass.

Every figure is measured against what the model's own autoencoder makes of the truth (the ceiling), never against a
fixed gain over the source. Nearest truth alone proves nothing, formless colour can win it: therefore the other figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kiwi_cli.synth.edits import LOCAL, LUMA, STYLES, Edit, make_edit
from kiwi_cli.synth.natural import scene_with_things
from kiwi_cli.synth.scenes import Scene, make_scene
from kiwi_cli.synth.wordings import KINDS, SPLITS, Split, wording

FIRST_SEED = 20_000_000
"""Of the first scene that is measured with; training takes its scenes from lower seeds."""
REFERENCES = ("reference-background", "reference-subject")
SOURCE = "source"  # among the candidates for the nearest truth: nothing was edited

NEAREST: Mapping[str, float] = {"seen": 0.90, "held-out": 0.75}
"""Least share of edits that are nearest to the right truth, by wordings."""
WHOLE_GAP_DB = 6.0
"""How far below the ceiling an edit of the whole frame or of the background may be."""
GAIN_DB = 2.0
"""How much nearer to the truth than the source a local edit must be inside its region."""
OUTSIDE_GAP_DB = 3.0
"""How far below the ceiling a local edit may be outside its region."""
FOLLOWS = 0.80
"""Least share of edits that go to another reference when they are given it."""
LEAST_COUNT = 100
"""Scenes of each kind and wordings below which a table is a trial."""

LEAST_RMS = 0.1
"""In 0..1: how much two truths differ at least where either edits. Between the same pictures (a thing recoloured, and
replaced by one of that shape and colour) nothing can be nearest."""
_SHARES = ("right", "ceiling_right", "follows")


@dataclass(frozen=True)
class Case:
    """A held-out scene with the truth of every kind.

    Attributes:
        number: from 0. edits: by kind. others: of the kinds with a reference, the same edit with another reference.
    """

    number: int
    scene: Scene
    edits: dict[str, Edit]
    others: dict[str, Edit]

    def prompt(self, kind: str, split: Split) -> str:
        """The instruction. Its words have draws of their own, apart from the scene's and the edit's."""
        rng = np.random.default_rng([FIRST_SEED + self.number, KINDS.index(kind), 2 + SPLITS.index(split)])
        return wording(kind, self.edits[kind].slots, rng, split)


def make_case(number: int, width: int = 64, height: int = 64, frames: int = 5, natural: bool = False) -> Case:
    """The case of a number: textures, hues and references that training does not have.

    What an edit chooses freely is drawn anew until its truth differs from the other free kinds' by `LEAST_RMS`.

    Args:
        natural: things are on grounds nearer to filmed ones.
    """
    seed = FIRST_SEED + number
    scene = (scene_with_things if natural else make_scene)(seed, width, height, frames, held_out=True)

    def edit(kind: str, other: int, apart: Iterable[Edit]) -> Edit:
        """Its free choices drawn until its truth differs from some others."""
        for turn in range(40):
            found = make_edit(scene, kind, np.random.default_rng([seed, KINDS.index(kind), other, turn]), held_out=True)
            if all(mse(found.target, one.target, found.mask | one.mask) >= LEAST_RMS**2 for one in apart):
                break
        return found

    edits: dict[str, Edit] = {}
    for kind in KINDS:
        free = () if kind in STYLES else [one for name, one in edits.items() if name not in STYLES]
        edits[kind] = edit(kind, 0, free)
    others = {kind: edit(kind, 1, [edits[kind]]) for kind in REFERENCES}
    return Case(number, scene, edits, others)


def mse(first: np.ndarray, second: np.ndarray, where: np.ndarray | None = None) -> float:
    """Mean squared difference in 0..1 of (F, H, W, 3) uint8 clips, of the pixels where (F, H, W) is True."""
    if where is not None:
        first, second = first[where], second[where]
    return float(np.square(first.astype(np.float32) - second.astype(np.float32)).mean(dtype=np.float64)) / 255.0**2


def mse_of_all(clips: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> np.ndarray:
    """`mse` of each of n clips with each of m others, all of one shape: (n, m) fp64, as one product of matrices."""
    total = np.zeros((len(clips), len(others)))
    for number in range(len(clips[0])):  # of a frame each, so that sums in fp32 are short
        first, second = (_rows([clip[number] for clip in group]) for group in (clips, others))
        squares = [np.einsum("ij,ij->i", rows, rows, dtype=np.float64) for rows in (first, second)]
        total += squares[0][:, None] + squares[1] - 2.0 * (first @ second.T)
    return np.maximum(0.0, total / clips[0].size)


def _rows(frames: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([frame.reshape(-1) for frame in frames]).astype(np.float32) / 255.0 - 0.5


def psnr(first: np.ndarray, second: np.ndarray, where: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB, at most 100."""
    error = mse(first, second, where)
    return 100.0 if error == 0 else min(100.0, -10.0 * math.log10(error))


def edge_strength(clip: np.ndarray) -> np.ndarray:
    """Magnitude of the luma's gradient within each frame: (F, H, W, 3) uint8 -> (F, H, W) fp32, per pixel of 255."""
    down, across = np.gradient(clip.astype(np.float32) @ LUMA, axis=(1, 2))
    return np.hypot(down, across)


def edge_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation of two clips' edge strengths; 0 where either has no edges."""
    a, b = (edge_strength(clip).astype(np.float64).ravel() for clip in (first, second))
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else 0.0


def nearest(case: Case, result: np.ndarray) -> str:
    """The kind whose truth is nearest to the result by squared error, or `SOURCE`."""
    errors = {kind: mse(result, edit.target) for kind, edit in case.edits.items()}
    errors[SOURCE] = mse(result, case.scene.source)
    return min(errors, key=lambda name: errors[name])


def measure(
    case: Case, kind: str, result: np.ndarray, ceiling: np.ndarray, other: np.ndarray | None = None
) -> dict[str, Any]:
    """The figures of one edit.

    Args:
        result: (F, H, W, 3) uint8.
        ceiling: what the autoencoder makes of the truth.
        other: of kinds with a reference, the result with the other reference.

    Returns:
        `nearest` and `right`; `ceiling_right`, the same of the ceiling itself; `result_db`, `ceiling_db`, `source_db`
        against the truth, `gap_db` from the ceiling down to the result; `edges` and `ceiling_edges`. Local kinds:
        `gain_db` over the source inside the edited region, `outside_gap_db` below the ceiling outside it. References:
        `follows`, whether `other` is nearer to the truth of its own reference.
    """
    truth, mask, source = case.edits[kind].target, case.edits[kind].mask, case.scene.source
    found = nearest(case, result)
    result_db, ceiling_db = psnr(result, truth), psnr(ceiling, truth)
    figures: dict[str, Any] = {
        "nearest": found,
        "right": found == kind,
        "ceiling_right": nearest(case, ceiling) == kind,
        "result_db": result_db,
        "ceiling_db": ceiling_db,
        "gap_db": ceiling_db - result_db,
        "source_db": psnr(source, truth),
        "edges": edge_correlation(result, truth),
        "ceiling_edges": edge_correlation(ceiling, truth),
    }
    if kind in LOCAL:
        figures["inside_db"] = psnr(result, truth, mask)
        figures["inside_source_db"] = psnr(source, truth, mask)
        figures["gain_db"] = figures["inside_db"] - figures["inside_source_db"]
        figures["outside_db"] = psnr(result, truth, ~mask)
        figures["outside_ceiling_db"] = psnr(ceiling, truth, ~mask)
        figures["outside_gap_db"] = figures["outside_ceiling_db"] - figures["outside_db"]
    if kind in REFERENCES and other is not None:
        figures["follows"] = mse(other, case.others[kind].target) < mse(other, truth)
    return figures


# -- means and verdicts ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mean:
    """A mean and its standard error: binomial for shares, else sd / sqrt(n); None of a single value."""

    mean: float
    error: float | None


def mean_of(values: Iterable[float], share: bool = False) -> Mean:
    numbers = np.array(list(values), np.float64)
    mean, count = float(numbers.mean()), len(numbers)
    if share:
        return Mean(mean, math.sqrt(mean * (1 - mean) / count))
    return Mean(mean, float(numbers.std(ddof=1)) / math.sqrt(count) if count > 1 else None)


@dataclass(frozen=True)
class Row:
    """A kind with one sort of wordings. `failures`: the conditions that are not met, in words."""

    kind: str
    split: Split
    count: int
    means: dict[str, Mean]
    failures: tuple[str, ...]


def conditions(kind: str, split: Split) -> list[tuple[str, str, float, int]]:
    """What a kind must reach: (figure, words, bound, 1 for at least or -1 for at most)."""
    wanted = [("right", "nearest to the right truth", NEAREST[split], 1)]
    if kind in LOCAL:
        wanted.append(("gain_db", "gain inside", GAIN_DB, 1))
        wanted.append(("outside_gap_db", "below the ceiling outside", OUTSIDE_GAP_DB, -1))
    else:
        wanted.append(("gap_db", "below the ceiling", WHOLE_GAP_DB, -1))
    if kind in REFERENCES:
        wanted.append(("follows", "follows another reference", FOLLOWS, 1))
    return wanted


def summarise(records: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Records, each `measure`'s figures with `kind` and `split`, to a row for each pair that has any."""
    groups: dict[tuple[str, Split], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["kind"], record["split"]), []).append(record)
    rows = []
    for kind in KINDS:
        for split in SPLITS:
            group = groups.get((kind, split), [])
            if not group:
                continue
            names = [name for name, value in group[0].items() if name in _SHARES or name.endswith(("_db", "edges"))]
            means = {name: mean_of((record[name] for record in group), name in _SHARES) for name in names}
            failures = []
            for name, words, bound, sense in conditions(kind, split):
                if sense * means[name].mean < sense * bound:
                    failures.append(f"{words} {_number(means[name].mean, name)}, not {_number(bound, name)}")
            rows.append(Row(kind, split, len(group), means, tuple(failures)))
    return rows


def passing(rows: Iterable[Row]) -> list[str]:
    """The kinds that meet every condition with all the wordings there are."""
    table = list(rows)
    return [
        kind
        for kind in KINDS
        if any(row.kind == kind for row in table) and not any(row.failures for row in table if row.kind == kind)
    ]


def enough(rows: Iterable[Row]) -> bool:
    """Whether each kind there is has both sorts of wordings and `LEAST_COUNT` scenes of each."""
    counts = {(row.kind, row.split): row.count for row in rows}
    kinds = {kind for kind, _ in counts}
    return bool(kinds) and all(counts.get((kind, split), 0) >= LEAST_COUNT for kind in kinds for split in SPLITS)


def _number(value: float, name: str) -> str:
    if name in _SHARES:
        return f"{100 * value:.0f} %"
    return f"{value:.2f}" if name.endswith("edges") else f"{value:.1f} dB"


_COLUMNS = (
    ("right", "nearest"),
    ("ceiling_right", "VAE(truth) nearest"),
    ("result_db", "result"),
    ("ceiling_db", "ceiling"),
    ("gap_db", "below"),
    ("source_db", "source"),
    ("gain_db", "gain inside"),
    ("outside_gap_db", "below, outside"),
    ("follows", "follows"),
    ("edges", "edges"),
    ("ceiling_edges", "edges, ceiling"),
)


def markdown(rows: Iterable[Row]) -> str:
    """The table: means ± standard errors, shares in %, ratios in dB, and what is not met."""
    head = ["kind", "wordings", "n", *(title for _, title in _COLUMNS), "verdict"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 3) + "---|"]
    for row in rows:
        cells = [row.kind, row.split, str(row.count)]
        for name, _ in _COLUMNS:
            cells.append(_cell(row.means[name], name) if name in row.means else "")
        cells.append("; ".join(row.failures) or "pass")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(value: Mean, name: str) -> str:
    scale, digits = (100, 0) if name in _SHARES else (1, 2 if name.endswith("edges") else 1)
    text = f"{scale * value.mean:.{digits}f}"
    return text if value.error is None else f"{text} ± {scale * value.error:.{digits}f}"


def as_json(rows: Iterable[Row]) -> dict[str, Any]:
    """The same as plain values."""
    table = list(rows)
    return {
        "rows": [
            {
                "kind": row.kind,
                "wordings": row.split,
                "n": row.count,
                "figures": {name: {"mean": value.mean, "se": value.error} for name, value in row.means.items()},
                "failures": list(row.failures),
            }
            for row in table
        ],
        "passing": passing(table),
        "enough": enough(table),
    }
