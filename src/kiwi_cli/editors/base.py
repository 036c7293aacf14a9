"""What an editor is: it takes the frames of a clip and an instruction, and gives back edited frames. No torch.

A session (editing/session.py) reads clips, cuts them, and writes results; whatever makes the frames in between is an
`Editor`. Which editors there are says registry.py; each has a file beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from kiwi_cli.base.events import Events
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.engine.layout import Layout
from kiwi_cli.engine.noise import NoisePart
from kiwi_cli.engine.part_rows import PartRows
from kiwi_cli.video import Size
from kiwi_cli.weights.lora import Applied
from kiwi_cli.weights.settings import ModelSettings

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from kiwi_cli.engine.made import Made
    from kiwi_cli.engine.workspace import Workspace

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total): stages 'instruction', 'encode', 'denoise', 'decode'."""

Frames = Generator["np.ndarray", None, None]
"""(f, H, W, 3) uint8 RGB in order, made as they are taken; closed when no more are wanted."""


@dataclass(frozen=True)
class Found:
    """A model as it is before anything of it is loaded: what a plan is made with.

    Attributes:
        folder: its files on this machine; None while they are not here, and of a model that has none.
        parameters: stored; 0 when not known yet. commit: of a model from the Hub, when known.
        settings: what it says of its use.
        takes_references: whether an edit may have reference pictures.
        gives_round_trip: whether an edit can give the source back beside its frames.
        reserved: words that an instruction may not hold.
        missing: whether it has to be fetched or converted first.
        joins_windows: whether it edits a long clip in windows that are denoised together (`edit_long`).
        pads: whether it works on 4k + 1 frames, the last one repeated up to that.
        price: (frames, frames a second) -> dollars of one edit, None where they are not known; None itself where an
            edit costs nothing.
    """

    folder: Path | None
    parameters: int = 0
    commit: str | None = None
    settings: ModelSettings = field(default_factory=ModelSettings)
    takes_references: bool = True
    gives_round_trip: bool = False
    reserved: tuple[str, ...] = ()
    missing: bool = False
    joins_windows: bool = False
    pads: bool = True
    price: Callable[[int, Fraction], float | None] | None = None


@dataclass(frozen=True)
class Origin:
    """Where the frames of an edit come from, for editors that work on files.

    Attributes:
        source: the clip that they were read from. output: where the result goes.
        rate: frames a second.
    """

    source: Path
    output: Path
    rate: Fraction


@dataclass(frozen=True)
class Identity:
    """What an editor's results come from; outputs carry it.

    Attributes:
        choice: the model and how it works, as it was loaded.
        checkpoint: fingerprint of the model's files; None when it came from none.
        loras: merged into it.
        device, dtype: where it works, and in which precision; 'auto' where an editor has no such choice.
    """

    choice: ModelChoice
    checkpoint: str | None = None
    loras: Sequence[Applied] = ()
    device: str = "cpu"
    dtype: str = "float32"


@dataclass(frozen=True)
class Denoising:
    """How the noise becomes a clip: `Sampling` of a request, with every number known.

    Attributes:
        sigma_min: end of the unwarped schedule; None is the released one.
        cache_threshold: None is the cache's own default. ratios: of cache 'mag'.
        calibrate: measure such ratios; the result is exact.
        noise: of which longer edit the frames are a moment; None: they are all of it.
    """

    steps: int
    seed: int = 0
    sigma_min: float | None = None
    solver: str = "euler"
    cache: str = "off"
    cache_threshold: float | None = None
    ratios: tuple[float, ...] | None = None
    calibrate: bool = False
    noise: NoisePart | None = None


@dataclass(frozen=True)
class Calibration:
    """Ratios measured for step cache 'mag', one for each step, and the shift of the schedule they belong to."""

    ratios: tuple[float, ...]
    shift: float


@dataclass(frozen=True)
class Edited:
    """One edit of an editor.

    Attributes:
        frames: as many in all as went in.
        latents: (1, C, T, h, w) fp32 that they are decoded from; None of an editor that has none.
        placement: what was on the device when, in words; empty when there was nothing to place.
        approximations: why it is not the model's exact result, a line for each reason; empty when it is.
        calibration: when it was asked for.
        round_trip: when it was asked for: the source as the autoencoder gives it back, a frame for each of `frames`.
            Taken to its end before the first of `frames` is, so that only one of the two is being decoded.
        source: (1, C, T, h, w) fp32 that the round trip is decoded from, when it was asked for.
        pairs: of a long clip, instead of a round trip: the edited frames with the source's, (f, 2, H, W, 3); with
            parts that were made anew also the frames as they were before each, the newest first.
        made: of a long clip: what it is decoded from.
        changes: what the editor did to the clip beside the edit, such as to its rate or size, a line for each thing.
        dollars: what the edit cost; None when that is not known or it cost nothing.
    """

    frames: Frames
    latents: torch.Tensor | None = None
    placement: str = ""
    approximations: tuple[str, ...] = ()
    calibration: Calibration | None = None
    round_trip: Frames | None = None
    source: torch.Tensor | None = None
    pairs: Frames | None = None
    made: Made | None = None
    changes: tuple[str, ...] = ()
    dollars: float | None = None


