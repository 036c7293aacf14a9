"""Actors of a real Ray cluster on this machine: they share a run, and a death costs the clip in hand and no other."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kiwi_cli.batch import cluster
from kiwi_cli.batch.crew import Crew, work_off
from kiwi_cli.batch.serve import Order
from kiwi_cli.errors import KiwiError

from ..conftest import ROOT
from .test_processes import outcomes, until
from .work import begun, left_over, listed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    connected = cluster.connect(None, 2)
    yield connected
    connected.shutdown()


def order_of(out: Path, count: int, maker: str = "writer", **settings: Any) -> tuple[Order, list[Any], Any]:
    store, jobs = begun(out), listed(count)
    return Order.of(store, jobs, f"tests.batch.work:{maker}", settings, 60.0), jobs, store


def test_two_actors_share_a_run(ray: Any, tmp_path: Path) -> None:
    order, jobs, store = order_of(tmp_path / "out", 8, seconds=0.2)
    tally, troubles = work_off(order, jobs, Crew(workers=2, ray=""))
    assert (tally.done, tally.made, tally.left, troubles) == (8, 8, 0, [])
    assert outcomes(store) == sorted(job.id for job in jobs) and left_over(store) == []
    assert len(list(store.journal.iterdir())) == 2
    assert (tmp_path / "out/3.txt").read_text() == "job 3" * 100


def test_an_actor_that_is_killed_costs_the_job_in_hand(ray: Any, tmp_path: Path) -> None:
    order, jobs, store = order_of(tmp_path / "out", 12, seconds=0.4, begun=str(tmp_path / "begun"))
    killed: list[int] = []

    def kill() -> None:
        line = until(lambda: (tmp_path / "begun").exists() and (tmp_path / "begun").read_text())
        pid = int(line.split()[1])
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    begin = time.monotonic()
    tally, troubles = work_off(order, jobs, Crew(workers=2, ray=""))
    thread.join()
    assert killed and (tally.done, tally.left, troubles) == (12, 0, []) and time.monotonic() - begin < order.lease
    assert outcomes(store) == sorted(job.id for job in jobs) and left_over(store) == []
    assert len((tmp_path / "begun").read_text().splitlines()) <= 13


def test_actors_that_cannot_go_on_are_named(ray: Any, tmp_path: Path) -> None:
    order, jobs, store = order_of(tmp_path / "out", 3, "unable")
    tally, troubles = work_off(order, jobs, Crew(workers=2, ray=""))
    assert (tally.left, tally.failures) == (3, {}) and "out of memory while the model was loaded" in troubles[0]
    assert left_over(store) == []


def test_a_node_that_is_removed_and_one_that_comes(tmp_path: Path) -> None:
    """A cluster of two machines, as Ray's own tests make one; a third comes when one of them has gone."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    utilities = pytest.importorskip("ray.cluster_utils")
    if ray.is_initialized():
        ray.shutdown()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    made = utilities.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = made.add_node(num_cpus=1)
    order, jobs, store = order_of(tmp_path / "out", 40, seconds=0.6)  # enough for the third to have some, however late
    ended: list[Any] = []
    try:
        cluster.connect(made.address)
        thread = threading.Thread(target=lambda: ended.extend(work_off(order, jobs, Crew(ray=made.address))))
        thread.start()
        until(lambda: len(outcomes(store)) >= 2 and len(list(store.journal.iterdir())) == 2)
        made.remove_node(node)
        made.add_node(num_cpus=1)
        thread.join()
    finally:
        ray.shutdown()
        made.shutdown()
    tally, troubles = ended
    assert (tally.done, tally.left, troubles) == (40, 0, [])
    assert outcomes(store) == sorted(job.id for job in jobs) and left_over(store) == []
    assert len(list(store.journal.iterdir())) == 3  # the head's, the one that went, the one that came


def test_no_cluster_is_said(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(KiwiError, match=r"no Ray cluster at '127\.0\.0\.1:1'"):
        cluster.connect("127.0.0.1:1")
