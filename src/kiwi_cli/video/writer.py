"""`open_writer`: edited frames in, the person's own clip out.

The writer walks the clip beside the frames it is given: that is where the timestamps come from, the frames
around the span, the pixels outside a mask or a crop, and the depth and transparency that the model never saw.
It encodes on a thread of its own behind a queue of two chunks, so that memory does not grow with the length.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np

from kiwi_cli.base.whole import publish_beside
from kiwi_cli.errors import MediaError
from kiwi_cli.video.clip import Clip
from kiwi_cli.video.codecs import FORMATS
from kiwi_cli.video.compare import Compare, compare, compared_size
from kiwi_cli.video.damage import Damage
from kiwi_cli.video.decode import Frame, walk
from kiwi_cli.video.failures import WRITE_ERRORS, writing
from kiwi_cli.video.geometry import Fit, Framing, Size, framing
from kiwi_cli.video.mask import Mask, MaskReader, composite
from kiwi_cli.video.partial import partial_folder, remove_partial
from kiwi_cli.video.pictures import on_white
from kiwi_cli.video.planning import begin_at, check_output, plan_target, refuse_source
from kiwi_cli.video.resize import from_working
from kiwi_cli.video.sinks import Sink, Target, open_sink, rehearse
from kiwi_cli.video.sound import Cut
from kiwi_cli.video.timeline import Choice, Span, select
from kiwi_cli.video.walked import Walked

_QUEUED_CHUNKS = 2
_PATIENCE = 0.2  # seconds between looks at whether the other thread is still there
_SEEN = 0.04  # a change of shape that people notice; rounding 720 lines to 704 is 2 %


def open_writer(
    path: str | os.PathLike[str],
    clip: Clip,
    span: Span | None = None,
    *,
    size: Size | None = None,
    fit: Fit = "stretch",
    scaled: bool = False,
    keep_rest: bool = False,
    mask: Mask | None = None,
    compare: Compare | None = None,
    codec: str | None = None,
    quality: str | int | None = None,
    sound: bool = True,
    metadata: dict[str, str] | None = None,
    overwrite: bool = False,
    walked: Walked | None = None,
) -> FrameWriter:
    """Plan an output and check that it can be written. Nothing is written before the `with` block.

        with open_writer("out.mp4", clip, span, size=size) as writer:
            for chunk in chunks:
                writer.write(chunk)

    Args:
        path: the extension chooses the container; no extension writes a folder of PNG files.
        clip, span, size, fit: as given to `read_frames`; the frames written are the ones it yielded, edited. Where
            the clip is transparent, both get it as `for_output` gives it.
        scaled: the frames are at the clip's own scale already, as large as the part of it that `size` and `fit` show.
        keep_rest: also write the clip's frames before and after the span, as they are.
        mask: from `load_mask`; outside it the encoder gets the source's own pixels.
        compare: 'side' puts the source to the left of the result, 'wipe' moves a divider over the two.
        codec: 'h264', 'hevc', 'vp9', 'av1', 'prores', 'ffv1', a hardware encoder such as 'h264_nvenc', or None.
        quality: 'low', 'medium', 'high', 'lossless' or a constant rate factor; None is 'high'.
        sound: False leaves the clip's sound out.
        metadata: text that the file carries; `read_metadata` returns it.
        overwrite: replace what is there.
        walked: given to `read_frames` as well: where the source's times are all that is taken of it, and it was read
            to its end before the first frame is written, it is not decoded again.

    Raises:
        UsageError, MediaError: before any work, when the output cannot be written or the choices do not fit.
    """
    refuse_source(Path(path), (clip.path, *([mask.media.path] if mask is not None and mask.media is not None else [])))
    check_output(path, overwrite=overwrite)
    span = span or select(clip)
    target, notices = plan_target(
        Path(path),
        clip,
        span,
        keep_rest,
        compared_size(clip.size, compare),
        codec,
        quality,
        sound,
        metadata or {},
        compare is not None,
    )
    rehearse(target)
    notices += mask.notices if mask else ()
    place = framing(clip.size, size or clip.size, fit, clip.pixel_aspect)
    if not place.covers_clip:
        notices.append(f"only the middle {place.source.size} of {clip.size} is edited: --fit crop leaves the rest out")
    if place.distortion > _SEEN:
        notices.append(f"the model sees the picture stretched by {place.distortion:.0%} (--fit pad or crop does not)")
    if scaled:
        place = place.unscaled
    return FrameWriter(Path(path), target, notices, span, place, keep_rest, mask, compare, overwrite, walked)


class FrameWriter:
    """Takes edited frames in order. Made by `open_writer`, used as a context manager.

    Attributes:
        notices: what is changed or cannot be kept, for the person; complete after the `with` block.
        frames_written: frames in the output so far.
        published: whether the whole file is there, under its own name or, where that was taken meanwhile, beside it.
        deep: whether the output keeps more than 8 bits of what it is given.
        damaged: what was wrong with the frames of the clip, in words; part of `notices`.
    """

    def __init__(
        self,
        path: Path,
        target: Target,
        notices: list[str],
        span: Span,
        place: Framing,
        keep_rest: bool,
        mask: Mask | None,
        compare: Compare | None,
        overwrite: bool,
        walked: Walked | None = None,
    ) -> None:
        self.path = path
        self._overwrite = overwrite
        self.notices = notices
        self.frames_written = 0
        self.published = False
        self.damaged: list[str] = []
        self.deep = target.deep
        self._target, self._span, self._place, self._keep_rest = target, span, place, keep_rest
        self._mask = MaskReader(mask) if mask else None
        self._compare = compare
        self._plain = place.covers_clip and mask is None and compare is None and not target.deep
        self._plain &= place.source.size != place.target.size
        self._on_white = target.clip.keeps_alpha and not target.keeps_alpha
        self._plain &= not self._on_white
        self._walked = walked if self._plain and not keep_rest and target.container in FORMATS else None
        self._temporary: Path | None = None
        self._queue: queue.Queue[np.ndarray | None] = queue.Queue(_QUEUED_CHUNKS)
        self._abandoned = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="kiwi-encoder", daemon=True)

    def write(self, frames: np.ndarray) -> None:
        """Hand over (f, h, w, 3) uint8 frames at the working size; they must not be changed afterwards.

        `scaled` ones are as large as the part of the clip that they cover, and uint16 is taken of them where `deep`.

        Waits while two chunks are queued.

        Raises:
            MediaError: encoding failed (the disk is full, for one).
        """
        chunk = np.asarray(frames)
        wanted = (self._place.working.height, self._place.working.width, 3)
        kinds = (np.uint8, np.uint16) if self.deep else (np.uint8,)
        if chunk.ndim != 4 or chunk.shape[1:] != wanted or chunk.dtype not in kinds:
            raise ValueError(f"frames must be uint8 (f, {wanted[0]}, {wanted[1]}, 3), not {chunk.dtype} {chunk.shape}")
        self._put(chunk)

    def __enter__(self) -> FrameWriter:
        with writing(self.path):
            self._temporary = partial_folder(self.path)
        try:
            self._thread.start()
        except BaseException:
            remove_partial(self._temporary)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._put(None)
                while self._thread.is_alive():  # short joins, so that Ctrl-C is heard
                    self._thread.join(_PATIENCE)
                self._raise_failure()
                self._publish()
        finally:
            self._abandoned.set()
            while self._thread.is_alive():
                self._thread.join(_PATIENCE)
            if self._temporary is not None:
                remove_partial(self._temporary)

    def _put(self, item: np.ndarray | None) -> None:
        while True:
            self._raise_failure()
            try:
                self._queue.put(item, timeout=_PATIENCE)
                return
            except queue.Full:
                continue

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _part(self) -> Path:
        assert self._temporary is not None
        return self._temporary / (self.path.name or "out")

    def _publish(self) -> None:
        """Move the whole file to its place; where something else came to be there, beside it."""
        assert self._temporary is not None
        with writing(self.path):
            if not self._overwrite:
                kept = publish_beside(self._part(), self.path)
                self.published = True
                if kept is not None:
                    raise MediaError(
                        f"'{self.path}' came to be while this was made, and stays as it is; the result is '{kept}'",
                        "pass --overwrite to replace what is there",
                    )
                return
            if self._target.container != "folder" or not self.path.is_dir():
                self._part().replace(self.path)
                self.published = True
                return
            replaced = self.path.rename(self._temporary / "replaced")
            try:
                self._part().rename(self.path)
            except OSError:
                replaced.rename(self.path)
                raise
            self.published = True

    # What follows runs on the encoder's thread.

    def _run(self) -> None:
        sink: Sink | None = None
        try:
            with writing(self.path):
                damage = Damage()
                arriving: Iterator[np.ndarray | None] = self._edited()
                if self._walked is not None:
                    arriving = itertools.chain([next(arriving, None)], arriving)  # then all has been read
                clip = self._target.clip
                if self._walked is not None and self._walked.knows(clip, self._span):
                    frames = self._walked.again(clip, self._span, damage)
                else:
                    frames = walk(clip, self._span, everything=self._keep_rest, damage=damage)
                first = next(frames, None)
                if first is None:
                    raise MediaError(f"no frames in '{clip.path}'", "pass a smaller --start")
                target = begin_at(self._target, first[0].time)
                sink = open_sink(self._part(), target)
                self._encode(itertools.chain([first], frames), arriving, sink, target.cut)
                sink.finish()
                self.notices += sink.notices
                self.damaged = damage.lines
                self.notices += self.damaged
        except BaseException as error:
            self._failure = error
        finally:
            if sink is not None:
                with contextlib.suppress(*WRITE_ERRORS):
                    sink.close()

    def _encode(
        self, frames: Iterator[tuple[Frame, Choice]], arriving: Iterator[np.ndarray | None], sink: Sink, cut: Cut
    ) -> None:
        edited: np.ndarray | None = None
        for frame, choice in frames:
            if choice.take:
                edited = next(arriving, None)
                if edited is None:
                    raise MediaError("fewer edited frames arrived than were read", "report this as a bug")
            if self._abandoned.is_set():
                raise MediaError("abandoned")
            time = frame.time - (cut.begin or 0) + cut.lead
            picture = self._opaque(frame, edited if choice.inside else None)
            if self._compare is not None:
                picture = compare(self._opaque(frame, None), picture, self._compare, self._done())
            sink.add(picture, frame, time)
            self.frames_written += 1
        if next(arriving, None) is not None:
            raise MediaError("more edited frames arrived than were read", "report this as a bug")

    def _done(self) -> Fraction:
        """How much of what is written is over: 0 at its first frame, 1 at its last."""
        count = self._target.clip.frame_count if self._keep_rest else self._span.source_frames
        return Fraction(self.frames_written, max(count - 1, 1))

    def _opaque(self, frame: Frame, edited: np.ndarray | None) -> np.ndarray:
        """What `_compose` gives; of straight colours for an output without transparency, composited on white."""
        picture = self._compose(frame, edited)
        original = frame.pixels.original() if self._on_white else None
        return picture if original is None or original.shape[-1] == 3 else on_white(picture, original[..., 3])

    def _compose(self, frame: Frame, edited: np.ndarray | None) -> np.ndarray:
        """The picture for the sink, (H, W, 3) at the clip's own size: uint8, uint16 where the output keeps more.

        Outside a mask it has the source's own values; a mask's soft edge is blended at the clip's depth. One that has
        nothing of the source in it comes at the working size: it is scaled and converted in one step.
        """
        pixels, place = frame.pixels, self._place
        deep = self._target.deep
        if edited is not None and self._plain:
            return edited[place.target.top : place.target.bottom, place.target.left : place.target.right]
        original = pixels.original() if deep else None

        def source() -> np.ndarray:
            return original[..., :3] if original is not None else pixels.rgb()

        if edited is None:
            return source()
        own = pixels.fine if edited.dtype == np.uint16 else pixels.rgb
        result = from_working(edited, place, None if place.covers_clip else own())
        if deep:
            result = pixels.lifted(result)
        return composite(result, source(), self._mask.at(frame)) if self._mask is not None else result

    def _edited(self) -> Iterator[np.ndarray]:
        """Single (h, w, 3) frames out of the queue, until its end."""
        while True:
            try:
                chunk = self._queue.get(timeout=_PATIENCE)
            except queue.Empty:
                if self._abandoned.is_set():
                    raise MediaError("abandoned") from None
                continue
            if chunk is None:
                return
            yield from chunk
