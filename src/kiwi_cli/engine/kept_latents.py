"""What an edited clip is decoded from, kept in a file beside it: so that a part can be made anew and the rest stay.

`OUTPUT.latents.safetensors`, in the safetensors format: `latents` and `source`, (rows, C, h, w) fp32, and for each part
that was made anew `part.N`, (n, C, h, w). As text in its header: the settings that the output carries, the frames of
each shot, and a checksum of each tensor. It is written and read a row at a time; tensors are mapped, not loaded.
"""

from __future__ import annotations

import json
import mmap
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi_cli.engine.layout import Layout
from kiwi_cli.engine.part_rows import PartRows
from kiwi_cli.errors import CheckpointError, KiwiError
from kiwi_cli.weights.tensorfile import Entry, read_header, read_metadata, read_pieces, write_file

if TYPE_CHECKING:
    import numpy as np
    import torch

    from kiwi_cli.engine.made import Made

SUFFIX = ".latents.safetensors"
FORMAT = "1"


def write(path: Path, made: Made, settings: Mapping[str, Any], after: Callable[[], None] = lambda: None) -> None:
    """Write what was made of a clip.

    Args:
        settings: that the output carries. after: called after each row of the tables that was read.

    Raises:
        OSError: it cannot be written.
    """
    tensors = {"latents": partial(_rows, made.latents, after), "source": partial(_rows, made.source, after)}
    counts = {name: len(made.latents) for name in tensors}
    for number, patch in enumerate(made.patches, start=1):
        name = f"part.{number}"
        tensors[name] = partial(_each, patch.row, patch.part.rows)
        counts[name] = len(patch.part.rows)
    text = {
        "kiwi_latents": FORMAT,
        "kiwi": json.dumps(dict(settings), ensure_ascii=False),
        "shots": json.dumps([shot.frames for shot in made.layout.shots]),
        "sums": json.dumps({name: _sum(pieces()) for name, pieces in tensors.items()}),
    }
    shape = tuple(made.latents.shape[1:])
    write_file(path, [Entry(name, "F32", (counts[name], *shape), tensors[name]) for name in tensors], metadata=text)


def _rows(table: torch.Tensor, after: Callable[[], None]) -> Iterator[bytes]:
    for row in table:
        yield row.contiguous().numpy().tobytes()
        after()


def _each(row_of: Any, rows: tuple[int, ...]) -> Iterator[bytes]:
    for row in rows:
        yield row_of(row).contiguous().numpy().tobytes()


def _sum(pieces: Iterator[bytes]) -> int:
    value = 0
    for piece in pieces:
        value = zlib.crc32(piece, value)
    return value


class KeptLatents:
    """A file of `write`, its header read.

    Attributes:
        settings: that the output carries. shots: frames of each.

    Raises:
        KiwiError: there is no such file. CheckpointError: it is another file, or damaged.
    """

    def __init__(self, path: Path, hint: str) -> None:
        self.path, self.hint = path, hint
        self._maps: list[np.memmap] = []
        if not path.is_file():
            raise KiwiError(f"no latents were kept: there is no '{path}'", hint)
        try:
            self._tensors = read_header(path)
        except CheckpointError as error:
            if isinstance(error.__cause__, OSError):
                raise  # it cannot be read at all, and says why
            raise self._damaged() from None
        text = read_metadata(path)
        if text.get("kiwi_latents") != FORMAT:
            raise CheckpointError(f"not kept latents of this kiwi: '{path}'", hint)
        try:
            self.settings: dict[str, Any] = json.loads(text["kiwi"])
            self.shots = tuple(int(frames) for frames in json.loads(text["shots"]))
            self._sums = {str(name): int(value) for name, value in json.loads(text["sums"]).items()}
            whole = self._sums.keys() == self._tensors.keys() and {"latents", "source"} <= self._sums.keys()
        except (KeyError, TypeError, ValueError, AttributeError):
            whole = False
        if not whole or not self.shots or any(info.dtype != "F32" for info in self._tensors.values()):
            raise self._damaged()

    @property
    def bytes(self) -> int:
        """Of the file."""
        return self.path.stat().st_size

    def check_form(self, layout: Layout, parts: tuple[PartRows, ...], frame: tuple[int, int, int]) -> None:
        """Refuse latents of another layout.

        Args:
            parts: that are in it. frame: (C, h, w) of a latent frame.

        Raises:
            CheckpointError: it is of others.
        """
        counts = {"latents": layout.rows, "source": layout.rows}
        counts |= {f"part.{number}": len(part.rows) for number, part in enumerate(parts, start=1)}
        wanted = {name: (count, *frame) for name, count in counts.items()}
        if {name: info.shape for name, info in self._tensors.items()} != wanted:
            raise CheckpointError(f"the latents in '{self.path}' are of another clip or model", self.hint)

    def check_sums(self) -> None:
        """Refuse a file whose contents have changed: it is read once.

        Raises:
            CheckpointError: they have.
        """
        for name, info in self._tensors.items():
            if _sum(read_pieces(self.path, info)) != self._sums[name]:
                raise self._damaged()

    def made(self, layout: Layout, parts: tuple[PartRows, ...], seeds: tuple[int, ...]) -> Made:
        """What is in the file, mapped.

        Args:
            parts: that are in it. seeds: of the whole, and of each part.
        """
        from kiwi_cli.engine.made import Made, Patch

        found = Made(layout, seeds[0], self._mapped("latents"), self._mapped("source"))
        for number, (part, seed) in enumerate(zip(parts, seeds[1:], strict=True), start=1):
            found.patches.append(Patch(part, seed, part.rows, self._mapped(f"part.{number}")))
        return found

    def _mapped(self, name: str) -> torch.Tensor:
        import numpy as np
        import torch

        info = self._tensors[name]
        # Copied where it is written to, which never is: torch takes no read-only memory.
        self._maps.append(np.memmap(self.path, "<f4", "c", info.start, info.shape))
        return torch.from_numpy(self._maps[-1])

    def let_go(self) -> None:
        """Take what was read of it out of this process's memory; it comes back as it is read."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for each in self._maps:
                each._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]

    def _damaged(self) -> CheckpointError:
        return CheckpointError(f"the latents in '{self.path}' are damaged", self.hint)
