"""The clip's sound into the output: copied where the container takes it, encoded again where it does not.

All times here are seconds on the output's timeline, where the first written picture is at `lead`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np
from av.audio.fifo import AudioFifo
from av.audio.resampler import AudioResampler

from kiwi_cli.video.clip import AudioTrack, Clip
from kiwi_cli.video.failures import READ_ERRORS, reason
from kiwi_cli.video.opening import open_media

# What players of each container expect to find in it. Matroska takes everything.
_COPIED = {
    "mp4": {"aac", "mp3", "mp3float", "ac3", "eac3", "opus", "libopus", "flac", "alac"},
    "mov": {"aac", "mp3", "mp3float", "ac3", "eac3", "alac", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be"},
    "webm": {"opus", "libopus", "vorbis", "libvorbis"},
}
_ENCODERS = {"mp4": "aac", "mov": "aac", "webm": "libopus", "mkv": "aac"}
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
_BITS_A_CHANNEL = {"aac": 96_000, "libopus": 80_000}  # bits a second; both beyond what listeners tell apart
_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
_MATROSKA = ("mkv", "webm")
_AHEAD = Fraction(1, 2)  # seconds that sound is muxed ahead of the picture, so that the muxer queues little


@dataclass(frozen=True)
class TrackPlan:
    """What becomes of one sound stream."""

    track: AudioTrack
    action: Literal["copy", "encode"]
    encoder: str = ""


@dataclass(frozen=True)
class Cut:
    """The part of the clip's timeline that the output covers, in seconds from the clip's first picture.

    `begin` None keeps the sound from before the first picture, `end` None that from after the last.
    `lead` is how far the first picture comes after the beginning of the output.
    """

    begin: Fraction | None = None
    end: Fraction | None = None
    lead: Fraction = Fraction(0)


def plan_sound(clip: Clip, container: str, wanted: bool = True) -> tuple[tuple[TrackPlan, ...], tuple[str, ...]]:
    """(what becomes of each sound stream, what to tell the person)."""
    if not clip.audio:
        return (), ()
    if not wanted:
        return (), ("the sound is left out as asked",)
    if container not in (*_COPIED, "mkv"):
        return (), (f"the sound is dropped: a {container} holds none",)
    plans, notices = [], []
    for track in clip.audio:
        if container == "mkv" or track.codec in _COPIED[container]:
            plans.append(TrackPlan(track, "copy"))
            continue
        encoder = _ENCODERS[container]
        plans.append(TrackPlan(track, "encode", encoder))
        notices.append(
            f"the sound is encoded again: {track.codec} does not go into .{container}, "
            f"{encoder.removeprefix('lib')} does"
        )
        if track.channels not in _LAYOUTS:
            notices.append(f"the sound's {track.channels} channels become stereo")
    return tuple(plans), tuple(notices)


class Sound:
    """Feeds sound to an open output, a little ahead of the picture. Used by one thread."""

    def __init__(self, clip: Clip, plans: tuple[TrackPlan, ...], cut: Cut, container: str) -> None:
        self._clip, self._cut, self._container = clip, cut, container
        self._stack = ExitStack()
        self._source = self._stack.enter_context(open_media(clip.path))
        self._tracks: dict[int, _Copied | _Encoded] = {}
        self._plans = plans
        self._packets: Iterator[Any] = iter(())
        self._reached = Fraction(-1)
        self._done = False
        self.notices: list[str] = []

    def attach(self, output: Any) -> None:
        """Add the output's sound streams. Call before the first packet is muxed."""
        for plan in self._plans:
            stream = self._source.streams[plan.track.index]
            kind = _Copied if plan.action == "copy" else _Encoded
            self._tracks[plan.track.index] = kind(stream, output, plan, self._cut, self._container)
        begin = self._cut.begin
        if begin is not None and begin > 2:
            # A second earlier than needed: codecs need a few packets to settle.
            position = self._clip.start + begin - 1
            self._source.seek(int(position * av.time_base), backward=True)
        self._packets = self._source.demux([self._source.streams[index] for index in self._tracks])

    def pump(self, until: Fraction | None) -> None:
        """Mux everything up to `until` (and a little more); None: to the end, and flush the encoders."""
        while not self._done and (until is None or self._reached < until + _AHEAD):
            try:
                packet = next(self._packets, None)
            except READ_ERRORS as error:
                self.notices.append(f"the sound stops early: {reason(error)}")
                packet = None
            if packet is None:
                self._finish()
                return
            if packet.size == 0 or packet.pts is None:
                continue
            time = Fraction(packet.pts) * packet.time_base - self._clip.start - (self._cut.begin or 0) + self._cut.lead
            self._reached = max(self._reached, time)
            self._tracks[packet.stream.index].feed(packet, time)
            if all(track.ended for track in self._tracks.values()):
                self._finish()

    def close(self) -> None:
        self._stack.close()

    def _finish(self) -> None:
        if not self._done:
            self._done = True
            for track in self._tracks.values():
                track.finish()


