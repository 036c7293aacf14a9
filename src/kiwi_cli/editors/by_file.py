"""Editors that work on files: the clip is written, something makes another of it, and that is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kiwi_cli.editors import files
from kiwi_cli.editors.base import Denoising, Edited, Identity, Origin, Progress
from kiwi_cli.editors.files import Given, Limits
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.errors import KiwiError
from kiwi_cli.video.partial import scratch_folder

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

BLOCK = 16  # pixels: of the blocks that a file is coded in; what lies beyond the picture's edge is not always the same
TIMEOUT = 1800.0  # seconds, for one clip


@dataclass(frozen=True)
class Job:
    """One clip to edit.

    Attributes:
        given: the clip. references: files of pictures. output: where the result is expected; its extension is the
            clip's. raw: bytes of the clip's frames, uncompressed.
        report: called with what part of the work is done, from 0 to 1.
    """

    given: Given
    instruction: str
    references: Sequence[Path]
    output: Path
    seed: int
    raw: int
    report: Callable[[float], None]


@dataclass(frozen=True)
class Made:
    """The edited clip's file, what it cost in dollars when that is known, and what else is to be said."""

    path: Path
    dollars: float | None = None
    changes: tuple[str, ...] = ()


class ByOrigin(ABC):
    """An editor that has to know where its frames come from.

    Attributes:
        takes_references: whether it can be given reference pictures.
    """

    multiple, gives_round_trip = BLOCK, False
    most_frames: int | None = None

    def __init__(self, choice: ModelChoice, takes_references: bool = False) -> None:
        self.choice, self.takes_references = choice, takes_references

    @property
    def name(self) -> str:
        return self.choice.name

    def identity(self) -> Identity:
        return Identity(self.choice, device=self.choice.editor.partition(":")[0], dtype="auto")

    @abstractmethod
    def work(
        self,
        frames: np.ndarray,
        instruction: str,
        references: Sequence[Image.Image],
        origin: Origin,
        seed: int,
        report: Callable[[float], None],
    ) -> Edited:
        """One edit, from frames to frames.

        Args:
            report: called with what part of the work is done, from 0 to 1.

        Raises:
            KiwiError: it cannot be had, in words.
        """

    def edit(
        self,
        frames: np.ndarray,
        instruction: str,
        references: Sequence[Image.Image] = (),
        *,
        denoising: Denoising,
        origin: Origin | None = None,
        round_trip: bool = False,
        progress: Progress | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> Edited:
        if origin is None:
            raise KiwiError(f"'{self.name}' works on files, and these frames come from none")

        def report(part: float) -> None:
            if progress is not None:
                progress("denoise", round(100 * part), 100)

        report(0.0)
        done = self.work(frames, instruction, references, origin, denoising.seed, report)
        report(1.0)
        return done

    def close(self) -> None:  # noqa: B027 (most hold nothing between clips)
        """Give back what is held between clips."""


class FileEditor(ByOrigin):
    """An editor whose `make` turns one file into another.

    Attributes:
        limits: of the clips that it takes.
    """

    limits: Limits = files.NO_LIMITS

    @property
    def timeout(self) -> float:
        """Seconds that one clip may take."""
        return self.choice.editor_timeout or TIMEOUT

    @abstractmethod
    def make(self, job: Job) -> Made:
        """The edited clip's file.

        Raises:
            KiwiError: it cannot be had, in words.
        """

    def work(
        self,
        frames: np.ndarray,
        instruction: str,
        references: Sequence[Image.Image],
        origin: Origin,
        seed: int,
        report: Callable[[float], None],
    ) -> Edited:
        with scratch_folder() as folder:
            given = files.give(frames, folder / "clip.mp4", origin.rate, self.limits)
            pictures = files.save_references(references, folder)
            output = folder / f"edited{given.path.suffix}"
            made = self.make(Job(given, instruction, pictures, output, seed, frames.nbytes, report))
            taken = files.take(made.path, given.timing, frames.shape, f"'{self.name}'")
        changes = (*given.changes, *taken.changes, *made.changes)
        return Edited(taken.stream(), changes=changes, dollars=made.dollars)
