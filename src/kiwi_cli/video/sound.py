"""What becomes of the clip's sound: copied where the container takes it, encoded again where it does not.

Which of the two is found by trying: the first packets of each track go through the real muxer before any work.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.audio.fifo import AudioFifo
from av.audio.resampler import AudioResampler

from kiwi_cli.errors import MediaError
from kiwi_cli.video.clip import AudioTrack, Clip
from kiwi_cli.video.codecs import FORMATS
from kiwi_cli.video.failures import NO_SPACE, READ_ERRORS, WRITE_ERRORS, reason, trial_folder
from kiwi_cli.video.opening import open_media

# What players of each container expect to find in it. Matroska takes everything that its muxer takes.
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
_TRIED = Fraction(1, 2)  # seconds of a track that are muxed to see whether a container takes it
_HOLE = 0.01  # seconds without sound that become silence; timestamps in milliseconds wobble by less
_OVERLAP = 0.02  # seconds of sound that come twice and are left out once
# ISO 639-2's terminological codes that FFmpeg's QuickTime table has only under another name
_QUICKTIME_LANGUAGES = {
    "deu": "ger",
    "nld": "dut",
    "swe": "sve",
    "ell": "gre",
    "isl": "ice",
    "zho": "chi",
    "fre": "fra",
}
_LATE = 2  # seconds
_LONGEST_HOLE = 24 * 3600  # seconds; more is a broken timestamp


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

    @property
    def length(self) -> Fraction | None:
        """Seconds of the output; None to the end of what there is."""
        return None if self.end is None else self.end - (self.begin or 0) + self.lead

    def place(self, time: Fraction) -> Fraction:
        """A time of the clip on the output's timeline."""
        return time - (self.begin or 0) + self.lead


def plan_sound(clip: Clip, container: str, wanted: bool = True) -> tuple[tuple[TrackPlan, ...], tuple[str, ...]]:
    """(what becomes of each sound stream, what to tell the person).

    Raises:
        MediaError: a track can be neither copied nor encoded.
    """
    if not clip.audio:
        return (), ()
    if not wanted:
        return (), ("the sound is left out as asked",)
    if container not in (*_COPIED, "mkv"):
        return (), (f"the sound is dropped: a {container} holds none",)
    plans, notices = [], []
    for track in clip.audio:
        copied = TrackPlan(track, "copy")
        if (container == "mkv" or track.codec in _COPIED[container]) and not _refusal(clip, copied, container):
            plans.append(copied)
            continue
        lossless = container == "mkv" and track.codec.startswith("pcm_")
        encoded = TrackPlan(track, "encode", "flac" if lossless else _ENCODERS[container])
        if why := _refusal(clip, encoded, container):
            raise MediaError(
                f"the sound of '{clip.path}' ({track.codec}) cannot be written: {why}",
                "pass --no-sound, or another container with --output",
            )
        plans.append(encoded)
        name = encoded.encoder.removeprefix("lib")
        notices.append(f"the sound is encoded again: {track.codec} does not go into .{container}, {name} does")
        if track.channels not in _LAYOUTS:
            notices.append(f"the sound's {track.channels} channels become stereo")
    return tuple(plans), tuple(notices)


def _refusal(clip: Clip, plan: TrackPlan, container: str) -> str:
    """Why a track cannot go into a container that way; '' when it can."""
    info = clip.path.stat()
    return _tried(clip.path, (info.st_mtime_ns, info.st_size), plan, container)


@lru_cache(256)
def _tried(path: Path, version: tuple[int, int], plan: TrackPlan, container: str) -> str:
    with trial_folder() as folder:
        try:
            _try(folder / "trial", path, plan, container)
        except (MediaError, *WRITE_ERRORS) as error:
            if getattr(error, "errno", None) in NO_SPACE:
                raise
            return reason(error)
    return ""


def _try(trial: Path, path: Path, plan: TrackPlan, container: str) -> None:
    """The beginning of a track through the real muxer."""
    with av.open(str(trial), "w", format=FORMATS[container]) as output, open_media(path) as source:
        stream = source.streams[plan.track.index]
        track = open_track(stream, output, plan, Cut(), container)
        output.start_encoding()
        first: Fraction | None = None
        for packet in source.demux(stream):
            if packet.size == 0 or packet.pts is None:
                continue
            time = Fraction(packet.pts) * packet.time_base
            first = time if first is None else first
            if time - first > _TRIED:
                break
            track.feed(packet, time - first)
        track.finish()


