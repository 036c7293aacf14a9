"""What a damaged file has lost: found while it is read through and while it is decoded, and said in words."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import median

from kiwi_cli.base.text import count

_HEADER_SAYS = ("flv", "matroska,webm", "asf")  # containers whose header holds the length, and no index the frames
_GAPS = ("flv", "matroska,webm", "asf", "mpegts", "mpeg", "ogg")  # containers where lost frames leave only a hole
_MOST_GAPS = 3  # more of them are a clip of a variable rate
_LEAST_GAP = 3  # frames
_TRANSPORT = {188: 0, 192: 4, 204: 0}  # sizes of a transport stream's packets, and where their sync byte is
_SYNC = 0x47
_TAIL = 1 << 16  # bytes at the end of a program stream that are looked at: more than its longest packet


@dataclass
class Damage:
    """What is wrong with a clip's frames, counted while they are decoded.

    Attributes:
        packets: that could not be decoded, and were left out.
        frames: that lack parts, which the decoder filled in. first: seconds from the clip's first picture.
    """

    packets: int = 0
    frames: int = 0
    first: Fraction = Fraction(0)

    def mended(self, time: Fraction) -> None:
        """Count a frame that the decoder had to fill in."""
        if not self.frames:
            self.first = time
        self.frames += 1

    @property
    def lines(self) -> list[str]:
        """What is to be said of it; empty of a sound clip."""
        said = []
        if self.packets:
            said.append(f"damaged and left out: {self.packets} of the clip's packets")
        if self.frames:
            frames = "a frame is damaged" if self.frames == 1 else f"{self.frames} frames are damaged"
            said.append(f"{frames} in the file, from {_seconds(self.first)} on: the decoder filled in what is missing")
        return said


def lost_frames(container: str, times: Sequence[Fraction]) -> list[str]:
    """Holes in a clip whose frames are even elsewhere, a line for each.

    Args:
        container: the demuxer's name. times: seconds of the frames from the first, in order.
    """
    if container not in _GAPS or len(times) < 8:
        return []
    steps = [after - before for before, after in itertools.pairwise(times)]
    usual = median(steps)
    odd = [number for number, step in enumerate(steps) if abs(step - usual) > usual / 2]
    if not 0 < len(odd) <= _MOST_GAPS:
        return []
    lines = []
    for number in odd:
        missing = round(steps[number] / usual) - 1
        if missing >= _LEAST_GAP:
            lines.append(
                f"{missing} frames are missing after {_seconds(times[number])}: the one before stays until "
                f"{_seconds(times[number + 1])}"
            )
    return lines


def unkept_promise(container: str, header: Fraction | None, end: Fraction, rate: Fraction) -> list[str]:
    """What is missing of the length that a file's header names.

    Args:
        header: seconds. end: of the last packet of any stream, seconds. rate: frames a second.
    """
    if container not in _HEADER_SAYS or header is None:
        return []
    missing = header - end
    if missing <= max(3 / rate, header / 50):
        return []
    return [f"the file ends early: {_seconds(end)} of the {_seconds(header)} that its header names are there"]


def corrupt_packets(kind: str, found: int, total: int) -> list[str]:
    """What the container says of its packets. `kind`: 'picture' or 'sound'."""
    return [f"damaged: {found} of {count(total, 'packet')} of the {kind}"] if found else []


def open_end(path: Path, container: str) -> list[str]:
    """Whether a transport or program stream stops within a packet, as one that was cut off does."""
    if container == "mpegts":
        ends = _transport_ends_open(path)
    elif container == "mpeg":
        ends = _program_ends_open(path)
    else:
        ends = False
    return ["the file ends in the middle of a packet: something is missing at its end"] if ends else []


def _transport_ends_open(path: Path) -> bool:
    length = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(5 * max(_TRANSPORT))
    for size, at in _TRANSPORT.items():
        if len(head) > 4 * size and all(head[at + k * size] == _SYNC for k in range(4)):
            return length % size != 0
    return False  # it does not begin with a packet


def _program_ends_open(path: Path) -> bool:
    """From the last pack on, the packets are walked through by their lengths."""
    length = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(length - _TAIL, 0))
        data = file.read()
    at = data.rfind(b"\0\0\1\xba")
    if at < 0 or len(data) < at + 14:
        return at >= 0
    at += 14 + (data[at + 13] & 7) if data[at + 4] >> 6 == 1 else 12  # MPEG-2, with stuffing; MPEG-1
    while at + 6 <= len(data) and data[at : at + 3] == b"\0\0\1" and data[at + 3] > 0xB9:
        at += 6 + int.from_bytes(data[at + 4 : at + 6], "big")
    rest = data[at:].rstrip(b"\0")
    return at > len(data) or (bool(rest) and rest[:4] != b"\0\0\1\xb9")


def _seconds(time: Fraction) -> str:
    return f"{float(time):.2f} s"
