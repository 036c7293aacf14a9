"""Time and memory of a device, measured: a clock that synchronises, the rate of a matrix product, peaks."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PRODUCT_SIDE = {"cuda": 8192, "mps": 4096, "cpu": 2048}
"""Of the square matrices whose product is timed: large enough to keep such a device busy."""


class Clock:
    """Seconds between synchronisations, by stage; `keep` is off during warm-up."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.keep = device, True
        self.times: dict[str, list[float]] = {}

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    @contextmanager
    def __call__(self, stage: str, always: bool = False) -> Iterator[None]:
        """Time a stage. always: also during warm-up."""
        self.synchronise()
        begin = time.perf_counter()
        yield
        self.synchronise()
        if self.keep or always:
            self.times.setdefault(stage, []).append(time.perf_counter() - begin)


def matrix_rate(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """Operations a second of a large square matrix product on random data: the device's own ceiling."""
    side = PRODUCT_SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    clock = Clock(device)
    for turn in range(repeats + 2):
        clock.keep = turn >= 2
        with clock("product"):
            a @ b
    return 2 * side**3 / statistics.median(clock.times["product"])


def peak_memory(device: torch.device) -> dict[str, int]:
    """Peaks in bytes: 'allocated' and 'reserved' of the device's allocator (live, and held), 'resident' of the process;
    and 'device', what all processes hold of the device now: the allocator has kept what it took."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        peaks["device"] = total - free
        peaks["allocated"] = torch.cuda.max_memory_allocated(device)
        peaks["reserved"] = torch.cuda.max_memory_reserved(device)
    return peaks


def device_name(device: torch.device) -> str:
    """As the driver names it; of a CPU, its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"