class _Copied:
    """Packets as they are, moved in time. The first and last may stick out by less than one packet (21 ms
    in AAC); MP4 hides what comes before zero with an edit list."""

    def __init__(self, stream: Any, output: Any, plan: TrackPlan, cut: Cut, container: str) -> None:
        self._output, self._cut = output, cut
        self._stream = output.add_stream_from_template(stream, opaque=True)
        self._stream.metadata.update(_kept_tags(stream))
        # A whole Matroska or Opus track says itself how many samples at its beginning are for settling, so
        # that times before zero are written as they are.
        knows_delay = "opus" in plan.track.codec or "matroska" in stream.container.format.name
        self._negative_ok = container not in _MATROSKA or (knows_delay and cut.begin is None)
        self._length = None if cut.end is None else cut.end - (cut.begin or 0) + cut.lead
        self.ended = False

    def feed(self, packet: Any, time: Fraction) -> None:
        if self._length is not None and time >= self._length:
            self.ended = True
        if self.ended:
            return
        length = Fraction(packet.duration or 0) * packet.time_base
        if self._cut.begin is not None and time + length <= 0:
            return
        # Matroska has no time before zero: the muxer would move the picture instead.
        if time < 0 and not self._negative_ok:
            return
        shift = round(time / packet.time_base) - packet.pts
        packet.pts += shift
        packet.dts = packet.pts if packet.dts is None else packet.dts + shift
        packet.stream = self._stream
        self._output.mux_one(packet)

    def finish(self) -> None:
        self.ended = True


class _Encoded:
    """Decoded, cut to the sample, encoded again."""

    def __init__(self, stream: Any, output: Any, plan: TrackPlan, cut: Cut, container: str) -> None:
        self._source, self._output, self._cut = stream, output, cut
        rate = plan.track.rate
        if plan.encoder == "libopus" or rate not in _AAC_RATES:
            rate = 48_000
        layout = _LAYOUTS.get(plan.track.channels, "stereo")
        options = {"mapping_family": "1"} if plan.encoder == "libopus" and layout in ("5.1", "7.1") else {}
        self._stream = output.add_stream(plan.encoder, rate=rate, options=options)
        self._stream.codec_context.layout = layout
        channels = self._stream.codec_context.layout.nb_channels
        self._stream.codec_context.bit_rate = _BITS_A_CHANNEL[plan.encoder] * channels
        self._stream.metadata.update(_kept_tags(stream))
        self._rate = rate
        self._channels = channels
        self._resampler = AudioResampler(format="fltp", layout=layout, rate=rate)
        wanted = self._stream.codec_context.format.name
        self._to_encoder = AudioResampler(format=wanted, layout=layout, rate=rate) if wanted != "fltp" else None
        self._fifo = AudioFifo()
        self._length = None if cut.end is None else round((cut.end - (cut.begin or 0) + cut.lead) * rate)
        self._next: int | None = None  # the output sample that comes next
        self._written = 0
        self._encoded = 0  # samples; without times the encoder's own delay would shift the sound
        self.ended = False

    def feed(self, packet: Any, time: Fraction) -> None:
        if self.ended:
            return
        try:
            frames = packet.decode()
        except READ_ERRORS:
            return  # one damaged packet is a click, not the end
        for frame in frames:
            if self._next is None and frame.pts is not None:
                begin = time + (Fraction(frame.pts) * frame.time_base - Fraction(packet.pts) * packet.time_base)
                self._next = round(begin * self._rate)
                if self._next > 0:
                    self._store(np.zeros((self._channels, self._next), np.float32))
            frame.pts = None
            for part in self._resampler.resample(frame):
                self._take(part.to_ndarray())
        self._encode(flush=False)

    def finish(self) -> None:
        if self._next is not None:
            for part in self._resampler.resample(None):
                self._take(part.to_ndarray())
        self._encode(flush=True)
        self._output.mux(self._stream.encode(None))
        self.ended = True

    def _take(self, samples: np.ndarray) -> None:
        """Cut (channels, samples) float32 at zero and at the end, and queue them."""
        begin = self._next or 0
        self._next = begin + samples.shape[1]
        if begin < 0:
            samples = samples[:, -begin:]
        if self._length is not None and self._next >= self._length:
            samples = samples[:, : max(self._length - self._written, 0)]
            self.ended = True
        if samples.shape[1]:
            self._store(samples)

    def _store(self, samples: np.ndarray) -> None:
        self._written += samples.shape[1]
        layout = self._stream.codec_context.layout.name
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        frame.sample_rate = self._rate
        frame.pts = None
        self._fifo.write(frame)

    def _encode(self, flush: bool) -> None:
        context = self._stream.codec_context
        if not context.is_open:
            context.open()
        block = context.frame_size or 1024
        while (frame := self._fifo.read(block, partial=flush)) is not None:
            for part in self._to_encoder.resample(frame) if self._to_encoder else (frame,):
                part.pts, part.time_base = self._encoded, Fraction(1, self._rate)
                self._encoded += part.samples
                self._output.mux(self._stream.encode(part))


def _kept_tags(stream: Any) -> dict[str, str]:
    """Language and title; the rest (handler names, encoder) describes the old file."""
    return {key: value for key, value in stream.metadata.items() if key.lower() in ("language", "title")}
