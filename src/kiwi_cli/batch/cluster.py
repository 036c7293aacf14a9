"""A run's workers as actors of a Ray cluster: one for each GPU, started as the cluster has room for them.

Ray knows which actors live; what is done, what failed and who is at what lies in the run's folder, which every node has
to see under the same path. Nothing but paths and plain values goes through Ray.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from kiwi_cli.batch.heartbeat import Watch, new_name
from kiwi_cli.batch.jobs import Job
from kiwi_cli.batch.local import Account, tidy
from kiwi_cli.batch.records import Tally
from kiwi_cli.batch.serve import Order, serve
from kiwi_cli.batch.worker import Told
from kiwi_cli.errors import KiwiError

POLL = 0.5  # seconds
PATIENCE = 10.0  # seconds for a cluster to answer
DEATHS = 3
"""After so many actors in a row that died with no job settled meanwhile, no more are started."""


def connect(address: str | None, processors: int | None = None) -> Any:
    """Ray's module, connected to a cluster.

    Args:
        address: of a cluster: 'auto', 'HOST:PORT', 'ray://HOST:PORT'; None begins one on this machine.
        processors: of one that is begun here.

    Raises:
        KiwiError: no cluster there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # an actor without a GPU sees what is there
    import ray

    if ray.is_initialized():
        return ray
    options: dict[str, Any] = {"address": address}
    _reach(address)
    if address is None:
        options = {"address": "local", "num_cpus": processors, "include_dashboard": False}
    ending = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(logging_level="error", log_to_driver=False, **options)
    except Exception as error:  # of whatever layer of Ray's
        raise _none(address, error) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ending)  # Ray's own would end this process without a word
    return ray


def _reach(address: str | None) -> None:
    """Refuse an address where nobody answers: Ray itself would try for minutes."""
    found = re.fullmatch(r"(?:ray://)?([^/\s:]+):(\d+)", address or "")
    if found is not None:
        try:
            socket.create_connection((found[1], int(found[2])), timeout=PATIENCE).close()
        except (OSError, OverflowError) as error:
            raise _none(address, error) from error


def _none(address: str | None, error: Exception) -> KiwiError:
    words = str(error).strip().splitlines() or [type(error).__name__]
    return KiwiError(
        f"no Ray cluster at '{address or 'local'}': {words[0]}",
        "start one with `ray start --head`, or pass --ray without an address for one on this machine",
    )


class Actors:
    """The actors of one order.

    Args:
        most: of them; None: as many as there are GPUs in the cluster, or processors where no GPU is.
    """

    def __init__(self, ray: Any, order: Order, most: int | None) -> None:
        self.ray, self.order, self.most = ray, order, most
        self.at_work: dict[Any, tuple[Any, str]] = {}  # what it will return -> actor, name
        self.troubles: list[str] = []
        self._begun, self._deaths, self._settled = 0, 0, -1
        self._watch = Watch(order.store.workers)

    def start(self, open_jobs: int) -> None:
        """Start as many as there is room and work for."""
        resources = self.ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        room = self.most or gpus or int(resources.get("CPU", 1))
        need = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": 1}
        actor = self.ray.remote(**need, max_restarts=0)(_Actor)
        while not self.is_hopeless and len(self.at_work) < min(room - len(self.troubles), open_jobs):
            name = f"ray-{new_name()}"
            made = actor.remote()
            index = self._begun % max(1, room)
            self.at_work[made.work.remote(self.order.as_plain(), name, index)] = made, name
            self._begun += 1

    @property
    def is_hopeless(self) -> bool:
        return self._deaths >= DEATHS

    def look(self, settled: int) -> None:
        """Take note of those that have ended."""
        if settled > self._settled:
            self._settled, self._deaths = settled, 0
        if not self.at_work:
            time.sleep(POLL)
            return
        ended, _ = self.ray.wait(list(self.at_work), num_returns=len(self.at_work), timeout=POLL)
        for reference in ended:
            actor, name = self.at_work.pop(reference)
            try:
                trouble = self.ray.get(reference)
                if trouble is not None:
                    self.troubles.append(f"{name}: {trouble}")
            except self.ray.exceptions.RayError as error:  # it died, or its node did
                self._deaths += 1
                if self.is_hopeless:
                    self.troubles.append(f"{name}: {str(error).strip().splitlines()[0]}")
            self.ray.kill(actor)
            self._watch.forget(name)  # what it held is free now, not after its lease

    def end(self) -> None:
        """Kill those that are at work."""
        for actor, name in self.at_work.values():
            self.ray.kill(actor)
            self._watch.forget(name)
        self.at_work = {}


class _Actor:
    """One worker, wherever Ray puts it."""

    def work(self, order: dict[str, Any], name: str, index: int) -> str | None:
        """None when all jobs are settled; else why this worker cannot go on."""
        try:
            serve(Order(**order), name=name, index=index)
        except KiwiError as error:
            return error.message
        return None


def run_on_ray(
    order: Order, jobs: Sequence[Job], address: str | None, most: int | None = None, told: Told | None = None
) -> tuple[Tally, list[str]]:
    """Do an order's jobs with the actors of a Ray cluster; actors come as nodes do.

    Returns:
        what became of the jobs, and which of the workers could not go on, in words.
    """
    ray = connect(address, most)
    account, actors = Account(order, jobs, told or Told()), Actors(ray, order, most)
    try:
        while account.waiting.jobs:
            actors.start(len(account.waiting.jobs))
            if not actors.at_work and (actors.is_hopeless or actors.troubles):
                break
            actors.look(account.settled)
            account.look()
    finally:
        actors.end()
        tidy(order)
    return account.tally(), actors.troubles
