"""Fills the tables of docs/performance.md on a machine with a CUDA GPU: one command, random full-size weights.

    python benchmarks/gpu.py --out results --minutes 25
    python benchmarks/gpu.py --rehearse --out results

Each case is a process of `kiwi bench speed`, most worth first, so that a run that is cut short leaves the figures that
matter. Every result is appended to results/speed.jsonl as it comes; the same command goes on where it stopped. The
tables are printed, and written to results/speed.md after each case.

A rehearsal runs the same cases with a tiny model on the CPU, to see that all of this works; its files are called
rehearsal, and every line of it says that it is no figure of a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FULL = ("--model", "5b", "--size", "1280x704", "--frames", "81", "--device", "cuda")
TINY = ("--model", "small", "--size", "64x64", "--frames", "5", "--device", "cpu")
LIMIT = 480.0  # seconds a case may take, so that one that hangs does not take the time of all others
LEAST = 20.0  # seconds without which no case is begun

# Names of cases -> options, by worth. Latents and frames are compared with those of UNCAPPED.
UNCAPPED, CAPPED = "no cap", ("cap 24 GB", "cap 16 GB", "cap 12 GB", "cap 8 GB")
CASES: dict[str, str] = {
    "50 steps": "--steps 50 --warmups 1 --repeats 1",
    "50 steps, compiled": "--steps 50 --warmups 1 --repeats 1 --compile",
    UNCAPPED: "--steps 4 --warmups 0 --repeats 1",
    "cap 24 GB": "--steps 4 --warmups 0 --repeats 1 --max-memory 24GB",
    "cap 16 GB": "--steps 4 --warmups 0 --repeats 1 --max-memory 16GB",
    "cap 12 GB": "--steps 4 --warmups 0 --repeats 1 --max-memory 12GB",
    "plain library": "--steps 4 --warmups 1 --repeats 2 --against diffusers",
    "50 steps, reference": "--steps 50 --warmups 0 --repeats 1 --reference",
    "fp8, compiled": "--steps 10 --warmups 1 --repeats 1 --quantize fp8 --compile",
    "attention sdpa": "--steps 4 --warmups 1 --repeats 1 --attention sdpa",
    "attention flash3": "--steps 4 --warmups 1 --repeats 1 --attention flash3",
    "attention cudnn": "--steps 4 --warmups 1 --repeats 1 --attention cudnn",
    "attention flash": "--steps 4 --warmups 1 --repeats 1 --attention flash",
    "attention sage": "--steps 4 --warmups 1 --repeats 1 --attention sage",
    "cap 8 GB": "--steps 4 --warmups 0 --repeats 1 --max-memory 8GB",
    "cache easy": "--steps 20 --warmups 0 --repeats 1 --cache easy --cache-threshold 0.2",
    "cache first-block": "--steps 20 --warmups 0 --repeats 1 --cache first-block --cache-threshold 0.2",
    "cache sea": "--steps 20 --warmups 0 --repeats 1 --cache sea",
    "unipc": "--steps 20 --warmups 0 --repeats 1 --solver unipc",
    "int8": "--steps 4 --warmups 1 --repeats 1 --quantize int8",
    "fp8-storage": "--steps 4 --warmups 1 --repeats 1 --quantize fp8-storage",
}

# Of a rehearsal: caps that make the tiny model release, swap and stream, and one below what works.
REHEARSED = {"24GB": "613MB", "16GB": "613MB", "12GB": "610.7MB", "8GB": "605MB", "50": "3", "10": "3", "20": "12"}
REHEARSAL = "REHEARSAL on a CPU with a tiny model: no figure of a GPU"

TARGETS = (  # of docs/performance.md: label, case, seconds, stages that are summed
    ("50 steps, bf16, nothing skipped", "50 steps, compiled", 22.0, ("denoise",)),
    ("decode, bf16", "50 steps, compiled", 2.2, ("decode",)),
    ("encode and instruction", "50 steps, compiled", 0.8, ("encode", "instruction")),
    ("file to file, warm", "50 steps, compiled", 26.0, ("file",)),
)
SHOWN = ("instruction", "encode", "denoise", "decode", "write", "compile", "first", "file")

Record = dict[str, Any]


def options_of(case: str, rehearse: bool) -> list[str]:
    """What `kiwi bench speed` is given for a case."""
    words = CASES[case].split()
    if rehearse:
        return [*TINY, *(REHEARSED.get(word, word) for word in words)]
    return [*FULL, *words]


def run(name: str, arguments: Sequence[str], seconds: float) -> Record:
    """One process; a failure or a time-out is a result too.

    Args:
        arguments: after `python`. seconds: it may take.
    """
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        # In files, and in a group of its own: compilation starts workers, which outlive it and would hold a pipe.
        process = subprocess.Popen([sys.executable, *arguments], stdout=out, stderr=err, start_new_session=True)
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            stop(process)
        result: Record = {"case": name, "wall": time.monotonic() - begin}
        if code is None:
            return {**result, "error": f"not done after {seconds:.0f} s"}
        out.seek(0)
        err.seek(0)
        said, told = out.read(), err.read()
    if code:
        return {**result, "error": reason(code, told), "stderr": told[-4000:]}
    try:
        return {**result, **json.loads(said)}
    except ValueError:
        return {**result, "error": f"no JSON came out: '{' '.join(said[:80].split())}'", "stderr": told[-4000:]}


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def reason(code: int, told: str) -> str:
    """Why a process failed, in one line: its own error, else the last thing it said."""
    if code < 0:
        return f"ended by signal {-code}"
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    own = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (own or lines[-1:] or [f"exit code {code}"])[-1][:200]


def compare(uncapped: Path, capped: Path) -> Record:
    """How far the final latents and frames of two runs are apart; empty when one of them is not there."""
    if not all((folder / "frames.npy").is_file() for folder in (uncapped, capped)):
        return {}
    frames, others = (np.load(folder / "frames.npy", mmap_mode="r") for folder in (uncapped, capped))
    latents, theirs = (np.load(folder / "latents.npy") for folder in (uncapped, capped))
    differences = [int(np.abs(a.astype(np.int16) - b).max()) for a, b in zip(frames, others, strict=True)]
    error = float(np.linalg.norm(latents - theirs) / np.linalg.norm(latents))
    return {"latents_error": error, "frames_largest_difference": max(differences)}


# -- tables -------------------------------------------------------------------------------------------------


def tables(results: Sequence[Record], rehearse: bool) -> str:
    """Markdown: where and with what, a line for each case, the targets, the caps, the plain library."""
    found = {result["case"]: result for result in results if "error" not in result}
    lines = [f"**{REHEARSAL}**", ""] if rehearse else []
    for result in found.values():
        versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        line = f"{result['device']}, driver {result['driver'] or 'none'}, {result['date'][:10]}; {versions}"
        lines += [line] if line not in lines else []
    prefix = "rehearsal: " if rehearse else ""
    heads = ["case", "step, s", "TFLOP/s", "of the floor", *(f"{name}, s" for name in SHOWN), "allocated, GB"]
    lines += ["", "| " + " | ".join([*heads, "reserved, GB", "process, s"]) + " |", "|---" * (len(heads) + 2) + "|"]
    lines += [f"| {prefix}{result['case']} | {' | '.join(row(result))} |" for result in results]
    lines += ["", "| target | s | measured, s |", "|---|---|---|"]
    for label, case, target, stages in TARGETS:
        measured = f"{sum(found[case]['stages'][stage] for stage in stages):.2f}" if case in found else "not measured"
        lines.append(f"| {prefix}{label} | {target:g} | {measured} |")
    lines += ["", f"| cap | plan | allocated, GB | latents, frames: as with {UNCAPPED} |", "|---|---|---|---|"]
    lines += [f"| {prefix}{case} | {' | '.join(capped(found, case))} |" for case in CAPPED if case in found]
    for case, result in found.items():
        for stage, seconds in result["library"].items():
            ratio = seconds / result["stages"][stage]
            lines += ["", f"{prefix}{case}: {stage} {seconds:.3f} s with the library, {ratio:.2f} times ours"]
    lines += ["", *(f"- {prefix}{case}: {line}" for case, r in found.items() for line in r["approximations"])]
    return "\n".join(lines) + "\n"


def row(result: Record) -> list[str]:
    """The cells of a case after its name."""
    if "error" in result:
        return [result["error"].replace("|", "/"), *[""] * (len(SHOWN) + 4), f"{result['wall']:.0f}"]
    stages, memory = result["stages"], result["memory"]
    return [
        f"{stages['step']:.3f}",
        f"{result['step_tflops']:.3g}",
        f"{100 * result['step_share']:.0f} %",
        *(f"{stages[name]:.2f}" if name in stages else "" for name in SHOWN),
        *(f"{memory[name] / 1e9:.1f}" if name in memory else "" for name in ("allocated", "reserved")),
        f"{result['wall']:.0f}",
    ]


def capped(found: dict[str, Record], case: str) -> list[str]:
    """The cells of a capped run: plan, peak, and whether its result is the uncapped one's to the bit."""
    result, other = found[case], found.get(UNCAPPED)
    peak = result["memory"].get("allocated")
    if other is None or other["request"]["steps"] != result["request"]["steps"]:
        verdict = "nothing to compare with"
    else:
        verdict = ", ".join("equal" if result[name] == other[name] else "NOT equal" for name in ("latents", "pixels"))
        if result.get("latents_error"):
            verdict += f"; latents {result['latents_error']:.1e} apart, pixels {result['frames_largest_difference']}"
    return [result["plan"].removeprefix("memory: "), "" if peak is None else f"{peak / 1e9:.1f}", verdict]


