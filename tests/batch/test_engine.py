"""One worker after another over one folder: every job once, whatever ended the one before."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from kiwi_cli.batch import worker as workers
from kiwi_cli.batch.claims import Claim, Claims, LostError
from kiwi_cli.batch.heartbeat import Heartbeat, Watch
from kiwi_cli.batch.jobs import Job, JobStore, job_id, sketch
from kiwi_cli.batch.journal import Journal, records_in
from kiwi_cli.batch.records import Records, Tally
from kiwi_cli.batch.shard import parse_shard, part_of, shard_of_scheduler
from kiwi_cli.batch.worker import Place, Worker
from kiwi_cli.errors import DeviceError, KiwiError, UsageError

from .work import begun, left_over, lines, listed, nothing, unable, writer

WRITE = writer({}, None)


def go(store: JobStore, jobs: list[Job], work: Any = WRITE, **more: Any) -> Tally:
    with Worker(store, **more) as worker:
        return worker.work_through(jobs, work)


def dead(store: JobStore, name: str = "host-1-abc") -> Claims:
    """A worker that has claims and no sign of life."""
    return Claims(store.claims, name)


def taken(claim: Claim | None) -> Claim:
    assert claim is not None
    return claim


def test_every_job_is_done_once_and_nothing_is_left_over(tmp_path: Path) -> None:
    store, jobs = begun(tmp_path), listed(5, "day/{}.txt")
    tally = go(store, jobs)
    assert (tally.done, tally.made, tally.failures, tally.left) == (5, 5, {}, 0)
    assert [(tmp_path / "day" / f"{number}.txt").read_text() for number in range(5)] == [
        f"job {n}" * 100 for n in range(5)
    ]
    done = lines(store)
    assert [line["id"] for line in done] == [job.id for job in jobs] and left_over(store) == []
    assert done[0]["files"] == {"0.txt": sketch(tmp_path / "day/0.txt")} and done[0]["seconds"] >= 0
    assert go(store, jobs).made == 0 and lines(store) == done


def test_a_bad_job_never_ends_a_run_and_is_tried_again_when_that_is_asked(tmp_path: Path) -> None:
    store = begun(tmp_path)
    jobs = [Job(job_id(name), name, output=f"{name}.txt") for name in ("a", "bad", "c")]
    tally = go(store, jobs)
    assert (tally.done, tally.failures) == (2, {jobs[1].id: "ValueError: cannot do bad"})
    assert go(store, jobs).made == 0 and len(lines(store, "failed")) == 1  # not again by itself
    records = Records(store.journal)
    records.refresh()
    with Journal(store.journal, "person") as journal:
        journal.append({"state": "void", "claims": records.claims(jobs[1].id)})
    assert go(store, jobs, lambda job, place: {}).made == 1
    assert go(store, jobs).failures == {} and left_over(store) == []


def test_what_a_dead_worker_had_is_done_by_the_next(tmp_path: Path) -> None:
    store, jobs = begun(tmp_path), listed(3)
    claims = dead(store)
    claim = taken(claims.take(jobs[1].id))
    (store.parts / claim.name).mkdir()
    (store.parts / claim.name / "half").write_text("half")
    assert go(store, jobs).made == 3 and left_over(store) == []
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == ["0.txt", "1.txt", "2.txt"]


@pytest.mark.parametrize("finished", [True, False], ids=["the other one is through", "the other one is at it"])
def test_a_worker_that_was_frozen_finds_its_job_lost(tmp_path: Path, finished: bool) -> None:
    store, jobs = begun(tmp_path), listed(2)
    others = []

    def frozen(job: Job, place: Place) -> dict[str, Any]:
        """Stands still while others think that it is gone, take its job, and do all there is."""
        (place.folder / str(job.output)).write_text("too late")
        if not others:
            for path in store.workers.iterdir():
                path.unlink()
            if finished:
                others.append(go(store, jobs))
            else:
                others.append(taken(dead(store, "host-2-abc").take(job.id, after=1)))
        return {}

    tally = go(store, jobs, frozen)
    done = lines(store)
    assert len({line["id"] for line in done}) == len(done) == 2
    assert (tally.lost == 1 and "too late" not in (tmp_path / "0.txt").read_text()) or not finished
    assert tally.left == 0 and left_over(store) == []
    if finished:
        assert {line["worker"] for line in done} == {done[0]["worker"]}


@pytest.mark.parametrize("moved", [True, False], ids=["after its file was moved", "before"])
def test_an_outcome_that_was_fixed_and_not_written_down_is_not_done_again(tmp_path: Path, moved: bool) -> None:
    store, jobs = begun(tmp_path), listed(1)
    claim = taken(dead(store).take(jobs[0].id))
    (store.parts / claim.name).mkdir()
    made = store.parts / claim.name / "0.txt"
    made.write_text("made by the one who died")
    line = {"id": jobs[0].id, "state": "done", "claim": claim.name, "files": {"0.txt": sketch(made)}}
    claim.finish({"line": line, "folder": claim.name, "beside": ".", "replace": False})
    if moved:
        made.rename(tmp_path / "0.txt")
    tally = go(store, jobs, unable({}, None))  # nothing is to be done any more
    assert (tally.done, tally.made) == (1, 0) and (tmp_path / "0.txt").read_text() == "made by the one who died"
    assert [line["claim"] for line in lines(store)] == [claim.name] and left_over(store) == []


def test_an_outcome_whose_file_is_nowhere_is_a_failure(tmp_path: Path) -> None:
    store, jobs = begun(tmp_path), listed(1)
    claim = taken(dead(store).take(jobs[0].id))
    line = {"id": jobs[0].id, "state": "done", "claim": claim.name, "files": {"0.txt": ""}}
    claim.finish({"line": line, "folder": claim.name, "beside": ".", "replace": False})
    assert "lost before it had its name: '0.txt'" in go(store, jobs).failures[jobs[0].id]


def test_a_job_that_ends_every_worker_is_given_up(tmp_path: Path) -> None:
    store, jobs = begun(tmp_path), listed(2)
    for number in range(workers.MOST_TRIES):
        taken(dead(store, f"host-{number}-abc").take(jobs[0].id, after=number))
    tally = go(store, jobs)
    assert tally.failures == {jobs[0].id: "3 workers ended while they were at it"} and tally.done == 1
    assert left_over(store) == []


def test_two_claims_cannot_be_had(tmp_path: Path) -> None:
    store = begun(tmp_path)
    first, second = dead(store, "a-1-a"), dead(store, "b-1-b")
    claim = taken(first.take("x"))
    assert second.take("x") is None and second.held() == {"x": 1} and second.holder("x", 1) == "a-1-a"
    other = taken(second.take("x", after=1))
    assert not claim.is_held() and other.is_held() and first.take("x", after=1) is None
    with pytest.raises(LostError):
        claim.finish({"line": {"claim": claim.name}})
    other.finish({"line": {"claim": other.name}})
    assert other.is_fixed() and not claim.is_fixed() and claim.name != other.name
    other.end()
    assert first.held() == {}


def test_a_worker_that_cannot_go_on_leaves_its_job_to_others(tmp_path: Path) -> None:
    store, jobs = begun(tmp_path), listed(2)
    with pytest.raises(DeviceError, match="out of memory while the model was loaded"):
        go(store, jobs, unable({}, None))
    assert left_over(store) == [] and lines(store, "failed") == []
    assert go(store, jobs).made == 2


def test_an_interruption_finishes_nothing_half(tmp_path: Path) -> None:
    store, jobs = begun(tmp_path), listed(3)

    def work(job: Job, place: Place) -> dict[str, Any]:
        (place.folder / "half").write_text("half")
        if job is jobs[1]:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        go(store, jobs, work)
    assert left_over(store) == [] and len(lines(store)) == 1
    assert go(store, jobs).made == 2


def test_a_file_that_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    store, jobs = begun(tmp_path), listed(2)
    (tmp_path / "0.txt").write_text("somebody's own")
    tally = go(store, jobs)
    assert "output exists: " in tally.failures[jobs[0].id] and (tmp_path / "0.txt").read_text() == "somebody's own"
    store = begun(tmp_path / "again")
    (tmp_path / "again/0.txt").write_text("the one before")
    assert go(store, listed(2, replace=True)).done == 2 and "job 0" in (tmp_path / "again/0.txt").read_text()


def test_folders_are_results_too_and_are_replaced_whole(tmp_path: Path) -> None:
    store = begun(tmp_path)

    def work(job: Job, place: Place) -> dict[str, Any]:
        (place.folder / "pictures").mkdir()
        (place.folder / "pictures" / f"{job.label}.png").write_text(job.label)
        return {}

    for name in ("one", "two"):
        assert go(store, [Job(job_id(name), name, output="pictures", replace=True)], work).made == 1
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["two.png"] and left_over(store) == []


def test_a_journal_that_was_cut_loses_what_was_cut_and_no_more(tmp_path: Path) -> None:
    store, jobs = begun(tmp_path), listed(4)
    go(store, jobs[:3])
    (journal,) = store.journal.iterdir()
    data = journal.read_bytes()
    journal.write_bytes(data[: len(data) - 30] + b"\x00\xff garbage\n{\n[]\n")
    records = Records(store.journal)
    records.refresh()
    assert [records.is_done(job.id) for job in jobs] == [True, True, False, False]
    (tmp_path / "2.txt").unlink()
    assert go(store, jobs).made == 2 and left_over(store) == []


def test_lines_read_at_once_are_the_lines_read_one_by_one() -> None:
    good = [b'{"a": 1}', b'{"b": "\\udcff"}', b"[1]", b'"text"']
    assert records_in(good) == [{"a": 1}, {"b": "\udcff"}]
    for broken in (b"", b"{", b'{"a": 1}, {"a": 2}', b'"\xff"', b"nul"):
        assert records_in([*good, broken, b'{"c": 3}']) == [{"a": 1}, {"b": "\udcff"}, {"c": 3}], broken
    assert records_in([]) == []


def test_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    record = json.dumps({"id": "x", "state": "done", "claim": "c"}).encode()
    path.write_bytes(record[:10])
    records = Records(tmp_path)
    assert records.refresh() == [] and not records.is_done("x")
    path.write_bytes(record + b"\n")
    assert records.refresh() == ["x"] and records.is_done("x") and records.refresh() == []


def test_whoever_stands_still_for_its_lease_is_gone_by_the_watchers_own_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heart, watch = Heartbeat(tmp_path, "a", 60.0), Watch(tmp_path)
    said = heart.path.read_text()
    assert not watch.is_gone("a")
    elsewhere = tmp_path / "b.json"
    elsewhere.write_text(said.replace('"machine": "', '"machine": "another '))
    now = time.monotonic()
    for shift, gone in ((0, False), (59, False), (61, True)):
        monkeypatch.setattr(time, "monotonic", lambda shift=shift: now + shift)  # the watcher's own
        monkeypatch.setattr(time, "time", lambda shift=shift: -1e6 * shift)  # nobody asks for this one
        assert watch.is_gone("b") is gone
    elsewhere.write_text(elsewhere.read_text().replace('"beat": 1', '"beat": 2'))
    assert not watch.is_gone("b")
    monkeypatch.undo()
    heart.close()
    assert watch.is_gone("a")


def test_a_worker_of_this_machine_that_was_killed_is_gone_at_once(tmp_path: Path) -> None:
    heart = Heartbeat(tmp_path, "a", 60.0)
    left = tmp_path / "b.json"
    shutil.copy(heart.path, left)  # what a kill leaves: the file, and no lock
    assert not Watch(tmp_path).is_gone("a") and Watch(tmp_path).is_gone("b")
    heart.close()


def test_a_worker_that_others_took_for_gone_comes_back(tmp_path: Path) -> None:
    store, jobs = begun(tmp_path), listed(2)

    def forgotten(job: Job, place: Place) -> dict[str, Any]:
        shutil.rmtree(store.claims)
        store.claims.mkdir()
        for path in store.workers.iterdir():
            path.unlink()
        return {}

    with Worker(store) as worker:
        worker.work_through(jobs[:1], forgotten)
        assert worker.work_through(jobs, nothing({}, None)).done == 2
        assert len(list(store.workers.iterdir())) == 1
    assert left_over(store) == []


def test_a_run_is_of_one_kind_and_of_one_version(tmp_path: Path) -> None:
    store = begun(tmp_path)
    with pytest.raises(UsageError, match="holds a run of tests, not of edits"):
        store.begin("edits")
    path = store.root / "run.json"
    path.write_text(path.read_text().replace('"kiwi": "', '"kiwi": "9.'))
    with pytest.raises(UsageError, match=r"begun by kiwi 9\."):
        store.begin("tests")
    path.write_text("{}")
    with pytest.raises(UsageError, match="cannot be read"):
        store.begin("tests")
    with pytest.raises(UsageError, match="no run in"):
        JobStore(tmp_path / "none").identity()


def test_a_folder_that_cannot_be_written_ends_the_worker_in_words(tmp_path: Path) -> None:
    store, jobs = begun(tmp_path), listed(2)

    def work(job: Job, place: Place) -> dict[str, Any]:
        shutil.rmtree(store.root)
        return {}

    with pytest.raises(KiwiError, match="cannot be written"):
        go(store, jobs, work)


def test_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_shard("2/4") == (2, 4) and part_of("abcde", (2, 2)) == ["b", "d"] and part_of("ab", None) == ["a", "b"]
    for text in ("0/2", "3/2", "1", "a/b", "1/0"):
        with pytest.raises(UsageError, match="shard not understood"):
            parse_shard(text)
    slurm = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "3"}
    assert shard_of_scheduler(slurm | {"SLURM_ARRAY_TASK_STEP": "2"}) == ((3, 4), "SLURM")
    assert shard_of_scheduler({"SKYPILOT_JOB_RANK": "0", "SKYPILOT_NUM_JOBS": "8"}) == ((1, 8), "SkyPilot")
    assert shard_of_scheduler({"SKYPILOT_JOB_RANK": "0"}) is None and shard_of_scheduler({}) is None
    with pytest.raises(UsageError, match="leave gaps"):
        shard_of_scheduler(slurm | {"SLURM_ARRAY_TASK_STEP": "3"})


def test_a_claim_that_was_cut_off_is_nobodys_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk without links a claim is not there whole at once."""
    store, jobs = begun(tmp_path), listed(1)
    claims = dead(store)
    (store.claims / f"{jobs[0].id}.1").write_text("")
    assert claims.holder(jobs[0].id, 1) is None
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    assert claims.holder(jobs[0].id, 1) == "" and claims.holder(jobs[0].id, 2) is None


def test_a_disk_without_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", none)
    store, jobs = begun(tmp_path), listed(3)
    assert go(store, jobs).made == 3 and left_over(store) == [] and (tmp_path / "2.txt").read_text() == "job 2" * 100
    first, second = dead(store, "a-1-a"), dead(store, "b-1-b")
    assert first.take("x") is not None and second.take("x") is None and second.holder("x", 1) == "a-1-a"
