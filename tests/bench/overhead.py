"""What the harness itself costs: 431 miniature items before a judge on loopback, edits bypassed.

    python -m tests.bench.overhead [--items 431] [--concurrency 16] [--pace 0.2] [--judge gemini]

Prints seconds an item beyond the judge's own time, and the process's memory as it goes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import miniature
from .conftest import edited_run
from .judge_server import KEY, Service, serve


def resident(pid: int) -> float:
    """Megabytes of a process now; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS:")), 0.0)


def measure(
    folder: Path, count: int, concurrency: int, pace: float, judge: str, service: Service
) -> tuple[float, list[tuple[int, float]]]:
    """Seconds of the whole command from the first question to its end, and (items done, megabytes)."""
    data = folder / "data"
    data.mkdir()
    rows = tuple((miniature.OPENVE_TYPES[k % 8], f"do it {k}", "videos/0_0.mp4") for k in range(count - 8))
    miniature.openve(data, extra=rows)
    run = edited_run(folder / "run", "openve", data)
    assert len(run.items) == count
    service.pace, service.keep_bodies = pace, False
    url = ("--judge-url", service.url if judge == "gemini" else f"{service.url}/v1", "--judge-model", "judge")
    command = [sys.executable, "-m", "kiwi_cli", "bench", "openve", "--stage", "judge", "--out", str(run.folder)]
    command += ["--judge", judge, *url, "--concurrency", str(concurrency), "-q"]
    environment = {**os.environ, "GEMINI_API_KEY": KEY, "KIWI_JUDGE_KEY": KEY, "NO_PROXY": "127.0.0.1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    begin, samples = 0.0, []
    while process.poll() is None:
        if service.total and not begin:
            begin = time.perf_counter()
        if begin:
            samples.append((service.total, resident(process.pid)))
        time.sleep(0.02)
    seconds = time.perf_counter() - begin
    assert process.returncode == 0 and service.total == count, (process.returncode, service.total)
    return seconds, [sample for sample in samples if sample[1]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=431)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--pace", type=float, default=0.2, help="seconds the judge takes for an answer")
    parser.add_argument("--judge", choices=("gemini", "openai"), default="gemini")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serve() as service:
        seconds, samples = measure(
            Path(folder), options.items, options.concurrency, options.pace, options.judge, service
        )
        ideal = options.items * options.pace / options.concurrency
        early = [size for done, size in samples if options.items * 0.2 <= done < options.items * 0.4]
        late = [size for done, size in samples if done >= options.items * 0.8]
        overhead = 1000 * (seconds - ideal) / options.items
        sys.stdout.write(
            f"{options.items} items, {options.judge}, {options.concurrency} at once, {options.pace:g} s an answer: "
            f"{seconds:.2f} s, of which the judge {ideal:.2f} s; overhead {overhead:.1f} ms an item\n"
            f"memory: {statistics.median(early):.0f} MB after a fifth, {statistics.median(late):.0f} MB at the end, "
            f"{max(size for _, size in samples):.0f} MB at most; most at once {service.most_busy}\n"
        )


if __name__ == "__main__":
    main()
