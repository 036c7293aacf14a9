"""The safetensors format: headers read without trust, files written tensor by tensor.

    8 bytes, little-endian: length of the header | header: JSON | the tensors' bytes, one after another

The header says for each key its type, its shape and where its bytes are. All of it is checked against the size of
the file before a byte of data is read: a damaged file cannot load, and a hostile one cannot make us read much.
Writing needs one piece of one tensor in memory, and gives the same bytes for the same tensors.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiwi_cli.errors import CheckpointError

MAX_HEADER_BYTES = 16 * 2**20
"""A header of the 5B checkpoint is below 200 kB; the format's own limit is 100 MB."""

WEIGHT_TYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""The types weights come in, by their names in the format."""

ITEM_BYTES = dict(zip(WEIGHT_TYPES, (8, 4, 2, 2, 1, 1), strict=True)) | {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}
"""Bytes of a value. Integers occur beside weights: some trainers store a LoRA's alpha so."""

LFS_POINTER = b"version https://git-lfs"
"""How the few lines begin that stand in a repository for a file that is kept elsewhere."""

FETCH_HINT = "fetch the file again; `kiwi download MODEL --verify --repair` does it for a model from the Hub"


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is in its file.

    Attributes:
        dtype: name in the format, such as 'BF16'.
        shape: its dimensions.
        start, stop: of its bytes, counted from the beginning of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """What a safetensors file holds, in file order.

    Raises:
        CheckpointError: missing, truncated, padded, with a header that is too large or does not describe the file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise _damaged(path, "it is shorter than any header")
            if prefix == LFS_POINTER[:8]:
                raise lfs_pointer(path)
            (length,) = struct.unpack("<Q", prefix)
            if length > MAX_HEADER_BYTES or length > size - 8:
                raise _damaged(path, f"its header claims {length} bytes")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise CheckpointError(f"missing file: '{path}'", "fetch the checkpoint again") from None
    except OSError as error:
        raise CheckpointError(f"cannot read '{path}': {error.strerror or error}", "check the file's rights") from error
    except (ValueError, RecursionError):
        raise _damaged(path, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    infos = {key: _parse_entry(path, key, entry, 8 + length) for key, entry in header.items()}
    expected = 8 + length  # the format allows neither gaps nor overlaps
    for key, info in sorted(infos.items(), key=lambda item: (item[1].start, item[1].stop)):
        if info.start != expected:
            raise _damaged(path, f"the data of '{key}' does not follow the tensor before it")
        expected = info.stop
    if expected != size:
        raise _damaged(path, f"it has {size} bytes and its header describes {expected}")
    return infos


def read_metadata(path: Path) -> dict[str, str]:
    """The free text of a header (`__metadata__`); call `read_header` first."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        found = json.loads(file.read(min(length, MAX_HEADER_BYTES))).get("__metadata__")
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _parse_entry(path: Path, key: str, entry: Any, data: int) -> TensorInfo:
    try:
        dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, start, stop))
    except (TypeError, KeyError, ValueError):
        raise _damaged(path, f"its header says nothing usable of '{key}'") from None
    if dtype not in ITEM_BYTES:
        raise _damaged(path, f"'{key}' has the type '{dtype}', which is not known here")
    if not whole or stop - start != math.prod(shape) * ITEM_BYTES[dtype]:
        raise _damaged(path, f"the size of '{key}' does not match its shape")
    return TensorInfo(dtype, shape, data + start, data + stop)


def lfs_pointer(path: Path) -> CheckpointError:
    """The error for a file that is only a Git LFS pointer."""
    return CheckpointError(
        f"'{path}' is a Git LFS pointer, a few lines that stand for the file itself",
        "run `git lfs pull` in its folder, or fetch the model with `kiwi download`",
    )


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"'{path}' is damaged or not a safetensors file: {reason}", FETCH_HINT)


@dataclass(frozen=True)
class Entry:
    """A tensor to be written.

    Attributes:
        key, dtype, shape: as they go into the header.
        pieces: its bytes, in order; called when they are needed.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[bytes | memoryview]]

    @property
    def nbytes(self) -> int:
        """Size of its data."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def natural(key: str) -> list[tuple[int, int | str]]:
    """Sort key under which `blocks.2` comes before `blocks.10`."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", key) if part]


def split(entries: Sequence[Entry], max_bytes: int) -> list[list[Entry]]:
    """Entries in natural order, in shards of at most `max_bytes` of data (or one larger tensor)."""
    shards: list[list[Entry]] = [[]]
    filled = 0
    for entry in sorted(entries, key=lambda entry: natural(entry.key)):
        if shards[-1] and filled + entry.nbytes > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += entry.nbytes
    return shards


def write_part(
    folder: Path, stem: str, entries: Sequence[Entry], max_bytes: int, advance: Callable[[int], None] = lambda _: None
) -> list[Path]:
    """Write `{stem}.safetensors`, or numbered shards with their index when it would be larger than `max_bytes`.

    Args:
        advance: called with the number of bytes after each piece.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = split(entries, max_bytes)
    if len(shards) == 1:
        path = folder / f"{stem}.safetensors"
        write_file(path, shards[0], advance)
        return [path]
    names = [f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard, advance)
    where = {entry.key: name for name, shard in zip(names, shards, strict=True) for entry in shard}
    index = {"metadata": {"total_size": sum(entry.nbytes for entry in entries)}, "weight_map": where}
    index_path = folder / f"{stem}.safetensors.index.json"
    write_json(index_path, index)
    return [*(folder / name for name in names), index_path]


def write_file(
    path: Path,
    entries: Sequence[Entry],
    advance: Callable[[int], None] = lambda _: None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one file, one piece of a tensor at a time.

    Args:
        metadata: further free text for the header.

    Raises:
        ValueError: an entry whose pieces are not as many bytes as it said.
        OSError: no room, no rights.
    """
    # Wide types first, so that every tensor starts at a multiple of its item size and can be mapped.
    ordered = sorted(entries, key=lambda entry: (-ITEM_BYTES[entry.dtype], natural(entry.key)))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for entry in ordered:
        header[entry.key] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry in ordered:
            written = 0
            for piece in entry.pieces():
                file.write(piece)
                size = memoryview(piece).nbytes
                written += size
                advance(size)
            if written != entry.nbytes:
                raise ValueError(f"'{entry.key}' is {written} bytes, not {entry.nbytes}")


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """A config as the released checkpoints hold them: indented, with a final newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_pieces(path: Path, info: TensorInfo, size: int = 16 * 2**20) -> Iterator[bytes]:
    """A stored tensor's bytes, `size` at a time."""
    with path.open("rb") as file:
        file.seek(info.start)
        left = info.stop - info.start
        while left:
            piece = file.read(min(size, left))
            if not piece:
                raise _damaged(path, "it became shorter while it was read")
            left -= len(piece)
            yield piece
