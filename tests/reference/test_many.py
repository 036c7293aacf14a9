"""Many rows through stages that do next to nothing, by several workers that are killed: each row once, equal bytes."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

from kiwi_cli.batch.crew import Crew
from kiwi_cli.batch.jobs import JobStore
from kiwi_cli.data.reference.recipe import STAGES, drawn
from kiwi_cli.data.reference.running import Going, Standing, go_through
from kiwi_cli.data.reference.triplets import Triplet, read_triplets
from kiwi_cli.data.reference.writing import write_table, write_verdicts

from ..batch.work import left_over, lines
from ..conftest import ROOT

MAKER = "tests.reference.work:killing"


@dataclass
class Gone:
    """One run: where the rows are, and what its workers noted."""

    out: Path
    standing: Standing
    begun: list[list[str]]
    seconds: float

    def files(self) -> dict[str, bytes]:
        """Everything that a run leaves but its state, by name."""
        found = [path for path in self.out.rglob("*") if path.is_file() and ".kiwi-batch" not in path.parts]
        return {path.relative_to(self.out).as_posix(): path.read_bytes() for path in found}


def rows_of(folder: Path, count: int) -> list[Triplet]:
    for name in "ab":
        (folder / f"{name}.mp4").write_text(name)
    words = "".join(f"a.mp4,b.mp4,make it number {number}\n" for number in range(count))
    (folder / "rows.csv").write_text(f"src_video,tgt_video,prompt\n{words}")
    return [row for row in read_triplets(folder / "rows.csv") if isinstance(row, Triplet)]


def gone(
    folder: Path,
    rows: list[Triplet],
    crew: Crew,
    stages: tuple[str, ...],
    kills: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Gone:
    """Go through, the crew at these stages, and this process at the rest."""
    notes = folder / "notes"
    notes.mkdir(parents=True)
    for name in kills:
        (notes / f"kill-{name}").touch()
    monkeypatch.setenv("KIWI_TEST_NOTES", str(notes))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    begin = time.monotonic()
    _, troubles = go_through(folder / "out", rows, drawn(), Going(crew, stages, maker=MAKER))
    seconds = time.monotonic() - begin
    assert troubles == [] and not list(notes.glob("kill-*"))
    standing, _ = go_through(folder / "out", rows, drawn(), Going(maker=MAKER))  # what `stages` left out
    assert standing.is_whole
    write_table(folder / "out", standing.rows)
    write_verdicts(folder / "out", rows, drawn(), standing)
    begun = [line.split() for line in (notes / "begun").read_text().splitlines()]
    return Gone(folder / "out", standing, begun, seconds)


def compared(
    tmp_path: Path, count: int, crew: Crew, stages: tuple[str, ...], kills: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[Gone, Gone]:
    """The same rows by one worker and by several that are killed."""
    rows = rows_of(tmp_path, count)
    alone = gone(tmp_path / "alone", rows, Crew(), STAGES, [], monkeypatch)
    passed = [row for row in rows if int(row.key[:4], 16) / 0xFFFF >= 0.7]  # these come to every stage
    chosen = [f"{stages[n % len(stages)]}-{passed[(n * 7) % len(passed)].key}" for n in range(kills)]
    several = gone(tmp_path / "several", rows, crew, stages, sorted(set(chosen)), monkeypatch)
    jobs = {stage: count if stage in ("read", "score") else len(passed) for stage in STAGES[:3]}
    done = [line["id"] for line in lines(JobStore(several.out))]
    assert len(done) == len(set(done)) == len(lines(JobStore(alone.out)))
    again = Counter(name for name, *_ in several.begun)
    assert {name for name, times in again.items() if times > 1} == set(chosen)
    assert Counter(name.split("-")[0] for name in again)["score"] == jobs["score"]
    assert several.files() == alone.files() and left_over(JobStore(several.out)) == []
    assert several.standing.rows == alone.standing.rows and several.standing.dropped == alone.standing.dropped
    return alone, several


def test_killed_workers_leave_what_one_worker_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared(tmp_path, 24, Crew(workers=2), STAGES[:1], 2, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_rows_by_three_workers_with_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = int(os.environ.get("KIWI_TEST_ROWS", "10000"))
    alone, several = compared(tmp_path, count, Crew(workers=3), STAGES, 20, monkeypatch)
    for name, run in (("one worker", alone), ("three workers", several)):
        rate = len(run.begun) / run.seconds
        sys.stdout.write(f"\n{name}: {rate:.0f} times a row and a stage a second, {run.seconds:.0f} s\n")
    peaks = defaultdict(list)
    for _, pid, peak in several.begun:
        peaks[pid].append(int(peak))
    grown = [each[-1] - each[len(each) // 10] for each in peaks.values() if len(each) > count // 10]
    most = max(map(max, peaks.values()))
    sys.stdout.write(f"a worker's memory grew by {grown} MiB after its first tenth; at most {most} MiB\n")
    assert grown and max(grown) <= 32


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_actors_of_a_ray_cluster_leave_what_one_worker_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real cluster on this machine, two actors, one of which is killed at a row."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    compared(tmp_path, 24, Crew(workers=2, ray=""), STAGES[:2], 1, monkeypatch)
