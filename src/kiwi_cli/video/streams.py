"""Everything beside the picture on its way into the output: sound, subtitles, covers and attachments.

All times here are seconds on the output's timeline, where the first written picture is at the cut's `lead`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import av

from kiwi_cli.base.text import count
from kiwi_cli.errors import MediaError
from kiwi_cli.video.clip import Clip, OtherStream
from kiwi_cli.video.failures import NO_SPACE, READ_ERRORS, WRITE_ERRORS, reason
from kiwi_cli.video.keeping import fate_of
from kiwi_cli.video.opening import open_media
from kiwi_cli.video.scan import Restarts
from kiwi_cli.video.sound import Copied, Cut, Encoded, TrackPlan, kept_tags, open_track

# Subtitles that each muxer takes and players of the container show.
_SUBTITLES = {
    "mkv": {"subrip", "srt", "ass", "ssa", "webvtt", "hdmv_pgs_subtitle", "pgssub", "dvd_subtitle", "dvdsub", "dvbsub"},
    "mp4": {"mov_text"},
    "mov": {"mov_text"},
    "webm": {"webvtt"},
}
_COVERS = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}
_AHEAD = Fraction(1, 2)  # seconds that sound is muxed ahead of the picture, so that the muxer queues little
_ATTACHED = int(av.stream.Disposition.attached_pic)


@dataclass(frozen=True)
class OtherPlan:
    """What becomes of a stream that is neither the picture nor sound."""

    stream: OtherStream
    action: Literal["copy", "attach", "cover"]


def plan_others(clip: Clip, container: str) -> tuple[tuple[OtherPlan, ...], tuple[str, ...]]:
    """(the streams that come along, what to tell the person of the rest)."""
    plans: list[OtherPlan] = []
    lost: dict[str, int] = {}
    for stream in clip.other_streams:
        if stream.kind == "subtitle" and stream.codec in _SUBTITLES.get(container, ()):
            plans.append(OtherPlan(stream, "copy"))
        elif stream.kind == "cover" and stream.codec in _COVERS and fate_of("cover picture", container) == "kept":
            plans.append(OtherPlan(stream, "attach" if container == "mkv" else "cover"))
        elif stream.kind == "attachment" and fate_of("attachments", container) == "kept":
            plans.append(OtherPlan(stream, "attach"))
        else:
            words = _lost_words(stream, container)
            lost[words] = lost.get(words, 0) + 1
    return tuple(plans), tuple(
        f"not kept: {count if count > 1 else ''} {words}".replace("  ", " ") for words, count in lost.items()
    )


def _lost_words(stream: OtherStream, container: str) -> str:
    name = stream.codec or "unknown"
    if stream.kind == "subtitle":
        better = next(
            (f".{other} does" for other, takes in _SUBTITLES.items() if stream.codec in takes), "no other does"
        )
        return f"subtitle streams ({name} does not go into .{container}; {better})"
    if stream.kind == "cover":
        return f"cover pictures (.{container} holds none of {name})"
    if stream.kind == "attachment":
        return f"attachment streams (.{container} holds none; .mkv does)"
    if stream.kind == "video":
        return f"second video streams ({name})"
    if stream.kind == "audio":
        return "audio streams of an unknown codec"
    return f"{stream.kind} streams"


class Streams:
    """Feeds sound and what else comes along to an open output, a little ahead of the picture. Used by one thread."""

    def __init__(
        self, clip: Clip, sound: tuple[TrackPlan, ...], others: tuple[OtherPlan, ...], cut: Cut, container: str
    ) -> None:
        self._clip, self._cut, self._container = clip, cut, container
        self._stack = ExitStack()
        self._source = self._stack.enter_context(open_media(clip.path))
        self._tracks: dict[int, Copied | Encoded | _Subtitle | _Cover] = {}
        self._sound, self._others = sound, others
        self._restarts = Restarts(self._source, clip.restarts)
        self._packets: Iterator[Any] = iter(())
        self._held: Any = None
        self._reached = Fraction(-1)
        self._done = False
        self.notices: list[str] = []

    def attach(self, output: Any) -> None:
        """Add the output's streams. Call before the first packet is muxed."""
        with _telling():
            for plan in self._sound:
                stream = self._source.streams[plan.track.index]
                self._tracks[plan.track.index] = open_track(stream, output, plan, self._cut, self._container)
            for other in self._others:
                self._attach_other(output, other)
        if not self._tracks:
            self._done = True
            return
        begin = self._cut.begin
        if begin is not None and begin > 2 and not any(other.action != "attach" for other in self._others):
            # A second earlier than needed: codecs need a few packets to settle. Not with subtitles, which may
            # have begun long before, nor with a cover, which comes first in the file.
            position = self._clip.start + begin - 1
            self._source.seek(int(position * av.time_base), backward=True)
        self._packets = self._source.demux([self._source.streams[index] for index in self._tracks])

    def pump(self, until: Fraction | None) -> None:
        """Mux everything up to `until` (and a little more); None: to the end, and flush the encoders."""
        while not self._done and (until is None or self._reached < until + _AHEAD):
            packet, self._held = self._held, None
            try:
                packet = packet or next(self._packets, None)
            except READ_ERRORS as error:
                self.notices.append(f"the sound stops early: {reason(error)}")
            if packet is None:
                self._finish()
                return
            track = self._tracks[packet.stream.index]
            self._restarts.adjust(packet, Fraction(1, 10))
            if isinstance(track, _Cover):
                time = self._reached  # it has none of its own
            elif packet.pts is None:
                continue
            else:
                time = self._cut.place(Fraction(packet.pts) * packet.time_base - self._clip.start)
            if packet.size == 0:
                continue
            if not self._sound and until is not None and time > until + _AHEAD:
                self._held = packet  # subtitles are rare: the next may be minutes ahead
                return
            self._reached = max(self._reached, time)
            with _telling():
                track.feed(packet, time)
            if all(track.ended for track in self._tracks.values()):
                self._finish()

    def close(self) -> None:
        self._stack.close()

    def _attach_other(self, output: Any, plan: OtherPlan) -> None:
        stream = self._source.streams[plan.stream.index]
        if plan.action == "copy":
            self._tracks[stream.index] = _Subtitle(stream, output, self._cut, self._container)
        elif plan.action == "cover":
            self._tracks[stream.index] = _Cover(stream, output)
        elif plan.stream.kind == "cover":
            name, mimetype = _COVERS[plan.stream.codec]
            with open_media(self._clip.path) as again:
                data = next((bytes(p) for p in again.demux(again.streams[stream.index]) if p.size), b"")
            output.add_attachment(name, mimetype, data)
        else:
            name = stream.metadata.get("filename", f"attachment-{stream.index}")
            output.add_attachment(name, stream.mimetype or "application/octet-stream", stream.data)

    def _finish(self) -> None:
        if not self._done:
            self._done = True
            with _telling():
                for track in self._tracks.values():
                    track.finish()
            lost = sum(track.lost for track in self._tracks.values() if isinstance(track, Copied | Encoded))
            if lost:
                self.notices.append(f"damaged and left out: {count(lost, 'packet')} of the sound")


