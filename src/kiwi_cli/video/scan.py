"""Reading a video through without decoding it: how many frames there are, and when each is shown."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from kiwi_cli.video.damage import corrupt_packets, lost_frames, open_end, unkept_promise
from kiwi_cli.video.failures import READ_ERRORS, reason
from kiwi_cli.video.opening import open_media, picture_stream

_SCAN_BYTES = 1 << 30  # files up to this are read through once to count frames and find their times
_MAX_FRAMES = 5_000_000  # 23 hours at 60 frames a second
_RESTART = 3  # frames that the clock goes back by where one recording follows another
# containers that recordings are joined in by laying the files end to end
_JOINED = ("mpegts", "mpeg", "mpegvideo")
# containers without presentation times: their frames are shown in the decoder's order, one after the other
_NO_TIMES = ("avi",)


class Restarts:
    """Times that go on where a stream's clock begins anew, as in transport streams laid end to end."""

    def __init__(self, container: Any, known: tuple[Fraction, ...] | None = None) -> None:
        """`known`: seconds that each later part is moved by, as the picture's stream has them."""
        self._joined = container.format.name in _JOINED
        self._known = known
        self._last: dict[int, Fraction] = {}  # stream -> the end of its last packet, own clock, seconds
        self._part: dict[int, int] = {}
        self.found: list[Fraction] = []

    @staticmethod
    def _least(packet: Any, frame: Fraction) -> Fraction:
        """A picture lasts a frame, also where its packet says less (fields) or nothing."""
        return frame if packet.stream.type == "video" else Fraction(0)

    def adjust(self, packet: Any, frame: Fraction) -> None:
        """Move a packet's times in place. `frame` is about how long a frame lasts, seconds."""
        if not self._joined or packet.dts is None:
            return
        index = packet.stream.index
        time = packet.dts * packet.time_base
        last = self._last.get(index)
        if last is not None and time < last - _RESTART * frame:
            self._part[index] = self._part.get(index, 0) + 1
            if self._known is None:
                self.found.append((self.found[-1] if self.found else Fraction(0)) + last - time)
        self._last[index] = time + max(Fraction(packet.duration or 0) * packet.time_base, self._least(packet, frame))
        moves = self.found if self._known is None else self._known
        part = min(self._part.get(index, 0), len(moves))
        if part:
            shift = round(moves[part - 1] / packet.time_base)
            packet.dts += shift
            if packet.pts is not None:
                packet.pts += shift


@dataclass
class _Scan:
    """Ticks of the shown frames, in order; the last one's length; packets that an edit list hides; what went wrong.

    `packets` and `corrupt`: of each kind of stream, how many there are, and how many the demuxer calls damaged; `end`:
    of the last packet of all, seconds.
    """

    times: list[int] = field(default_factory=list)
    last: int = 0
    hidden: int = 0
    error: str = ""
    packets: Counter[str] = field(default_factory=Counter)
    corrupt: Counter[str] = field(default_factory=Counter)
    end: Fraction = Fraction(0)
    restarts: tuple[Fraction, ...] = ()

    def note(self, packet: Any) -> None:
        """Count a packet of any stream."""
        if not packet.size:
            return
        kind = packet.stream.type
        self.packets[kind] += 1
        self.corrupt[kind] += packet.is_corrupt
        if packet.dts is not None and kind in ("video", "audio"):
            self.end = max(self.end, (packet.dts + (packet.duration or 0)) * packet.time_base)


def timing(path: Path, container: Any, stream: Any, first: Any, rate: Fraction | None) -> dict[str, Any]:
    """Frame count, rate, duration and start, read through the file where that is cheap."""
    time_base = stream.time_base or Fraction(1, 90_000)
    start = Fraction(first.pts or 0) * first.time_base
    length = Fraction(stream.duration) * time_base if stream.duration else None
    if length is None and container.duration:
        length = Fraction(container.duration, av.time_base)
    if container.size > _SCAN_BYTES:
        fps = rate or Fraction(25)
        count = stream.frames or max(int((length or 0) * fps), 1)
        return {
            "start": start,
            "fps": fps,
            "frame_count": count,
            "frame_count_exact": bool(stream.frames),
            "duration": length or count / fps,
            "missing": "",
            "damage": tuple(open_end(path, container.format.name)),
        }
    found = _scan(path, rate or Fraction(25))
    promised = stream.frames if stream.frames <= container.size else 0  # written to a pipe, headers hold nonsense
    missing = found.error or _shortfall(promised, len(found.times) + found.hidden)
    times = found.times
    damage = _damage(path, container, found, rate or Fraction(25), time_base)
    if 0 < len(times) + found.hidden < promised and not missing:
        damage.append(f"{len(times) + found.hidden} of {promised} frames are there")
    read = {"missing": missing, "damage": tuple(damage)}
    if len(times) < 2:
        fps = rate or Fraction(25)
        duration = found.last * time_base or length or 1 / fps
        if duration <= 0 or duration > 3600:
            duration = 1 / fps
        return {
            "start": start,
            "fps": 1 / duration if rate is None else fps,
            "frame_count": 1,
            "duration": duration,
            "timestamps": (0,),
            **read,
        }
    if length is not None and container.format.name.startswith("mov") and found.hidden == 0:
        # where packets are out of order, the last one's own length is not the last picture's
        found.last = max(found.last, round(length / time_base) - (times[-1] - times[0]))
    return _spread(times, found, rate, time_base) | {"restarts": found.restarts, **read}


