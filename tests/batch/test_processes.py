"""Workers in processes of their own: killed, frozen, with clocks that differ, over folders under two names."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kiwi_cli.batch.crew import Crew, work_off
from kiwi_cli.batch.heartbeat import Heartbeat, machine
from kiwi_cli.batch.jobs import Job, JobStore, job_id
from kiwi_cli.batch.local import Account
from kiwi_cli.batch.serve import Order
from kiwi_cli.batch.worker import Told

from ..conftest import CHECKPOINT, ROOT
from ..video.media import make_clip
from .work import begun, left_over, lines, listed

POSIX = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes find this package, and one of them takes one core."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")


def until(reached: Callable[[], Any], seconds: float = 120.0) -> Any:
    """What `reached` gives once that is something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := reached():
            return found
        time.sleep(0.01)
    raise AssertionError("not reached")


def order_of(store: JobStore, jobs: list[Job], lease: float = 60.0, **settings: Any) -> Order:
    return Order.of(store, jobs, "tests.batch.work:writer", settings, lease)


def said_by(store: JobStore, pid: int) -> dict[str, Any]:
    """The heartbeat of a process."""
    for path in store.workers.glob("*.json"):
        try:
            said = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if said["pid"] == pid:
            return said
    return {}


def outcomes(store: JobStore) -> list[str]:
    """The jobs that are done, as often as the journal says so."""
    return sorted(line["id"] for line in lines(store))


def test_an_interruption_is_told_before_the_workers_are_waited_for(tmp_path: Path) -> None:
    store, heard = begun(tmp_path / "out"), []

    class Impatient(Told):
        def at_work(self, workers: list[dict[str, Any]]) -> None:
            if workers:
                heard.append(len(lines(store)))
                signal.raise_signal(signal.SIGINT)

        def interrupted(self) -> None:
            heard.append("interrupted")

    with pytest.raises(KeyboardInterrupt):
        work_off(order_of(store, listed(2), seconds=60), listed(2), Crew(workers=2), Impatient())
    assert heard == [0, "interrupted"] and left_over(store) == []


def test_processes_share_a_run_and_one_that_dies_is_replaced(tmp_path: Path) -> None:
    store = begun(tmp_path / "out")
    jobs = [*listed(6), Job(job_id("kill"), "kill", {"kill": True}), Job(job_id("bad"), "bad")]
    tally, troubles = work_off(order_of(store, jobs), jobs, Crew(workers=2))
    assert (tally.done, tally.made, tally.left, troubles) == (6, 6, 0, [])
    reasons = {job.label: tally.failures.get(job.id) for job in jobs[6:]}
    assert reasons == {"kill": "3 workers ended while they were at it", "bad": "ValueError: cannot do bad"}
    assert outcomes(store) == sorted(job.id for job in jobs[:6]) and left_over(store) == []


def test_a_worker_that_is_gone_is_not_shown_at_work(tmp_path: Path) -> None:
    store, jobs = begun(tmp_path / "out"), listed(2)
    shown: list[list[dict[str, Any]]] = []

    class Watching(Told):
        def at_work(self, workers: list[dict[str, Any]]) -> None:
            shown.append([{key: said[key] for key in ("job", "pid")} for said in workers])

    account = Account(order_of(store, jobs), jobs, Watching())
    dead = {"machine": machine(), "pid": 1, "lease": 60.0, "job": "job 0"}
    (store.workers / "dead.json").write_text(json.dumps(dead))  # whose lock nobody has
    heart = Heartbeat(store.workers, "alive", 60.0)
    try:
        heart.say(job="job 1")
        heart.beat()
        account.look()
    finally:
        heart.close()
    assert shown == [[{"job": "job 1", "pid": os.getpid()}]]


def test_workers_that_cannot_go_on_are_named_and_their_jobs_left(tmp_path: Path) -> None:
    store, jobs = begun(tmp_path / "out"), listed(3)
    order = Order.of(store, jobs, "tests.batch.work:unable", {})
    tally, troubles = work_off(order, jobs, Crew(gpus="cpu,cpu"))
    assert (tally.left, tally.failures) == (3, {}) and len(troubles) == 2
    assert troubles[0] == "cpu: out of memory while the model was loaded" and left_over(store) == []