# -- the run ------------------------------------------------------------------------------------------------


def has_cuda() -> bool:
    """Whether torch can use a GPU here."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def read(path: Path) -> dict[str, Record]:
    """The results that are there already, by case; a later one of a case replaces an earlier one."""
    if not path.is_file():
        return {}
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {record["case"]: record for record in records}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    parser.add_argument("--minutes", type=float, default=25.0, help="no case is begun or goes on after that")
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--again", action="store_true", help="also the cases that are done already")
    parser.add_argument("--rehearse", action="store_true", help="a tiny model on the CPU, to try this script")
    options = parser.parse_args(arguments)
    if not options.rehearse and not has_cuda():
        sys.exit("error: torch finds no CUDA GPU here\n\nhint: --rehearse tries the script on the CPU")
    if options.rehearse:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of a tiny model only wait for each other
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / ("rehearsal" if options.rehearse else "speed")
    results = read(stem.with_suffix(".jsonl"))
    done = [] if options.again else [name for name, record in results.items() if "error" not in record]
    deadline = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            left = deadline - time.monotonic()
            if name in done or left < LEAST:
                continue
            given = options_of(name, options.rehearse)
            here, there = Path(folder) / UNCAPPED, Path(folder) / name
            keep = ["--save", str(there)] if name in (UNCAPPED, *CAPPED) else []
            record = run(name, ["-m", "kiwi_cli", "bench", "speed", *given, *keep, "--json", "-q"], min(left, LIMIT))
            record |= {"command": "kiwi bench speed " + " ".join(given), "rehearsal": options.rehearse}
            results[name] = record | (compare(here, there) if name in CAPPED else {})
            with stem.with_suffix(".jsonl").open("a") as file:
                file.write(json.dumps(results[name]) + "\n")
            stem.with_suffix(".md").write_text(tables(list(results.values()), options.rehearse))
            label = f"[{REHEARSAL}] " if options.rehearse else ""
            print(f"{label}{name}: {record.get('error') or record['stages']}", file=sys.stderr, flush=True)
    print(tables(list(results.values()), options.rehearse), end="")
    if missing := [name for name in options.only if name not in results]:
        print(f"not begun for lack of time: {', '.join(missing)}; the same command goes on", file=sys.stderr)


if __name__ == "__main__":
    main()