def open_track(stream: Any, output: Any, plan: TrackPlan, cut: Cut, container: str) -> Copied | Encoded:
    """The track's way into an open output."""
    if plan.action == "copy":
        return Copied(stream, output, cut, container)
    return Encoded(stream, output, plan, cut, container)


class Copied:
    """Packets as they are, moved in time. The first and last may stick out by less than one packet (21 ms
    in AAC); MP4 hides what comes before zero with an edit list."""

    def __init__(self, stream: Any, output: Any, cut: Cut, container: str) -> None:
        self._output, self._cut = output, cut
        self._stream = output.add_stream_from_template(stream, opaque=True)
        self._stream.metadata.update(kept_tags(stream, container))
        self._stream.disposition = int(stream.disposition)
        # A whole Matroska or Opus track says itself how many samples at its beginning are for settling, so
        # that times before zero are written as they are.
        knows_delay = "opus" in stream.codec_context.name or "matroska" in stream.container.format.name
        self._negative_ok = container not in _MATROSKA or (knows_delay and cut.begin is None)
        # The MOV muxer lays PCM end to end, whatever its times: a hole needs silence of its own.
        context = stream.codec_context
        signed = container == "mov" and context.name.startswith("pcm_s")
        self._frame_bytes = context.format.bytes * context.channels if signed and context.format else 0
        if "24" in context.name:
            self._frame_bytes = self._frame_bytes * 3 // 4
        self._rate = context.sample_rate
        self._end: Fraction | None = None
        self._begun = False
        self._last_dts: int | None = None
        self._muxed = 0
        self.lost = 0  # packets
        self.ended = False

    def feed(self, packet: Any, time: Fraction) -> None:
        """Mux a packet whose time on the output's timeline is `time`."""
        if self._cut.length is not None and time >= self._cut.length:
            self.ended = True
        if self.ended:
            return
        # An edit list hides packets: those before the first are for settling, later ones are no part of the clip.
        if packet.is_discard and self._begun:
            return
        length = Fraction(packet.duration or 0) * packet.time_base
        if self._cut.begin is not None and time + length <= 0:
            return
        # Matroska has no time before zero: the muxer would move the picture instead.
        if time < 0 and not self._negative_ok:
            return
        self._begun = self._begun or not packet.is_discard
        if self._frame_bytes and self._end is not None and time - self._end > _HOLE:
            self._fill(min(time - self._end, Fraction(_LONGEST_HOLE)), packet.time_base)
        self._end = time + length
        shift = round(time / packet.time_base) - packet.pts
        packet.pts += shift
        packet.dts = packet.pts if packet.dts is None else packet.dts + shift
        if self._last_dts is not None and packet.dts <= self._last_dts:
            if packet.pts <= self._last_dts:  # the same moment twice
                return
            packet.dts = self._last_dts + 1
        self._last_dts = packet.dts
        packet.stream = self._stream
        try:
            self._output.mux_one(packet)
        except av.InvalidDataError:
            if not self._muxed:  # then it is the container that does not take them
                raise
            self.lost += 1  # a packet whose own header is damaged
            return
        self._muxed += 1

    def finish(self) -> None:
        self.ended = True

    def _fill(self, seconds: Fraction, time_base: Fraction) -> None:
        """Mux silence after the last packet, a second at a time."""
        assert self._end is not None
        samples = round(seconds * self._rate)
        while samples > 0:
            count = min(samples, self._rate)
            packet = av.Packet(bytes(count * self._frame_bytes))
            packet.time_base, packet.stream = time_base, self._stream
            packet.pts = packet.dts = round(self._end / time_base)
            packet.duration = round(Fraction(count, self._rate) / time_base)
            self._output.mux_one(packet)
            self._end += Fraction(count, self._rate)
            samples -= count


