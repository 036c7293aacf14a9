"""A folder of encoded tensors: safetensors shards whose keys say what was encoded, and an index of the rows.

    shard-00000.safetensors ...  tensors, each named by what it is and a hash of its input and of all settings
    index.json                   the rows in the table's order: which tensors each has, its prompt, kind and split

A shard is written beside its place and renamed, so there are whole shards only, and a tensor that is there need never
be encoded again: that is all there is to resuming. The index comes last; without it the cache is not complete.
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi_cli.errors import CheckpointError
from kiwi_cli.weights.tensorfile import Entry, TensorInfo, read_header, write_file

if TYPE_CHECKING:
    import torch

INDEX, FORMAT = "index.json", 1
SHARD_BYTES = 256 * 2**20
"""Data of a shard."""
SHARD_SECONDS = 120.0
"""After so long what is there is written even if it is less: more than that is not lost by a kill."""
SHARD_TENSORS = 20_000
"""Most tensors of a shard: 100 bytes of header each, far below `tensorfile.MAX_HEADER_BYTES`."""
SHARDS = "shard-[0-9]*.safetensors"
OPEN_SHARDS = 256  # mapped at a time


class CacheError(CheckpointError):
    """A cache of encoded data that is missing, unfinished, damaged, of another model, or cannot be written."""


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a complete cache.

    Raises:
        CacheError: no cache, an unfinished one, a damaged index, or one of another format.
    """
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if any(folder.glob(SHARDS)):
            raise CacheError(f"the cache '{folder}' is not complete", "run the same `kiwi data cache` again") from None
        raise CacheError(f"no cache in '{folder}'", "make one with `kiwi data cache TABLE --out DIR`") from None
    except (OSError, ValueError) as error:
        raise CacheError(f"cannot read '{path}': {error}", "run the same `kiwi data cache` again") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise CacheError(f"'{path}' is no index of this version's", "run `kiwi data cache` again with another --out")
    return index


@dataclass(frozen=True)
class Place:
    """Where a tensor is: number of its shard, its first byte there, its type and shape."""

    shard: int
    start: int
    dtype: str
    shape: tuple[int, ...]


class ShardReader:
    """Tensors by name, from whole shards, mapped into memory.

    Args:
        folder: may be missing: then there are none.
        repair: delete damaged shards instead of refusing them; `removed` names them.

    Raises:
        CacheError: a damaged shard.
    """

    def __init__(self, folder: Path, repair: bool = False) -> None:
        self.folder = folder
        self.paths: list[Path] = []
        self.where: dict[str, tuple[int, TensorInfo]] = {}
        self.removed: list[str] = []
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()
        for path in sorted(folder.glob(SHARDS)):
            try:
                infos = read_header(path)
            except CheckpointError as error:
                if not repair:
                    raise CacheError(error.message, "run the same `kiwi data cache` again") from error
                path.unlink()
                self.removed.append(path.name)
                continue
            self.where.update((key, (len(self.paths), info)) for key, info in infos.items())
            self.paths.append(path)

    def place(self, key: str) -> Place:
        """Where a tensor is.

        Raises:
            CacheError: it is not there.
        """
        try:
            number, info = self.where[key]
        except KeyError:
            raise CacheError(
                f"the cache '{self.folder}' lacks '{key}', which its index names",
                "run the same `kiwi data cache` again",
            ) from None
        return Place(number, info.start, info.dtype, info.shape)

    def tensor(self, place: Place) -> torch.Tensor:
        """One tensor, mapped: its pages are read when it is used. Writing to it changes no file.

        Raises:
            CacheError: its shard has been deleted.
        """
        import torch

        from kiwi_cli.weights.files import torch_dtype

        count, data = math.prod(place.shape), self._map(place.shard)
        flat = torch.frombuffer(data, dtype=torch_dtype(place.dtype), count=count, offset=place.start)
        return flat.reshape(place.shape)

    def _map(self, number: int) -> mmap.mmap:
        found = self._maps.pop(number, None)
        if found is None:
            try:
                with self.paths[number].open("rb") as file:
                    found = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except OSError as error:
                raise CacheError(
                    f"cannot read '{self.paths[number]}': {error.strerror or error}",
                    "run the same `kiwi data cache` again",
                ) from error
        self._maps[number] = found
        if len(self._maps) > OPEN_SHARDS:
            self._maps.popitem(last=False)  # unmapped when the last tensor on it is gone
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_maps": OrderedDict()}  # a worker process maps for itself


