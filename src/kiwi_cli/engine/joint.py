"""Denoising in windows that are one clip: at every step all windows' velocities are merged, then the clip moves.

    for step, window: velocity of the window's rows      the model sees one window, the device holds one window
        rows that no later window has: weighted sum, one solver step, written to the next table

Two tables of rows take turns: a step reads one and writes the other, so what a killed run leaves can be gone on with. A
row holds the latents and what the solver remembers of them. Tables are on the host, in memory or mapped from files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kiwi_cli.engine.layout import Layout, ShotRows, Window
from kiwi_cli.model.sampling import UniPC, euler_step, make_noise

Velocity = Callable[[torch.Tensor, int, int], torch.Tensor]
"""(latents (1, C, n, h, w) fp32 on the host, step, window's number) -> velocity, the same shape, fp32 on the host."""


def fill_noise(table: torch.Tensor, layout: Layout, seed: int, after: Callable[[], None] = lambda: None) -> None:
    """Write the noise that every row starts with into a table (rows, states, C, h, w).

    A shot of one window has the noise of an edit of that shot alone. In a longer one each row has noise that is a
    function of the seed and its number in the shot: every window, part and machine sees the same.

    Args:
        after: called after each shot of one window, and each row of any other.
    """
    count = {number: 0 for number in range(len(layout.shots))}
    for window in layout.windows:
        count[window.shot] += 1
    shape = tuple(table.shape[2:])
    for number, shot in enumerate(layout.shots):
        if count[number] == 1:
            whole = make_noise((1, shape[0], shot.latents, *shape[1:]), seed)
            table[shot.start : shot.end, 0] = whole[0].transpose(0, 1)
            after()
            continue
        for row in range(shot.end - shot.start):
            table[shot.start + row, 0] = make_noise(shape, row_seed(seed, shot, row, layout.noise_period))
            after()


def noise_of(layout: Layout, rows: Sequence[int], shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """The noise that single rows start with, (n, C, h, w): as `fill_noise` writes it.

    Args:
        shape: (C, h, w).
    """
    noise = torch.empty((len(rows), *shape))
    whole: dict[int, torch.Tensor] = {}
    for place, row in enumerate(rows):
        number = next(n for n, shot in enumerate(layout.shots) if row < shot.end)
        shot = layout.shots[number]
        if sum(window.shot == number for window in layout.windows) > 1:
            noise[place] = make_noise(shape, row_seed(seed, shot, row, layout.noise_period))
            continue
        if number not in whole:
            whole = {number: make_noise((1, shape[0], shot.latents, *shape[1:]), seed)}
        noise[place] = whole[number][0, :, row - shot.start]
    return noise


def row_seed(seed: int, shot: ShotRows, row: int, period: int | None = None) -> int:
    """The seed of one row's noise; anchors count by the frame that they are, or with a period as the first row."""
    anchor = row >= shot.latents
    if period is None:
        name = f"anchor {shot.anchors[row - shot.latents]}" if anchor else f"latent {row}"
    else:
        name = f"latent {0 if anchor or row == 0 else 1 + (row - 1) % period}"
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little")


@dataclass(frozen=True)
class Held:
    """Rows that stay what they are: on the straight way from their noise to it, whatever windows say of them.

    Attributes:
        rows: of the table. clean, noise: of each, (n, C, h, w) fp32.
    """

    rows: tuple[int, ...]
    clean: torch.Tensor
    noise: torch.Tensor

    def at(self, sigma: torch.Tensor) -> torch.Tensor:
        """The rows' latents at a noise level."""
        return (1 - sigma) * self.clean + sigma * self.noise


class JointDenoising:
    """A clip's windows on their way from noise to latents.

    Args:
        tables: two of (rows, states, C, h, w) fp32 on the host, `STATES` of the solver; the first holds the noise.
        sigmas: (steps + 1,) fp32 on the host.
        held: rows that the windows see and do not change.

    Attributes:
        step, window: what is computed next. pending: of rows that a window to come has as well, the sum so far.
    """

    def __init__(
        self,
        layout: Layout,
        tables: tuple[torch.Tensor, torch.Tensor],
        sigmas: torch.Tensor,
        solver: str = "euler",
        held: Held | None = None,
    ) -> None:
        self.layout, self.tables, self.sigmas, self.solver, self.held = layout, tables, sigmas, solver, held
        self._fixed = frozenset(held.rows) if held is not None else frozenset()
        self.step = self.window = 0
        self.pending: dict[int, torch.Tensor] = {}
        last = {row: n for n, window in enumerate(layout.windows) for row, _, _ in self._moved(window)}
        self._due: list[list[int]] = [[] for _ in layout.windows]
        for row, number in sorted(last.items()):
            self._due[number].append(row)
        self._hold(tables[0], 0)

    def _moved(self, window: Window) -> list[tuple[int, int, float]]:
        """Rows that a window moves: each with its place in the window and the weight there."""
        weights = enumerate(zip(window.rows, window.weights, strict=True))
        return [(row, place, weight) for place, (row, weight) in weights if weight and row not in self._fixed]

    def _hold(self, table: torch.Tensor, step: int) -> None:
        if self.held is not None:
            table[list(self.held.rows), 0] = self.held.at(self.sigmas[step])

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def done(self) -> int:
        """Windows that are computed, over all steps."""
        return self.step * len(self.layout.windows) + self.window

    @property
    def total(self) -> int:
        """Windows to be computed, over all steps."""
        return self.steps * len(self.layout.windows)

    @property
    def latents(self) -> torch.Tensor:
        """The table's latents where this step reads them, (rows, C, h, w); after the last step, the result."""
        return self.tables[self.step % 2][:, 0]

    def run(self, velocity: Velocity, after: Callable[[], None] = lambda: None) -> torch.Tensor:
        """The denoised latents of all rows, (rows, C, h, w): a view of a table.

        Args:
            after: called after each window, when everything here is as it is to be gone on with.
        """
        while self.step < self.steps:
            self._advance(velocity)
            after()
        return self.latents

    def _advance(self, velocity: Velocity) -> None:
        """One window of one step."""
        now, following = (self.tables[(self.step + n) % 2] for n in (0, 1))
        window = self.layout.windows[self.window]
        seen = now[list(window.rows), 0].transpose(0, 1).contiguous()[None]
        found = velocity(seen, self.step, self.window)
        for row, place, weight in self._moved(window):
            part = found[0, :, place] * weight
            self.pending[row] = self.pending[row] + part if row in self.pending else part
        due = self._due[self.window]
        if due:
            merged = torch.stack([self.pending.pop(row) for row in due])
            following[due] = _move(now[due], merged, self.sigmas, self.step, self.solver)
        self.window += 1
        if self.window == len(self.layout.windows):
            self.step, self.window = self.step + 1, 0
            self._hold(following, self.step)


def _move(rows: torch.Tensor, velocity: torch.Tensor, sigmas: torch.Tensor, step: int, solver: str) -> torch.Tensor:
    """Rows (n, states, C, h, w) a step on, by their velocity (n, C, h, w)."""
    if solver == "euler":
        return euler_step(rows[:, 0], velocity, sigmas, step)[:, None]
    solving = UniPC(sigmas.tolist())
    latents, start, newest, before = rows.unbind(1)
    if step:
        solving.restore(start, [before, newest], step)
    latents = solving(latents, velocity, sigmas, step)
    assert solving.start is not None
    before = solving.clean[-2] if step else torch.zeros_like(before)
    return torch.stack([latents, solving.start, solving.clean[-1], before], dim=1)
