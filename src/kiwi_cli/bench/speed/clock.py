"""Time and memory of a device, measured: a clock that synchronises, the rate of matrix products, peaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from kiwi_cli.base.hardware import peak_resident

PRODUCT_SIDE = {"cuda": 8192, "mps": 4096, "cpu": 2048}
"""Of the matrices whose products are timed: large enough to keep such a device busy."""

RATE_SECONDS = 1.0
"""What measuring the ceiling takes."""


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


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the best of several large matrix products and a convolution on random data, measured for a
    second in all: the device's own ceiling, which no stage of an edit can pass."""
    works = products(device, dtype)
    clock, best = Clock(device), 0.0
    for operations, work in works:
        work()
        spent = 0.0
        while spent < RATE_SECONDS / len(works):
            clock.synchronise()
            begin = time.perf_counter()
            work()
            clock.synchronise()
            seconds = time.perf_counter() - begin
            spent += seconds
            best = max(best, operations / seconds)
    return best


def products(device: torch.device, dtype: torch.dtype) -> list[tuple[int, Callable[[], Any]]]:
    """Operations, and the work that does them: a square product, a layer's widening and narrowing ones on fewer rows,
    and a 3-D convolution as the coders have them."""
    side = PRODUCT_SIDE[device.type]

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype)

    def product(rows: int, inner: int, columns: int) -> tuple[int, Callable[[], Any]]:
        x, weight, bias = drawn(rows, inner), drawn(columns, inner), drawn(columns)
        return 2 * rows * inner * columns, lambda: F.linear(x, weight, bias)

    channels, pixels = side // 16, max(8, side // 32)
    x = drawn(1, channels, 4, pixels + 2, pixels + 2).contiguous(memory_format=torch.channels_last_3d)
    kernel = drawn(channels, channels, 3, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    return [
        product(side, side, side),
        product(side // 2, side // 2, 2 * side),
        product(side // 2, 2 * side, side // 2),
        (2 * 27 * channels**2 * 2 * pixels**2, lambda: F.conv3d(x, kernel)),
    ]


def peak_memory(device: torch.device) -> dict[str, int]:
    """Peaks in bytes: 'allocated' and 'reserved' of the device's allocator (live, and held), 'resident' of the process;
    and 'device', what all processes hold of the device now: the allocator has kept what it took."""
    resident = peak_resident()
    peaks = {} if resident is None else {"resident": resident}
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
