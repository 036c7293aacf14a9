"""The whole path on drawn triplets, whose truth is exact: what is kept, what is dropped, where and why."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from kiwi_cli.data.clips import load_mask
from kiwi_cli.data.reference import files, running
from kiwi_cli.data.reference.files import Files, place_of
from kiwi_cli.data.reference.recipe import STAGES, Recipe, drawn
from kiwi_cli.data.reference.regions import box_of, overlap
from kiwi_cli.data.reference.running import Going, Standing, go_through
from kiwi_cli.data.reference.triplets import Triplet, read_triplets
from kiwi_cli.data.reference.writing import write, write_verdicts
from kiwi_cli.data.rows import Row, read_rows
from kiwi_cli.synth.edits import Edit
from kiwi_cli.synth.writer import quadruplet

from . import planted

GOOD = 36


class Run:
    """Planted rows that went through once, and what came of it."""

    def __init__(self, folder: Path) -> None:
        self.table, self.settings = planted.drawn(folder / "rows", GOOD)
        self.bad = planted.plant(self.table)
        self.out = folder / "out"
        self.rows = list(read_triplets(self.table))
        self.standing, _ = go_through(self.out, self.rows, drawn(), Going())
        write_verdicts(self.out, self.rows, drawn(), self.standing)
        self.written = write(self.out, self.rows, drawn(), self.standing)

    def verdicts(self) -> dict[str, dict[str, object]]:
        return {line["row"]: line for line in map(json.loads, (self.out / "verdicts.jsonl").read_text().splitlines())}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("run"))


def test_planted_rows_are_dropped_by_the_stage_that_should(run: Run) -> None:
    verdicts = run.verdicts()
    assert {row: verdicts[row]["stage"] for row in run.bad} == run.bad
    assert all(line["reason"] for line in verdicts.values() if not line["kept"])
    assert [line["stage"] is None for line in verdicts.values()] == [line["kept"] for line in verdicts.values()]


def test_good_rows_are_kept(run: Run) -> None:
    verdicts = run.verdicts()
    kept = [verdicts[f"row {number}"]["kept"] for number in range(1, GOOD + 1)]
    dropped = [line["reason"] for line in verdicts.values() if line["row"] not in run.bad and not line["kept"]]
    assert sum(kept) >= 0.98 * GOOD, dropped


def _kept(run: Run) -> Iterator[tuple[Triplet, Edit]]:
    for row in run.standing.rows:
        yield row, quadruplet(run.settings, int(row.label.split()[1]) - 1).edit


def test_regions_are_the_truth(run: Run) -> None:
    found = []
    for row, edit in _kept(run):
        region = load_mask(run.out / place_of("segment", row.key, ".mkv"), Path(row.target), _preparation()) >= 128
        found.append(overlap(region, edit.mask))
    assert min(found) >= 0.8 and np.mean(found) >= 0.9


def _preparation() -> object:
    read = drawn().read
    return files.Preparation(read.max_pixels, read.frames, 1, 1)


def test_references_of_subjects_are_the_truths_object(run: Run) -> None:
    """Each pixel that both masks hold is the target's own; they differ at the object's edge alone: at most 25 levels
    on average over the cut-out."""
    errors = []
    for row, edit in _kept(run):
        if row.kind not in ("change", "add"):
            continue
        made = np.asarray(Image.open(run.out / place_of("make", row.key, ".png")).convert("RGB")).astype(int)
        region = load_mask(run.out / place_of("segment", row.key, ".mkv"), Path(row.target), _preparation())[0] >= 128
        box = np.multiply(box_of(region), [64, 64, 64, 64]).round().astype(int)  # type: ignore[arg-type]
        crop = np.s_[box[1] : box[3], box[0] : box[2]]
        truth = np.where(edit.mask[0][..., None], edit.target[0], 255)[crop].astype(int)
        edge = (made.shape[0] - truth.shape[0]) // 2
        inner = made[edge : edge + truth.shape[0], edge : edge + truth.shape[1]]
        assert made.shape[1] - truth.shape[1] == 2 * edge and (made[:edge] == 255).all()
        both = (region & edit.mask[0])[crop]
        assert np.array_equal(inner[both], truth[both])
        errors.append(np.abs(inner - truth).mean())
    assert len(errors) >= GOOD // 3 and max(errors) <= 25


def test_references_of_backgrounds_are_the_truths_ground(run: Run) -> None:
    """Outside the foreground they are equal; over the frame they differ by at most 12 levels on average, and by
    4 over all rows: what is behind a thing is guessed from around it, and stripes are not to be guessed so."""
    errors = []
    for row, edit in _kept(run):
        if row.kind != "reference-background":
            continue
        assert edit.reference is not None
        made = np.asarray(Image.open(run.out / place_of("make", row.key, ".png")).convert("RGB")).astype(int)
        errors.append(np.abs(made - edit.reference.astype(int)).mean())
        far = edit.mask[0] & ~files_grown(~edit.mask[0])
        assert np.array_equal(made[far], edit.reference.astype(int)[far])
    assert max(errors) <= 12 and np.mean(errors) <= 4


def files_grown(region: np.ndarray) -> np.ndarray:
    """A region with the widest border that noise and the painter's own give it."""
    from kiwi_cli.data.reference.regions import grown

    return grown(grown(region))


