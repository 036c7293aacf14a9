"""What many jobs cost beside the work itself: `python benchmarks/batch.py [overhead|status|table|load]...`

    overhead   10,000 jobs that do nothing, over 8 workers: milliseconds a job at the median, and memory as it grows
    status     the time that `kiwi status` takes to read that run
    table      the time to check a table of 10,000 rows, over a hundred clips and with a clip of its own each
    load       N clips with one load against N commands, by the model in the package: the ratio

Prints a line for each figure, and one JSON object at the end. Processor time is there beside the clock's: on a busy
machine that one says more about the others.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kiwi_cli.base.events import SILENT
from kiwi_cli.batch.crew import Crew, work_off
from kiwi_cli.batch.jobs import Job, JobStore, job_id
from kiwi_cli.batch.planning import PATIENCE, Planner
from kiwi_cli.batch.records import Tail
from kiwi_cli.batch.serve import Order
from kiwi_cli.batch.status import Reader
from kiwi_cli.batch.table import read_table

ROOT = Path(__file__).resolve().parents[1]
JOBS, WORKERS, CLIPS, REPEATS, FILES = 10_000, 8, 6, 5, 100
EDIT = ("--model", "tiny", "--device", "cpu", "--duration", "0.2", "-q")


def nothing(settings: dict[str, Any], device: str | None) -> Any:
    """Work that does nothing but say how much memory its worker holds."""
    del settings, device
    page = os.sysconf("SC_PAGE_SIZE")

    def work(job: Job, place: Any) -> dict[str, Any]:
        del job, place
        return {"resident": int(Path("/proc/self/statm").read_text().split()[1]) * page}

    return work


def overhead(folder: Path) -> dict[str, float]:
    """Jobs that do nothing. What one costs is the time between two of a worker, by its own clock."""
    store = JobStore(folder)
    store.begin("nothing")
    jobs = [Job(job_id(number), f"job {number}") for number in range(JOBS)]
    order = Order.of(store, jobs, "batch:nothing", {})
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT / "benchmarks")])
    begin, before = time.perf_counter(), _of_children()
    tally, troubles = work_off(order, jobs, Crew(workers=WORKERS))
    seconds, processor = time.perf_counter() - begin, _of_children() - before
    assert tally.done == JOBS and not troubles, (tally, troubles)
    times: dict[str, list[float]] = {}
    memory: dict[str, list[int]] = {}
    for record in Tail(store.journal).new():
        if record["state"] == "done":
            times.setdefault(record["worker"], []).append(record["at"])
            memory.setdefault(record["worker"], []).append(record["result"]["resident"])
    gaps = [1000 * (after - before) for each in times.values() for before, after in itertools.pairwise(each)]
    busiest = max(memory.values(), key=len)
    return {
        "jobs": JOBS,
        "workers": len(times),
        "seconds": seconds,
        "ms_a_job_of_a_worker_median": statistics.median(gaps),
        "ms_a_job_of_a_worker_p99": statistics.quantiles(gaps, n=100)[-1],
        "ms_a_job_of_the_run": 1000 * seconds / JOBS,
        "processor_ms_a_job": 1000 * processor / JOBS,
        "resident_mb_after_a_fifth": busiest[len(busiest) // 5] / 1e6,
        "resident_mb_at_the_end": busiest[-1] / 1e6,
    }


def status(folder: Path) -> dict[str, float]:
    """The run of `overhead`, read as `kiwi status` does: once from nothing, and the whole command."""
    begin, before = time.perf_counter(), time.process_time()
    found = Reader(folder).read()
    reading, processor = time.perf_counter() - begin, time.process_time() - before
    assert found.done == JOBS
    seconds, processors = [], []
    for _ in range(REPEATS):
        begin, before = time.perf_counter(), _of_children()
        subprocess.run([sys.executable, "-m", "kiwi_cli", "status", str(folder)], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - begin)
        processors.append(_of_children() - before)
    return {
        "seconds_to_read": reading,
        "processor_seconds_to_read": processor,
        "seconds_of_the_command_median": statistics.median(seconds),
        "processor_seconds_of_the_command": statistics.median(processors),
    }


def table(folder: Path) -> dict[str, float]:
    """Rows over a hundred clips, each of which is opened once, then with a clip of its own each, no two of which are
    the same, until all are opened and as `kiwi batch` does it; every tenth has a reference picture."""
    clip, found = (ROOT / "examples/clip.mp4").read_bytes(), {"rows": float(JOBS)}
    for number in range(JOBS):
        own = struct.pack(">I4sQ", 16, b"free", number)  # a box that players pass over
        (folder / f"{number}.mp4").write_bytes(clip + own)
    for clips, patience in ((FILES, PATIENCE), (JOBS, math.inf), (JOBS, PATIENCE)):
        rows = ["input,instruction,reference,seed,output"]
        for number in range(JOBS):
            reference = ROOT / "examples/reference.png" if number % 10 == 0 else ""
            rows.append(f"{number % clips}.mp4,make it snowy,{reference},{number},{number}.mp4")
        (folder / "jobs.csv").write_text("\n".join(rows) + "\n")
        begin, before = time.perf_counter(), time.process_time()
        asked, faults = read_table(folder / "jobs.csv")
        planner = Planner(folder / "out", {"model": "tiny", "device": "cpu"}, SILENT, patience=patience)
        planned = planner.plan(asked, faults)
        what = f"over_{clips}" + ("_all_opened" if patience > PATIENCE else "")
        found[f"seconds_{what}"] = time.perf_counter() - begin
        found[f"processor_seconds_{what}"] = time.process_time() - before
        found[f"left_unopened_{what}"] = int(planned.warnings[0].split()[0]) if planned.warnings else 0
        assert len(planned.jobs) == JOBS and not planned.faults, planned.faults[:3]
    return found


def load(folder: Path) -> dict[str, float]:
    """The same clips by one command each, and by one command for all."""
    names = [f"{number}.mp4" for number in range(CLIPS)]
    for name in names:
        shutil.copy(ROOT / "examples/clip.mp4", folder / name)
    command = [sys.executable, "-m", "kiwi_cli", "edit"]
    begin = time.perf_counter()
    for name in names:
        subprocess.run(
            [*command, name, "make it snowy", *EDIT, "-o", f"alone-{name}"], cwd=folder, check=True, stdout=-3
        )
    alone = time.perf_counter() - begin
    begin = time.perf_counter()
    subprocess.run(
        [*command, *names, "-i", "make it snowy", *EDIT, "--out-dir", "out"], cwd=folder, check=True, stdout=-3
    )
    together = time.perf_counter() - begin
    return {"clips": CLIPS, "seconds_of_commands": alone, "seconds_with_one_load": together, "ratio": alone / together}


def _of_children() -> float:
    """Processor seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def main(names: list[str]) -> None:
    wanted = names or ["overhead", "status", "table", "load"]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="kiwi-batch-") as scratch:
        for name in wanted:
            folder = Path(scratch) / ("overhead" if name == "status" else name)
            folder.mkdir(exist_ok=True)
            found[name] = globals()[name](folder)
            for key, value in found[name].items():
                print(f"{name:<10}{key:<40}{value:>10.4g}")
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
