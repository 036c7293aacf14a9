"""Work shared by the cores there are, each with torch's operations for itself.

Torch shares every single operation among its threads. Ours are so small that these mostly wait for each other, in a
loop: on two cores that others want as well, a frame took four times the processor time that it takes here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

from kiwi_cli.base.hardware import cores

MOST = 8

Part = TypeVar("Part")
Result = TypeVar("Result")


class Cores:
    """Threads for parts of a work, kept from one work to the next.

    Args:
        count: with the one that asks; None is as many as there are cores, and no more than 8.
    """

    def __init__(self, count: int | None = None) -> None:
        others = min(count or cores(), MOST) - 1
        self._others = others
        self._pool = ThreadPoolExecutor(others, "kiwi-detail", torch.set_num_threads, (1,)) if others else None

    def each(self, work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
        """What `work` gives for every part, in their order; done in any. What it raises is raised here."""
        left = deque(enumerate(parts))
        found: dict[int, Result] = {}

        @torch.inference_mode()
        def take() -> None:
            while left:
                try:
                    number, part = left.popleft()
                except IndexError:  # another one took it meanwhile
                    return
                found[number] = work(part)

        helpers = [self._pool.submit(take) for _ in range(min(self._others, len(left) - 1))] if self._pool else []
        try:
            take()
        finally:
            left.clear()
            wait(helpers)
        for helper in helpers:
            helper.result()
        return [found[number] for number in range(len(parts))]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Meanwhile torch does not share the operations of this thread."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
