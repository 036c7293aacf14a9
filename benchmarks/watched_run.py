"""A command's memory and disk while it runs: peaks, and a curve. Linux only: it reads /proc."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Watched:
    """What a command took.

    Attributes:
        peak: bytes that its processes had resident at once, the most that was seen; or the largest one's own high
            water, where that is more. disk: most bytes that lay below a folder.
        seconds, processor: wall time, and processor time of all its processes.
        curve: (seconds, resident, of that mapped from files, disk), in bytes, a line every so often.
    """

    peak: int = 0
    disk: int = 0
    seconds: float = 0.0
    processor: float = 0.0
    curve: list[tuple[float, int, int, int]] = field(default_factory=list)


def run(command: list[str], folder: Path, log: Path, every: float = 60.0, pause: float = 0.25) -> Watched:
    """Run a command to its end and watch it.

    Args:
        folder: what the command writes lies below it. log: where its words go.
        every: seconds between the curve's lines. pause: between two looks.

    Raises:
        SystemExit: it failed.
    """
    found, begin, due = Watched(), time.monotonic(), 0.0
    before = _lying(folder)
    with log.open("wb") as words:
        process = subprocess.Popen(command, stdout=words, stderr=subprocess.STDOUT)
        while process.poll() is None:
            resident, mapped, high, ticks = _family(process.pid)
            disk = _lying(folder) - before
            found.peak, found.disk = max(found.peak, resident, high), max(found.disk, disk)
            found.processor, found.seconds = max(found.processor, ticks), time.monotonic() - begin
            if every and found.seconds >= due:
                found.curve.append((found.seconds, resident, mapped, disk))
                line = f"{found.seconds:>7.0f} s {resident / 1e6:>6.0f} MB, {mapped / 1e6:.0f} of them of files"
                print(f"{line}; most {found.peak / 1e6:.0f} MB; on disk {disk / 1e6:.0f} MB", flush=True)
                due = found.seconds + every
            time.sleep(pause)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")
    return found


def _family(pid: int) -> tuple[int, int, int, float]:
    """Of a process and its descendants: bytes resident, of these mapped from files, the largest high water, seconds of
    the processor."""
    resident = mapped = high = 0
    ticks, left = 0.0, [pid]
    while left:
        each = Path(f"/proc/{left.pop()}")
        try:
            fields = dict(line.split(":", 1) for line in (each / "status").read_text().splitlines())
            sizes = [int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "RssFile", "VmHWM")]
            stat = (each / "stat").read_text().rpartition(")")[2].split()
            left += [
                int(child) for task in (each / "task").iterdir() for child in (task / "children").read_text().split()
            ]
        except (OSError, KeyError, ValueError):  # it has ended
            continue
        resident, mapped, high = resident + sizes[0], mapped + sizes[1], max(high, sizes[2])
        ticks += (int(stat[11]) + int(stat[12])) / 100
    return resident, mapped, high, ticks


def _lying(folder: Path) -> int:
    """Bytes that files below a folder take on the disk."""
    total = 0
    with suppress(OSError):  # gone meanwhile
        for path in folder.rglob("*"):
            with suppress(OSError):
                total += path.stat().st_blocks * 512
    return total
