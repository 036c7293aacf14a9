"""This machine, as far as it can be known without torch: GPUs by their driver, memory, disk, installed packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader,nounits")
_PATIENCE = 10  # seconds for the driver to answer


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver describes it. `total` and `free` are bytes."""

    name: str
    total: int
    free: int
    driver: str


def gpus() -> list[Gpu]:
    """NVIDIA GPUs of this machine, whatever torch can do with them; empty without a driver."""
    if shutil.which(_QUERY[0]) is None:
        return []
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in done.stdout.splitlines():
        name, *numbers, driver = (part.strip() for part in line.split(","))
        try:
            total, free = (int(number) * 2**20 for number in numbers)
        except ValueError:  # a card that does not say
            total = free = 0
        found.append(Gpu(name, total, free, driver))
    return found


def cores() -> int:
    """Processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS or Windows
        return os.cpu_count() or 1


def memory() -> tuple[int, int] | None:
    """Bytes of main memory in all, and free for a new process; None where the system does not say."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return tuple(int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))  # type: ignore[return-value]
    except (OSError, ValueError, KeyError):
        pass
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    return total, total


@cache
def has_avx512() -> bool:
    """Whether the processor says that it has AVX-512; False where the system does not tell."""
    try:
        return " avx512f" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def version_of(package: str) -> str | None:
    """The version of an installed package; None where it runs from a folder that nobody installed, or is not there."""
    from importlib.metadata import PackageNotFoundError, version  # only here: it brings much along

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def peak_resident() -> int | None:
    """Bytes of main memory that this process held at its peak; None where the system does not say."""
    try:  # Linux: of this program alone. What getrusage says begins with the memory of the process that started it.
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        pass
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