def test_what_is_written_reads_back_as_rows(run: Run) -> None:
    back = list(read_rows(run.written))
    assert all(isinstance(row, Row) for row in back) and len(back) == len(run.standing.rows)
    for row, made in zip(back, run.standing.rows, strict=True):
        assert isinstance(row, Row) and isinstance(row.reference, bytes)
        assert row.prompt == made.prompt and row.source.samefile(made.source) and row.target.samefile(made.target)
        assert row.mask is not None and row.mask.is_file() and row.iid == made.iid
        assert Image.open(io.BytesIO(row.reference)).format == "PNG"
    card = (run.out / "card.md").read_text()
    assert f"| kept | {len(back)} |" in card and "| similarity | 0.5 |" in card


def test_the_sheet_has_no_empty_band(run: Run) -> None:
    sheet = np.asarray(Image.open(run.out / "samples.png").convert("L"))
    assert sheet.shape[1] > 500
    empty = "".join(".#"[bool(line.min() < 255)] for line in sheet)
    assert max(map(len, empty.split("#"))) < 20 and empty.count("#") > 200
    assert (sheet[28:160, 2:126] < 255).any(axis=1).sum() >= 120  # a clip of 64 pixels fills its place


class Counting(running.StageWork):
    """Counts what is run."""

    calls: ClassVar[list[str]] = []

    def __call__(self, job, place):  # type: ignore[no-untyped-def]
        Counting.calls.append(job.work["stage"])
        return super().__call__(job, place)


def counting(settings: dict[str, object], device: str | None) -> Counting:
    return Counting(Path(str(settings["out"])), Recipe.from_plain(settings["recipe"]), "cpu")


def again(run: Run, out: Path, recipe: Recipe) -> tuple[Standing, list[str]]:
    """Go through once more; which stages worked, once for each row."""
    Counting.calls = []
    standing, _ = go_through(out, run.rows, recipe, Going(maker="tests.reference.test_pipeline:counting"))
    return standing, list(Counting.calls)


def test_a_threshold_is_changed_without_running_anything(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(run.out, out)
    tight = replace(drawn(), thresholds=replace(drawn().thresholds, aspect=1.05, similarity=0.8))
    standing, calls = again(run, out, tight)
    assert calls == [] and 0 < len(standing.rows) < len(run.standing.rows)
    assert {stage for key, (stage, _) in standing.dropped.items() if key not in run.standing.dropped} == {"check"}
    standing, calls = again(run, out, drawn())
    assert calls == [] and standing.rows == run.standing.rows
    loose = replace(drawn(), thresholds=replace(drawn().thresholds, smallest=0.0, side=1.0))
    standing, calls = again(run, out, loose)  # the small one passes, and only what it has not been through is run
    assert set(calls) <= {"deduplicate"} and len(calls) == len(standing.rows) - len(run.standing.rows) == 1


@pytest.mark.slow
def test_another_recipe_runs_what_it_decides_and_no_more(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(run.out, out)
    wide = replace(drawn(), make=replace(drawn().make, margin=0.2))
    _, calls = again(run, out, wide)
    assert set(calls) == {"make", "check", "deduplicate"}
    other = replace(wide, score=replace(wide.score, by="local"), check=replace(wide.check, judge="local"))
    same = {stage for stage in STAGES if other.identity(stage) == wide.identity(stage)}
    assert same == set(STAGES) - {"score", "check"}  # nothing that was segmented or made is repeated
    key = run.standing.rows[0].key
    (out / place_of("make", key, ".json")).unlink()
    _, calls = again(run, out, wide)
    assert calls == ["make"]  # its picture is the same, so what came after it holds


def test_stages_one_by_one_give_the_same(run: Run, tmp_path: Path) -> None:
    rows = run.rows[:6]
    for number, stage in enumerate(STAGES):
        standing, _ = go_through(tmp_path / "a", rows, drawn(), Going(stages=(stage,)))
        assert standing.is_whole == (stage == STAGES[-1])
        assert list(standing.ran) == [stage]
        if number + 1 < len(STAGES):
            assert list(standing.waiting) == [STAGES[number + 1]]
    for row in standing.rows:
        for stage, ending in (("segment", ".mkv"), ("make", ".png"), ("check", ".json"), ("deduplicate", ".npy")):
            name = place_of(stage, row.key, ending)
            assert (tmp_path / "a" / name).read_bytes() == (run.out / name).read_bytes()


def test_a_region_by_difference_is_near_the_truth(tmp_path: Path) -> None:
    table, settings = planted.drawn(tmp_path / "rows", 8, seed=3)
    recipe = replace(drawn(), segment=replace(drawn().segment, by="difference", noise=0.0))
    standing, _ = go_through(tmp_path / "out", list(read_triplets(table)), recipe, Going())
    assert len(standing.rows) == 8
    for row in standing.rows:
        edit = quadruplet(settings, int(row.label.split()[1]) - 1).edit
        seen = Files(tmp_path / "out", row, recipe.read, tmp_path)
        assert overlap(seen.region, edit.mask) >= 0.8


def test_the_reverse_takes_the_real_clip_as_target(tmp_path: Path) -> None:
    table, _ = planted.drawn(tmp_path / "rows", 2, kinds=("change",))
    rows = planted.rows_of(table)
    rows[0]["reverse_prompt"], rows[1]["reverse_prompt"] = "make it as it was", ""
    back = list(read_triplets(planted.write_table(table, rows), reverse=True))
    assert isinstance(back[0], Triplet) and back[0].prompt == "make it as it was"
    assert back[0].source.endswith(rows[0]["tgt_video"]) and back[0].target.endswith(rows[0]["src_video"])
    assert not isinstance(back[1], Triplet) and "no reverse_prompt" in back[1].reason