class Encoded:
    """Decoded, cut to the sample, encoded again. Where the source has a hole the output has silence.

    Samples wait packed, (1, samples x channels) float32: PyAV miscounts the planes of eight planar channels.
    """

    def __init__(self, stream: Any, output: Any, plan: TrackPlan, cut: Cut, container: str) -> None:
        self._source, self._output, self._cut = stream, output, cut
        rate = plan.track.rate
        if plan.encoder == "libopus" or (plan.encoder == "aac" and rate not in _AAC_RATES):
            rate = 48_000
        layout = _LAYOUTS.get(plan.track.channels, "stereo")
        options = {"mapping_family": "1"} if plan.encoder == "libopus" and layout in ("5.1", "7.1") else {}
        self._stream = output.add_stream(plan.encoder, rate=rate, options=options)
        context = self._stream.codec_context
        context.layout = layout
        self._channels = context.layout.nb_channels
        if plan.encoder == "flac" and plan.track.codec not in ("pcm_mulaw", "pcm_alaw"):
            context.format = "s32"
        if plan.encoder in _BITS_A_CHANNEL:
            context.bit_rate = _BITS_A_CHANNEL[plan.encoder] * self._channels
        self._stream.metadata.update(kept_tags(stream, container))
        self._stream.disposition = int(stream.disposition)
        self._rate, self._layout = rate, layout
        self._resampler = self._new_resampler()
        wanted = context.format.name
        self._to_encoder = AudioResampler(format=wanted, layout=layout, rate=rate) if wanted != "flt" else None
        self._fifo = AudioFifo()
        self._length = None if cut.length is None else round(cut.length * rate)
        self._next: int | None = None  # the output sample that comes next
        self._skip = 0  # samples to leave out, because they were there before
        self._written = 0
        self._encoded = 0  # samples; without times the encoder's own delay would shift the sound
        self.lost = 0  # packets
        self.ended = False

    def feed(self, packet: Any, time: Fraction) -> None:
        """Take a packet whose time on the output's timeline is `time`."""
        if self.ended:
            return
        try:
            frames = packet.decode()
        except READ_ERRORS:
            self.lost += 1
            return  # one damaged packet is a hole, not the end
        for frame in frames:
            if frame.pts is not None and frame.time_base:
                begin = time + (Fraction(frame.pts) * frame.time_base - Fraction(packet.pts) * packet.time_base)
                self._go_to(round(begin * self._rate))
            frame.pts = None
            self._resample(frame)
        self._encode(flush=False)

    def finish(self) -> None:
        if self._next is not None:
            self._resample(None)
        self._encode(flush=True)
        self._output.mux(self._stream.encode(None))
        self.ended = True

    def _new_resampler(self) -> AudioResampler:
        return AudioResampler(format="flt", layout=self._layout, rate=self._rate)

    def _resample(self, frame: Any) -> None:
        try:
            parts = self._resampler.resample(frame)
        except ValueError:  # the sound's own form changed: what is left of the old one first
            parts = self._resampler.resample(None)
            self._resampler = self._new_resampler()
            parts += self._resampler.resample(frame)
        for part in parts:
            self._take(part.to_ndarray().reshape(-1, self._channels))

    def _go_to(self, begin: int) -> None:
        """Come to output sample `begin`: silence where there is a hole, nothing twice."""
        if self._next is None:
            # far behind the picture, the stream itself begins late: hours of silence need not be encoded
            self._next = begin if begin < 0 or begin > _LATE * self._rate else 0
            self._written = self._encoded = max(self._next, 0)
        gap = begin - self._next
        if gap > _LONGEST_HOLE * self._rate:
            return
        if gap > _HOLE * self._rate:
            if self._written:
                self._resample(None)
                self._resampler = self._new_resampler()
                gap = begin - self._next
            while gap > 0 and not self.ended:
                silence = np.zeros((min(gap, self._rate), self._channels), np.float32)
                self._take(silence)
                self._encode(flush=False)
                gap -= len(silence)
        elif gap < -_OVERLAP * self._rate:
            self._skip = -gap

    def _take(self, samples: np.ndarray) -> None:
        """Cut (samples, channels) float32 at zero and at the end, and queue them."""
        if self._skip:
            left_out = min(self._skip, len(samples))
            self._skip -= left_out
            samples = samples[left_out:]
        begin = self._next or 0
        self._next = begin + len(samples)
        if begin < 0:
            samples = samples[-begin:]
        if self._length is not None and self._next >= self._length:
            samples = samples[: max(self._length - self._written, 0)]
            self.ended = True
        if not len(samples):
            return
        self._written += len(samples)
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples).reshape(1, -1), format="flt", layout=self._layout
        )
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


def kept_tags(stream: Any, container: str) -> dict[str, str]:
    """Language and title; the rest (handler names, encoder) describes the old file."""
    tags = {key.lower(): value for key, value in stream.metadata.items() if key.lower() in ("language", "title")}
    if container == "mov" and "language" in tags:
        tags["language"] = _QUICKTIME_LANGUAGES.get(tags["language"], tags["language"])
    return tags
