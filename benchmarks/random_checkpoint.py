"""Write a random checkpoint in the released layout, tensor by tensor, from the released model's keys and shapes.

    python benchmarks/random_checkpoint.py /tmp/kiwi-5b              # 19 GB, as the released one in bf16
    python benchmarks/random_checkpoint.py /tmp/kiwi-2 --layers 2    # the same widths, 2 layers of each kind: 3.6 GB

Values are small and random, norms are one: every kernel has its real work, and results are finite. The tokenizer is
the small checkpoint's; its ids go into the Qwen config, so that the checkpoint runs. The same arguments give the
same bytes.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from kiwi_cli.weights import torch_dtype
from kiwi_cli.weights.assemble import DTYPES
from kiwi_cli.weights.convert import MODEL_INDEX, SCHEDULER
from kiwi_cli.weights.layout import STEM, TOKENIZER_OPTIONAL
from kiwi_cli.weights.tensorfile import Entry, write_json, write_part

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
SMALL = ROOT / "examples" / "checkpoint"

PARTS = (  # part of the manifest, folder, stem, largest file (the released transformer is one of 10 GB)
    ("transformer", "transformer", STEM, 20_000_000_000),
    ("vae", "vae", STEM, 5_000_000_000),
    ("mllm_encoder_qwen_shards", "mllm_encoder", "model", 5_000_000_000),
    ("mllm_encoder", "mllm_encoder", STEM, 5_000_000_000),
    ("source_embedder", "source_embedder", STEM, 5_000_000_000),
    ("ref_embedder", "ref_embedder", STEM, 5_000_000_000),
)
POOL = 2**22  # random values, repeated from another place for each tensor
NORM = re.compile(r"(norm\w*|ln_q|gamma|residual\.[03]|head\.0)\.?(weight|gamma)?$")


@cache
def pool(dtype: torch.dtype) -> torch.Tensor:
    """Values of a normal distribution, standard deviation 0.02."""
    return (torch.randn(POOL, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)


def entry(key: str, shape: tuple[int, ...], dtype: str) -> Entry:
    """A random tensor, or ones for a norm."""
    count = 1
    for size in shape:
        count *= size

    def pieces() -> Iterator[memoryview]:
        kind = torch_dtype(dtype)
        values = torch.ones(POOL, dtype=kind) if NORM.search(key) else pool(kind)
        start, left = zlib.crc32(key.encode()) % POOL, count
        while left:
            piece = values[start : start + left]
            yield memoryview(piece.view(torch.uint8).numpy())
            left -= len(piece)
            start = 0

    return Entry(key, dtype, shape, pieces)


def shapes_of(part: Mapping[str, Any], layers: int | None) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a part, its blocks cut off after `layers`."""
    block = re.compile(r"^(?:visual\.blocks|model\.layers|blocks)\.(\d+)\.")
    kept = {}
    for key, shape in part.items():
        match = block.match(key)
        if layers is None or match is None or int(match[1]) < layers:
            kept[key] = tuple(shape)
    return kept


def configs_of(layers: int | None) -> dict[str, dict[str, Any]]:
    """The released configs, with the small tokenizer's ids."""
    configs = json.loads((DATA / "released-5b-configs.json").read_text())
    small = json.loads((SMALL / "processor/qwen_config.json").read_text())
    qwen = configs["qwen"]
    for name, value in small.items():
        if name.endswith("token_id"):
            qwen[name] = value
    if layers is not None:
        configs["transformer"]["num_layers"] = layers
        text = qwen.get("text_config", qwen)
        text["num_hidden_layers"] = layers
        text.pop("layer_types", None)
        qwen["vision_config"]["depth"] = layers
        qwen["vision_config"]["fullatt_block_indexes"] = [layers - 1]
    return configs


def write(out: Path, dtype: str = "bfloat16", layers: int | None = None) -> int:
    """Write a checkpoint; returns the bytes of its weights."""
    manifest = json.loads((DATA / "released-5b-manifest.json").read_text())
    total = 0
    for part, folder, stem, largest in PARTS:
        entries = [entry(k, shape, DTYPES[dtype]) for k, shape in shapes_of(manifest[part], layers).items()]
        write_part(out / folder, stem, entries, largest)
        total += sum(e.nbytes for e in entries)
    configs = configs_of(layers)
    for folder in ("transformer", "vae", "mllm_encoder", "source_embedder", "ref_embedder"):
        write_json(out / folder / "config.json", configs[folder])
    write_json(out / "processor/qwen_config.json", configs["qwen"])
    write_json(out / "scheduler/scheduler_config.json", SCHEDULER)
    write_json(out / "model_index.json", MODEL_INDEX)
    for name in ("preprocessor_config.json", "tokenizer_config.json", "tokenizer.json", *TOKENIZER_OPTIONAL):
        if (SMALL / "processor" / name).is_file():
            shutil.copyfile(SMALL / "processor" / name, out / "processor" / name)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16")
    parser.add_argument("--layers", type=int, help="keep this many layers of the transformer and of both Qwen towers")
    options = parser.parse_args()
    begin = time.perf_counter()
    total = write(options.out, options.dtype, options.layers)
    seconds = time.perf_counter() - begin
    print(json.dumps({"out": str(options.out), "bytes": total, "seconds": round(seconds, 1)}))


if __name__ == "__main__":
    main()
