"""A long edit's latents -> its frames: each shot once, causally, as they are taken.

The autoencoder remembers what it decoded, so another latent frame changes the frames after it too. A part that was made
anew is therefore decoded beside the rest, from where it begins, with what the decoder remembered there; at its end the
rest goes on with what that remembered. All frames that are not the part's are to the bit what they were without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch

from kiwi_cli.engine import finite
from kiwi_cli.engine.layout import Segment
from kiwi_cli.engine.made import Frames, Made, Patch
from kiwi_cli.engine.managed import let_go
from kiwi_cli.engine.part_rows import PartRows
from kiwi_cli.engine.pipeline import KiwiPipeline, Progress
from kiwi_cli.model.pixels import to_bytes, to_host
from kiwi_cli.model.vae import Decoder

BLOCK = 20
"""Latent frames that are decoded of one of several streams before it is the next one's turn."""


class LongDecode:
    """The decoding of a clip whose steps are all made.

    Args:
        report: told of latent frames.
    """

    def __init__(self, pipe: KiwiPipeline, made: Made, report: Progress | None = None) -> None:
        self.pipe, self.made = pipe, made
        self.report: Progress = report or (lambda stage, done, total: None)
        self._segments = [segment for shot in made.layout.shots for segment in shot.segments]
        self._total = sum(len(segment.rows) for segment in self._segments)
        self._starts = [0, *accumulate(segment.frames for segment in self._segments)]

    def frames(self) -> Frames:
        """The clip's edited frames, (f, H, W, 3) uint8."""
        done = 0
        for number, segment in enumerate(self._segments):
            if any(patch.part.within(segment) for patch in self.made.patches):
                for versions in self._all(number, done, round_trip=False):
                    yield versions[:, -1]
            else:
                latents, lead = _rows(self.made.latents, segment), int(segment.lead)
                stream = self.pipe.decode(latents, segment.frames + lead, self._counted(done))
                for latent, chunk in enumerate(stream):
                    if latent or not lead:  # an anchor's frame is the first chunk
                        yield chunk
            done += len(segment.rows)

    def pairs(self) -> Frames:
        """The edited frames, each with the source as the autoencoder gives it back: (f, 2, H, W, 3) uint8.

        With parts that were made anew (f, 2 + parts, H, W, 3): then the frames as they were before the last of them,
        before the last but one, and so on. Parts do not come in or go here: what makes a frame of these does that.
        """
        done = 0
        for number, segment in enumerate(self._segments):
            for versions in self._all(number, done, round_trip=True):
                yield np.concatenate([versions[:, -1:], versions[:, :1], versions[:, -2:0:-1]], axis=1)
            done += len(segment.rows)

    def _all(self, number: int, before: int, round_trip: bool) -> Frames:
        """The clip's frames of a segment, (f, versions, H, W, 3): what `_versions` gives, whatever the device holds."""
        segment, sent = self._segments[number], 0
        while sent < segment.frames:
            position = -int(segment.lead)
            try:
                for latent, versions in enumerate(self._versions(number, round_trip), start=1):
                    fresh = versions[max(0, sent - position) : max(0, segment.frames - position)]
                    position += len(versions)
                    self._counted(before)("decode", latent, len(segment.rows))
                    if len(fresh):
                        sent += len(fresh)
                        yield fresh
                return
            except torch.OutOfMemoryError as error:
                failure = let_go(error)
            self.pipe._step_down(failure)  # then once more from the shot's start, past what is out already

    def _counted(self, before: int) -> Progress:
        """Reports of a segment's decoding as part of the clip's."""
        return lambda stage, done, of: self.report(stage, before + done, self._total)

    def _versions(self, number: int, round_trip: bool) -> Iterator[np.ndarray]:
        """(f, versions, H, W, 3) uint8 for each latent frame: the source's if wanted, the edit without any part, with
        the first, with the second, and so on. One stream's memory is on the device at a time."""
        pipe, segment = self.pipe, self._segments[number]
        rows = segment.rows
        with pipe._stage("decode") as device:
            strips = pipe.residency.placement.decode_strips if pipe.residency else 1
            streams = _streams(segment, self.made.patches)
            streams[0].decoder = Decoder(pipe.vae, strips, pipe.decode_steady)
            source = Decoder(pipe.vae, strips, pipe.decode_steady) if round_trip else None
            for start in range(0, len(rows), BLOCK):
                block = range(start, min(start + BLOCK, len(rows)))
                seen: list[list[np.ndarray]] = []
                if source is not None:
                    source.move(device)
                    latents = (self.made.source[rows[place]] for place in block)
                    seen.append(self._pixels(source(latent[None, :, None]) for latent in latents))
                    source.move("cpu")
                decoded = [self._of_block(stream, segment, block, device) for stream in streams]
                for at, place in enumerate(block):
                    versions = [each[at] for each in seen]
                    for stream, frames in zip(streams, decoded, strict=True):
                        own = frames[place] if place in frames else versions[-1]
                        if place in frames and stream.patch is not None and not round_trip:
                            first = self._starts[number] + segment.first_of(place)
                            own = _faded(stream.patch.part, first, versions[-1], own)
                        versions.append(own)
                    yield np.stack(versions, axis=1)

    def _of_block(self, stream: _Stream, segment: Segment, block: range, device: torch.device) -> dict[int, np.ndarray]:
        """What a stream decodes of a block, by place; streams that leave it there get what it remembers."""
        places = [place for place in block if place in stream.places]
        if not places:
            return {}
        decoder = stream.decoder
        assert decoder is not None
        decoder.move(device)

        def pixels() -> Iterator[torch.Tensor]:
            for place in places:
                stream.give(place, decoder)
                row = segment.rows[place]
                latent = self.made.latents[row] if stream.patch is None else stream.patch.row(row)
                yield decoder(latent[None, :, None])

        found = dict(zip(places, self._pixels(pixels()), strict=True))
        if stream.places.stop <= block.stop:
            stream.give(stream.places.stop, decoder)
        decoder.move("cpu")
        return found

    def _pixels(self, decoded: Iterator[torch.Tensor]) -> list[np.ndarray]:
        watched = finite.watched(decoded, {"vae": self.pipe.vae}, self.pipe.compute_dtype)
        return list(to_host(to_bytes(pixels) for pixels in watched))


