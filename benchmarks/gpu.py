"""Fills the tables of docs/performance.md on a machine with a CUDA GPU: one command, random full-size weights.

    python benchmarks/gpu.py --out results --minutes 25

Each case is a process of `kiwi bench speed`, most worth first, so that a run that is cut short leaves the figures that
matter. Every result is appended to results/speed.jsonl as it comes; the tables are printed, and written beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FULL = ("--model", "5b", "--size", "1280x704", "--frames", "81")
CASES: dict[str, tuple[str, ...]] = {
    "50 steps": (*FULL, "--steps", "50", "--warmups", "0", "--repeats", "1"),
    "50 steps, compiled": (*FULL, "--steps", "50", "--warmups", "1", "--repeats", "1", "--compile"),
    "reference": (*FULL, "--steps", "10", "--repeats", "1", "--reference"),
    "cap 24 GB": (*FULL, "--steps", "4", "--warmups", "0", "--repeats", "1", "--max-memory", "24GB"),
    "cap 16 GB": (*FULL, "--steps", "4", "--warmups", "0", "--repeats", "1", "--max-memory", "16GB"),
    "cap 12 GB": (*FULL, "--steps", "4", "--warmups", "0", "--repeats", "1", "--max-memory", "12GB"),
    "no cap": (*FULL, "--steps", "4", "--warmups", "0", "--repeats", "1"),
    "plain library": (*FULL, "--steps", "4", "--repeats", "2", "--against", "diffusers"),
    "sdpa": (*FULL, "--steps", "4", "--repeats", "1", "--attention", "sdpa"),
    "cap 8 GB": (*FULL, "--steps", "2", "--warmups", "0", "--repeats", "1", "--max-memory", "8GB"),
}


def run(name: str, arguments: tuple[str, ...], seconds: float) -> dict[str, Any]:
    """One case; a failure or a time-out is a result too."""
    command = [sys.executable, "-m", "kiwi_cli", "bench", "speed", *arguments, "--device", "cuda", "--json", "-q"]
    begin = time.monotonic()
    result: dict[str, Any] = {"case": name, "command": "kiwi bench speed " + " ".join(arguments)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {**result, "error": f"not done after {seconds:.0f} s"}
    result["wall"] = time.monotonic() - begin
    if done.returncode:
        return {**result, "error": done.stderr.strip()[-2000:]}
    return {**result, **json.loads(done.stdout)}


def tables(results: list[dict[str, Any]]) -> str:
    """Markdown: a line for each case, then what the caps gave."""
    lines = [
        "| case | step, s | TFLOP/s | of matrix | denoise, s | encode, s | decode, s | file to file, s | peak, GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        if "error" in result:
            lines.append(f"| {result['case']} | {result['error'].splitlines()[-1][:80]} | | | | | | | |")
            continue
        stages, memory = result["stages"], result["memory"]
        cells = [
            f"{stages['step']:.3f}",
            f"{result['step_tflops']:.0f}",
            f"{100 * result['step_share']:.0f} %",
            *(f"{stages[name]:.2f}" for name in ("denoise", "encode", "decode", "file")),
            f"{memory.get('allocated', memory['resident']) / 1e9:.1f}",
        ]
        lines.append(f"| {result['case']} | " + " | ".join(cells) + " |")
    hashes = {r["case"]: r["latents"][:12] for r in results if "latents" in r and ("cap" in r["case"])}
    lines += ["", "Final latents of the capped runs, sha256: " + ", ".join(f"{k}: {v}" for k, v in hashes.items())]
    plans = {r["case"]: r["plan"] for r in results if "plan" in r and "cap" in r["case"]}
    lines += ["", *(f"- {case}: {plan}" for case, plan in plans.items())]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * options.minutes
    results = []
    for name in options.only:
        left = deadline - time.monotonic()
        if left < 20:
            break
        results.append(run(name, CASES[name], left))
        with (options.out / "speed.jsonl").open("a") as file:
            file.write(json.dumps(results[-1]) + "\n")
        print(name, results[-1].get("stages", results[-1].get("error")), flush=True)
    text = tables(results)
    (options.out / "speed.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
