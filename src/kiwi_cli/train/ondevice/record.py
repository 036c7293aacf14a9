"""Steps recorded as CUDA graphs: handed to the device at once, whatever the host does meanwhile.

A step of the embedded model is some 2,400 small kernels, which the host hands over one by one in 30 to 60 ms. Where
recording fails, steps go on as they were, and why is said.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

WARM_UP = 3
"""Steps of a form before it is recorded: kernels are chosen and states are made in them."""


class Record:
    """Recorded steps by their form. All work must be on one stream that is not the default one.

    Args:
        generator: all random numbers of a step are its.
        renew: called with a reason where recording ends; random numbers are to come from another generator then.

    Attributes:
        works: recording has not ended.
    """

    def __init__(self, generator: torch.Generator, renew: Callable[[str], None]) -> None:
        self.generator, self.renew, self.works = generator, renew, True
        self._seen: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, Any] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, form: Hashable, step: Callable[[], None]) -> None:
        """Carry out a step: as it is, or as it was recorded."""
        if form not in self._graphs and self.works and self._seen.get(form, 0) >= WARM_UP:
            self._record(form, step)
        if form in self._graphs:
            self._graphs[form].replay()
            return
        self._seen[form] = self._seen.get(form, 0) + 1
        step()

    def give_up(self, why: str) -> None:
        """Record and replay no more."""
        self.works = False
        torch.cuda.current_stream().synchronize()  # nothing of a graph may go while it is replayed
        self._graphs.clear()
        self.renew(why)

    def _record(self, form: Hashable, step: Callable[[], None]) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            graph.register_generator_state(self.generator)
            with torch.cuda.graph(graph, pool=self._pool, stream=torch.cuda.current_stream()):
                step()
            self._graphs[form] = graph
        except Exception as error:  # whatever a driver says: the run goes on without
            self.give_up(f"{type(error).__name__}: {error}".splitlines()[0])