class _Subtitle:
    """Subtitle packets, moved in time; one that is on screen at the cut begins there."""

    def __init__(self, stream: Any, output: Any, cut: Cut, container: str) -> None:
        self._output, self._cut = output, cut
        self._stream = output.add_stream_from_template(stream, opaque=True)
        self._stream.metadata.update(kept_tags(stream, container))
        self._stream.disposition = int(stream.disposition)
        self.ended = False

    def feed(self, packet: Any, time: Fraction) -> None:
        if self._cut.length is not None and time >= self._cut.length:
            self.ended = True
        if self.ended:
            return
        end = time + Fraction(packet.duration or 0) * packet.time_base
        if end <= 0 and (packet.duration or time < 0):
            return
        if self._cut.length is not None:
            end = min(end, self._cut.length)
        begin = max(time, Fraction(0))
        packet.pts = packet.dts = round(begin / packet.time_base)
        packet.duration = max(round((end - begin) / packet.time_base), 0)
        packet.stream = self._stream
        self._output.mux_one(packet)

    def finish(self) -> None:
        self.ended = True


class _Cover:
    """A still picture that stands for the file."""

    def __init__(self, stream: Any, output: Any) -> None:
        self._output = output
        self._stream = output.add_stream_from_template(stream, opaque=True)
        self._stream.disposition = _ATTACHED
        self.ended = False

    def feed(self, packet: Any, time: Fraction) -> None:
        if not self.ended:
            packet.stream = self._stream
            packet.pts = packet.dts = 0
            self._output.mux_one(packet)
        self.ended = True

    def finish(self) -> None:
        self.ended = True


@contextmanager
def _telling() -> Iterator[None]:
    """What goes wrong here is not the picture's codec."""
    try:
        yield
    except WRITE_ERRORS as error:
        if getattr(error, "errno", None) in NO_SPACE or not isinstance(error, (av.FFmpegError, ValueError)):
            raise  # not the streams' fault
        raise MediaError(
            f"cannot write the sound or subtitles: {reason(error)}",
            "pass --no-sound, or write to an .mkv with --output",
        ) from error
