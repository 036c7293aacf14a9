"""Who does the jobs of a run: this process, processes on this machine, or the actors of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kiwi_cli.batch.jobs import Job
from kiwi_cli.batch.records import Tally
from kiwi_cli.batch.serve import Order, serve
from kiwi_cli.batch.worker import Told, Work
from kiwi_cli.errors import UsageError


@dataclass(frozen=True)
class Crew:
    """Workers as a person asks for them.

    Attributes:
        workers: so many processes, or actors. gpus: a process on each: 'all', or devices; '0,1'.
        ray: address of a cluster; '' begins one here; None: no Ray.
    """

    workers: int | None = None
    gpus: str | None = None
    ray: str | None = None

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError.
        """
        if self.workers is not None and self.workers < 1:
            raise UsageError(
                f"--workers must be at least 1, not {self.workers}", "leave it out for one in this process"
            )
        for other, clash in (("--workers", self.workers is not None), ("--ray", self.ray is not None)):
            if self.gpus is not None and clash:
                raise UsageError(f"--gpus and {other} exclude each other", "--gpus starts a process on each GPU named")
        if self.ray is not None and not _has_ray():
            raise UsageError("--ray needs Ray, which is not installed", "pip install 'kiwi-cli[ray]'")

    def devices(self) -> list[str | None]:
        """The device of each process; empty when this one does the jobs.

        Raises:
            UsageError, DeviceError: of `--gpus`.
        """
        if self.gpus is not None:
            from kiwi_cli.batch.local import parse_gpus

            return list(parse_gpus(self.gpus))
        return [None] * self.workers if (self.workers or 1) > 1 and self.workers is not None else []


def _has_ray() -> bool:
    from importlib.util import find_spec

    try:
        return find_spec("ray") is not None
    except ValueError:  # it is there, and is none
        return False


def work_off(
    order: Order, jobs: Sequence[Job], crew: Crew, told: Told | None = None, work: Work | None = None
) -> tuple[Tally, list[str]]:
    """Do an order's jobs.

    Args:
        work: for this process, when it is the one that works.

    Returns:
        what became of the jobs, and which workers of several could not go on, in words.

    Raises:
        KiwiError: this process, as the one that works, cannot go on. KeyboardInterrupt: nothing is left half.
    """
    if crew.ray is not None:
        from kiwi_cli.batch.cluster import run_on_ray

        return run_on_ray(order, jobs, crew.ray or None, crew.workers, told)
    if devices := crew.devices():
        from kiwi_cli.batch.local import run_processes

        return run_processes(order, jobs, devices, told)
    return serve(order, jobs, told=told, work=work), []