class ShardWriter:
    """Collects tensors and writes them in whole shards.

    Args:
        folder: made if it is missing.
        known: what is there already.
        shard_bytes: data of a shard.
        tag: after the number of each shard's name.

    Raises:
        CacheError: the folder cannot be made.
    """

    def __init__(self, folder: Path, known: ShardReader, shard_bytes: int = SHARD_BYTES, tag: str = "") -> None:
        self.folder, self.shard_bytes, self.tag = folder, shard_bytes, tag
        self.shapes: dict[str, tuple[int, ...]] = {key: info.shape for key, (_, info) in known.where.items()}
        self.written = 0  # bytes
        self._waiting: dict[str, torch.Tensor] = {}
        self._bytes, self._since = 0, time.monotonic()
        self._next = 1 + max((int(path.stem.split("-")[1]) for path in known.paths), default=-1)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob("*.part"):
                left.unlink()

    def __contains__(self, key: str) -> bool:
        return key in self.shapes

    def add(self, key: str, tensor: torch.Tensor) -> None:
        """Take a tensor, of float32, bfloat16, float16 or int; writes a shard when there is enough for one."""
        self._waiting[key] = tensor.detach().cpu().contiguous()
        self.shapes[key] = tuple(tensor.shape)
        self._bytes += tensor.numel() * tensor.element_size()
        full = self._bytes >= self.shard_bytes or len(self._waiting) >= SHARD_TENSORS
        if full or time.monotonic() - self._since >= SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting.

        Raises:
            CacheError: the disk is full, or cannot be written to. Shards written before stay.
        """
        self._since = time.monotonic()
        if not self._waiting:
            return
        path = self.folder / f"shard-{self._next:05d}{self.tag}.safetensors"
        entries = [_entry(key, tensor) for key, tensor in self._waiting.items()]
        replace_file(path, lambda part: write_file(part, entries))
        self._next += 1
        self.written += self._bytes
        self._waiting, self._bytes = {}, 0

    def finish(self, index: Mapping[str, Any]) -> None:
        """Write what is waiting, then the index.

        Raises:
            CacheError: as `flush`.
        """
        self.flush()
        text = json.dumps({"format": FORMAT, **index}, ensure_ascii=False, separators=(",", ":"))
        replace_file(self.folder / INDEX, lambda part: part.write_text(text + "\n", encoding="utf-8"))

    def unused(self, wanted: set[str], prune: bool) -> list[str]:
        """The shards none of whose tensors is wanted, deleted if so asked."""
        found = [path for path in sorted(self.folder.glob(SHARDS)) if wanted.isdisjoint(read_header(path))]
        for path in found if prune else ():
            path.unlink()
        return [path.name for path in found]


def _entry(key: str, tensor: torch.Tensor) -> Entry:
    import torch

    name = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int32: "I32"}[tensor.dtype]
    data = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    return Entry(key, name, tuple(tensor.shape), lambda: [data])


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a name beside `path` and rename that to it; nothing is left behind when it fails.

    Raises:
        CacheError: it cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    with writing(path):
        try:
            write(part)
            os.replace(part, path)  # noqa: PTH105 (named as what it does)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError while `path` is written into a CacheError."""
    try:
        yield
    except OSError as error:
        kept = "what was written before is kept: run the same command again to go on"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CacheError(f"the disk is full: cannot write '{path}'", f"free some space; {kept}") from error
        reason = error.strerror or str(error)
        raise CacheError(f"cannot write '{path}': {reason}", "choose another folder with --out") from error


def total_bytes(folder: Path) -> int:
    """Bytes of a cache's files."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
