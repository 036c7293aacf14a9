"""Run sections: python -m gpu_sections --results gpu.jsonl --sections smoke,step"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from gpu_sections.bench import Bench, Figures, values_on_trust
from gpu_sections.device import goldens, rates, smoke
from gpu_sections.modes import caps, compile_blocks, compile_decoder, edit, fp8
from gpu_sections.stages import decode, encode, library, reference, step

SECTIONS: dict[str, Callable[[Bench], Figures]] = {
    "smoke": smoke,
    "rates": rates,
    "goldens": goldens,
    "step": step,
    "encode": encode,
    "decode": decode,
    "reference": reference,
    "library": library,
    "compile": compile_blocks,
    "compiled-decode": compile_decoder,
    "edit": edit,
    "caps": caps,
    "fp8": fp8,
}


def run(names: list[str], path: Path, rehearse: bool) -> None:
    """Sections one after the other; each result is on the disk before the next begins."""
    from gpu import append

    state = path.with_suffix(".now")
    bench = Bench(rehearse)
    if bench.on_trust:
        print("this device computes nothing: a rehearsal that does not look at values", flush=True)
    for count, name in enumerate(names):
        state.write_text(",".join(names[: count + 1]))
        begin = time.perf_counter()
        record: Figures = {"section": name, "rehearsal": rehearse}
        try:
            with values_on_trust() if bench.on_trust else nullcontext():
                record |= SECTIONS[name](bench)
        except Exception as error:
            record["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            traceback.print_exc()
            traceback.clear_frames(error.__traceback__)
            bench.drop()
        record["seconds"] = time.perf_counter() - begin
        append(path, record)
        print(f"{name}: {record.get('error', 'done')}, {record['seconds']:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--sections", required=True)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    if options.rehearse and not torch.cuda.is_available():
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # threads of a tiny model only wait
    if not options.rehearse and not torch.cuda.is_available():
        sys.exit("error: torch finds no CUDA GPU here; --rehearse tries the script on the CPU")
    run(options.sections.split(","), options.results, options.rehearse)


if __name__ == "__main__":
    main()