@pytest.mark.slow
@POSIX
def test_over_two_names_of_the_folder_with_clocks_five_minutes_apart(tmp_path: Path) -> None:
    store, jobs = begun(tmp_path / "out"), listed(60)
    (tmp_path / "mount").symlink_to(tmp_path / "out")
    program = (
        "import sys, time\nreal, ahead = time.time, float(sys.argv[2])\ntime.time = lambda: real() + ahead\n"
        "from kiwi_cli.batch import heartbeat\nheartbeat.machine = lambda: f'machine {ahead}'\n"
        "from kiwi_cli.batch.process import main\nsys.exit(main(sys.argv[1]))"
    )
    order, processes = order_of(store, jobs, lease=2.0, seconds=0.2), []
    for index, (name, ahead) in enumerate((("out", "0"), ("mount", "300"), ("mount", "-300"))):
        plain = {**order.as_plain(), "out": str(tmp_path / name)}
        said = json.dumps({"order": plain, "device": None, "index": index, "parent": os.getpid()})
        processes.append(subprocess.Popen([sys.executable, "-c", program, said, ahead]))
    try:
        until(lambda: all(said_by(store, process.pid).get("job") for process in processes))
        processes[2].kill()
        processes[1].send_signal(signal.SIGSTOP)
        held = until(lambda: said_by(store, processes[1].pid)).get("id")
        until(lambda: held in outcomes(store))  # by another one, after its lease
        processes[1].send_signal(signal.SIGCONT)
        assert [process.wait(120) for process in processes[:2]] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert outcomes(store) == sorted(job.id for job in jobs)
    assert all((tmp_path / "out" / f"{number}.txt").read_text() == f"job {number}" * 100 for number in range(60))
    assert left_over(store) == []


def batch(table: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    options = ("--model", str(CHECKPOINT), "--steps", "1", "--size", "32x32", "--device", "cpu", "--lease", "2")
    command = [sys.executable, "-m", "kiwi_cli", "batch", str(table), "--out-dir", str(out), *options, "-q", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> str:
    """What a process wrote to stderr; of one that does not end, where it stands."""
    try:
        return process.communicate(timeout=240)[1]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        return process.communicate(timeout=60)[1]


@pytest.mark.slow
@POSIX
def test_200_clips_two_workers_killed_and_one_frozen(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=2, size=(32, 32))
    rows = [f"{clip},make it snowy,{number},{number:03d}.mp4" for number in range(200)]
    table = tmp_path / "jobs.csv"
    table.write_text("\n".join(["input,instruction,seed,output", *rows]) + "\n")
    seed = random.randrange(10**6)
    draw = random.Random(seed)
    out = tmp_path / "out"
    store = JobStore(out)
    workers = [batch(table, out) for _ in range(3)]
    frozen = workers[2]
    try:
        until(lambda: said_by(store, frozen.pid).get("job"))
        time.sleep(draw.uniform(0, 1))
        held = None
        while held is None:  # in the middle of a clip
            frozen.send_signal(signal.SIGSTOP)
            held = said_by(store, frozen.pid).get("id")
            if held is None:
                frozen.send_signal(signal.SIGCONT)
                time.sleep(0.02)
        until(lambda: held in outcomes(store))  # by another one, after its lease
        frozen.send_signal(signal.SIGCONT)
        for victim in workers[:2]:
            count = len(outcomes(store))
            aim = min(190, count + draw.randrange(1, 40))
            until(lambda aim=aim: len(outcomes(store)) >= aim)
            time.sleep(draw.uniform(0, 0.2))
            victim.kill()
            victim.communicate(timeout=60)
        assert ended(frozen) == "" and frozen.returncode == 0, seed
    finally:
        for worker in workers:
            worker.kill()
    ids = outcomes(store)
    assert len(ids) == len(set(ids)) == 200 and lines(store, "failed") == [], seed
    names = [f"{number:03d}.mp4" for number in range(200)]
    assert sorted(path.name for path in out.iterdir()) == [".kiwi-batch", *names]
    assert left_over(store) == [], seed
    alone = batch(table, tmp_path / "alone")
    assert ended(alone) == "" and alone.returncode == 0
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), (seed, name)
