"""A checkpoint in the released layout, put together tensor by tensor: the peak is one tensor, not one model.

A `Result` says what goes where; `write` makes the folder appear when it is whole. The same inputs give the same
bytes. A released checkpoint can be put together again from itself, in other shards or another precision.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from kiwi_cli.base.events import SILENT, Events
from kiwi_cli.base.failures import writing_hint
from kiwi_cli.base.text import format_bytes
from kiwi_cli.errors import CheckpointError, UsageError
from kiwi_cli.weights.cache import free_bytes
from kiwi_cli.weights.files import TensorFiles, check_layout, is_saved, open_all, torch_dtype
from kiwi_cli.weights.layout import RELEASED
from kiwi_cli.weights.tensorfile import ITEM_BYTES, Entry, read_pieces, write_json, write_part

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
MAX_SHARD_BYTES = 5_000_000_000
"""The Hub's own habit; a 10 GB transformer becomes two files."""


@dataclass(frozen=True)
class Lora:
    """One low-rank difference in a raw checkpoint: keys of its two factors, and of its alpha if it has one."""

    down: str
    up: str
    alpha: str | None = None


@dataclass(frozen=True)
class Source:
    """Where a tensor of the result comes from; without `key`, zeros of that shape."""

    files: TensorFiles | None
    key: str
    shape: tuple[int, ...]
    lora: tuple[TensorFiles, Lora] | None = None

    @property
    def dtype(self) -> str:
        """The precision that loses nothing: the stored one, or the wider of what is merged."""
        if self.files is None:
            return "F32"
        stored = self.files.infos[self.key].dtype
        if self.lora is None:
            return stored
        added = self.lora[0].infos[self.lora[1].up].dtype
        return stored if stored == added else "F32"

    def entry(self, name: str, dtype: str | None) -> Entry:
        """As a tensor to be written; `dtype` None keeps its own."""
        kept = dtype or self.dtype
        return Entry(name, kept, self.shape, lambda: self._pieces(kept))

    def _pieces(self, dtype: str) -> Iterable[bytes | memoryview]:
        import torch

        if self.files is None:
            yield bytes(ITEM_BYTES[dtype] * prod(self.shape))
            return
        path, info = self.files.where[self.key], self.files.infos[self.key]
        if self.lora is not None:
            merged = self.files.tensor(self.key).to(torch.float32)
            merged += lora_difference(*self.lora).reshape(merged.shape)
            yield tensor_bytes(merged.to(torch_dtype(dtype)))
        elif info.dtype == dtype:
            yield from read_pieces(path, info)
        else:
            for piece in read_pieces(path, info):
                values = torch.frombuffer(bytearray(piece), dtype=torch_dtype(info.dtype))
                yield tensor_bytes(values.to(torch_dtype(dtype)))


def tensor_bytes(tensor: Any) -> memoryview:
    """The bytes of a tensor on the CPU, without a copy where it lies in one piece."""
    import torch

    flat = tensor.contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")


def lora_difference(files: TensorFiles, lora: Lora) -> Any:
    """B A in fp32, scaled by alpha / rank; alpha is the rank when the file does not say."""
    down, up = files.tensor(lora.down).float().flatten(1), files.tensor(lora.up).float().flatten(1)
    scale = float(files.tensor(lora.alpha)) / down.shape[0] if lora.alpha else 1.0
    return (up @ down) * scale


@dataclass
class Result:
    """A checkpoint in the released layout, planned.

    Attributes:
        entries: (folder, stem) -> tensors.
        configs: path -> JSON.
        copies: path -> file copied as it is.
        notes: what the person should know.
    """

    entries: dict[tuple[str, str], list[Entry]] = field(default_factory=dict)
    configs: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    copies: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Size of the weights."""
        return sum(entry.nbytes for entries in self.entries.values() for entry in entries)

    def add(self, part: str, stem: str, sources: Mapping[str, Source], dtype: str | None) -> None:
        """A part's tensors, in one precision."""
        self.entries[part, stem] = [source.entry(name, dtype) for name, source in sources.items()]


def plan_reshard(folder: Path, dtype: str | None = None) -> Result:
    """A checkpoint in the released layout as it is, or in another precision.

    Raises:
        CheckpointError: it is not one, or not whole.
    """
    check_layout(folder)
    if is_saved(folder):
        raise CheckpointError(f"'{folder}' is a saved pipeline", "convert the checkpoint that it was made of")
    result = Result()
    for (part, stem), files in open_all(folder).items():
        sources = {key: Source(files, key, info.shape) for key, info in files.infos.items()}
        result.add(part, stem, sources, file_dtype(dtype) if dtype else None)
    for path in (*RELEASED.required, *RELEASED.optional):
        if (folder / path).is_file():
            result.copies[path] = folder / path
    return result


def file_dtype(name: str) -> str:
    """'bfloat16' -> 'BF16'.

    Raises:
        UsageError: a precision weights are not stored in.
    """
    if name not in DTYPES:
        raise UsageError(f"unknown precision '{name}'", f"use one of {', '.join(DTYPES)}")
    return DTYPES[name]


def write(result: Result, out: Path, max_shard_bytes: int = MAX_SHARD_BYTES, events: Events = SILENT) -> None:
    """Write a planned checkpoint; the folder appears when it is whole.

    Raises:
        CheckpointError: it exists already, there is no room, or it cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"'{out}' exists already", "choose another folder, or delete it first")
    free = free_bytes(out)
    if result.bytes > free:
        raise CheckpointError(
            f"not enough room for '{out}': needs {format_bytes(result.bytes)}, {format_bytes(free)} free",
            "free some space, or choose another disk",
        )
    temporary = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        _write_into(result, temporary, max_shard_bytes, events)
        open_all(temporary)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except OSError as error:
        raise CheckpointError(f"cannot write '{out}': {error.strerror or error}", writing_hint(error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_into(result: Result, folder: Path, max_shard_bytes: int, events: Events) -> None:
    folder.mkdir(parents=True)
    for path, config in result.configs.items():
        write_json(folder / path, config)
    for path, source in result.copies.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / path)
    with events.transfer("writing", result.bytes) as counter:
        for (part, stem), entries in result.entries.items():
            write_part(folder / part, stem, entries, max_shard_bytes, counter.advance)
