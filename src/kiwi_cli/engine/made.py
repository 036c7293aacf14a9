"""What the frames of a long edit are decoded from: latents of the whole, and of parts that were made anew."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from kiwi_cli.engine.joint import noise_of
from kiwi_cli.engine.layout import Layout
from kiwi_cli.engine.part_rows import PartRows

Frames = Generator[np.ndarray, None, None]


@dataclass(frozen=True)
class Patch:
    """A part that was made anew.

    Attributes:
        part: what of the clip. seed: of its noise.
        of: the clip's rows that `latents` are of, (n, C, h, w) fp32 on the host; the part's own, or more.
    """

    part: PartRows
    seed: int
    of: tuple[int, ...]
    latents: torch.Tensor

    @cached_property
    def _places(self) -> dict[int, int]:
        return {row: place for place, row in enumerate(self.of)}

    def row(self, row: int) -> torch.Tensor:
        """The part's latents of a row, (C, h, w)."""
        return self.latents[self._places[row]]


@dataclass
class Made:
    """An edited clip before it is decoded.

    Attributes:
        seed: of the whole.
        latents, source: of all rows, (rows, C, h, w) fp32 on the host: the edit's, and its source's.
        patches: made anew after that, one after the other; the later hide the earlier.
    """

    layout: Layout
    seed: int
    latents: torch.Tensor
    source: torch.Tensor
    patches: list[Patch] = field(default_factory=list)

    def newest(self, rows: Sequence[int]) -> torch.Tensor:
        """Latents of rows as they were made last, (n, C, h, w): a copy."""
        found = self.latents[list(rows)]
        for patch in self.patches:
            own = set(patch.part.rows)
            for place, row in enumerate(rows):
                if row in own:
                    found[place] = patch.row(row)
        return found

    def noise(self, rows: Sequence[int]) -> torch.Tensor:
        """What rows began with when they were made last, (n, C, h, w)."""
        shape = tuple(self.latents.shape[1:])
        found = noise_of(self.layout, rows, shape, self.seed)
        for patch in self.patches:
            places = [place for place, row in enumerate(rows) if row in set(patch.part.rows)]
            if places:
                found[places] = noise_of(self.layout, [rows[place] for place in places], shape, patch.seed)
        return found
