"""What an edit takes on a GPU, measured in nine minutes on random weights of the full size; nothing is downloaded.

    python benchmarks/gpu.py --only smoke,goldens,step --minutes 2.5
    python benchmarks/gpu.py --out results
    python benchmarks/gpu.py --rehearse --out results

The sections (gpu_sections/) run one after the other in one process, which draws the weights once and keeps them. This
process watches it: a section that fails, crashes or takes longer than its limit is a line that says so, and the
others go on in a new process. Every result is appended to results/gpu.jsonl as it comes, and the tables are written to
results/gpu.md; the same command goes on where it stopped. It runs from a checkout that is not installed.

A rehearsal runs the same sections with a tiny model, on the CPU where there is no GPU; its files are called rehearsal,
and every line of them says that it is no figure of a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_tables import tables

HERE = Path(__file__).resolve().parent
LIMITS = {  # seconds a section may take
    "smoke": 60,
    "rates": 45,
    "goldens": 60,
    "step": 75,
    "encode": 60,
    "decode": 75,
    "reference": 45,
    "library": 60,
    "compile": 150,
    "compiled-decode": 200,
    "edit": 60,
    "caps": 150,
    "fp8": 120,
}
MINUTES = 9.0
BEGIN = 30.0
"""Seconds that a new process has before its first section begins: torch is imported."""

Record = dict[str, Any]


def read(path: Path) -> dict[str, Record]:
    """The results in a file by section; a later one replaces an earlier one, and a torn last line counts as none."""
    found: dict[str, Record] = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                found[record["section"]] = record
    return found


def append(path: Path, record: Record) -> None:
    """One line, on the disk when this returns."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def environment() -> dict[str, str]:
    """This process's, with the sections and the package importable from a checkout that nobody installed."""
    paths = [str(HERE), str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Watch:
    """Runs sections in one process after another until each has a result or the time is up.

    Args:
        worker: the command that runs sections; their names, separated by commas, are appended.
        path: of the results. deadline: of `time.monotonic`. limits: seconds for each section, and `begin` more
            for the first of a process.
    """

    def __init__(
        self, worker: Sequence[str], path: Path, deadline: float, limits: dict[str, float], begin: float = BEGIN
    ) -> None:
        self.worker, self.path, self.deadline, self.limits, self.begin = worker, path, deadline, limits, begin

    def run(self, sections: Sequence[str]) -> list[str]:
        """The sections that were not begun for lack of time."""
        left = list(sections)
        while left and time.monotonic() < self.deadline:
            done = self.once(left)
            left = [name for name in left if name not in done]
        return left

    def once(self, sections: Sequence[str]) -> set[str]:
        """One process; the sections that have a result after it, at least one."""
        log = self.path.with_suffix(".log")
        state = self.path.with_suffix(".now")
        state.unlink(missing_ok=True)
        done: set[str] = set()
        with log.open("ab") as out:
            command = [*self.worker, ",".join(sections)]
            process = subprocess.Popen(command, stdout=out, stderr=out, env=environment(), start_new_session=True)
            began, now = time.monotonic(), ""
            try:
                while True:
                    code = process.poll()
                    current = state.read_text() if state.is_file() else ""
                    if current != now:
                        now, began = current, time.monotonic()
                    done = {name for name in sections if name in now.split(",")[:-1]}
                    section = now.split(",")[-1] or next(name for name in sections if name not in done)
                    if code is not None:
                        break
                    limit = self.limits[section] if now else self.begin + self.limits[section]
                    if time.monotonic() > min(began + limit, self.deadline):
                        break
                    time.sleep(0.1)
            finally:
                stop(process)
        if code == 0:
            return set(sections)
        took = time.monotonic() - began
        why = f"not done after {took:.0f} s" if code is None else f"the process ended with {code}: {last_line(log)}"
        append(self.path, {"section": section, "error": why, "seconds": took})
        print(f"{section}: {why}", file=sys.stderr, flush=True)
        return done | {section}


def last_line(log: Path) -> str:
    """What a process said last, at most 200 letters."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][-200:] if lines else "nothing said"


def chosen(text: str | None) -> list[str]:
    """Sections from 'a,b'.

    Raises:
        SystemExit: one that there is not.
    """
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in names:
        if name not in LIMITS:
            sys.exit(f"error: no section '{name}'\n\nhint: the sections are {', '.join(LIMITS)}")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and not there yet; print the tables. 1 when a section has no figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="everything ends after that")
    parser.add_argument("--only", metavar="A,B", help="these sections")
    parser.add_argument("--skip", metavar="A,B", help="all sections but these")
    parser.add_argument("--again", action="store_true", help="also the sections that have a figure already")
    parser.add_argument("--rehearse", action="store_true", help="a tiny model, to try this script")
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    skipped = chosen(options.skip)
    wanted = [name for name in chosen(options.only) or list(LIMITS) if name not in skipped]
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / ("rehearsal.jsonl" if options.rehearse else "gpu.jsonl")
    there = {} if options.again else read(path)
    todo = [name for name in wanted if "error" in there.get(name, {"error": ""})]
    worker = [sys.executable, "-W", "ignore", "-m", "gpu_sections", "--results", str(path)]
    worker += ["--rehearse"] if options.rehearse else []
    left = Watch([*worker, "--sections"], path, begin + 60 * options.minutes, LIMITS).run(todo)
    results = read(path)
    report = tables(results, options.rehearse)
    path.with_suffix(".md").write_text(report)
    print(report, end="")
    if left:
        print(f"not begun for lack of time: {', '.join(left)}; the same command goes on", file=sys.stderr)
    return int(any("error" in results.get(name, {"error": ""}) for name in wanted))


if __name__ == "__main__":
    sys.exit(main())