def _damage(path: Path, container: Any, found: _Scan, rate: Fraction, time_base: Fraction) -> list[str]:
    """What the file lacks, in words."""
    name, header = container.format.name, container.duration
    lines = [
        *corrupt_packets("picture", found.corrupt["video"], found.packets["video"]),
        *corrupt_packets("sound", found.corrupt["audio"], found.packets["audio"]),
        *unkept_promise(name, Fraction(header, av.time_base) if header else None, found.end, rate),
        *open_end(path, name),
    ]
    if not found.restarts and found.times:
        lines += lost_frames(name, [(time - found.times[0]) * time_base for time in found.times])
    return lines


def _spread(shown: list[int], found: _Scan, rate: Fraction | None, time_base: Fraction) -> dict[str, Any]:
    """How two or more frames lie in time."""
    times = tuple(value - shown[0] for value in shown)
    average = Fraction(len(times) - 1) / (times[-1] * time_base)
    fps = rate if rate is not None and abs(rate - average) < average / 100 else average
    steps = [b - a for a, b in itertools.pairwise(times)]
    # Containers round times to their tick, so that even rates wobble by one; where a tick is nearly a frame, a
    # wobble is a frame that was dropped.
    ticks = 1 / (average * time_base)
    wobble = 2 if ticks >= 8 else 1 if ticks >= 3 else 0
    variable = max(steps) - min(steps) > wobble or any(
        abs(t * time_base - i / average) > max(wobble * time_base, 1 / average / 20) for i, t in enumerate(times)
    )
    last = found.last * time_base
    if not 0 < last < 3600 or (
        not variable and time_base >= Fraction(1, 1000) and abs(last - 1 / fps) <= 2 * time_base
    ):
        last = 1 / fps  # not said, or as rounded as the times are
    return {
        "start": shown[0] * time_base,
        "fps": fps,
        "frame_count": len(times),
        "duration": len(times) / fps if not variable and last == 1 / fps else times[-1] * time_base + last,
        "timestamps": times,
        "variable_rate": variable,
    }


def _scan(path: Path, rate: Fraction) -> _Scan:
    """Read a file through. It is opened for that: raw streams and FLV cannot be wound back."""
    found = _Scan()
    shown: dict[int, int] = {}
    with open_media(path) as container:
        stream = picture_stream(container, path)
        restarts = Restarts(container)
        even = max(round(1 / rate / (stream.time_base or Fraction(1, 90_000))), 1)
        try:
            for packet in container.demux(*container.streams):
                found.note(packet)
                if packet.stream.index != stream.index or not _shows(packet):
                    continue
                if packet.is_discard:
                    found.hidden += 1
                    continue
                restarts.adjust(packet, 1 / rate)
                pts = packet.pts if packet.pts is not None else packet.dts
                if pts is None:
                    pts = 0 if not shown else next(reversed(shown)) + (packet.duration or even)
                shown[pts] = packet.duration or 0
                if len(shown) > _MAX_FRAMES:
                    found.error = f"more than {_MAX_FRAMES} frames"
                    break
        except READ_ERRORS as error:
            found.error = reason(error)
    found.times = sorted(shown)
    found.last = shown[found.times[-1]] if shown and not found.error else 0
    if container.format.name in _NO_TIMES and found.times:
        found.hidden = max(found.times[-1] + 1 - len(found.times), 0)  # empty chunks: the picture before stays
    found.restarts = tuple(restarts.found)
    return found


def shown_packets(container: Any, stream: Any) -> Iterator[Any]:
    """The stream's packets that show a frame: empty ones only where they mean 'the same again', as in Theora."""
    return (packet for packet in container.demux(stream) if _shows(packet))


def _shows(packet: Any) -> bool:
    if packet.size:
        return True
    return packet.pts is not None and packet.stream.codec_context.codec.canonical_name == "theora"


def in_order(container: Any) -> bool:
    """Whether the frames of a container have no presentation times, so that the n-th shown has the n-th time."""
    return container.format.name in _NO_TIMES


def _shortfall(promised: int, found: int) -> str:
    """What to say when the header promises clearly more frames than are there."""
    return f"{found} of {promised} frames are there" if found < promised * 0.5 else ""