@dataclass
class _Stream:
    """One way through a segment: without parts, or a part's.

    Attributes:
        places: in the segment's rows that it decodes. patch: the part. leaving: streams that begin with what this one
            remembers, before one of its places or after the last.
    """

    places: range
    patch: Patch | None = None
    leaving: list[_Stream] = field(default_factory=list)
    decoder: Decoder | None = None

    def give(self, place: int, decoder: Decoder) -> None:
        """Let the streams that leave at a place have what the decoder remembers before that."""
        for stream in self.leaving:
            if stream.places.start == place and stream.decoder is None:
                stream.decoder = decoder.fork()


def _streams(segment: Segment, patches: list[Patch]) -> list[_Stream]:
    """A segment's stream without parts, and one for each part, empty where the part is elsewhere.

    A part goes on with what was shown before it: another part's memory if that was just decoding, the newest's.
    """
    streams = [_Stream(range(len(segment.rows)))]
    for patch in patches:
        own = _Stream(patch.part.within(segment), patch)
        before = [each for each in streams if each.places and each.places.start < own.places.start <= each.places.stop]
        if own.places:
            (before or streams[:1])[-1].leaving.append(own)
        streams.append(own)
    return streams


def _faded(part: PartRows, first: int, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Frames (f, H, W, 3) uint8 of a part, from the clip's number `first` on, with what was there before where it comes
    in or goes."""
    pairs = zip(before, after, strict=True)
    return np.stack([part.mixed(number, *pair) for number, pair in enumerate(pairs, start=first)])


def _rows(table: torch.Tensor, segment: Segment) -> torch.Tensor:
    """A segment's latents in a table (rows, C, h, w), as the autoencoder takes them: (1, C, T, h, w).

    Rows that follow each other are not copied: a segment may be as long as the clip.
    """
    rows = segment.rows
    found = table[list(rows)] if segment.lead else table[rows[0] : rows[-1] + 1]
    return found.transpose(0, 1)[None]
