"""Time and peak of resident memory of opening and building a checkpoint, on the CPU.

    python benchmarks/random_checkpoint.py /tmp/kiwi-5b
    python benchmarks/load_checkpoint.py /tmp/kiwi-5b

Prints a line per step, then one JSON line. Run it in a fresh process: the peak is the process's own.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from kiwi_cli.base.hardware import peak_resident


def peak() -> float:
    """Largest resident memory so far, GB."""
    return (peak_resident() or 0) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    row: dict[str, float | str] = {"checkpoint": str(options.checkpoint), "dtype": options.dtype}

    begin = time.perf_counter()
    from kiwi_cli.weights import check_layout, open_all

    check_layout(options.checkpoint)
    parts = open_all(options.checkpoint)
    sizes: dict[str, int] = {}
    for (part, _), files in parts.items():
        sizes[part] = sizes.get(part, 0) + sum(info.stop - info.start for info in files.infos.values())
    row |= {
        "opened_s": time.perf_counter() - begin,
        "opened_peak_gb": peak(),
        "largest_part_gb": max(sizes.values()) / 1e9,
    }
    row["total_gb"] = sum(sizes.values()) / 1e9
    print(f"opened, every header and index checked   {row['opened_s']:6.2f} s   peak {row['opened_peak_gb']:.2f} GB")

    begin = time.perf_counter()
    import torch

    from kiwi_cli.model.checkpoint import load_parts

    row |= {"imports_s": time.perf_counter() - begin, "imports_peak_gb": peak()}
    print(f"torch, diffusers, transformers imported  {row['imports_s']:6.2f} s   peak {row['imports_peak_gb']:.2f} GB")

    begin = time.perf_counter()
    loaded = load_parts(options.checkpoint, getattr(torch, options.dtype), "cpu")
    row |= {"built_s": time.perf_counter() - begin, "built_peak_gb": peak()}
    assert not any(p.is_meta for p in loaded.transformer.parameters())
    print(f"built in {options.dtype:<32}{row['built_s']:6.2f} s   peak {row['built_peak_gb']:.2f} GB")
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}))


if __name__ == "__main__":
    main()