class Editor(Protocol):
    """Something that edits clips.

    Attributes:
        name: for the person.
        multiple: pixels that width and height of frames must be multiples of.
        most_frames: that it was made for at a time; None: any number.
        takes_references: whether it can be given reference pictures.
        gives_round_trip: whether it gives the source back beside its frames when asked.
    """

    @property
    def name(self) -> str: ...

    @property
    def multiple(self) -> int: ...

    @property
    def most_frames(self) -> int | None: ...

    @property
    def takes_references(self) -> bool: ...

    @property
    def gives_round_trip(self) -> bool: ...

    def identity(self) -> Identity:
        """What the results come from."""
        ...

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
        """One edit, all but its decoding.

        Args:
            frames: (F, H, W, 3) uint8 RGB.
            origin: of the frames; an editor that works on files needs it.
            round_trip: `Edited.round_trip` is wanted; only of an editor that gives it.
            progress: called after each piece of work, of decoding too.
            notify: called with lines for the person.

        Raises:
            KiwiError: what cannot be done, in words.
        """
        ...

    def close(self) -> None:
        """Give back what it holds: memory, processes, connections."""


@runtime_checkable
class Restores(Protocol):
    """An editor that makes the frames of an edit again from its latents. One that does not has its frames kept."""

    def restore(
        self,
        frames: np.ndarray,
        instruction: str,
        references: Sequence[Image.Image] = (),
        *,
        latents: np.ndarray,
        source: np.ndarray | None = None,
        progress: Progress | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> Edited:
        """An edit whose latents are known: as `edit` gave it, without the model's work.

        Args:
            frames, instruction, references: of that edit.
            latents, source: `Edited.latents` and `Edited.source` of it; with the latter there is a round trip.

        Raises:
            KiwiError: they are not of such an edit.
        """
        ...


@dataclass(frozen=True)
class PartWork:
    """A part of a clip that is made anew. rows: what of it. instruction, seed: what with."""

    rows: PartRows
    instruction: str
    seed: int


@dataclass(frozen=True)
class LongClip:
    """A clip that is edited in windows that are denoised together.

    Attributes:
        frames_from: a frame's number -> the frames from there on, (H, W, 3) uint8 one at a time.
        size: of a frame. layout: shots and windows. window_contexts: the instruction is read with each window's frames.
        workspace: where what grows with the clip is kept, and the state of the work.
        parts: made anew one after the other when the whole is made.
        kept: what was made of the clip before, with all parts but the last ones; None: nothing.
    """

    frames_from: Callable[[int], Frames]
    size: Size
    layout: Layout
    window_contexts: bool
    workspace: Workspace
    parts: tuple[PartWork, ...] = ()
    kept: Made | None = None


class LongEditor(Editor, Protocol):
    """An editor with `joins_windows`."""

    def edit_long(
        self,
        clip: LongClip,
        instruction: str,
        references: Sequence[Image.Image] = (),
        *,
        denoising: Denoising,
        round_trip: bool = False,
        progress: Progress | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> Edited:
        """One edit of a long clip, all but its decoding; where an earlier run left a state, it goes on from there.

        Args:
            round_trip: `Edited.pairs` is wanted, and `Edited.frames` is not. progress, notify: as of `edit`.

        Raises:
            KiwiError: what cannot be done, in words.
        """
        ...


class Named:
    """What kinds of editor have in common that are asked for by their names, and have nothing to fetch.

    Args:
        name: before the colon of `--editor NAME:MORE`.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def claims(self, choice: ModelChoice) -> bool:
        return choice.editor.partition(":")[0] == self.name

    def uses(self, choice: ModelChoice) -> Collection[str]:
        return ()

    def find(self, choice: ModelChoice) -> Found:
        raise NotImplementedError

    def admit(self, found: Found, choice: ModelChoice) -> None:
        """Any device will do: kiwi uses none."""

    def fetch(self, choice: ModelChoice, events: Events) -> Found:
        return self.find(choice)


class Kind(Protocol):
    """A kind of editor, as registry.py lists them: a module, or an object of a test."""

    def claims(self, choice: ModelChoice) -> bool:
        """Whether a model is of this kind, by its name. Looks at no file."""
        ...

    def uses(self, choice: ModelChoice) -> Collection[str]:
        """The fields of `ModelChoice` and `Sampling` that change something here; others are refused."""
        ...

    def find(self, choice: ModelChoice) -> Found:
        """The model as it is on this machine, checked without loading it.

        Raises:
            CheckpointError, UsageError: there is none, or it is broken.
        """
        ...

    def identify(self, found: Found, choice: ModelChoice) -> str:
        """What tells this editor's results from all others': a fingerprint of whatever decides them.

        Raises:
            CheckpointError, UsageError, MediaError: what decides them cannot be read.
        """
        ...

    def admit(self, found: Found, choice: ModelChoice) -> None:
        """Refuse an unknown device or precision, or a device that is too small for the model.

        Raises:
            DeviceError, UsageError.
        """

    def fetch(self, choice: ModelChoice, events: Events) -> Found:
        """The model after what is missing of it was fetched or converted.

        Raises:
            CheckpointError: it cannot be had.
        """
        ...

    def load(self, found: Found, choice: ModelChoice, events: Events) -> Editor:
        """The loaded editor.

        Raises:
            CheckpointError, DeviceError, UsageError.
        """
        ...
