"""Work for the engine's tests, as a maker gives it to workers of any kind."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from kiwi_cli.batch.jobs import Job, JobStore, Unable, job_id
from kiwi_cli.batch.records import Tail
from kiwi_cli.batch.worker import Place, Work
from kiwi_cli.errors import DeviceError


def nothing(settings: dict[str, Any], device: str | None) -> Work:
    """Work that does nothing."""
    return lambda job, place: {}


def writer(settings: dict[str, Any], device: str | None) -> Work:
    """Work that leaves a file named as the job's output, with its label in it, after `seconds`; what it is given."""
    begun = settings.get("begun")

    def work(job: Job, place: Place) -> dict[str, Any]:
        for step in range(4):
            place.progress("write", step, 4)
            time.sleep(settings.get("seconds", 0) / 4)
        if begun is not None:
            with Path(begun).open("a") as file:
                file.write(f"{job.id} {os.getpid()}\n")
        if "bad" in job.label:
            raise ValueError(f"cannot do {job.label}")
        if job.work.get("kill"):
            os._exit(9)
        if job.output is not None:
            (place.folder / Path(job.output).name).write_text(job.label * 100)
        return {"device": device}

    return work


def unable(settings: dict[str, Any], device: str | None) -> Work:
    """Work of a worker whose device is gone."""

    def work(job: Job, place: Place) -> dict[str, Any]:
        raise Unable(DeviceError("out of memory while the model was loaded", "use a smaller model"))

    return work


def listed(count: int, out: str = "{}.txt", **more: Any) -> list[Job]:
    """Jobs that write a file each."""
    return [Job(job_id(number), f"job {number}", output=out.format(number), **more) for number in range(count)]


def begun(out: Path) -> JobStore:
    store = JobStore(out)
    store.begin("tests")
    return store


def lines(store: JobStore, state: str = "done") -> list[dict[str, Any]]:
    """The journal's outcomes of that kind."""
    return [record for record in Tail(store.journal).new() if record.get("state") == state]


def left_over(store: JobStore) -> list[str]:
    """What should not be there when no worker is at work."""
    folders = (store.claims, store.parts, store.workers)
    return [str(path) for folder in folders for path in folder.iterdir()]
