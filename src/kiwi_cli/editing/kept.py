"""What a model made, until it is written: held while an edit runs, and kept in a file when writing it fails.

The file is safetensors, `OUTPUT.unfinished`. For each window of the clip (one, when it is edited in one piece) it has
the latents that the frames are decoded from, or the frames themselves where an editor has no latents; and the settings
and the request as text. `kiwi finish` decodes and writes them, and edits what windows are missing.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi_cli.editors.base import Calibration, Edited, Editor, Frames, Progress, Restores
from kiwi_cli.errors import CheckpointError, UsageError
from kiwi_cli.weights.tensorfile import Entry, read_header, read_metadata, read_pieces, write_file

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

SUFFIX = ".unfinished"
FORMAT = "2"
WITHOUT_DIGEST = "1"
"""What was written before the text had a digest; it is read all the same."""
HINT = "it cannot be finished; make the edit again"
NAMED = "pass what a failed edit kept: 'OUTPUT.unfinished'"
_IN_MEMORY = 64 << 20  # bytes that are held before a file of no name takes them
_PIECE = 16 << 20  # bytes
_TYPES = {"F32": "<f4", "U8": "|u1"}


@dataclass
class _Tensor:
    """A tensor in the spool. `at`: (start, bytes) of its pieces."""

    dtype: str
    shape: tuple[int, ...]
    at: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class _Window:
    """What was made of one window. `needed`: frames; `said`: what is known of them, for the file."""

    needed: int
    said: dict[str, Any]
    tensors: dict[str, _Tensor] = field(default_factory=dict)
    open: list[Frames] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        frames = [tensor for tensor in self.tensors.values() if tensor.dtype == "U8"]
        return bool(self.tensors) and all(tensor.shape[0] >= self.needed for tensor in frames)


class Keeper:
    """Holds what an editor makes of a clip, window by window, in little memory: latents are small.

    Args:
        folder: where a file of no name takes what is too much for memory.
    """

    def __init__(self, folder: Path) -> None:
        self._windows: list[_Window] = []
        self._spool = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(folder))  # noqa: SIM115 (closed by `close`)
        self._full = False

    def watch(self, done: Edited, count: int, restores: bool) -> Edited:
        """One window's edit, held from now on.

        Args:
            count: its frames. restores: the editor makes frames of latents again, so that they are enough.
        """
        measured = done.calibration
        calibration = None if measured is None else {"ratios": list(measured.ratios), "shift": measured.shift}
        window = _Window(count, {"approximations": list(done.approximations), "calibration": calibration})
        self._windows.append(window)
        if restores and done.latents is not None:
            self._hold_latents(window, {"latents": done.latents, "source": done.source})
            return done
        frames = self._watched(window, "frames", done.frames)
        if done.round_trip is None:
            return replace(done, frames=frames)
        return replace(done, frames=frames, round_trip=self._watched(window, "round_trip", done.round_trip))

    def finish(self) -> None:
        """Take what an editor has made of the window in work and not handed over yet; without an error."""
        for stream in reversed(self._windows[-1].open if self._windows else []):
            try:
                for _ in stream:
                    pass
            except Exception:
                # Whatever a decoder raises (its own errors, torch's, a driver's): the edit is failing already, its own
                # error is the one to be told, and what was decoded until here is held.
                return

    def write(self, path: Path, text: Mapping[str, str]) -> bool:
        """Write the windows that are whole, from the first on, to a file. Returns False when there is none.

        Raises:
            OSError: it cannot be written.
        """
        whole = []
        for window in self._windows:
            if not window.whole:
                break
            whole.append(window)
        if not whole:
            return False
        entries = [
            Entry(f"{number}.{name}", tensor.dtype, tensor.shape, partial(self._pieces, tensor))
            for number, window in enumerate(whole, start=1)
            for name, tensor in window.tensors.items()
        ]
        said = json.dumps([window.said for window in whole])
        known = {**text, "unfinished": FORMAT, "windows": said}
        write_file(path, entries, metadata={**known, "digest": _digest(known)})
        return True

    def close(self) -> None:
        """Forget everything."""
        self._spool.close()

    def _hold_latents(self, window: _Window, latents: Mapping[str, torch.Tensor | None]) -> None:
        for name, each in latents.items():
            if each is None:
                continue
            values = each.detach().float().cpu().contiguous().numpy()
            window.tensors[name] = _Tensor("F32", values.shape)
            if not self._append(window.tensors[name], values):
                window.tensors.clear()
                return

    def _watched(self, window: _Window, name: str, frames: Frames) -> Frames:
        def watched() -> Frames:
            with closing(frames):
                for chunk in frames:
                    held = window.tensors.setdefault(name, _Tensor("U8", (0, *chunk.shape[1:])))
                    if self._append(held, chunk):
                        held.shape = (held.shape[0] + len(chunk), *held.shape[1:])
                    yield chunk

        stream = watched()
        window.open.append(stream)
        return stream

    def _append(self, tensor: _Tensor, values: np.ndarray) -> bool:
        """Hold values at the end of a tensor; False where there is no room, and nothing more is held."""
        if self._full:
            return False
        data = values.tobytes()
        try:
            start = self._spool.seek(0, 2)
            self._spool.write(data)
        except OSError:
            self._full = True
            return False
        tensor.at.append((start, len(data)))
        return True

    def _pieces(self, tensor: _Tensor) -> Iterator[bytes]:
        for start, size in tensor.at:
            for offset in range(0, size, _PIECE):
                self._spool.seek(start + offset)
                yield self._spool.read(min(_PIECE, size - offset))


def _digest(text: Mapping[str, str]) -> str:
    """Of the settings: with one that is damaged, the edit would go on as another one."""
    known = {name: value for name, value in text.items() if name != "format"}  # safetensors' own
    return hashlib.blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class KeptWindow:
    """What a model made of one window. `tensors`: 'latents' and 'source', or 'frames' and 'round_trip'."""

    tensors: dict[str, np.ndarray]
    approximations: tuple[str, ...]
    calibration: Calibration | None


class Kept:
    """A file of `Keeper.write`, as it lies there.

    Args:
        path: of the file.

    Raises:
        UsageError: there is no such file. CheckpointError: it is another file, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            inside = sorted(one for one in path.glob(f"*{SUFFIX}") if one.is_file())
            hint = f"kiwi finish {shlex.quote(str(inside[0]))}" if inside else NAMED
            raise UsageError(f"a folder, not a file: '{path}'", hint)
        if not path.is_file():
            raise UsageError(f"no such file: '{path}'", NAMED)
        try:
            self._tensors = read_header(path)
        except CheckpointError as error:
            if isinstance(error.__cause__, OSError):
                raise  # it cannot be read at all, and says why
            raise CheckpointError(f"not an unfinished edit, or a damaged one: '{path}'", NAMED) from None
        self.text = read_metadata(path)
        format, digest = self.text.get("unfinished"), self.text.pop("digest", None)
        if format not in (FORMAT, WITHOUT_DIGEST):
            raise CheckpointError(f"not an unfinished edit of this kiwi: '{path}'", NAMED)
        if format == FORMAT and digest != _digest(self.text):
            raise self._damaged()
        try:
            self._said = json.loads(self.text["windows"])
            assert isinstance(self._said, list)
        except (KeyError, ValueError, AssertionError):
            raise self._damaged() from None

    @property
    def windows(self) -> int:
        """How many windows are made, from the first on."""
        return len(self._said)

    def window(self, number: int, frames: np.ndarray) -> KeptWindow | None:
        """What was made of a window, counted from 1, of which these are the source's frames; None when it was not yet.

        Raises:
            CheckpointError: it was made of another window, or the file is damaged.
        """
        if number > self.windows:
            return None
        try:
            said = self._said[number - 1]
            measured = said["calibration"]
            calibration = measured and Calibration(tuple(map(float, measured["ratios"])), float(measured["shift"]))
            approximations = tuple(map(str, said["approximations"]))
        except (KeyError, TypeError, ValueError):
            raise self._damaged() from None
        tensors = {}
        for key, info in self._tensors.items():
            which, _, name = key.partition(".")
            if which == str(number):
                tensors[name] = self._read(key, info)
        made = tensors.get("frames")
        if not tensors or (made is not None and made.shape[1:] != frames.shape[1:]):
            raise CheckpointError(f"'{self.path}' was not made of this clip", HINT)
        return KeptWindow(tensors, approximations, calibration)

    def _read(self, key: str, info: Any) -> np.ndarray:
        import numpy as np

        if info.dtype not in _TYPES:
            raise self._damaged()
        data = bytearray().join(read_pieces(self.path, info))
        return np.frombuffer(data, _TYPES[info.dtype]).reshape(info.shape)

    def _damaged(self) -> CheckpointError:
        return CheckpointError(f"the unfinished edit in '{self.path}' is damaged", HINT)


def restored(
    window: KeptWindow,
    editor: Editor,
    frames: np.ndarray,
    instruction: str,
    references: Sequence[Image.Image],
    progress: Progress,
    notify: Callable[[str], None],
) -> Edited:
    """The edit of a window that was made before, as it was then.

    Raises:
        CheckpointError: it was made by another editor.
    """
    made = window.tensors
    if "frames" in made:
        round_trip = _chunks(made["round_trip"]) if "round_trip" in made else None
        done = Edited(_chunks(made["frames"]), round_trip=round_trip)
    elif isinstance(editor, Restores) and "latents" in made:
        latents, source = made["latents"], made.get("source")
        report: Any = {"progress": progress, "notify": notify}
        done = editor.restore(frames, instruction, references, latents=latents, source=source, **report)
    else:
        raise CheckpointError(f"'{editor.name}' makes no frames of what was kept", HINT)
    return replace(done, approximations=window.approximations, calibration=window.calibration)


def _chunks(frames: np.ndarray) -> Frames:
    """Frames (F, H, W, 3) a few at a time, as a decoder gives them."""
    for start in range(0, len(frames), 4):
        yield frames[start : start + 4]
