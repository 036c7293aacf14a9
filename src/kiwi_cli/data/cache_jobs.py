"""A cache that several workers fill: a job is a few rows of the table, and leaves whole shards.

The index is written afterwards by `write_cache`, which finds what is there and encodes what is not: rows that failed
here are judged there, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kiwi_cli.base.identity import sampled
from kiwi_cli.base.version import __version__
from kiwi_cli.batch.crew import Crew, work_off
from kiwi_cli.batch.editors import ending_the_worker
from kiwi_cli.batch.jobs import Job, JobStore, job_id
from kiwi_cli.batch.serve import Order
from kiwi_cli.batch.worker import Place, Told
from kiwi_cli.data.clips import Preparation, items
from kiwi_cli.data.encode import Encoder
from kiwi_cli.data.latents import Item, encode_items
from kiwi_cli.data.rows import BadRow, Row, read_rows
from kiwi_cli.data.shards import INDEX

KIND = "rows to encode"
ROWS = 16
"""Of a job."""


@dataclass(frozen=True)
class Filling:
    """What workers need to know to fill a cache; all of it decides what is in it, but for `device`.

    Attributes:
        model: folder. multiple, stride: of the model's sizes and lengths, as in `Preparation`.
    """

    out: Path
    table: Path
    base: Path | None
    model: Path
    max_pixels: int
    frames: int
    multiple: int
    stride: int
    reference_views: int
    store: str
    dtype: str
    device: str = "auto"

    def as_plain(self) -> dict[str, Any]:
        paths = {"out": self.out, "table": self.table, "base": self.base, "model": self.model}
        return {**vars(self), **{name: path and str(path.absolute()) for name, path in paths.items()}}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Filling:
        paths = {name: values[name] and Path(values[name]) for name in ("out", "table", "base", "model")}
        return cls(**{**values, **paths})

    @property
    def preparation(self) -> Preparation:
        return Preparation(self.max_pixels, self.frames, self.multiple, self.stride)

    def rows(self) -> list[Row | BadRow]:
        return list(read_rows(self.table, self.base))


def jobs_of(filling: Filling) -> list[Job]:
    """The jobs of a table, by what its rows' files are and how they are encoded."""
    rows, model = filling.rows(), sampled(filling.model)
    how = [__version__, model, filling.reference_views, filling.store, filling.dtype]
    jobs = []
    for start in range(0, len(rows), ROWS):
        some = rows[start : start + ROWS]
        id = job_id(how, [_key(item) for item in items(some, filling.preparation)])
        label = f"rows {start + 1} to {start + len(some)}"
        jobs.append(Job(id, label, {"start": start, "stop": start + len(some)}))
    return jobs


def _key(item: Item | BadRow) -> Any:
    if isinstance(item, BadRow):
        return ["bad", item.label]
    return [item.source_key, item.target_key, item.reference_key, item.mask_key, item.prompt]


def fill(filling: Filling, crew: Crew, told: Told | None = None) -> tuple[int, list[str]]:
    """Encode a table's rows by several workers; how many rows were gone through, and what went wrong, in words."""
    store, jobs = JobStore(filling.out), jobs_of(filling)
    store.begin(KIND)
    (filling.out / INDEX).unlink(missing_ok=True)  # an older one would not tell what is in the folder
    order = Order.of(store, jobs, "kiwi_cli.data.cache_jobs:make_work", filling.as_plain())
    tally, troubles = work_off(order, jobs, crew, told)
    names = {job.id: job.label for job in jobs}
    failed = [f"{names[id]}: {reason}" for id, reason in tally.failures.items()]
    return sum(job.work["stop"] - job.work["start"] for job in jobs), [*troubles, *failed]


class RowsWork:
    """Encodes rows; the encoder is loaded for the first job and kept."""

    def __init__(self, filling: Filling, device: str | None) -> None:
        self.filling, self.device = filling, device or filling.device

    def __call__(self, job: Job, place: Place) -> dict[str, Any]:
        with ending_the_worker():
            encoder = self._encoder
        some = self._rows[job.work["start"] : job.work["stop"]]
        prepared = items(some, self.filling.preparation)

        def progress(done: int) -> None:
            place.progress("encode", done, len(some))

        report = encode_items(
            place.folder, self.filling.out, prepared, encoder, self.filling.reference_views, f"-{job.id[:8]}", progress
        )
        return {"encoded": report.encoded, "found": report.found, "bad": report.bad}

    @cached_property
    def _rows(self) -> Sequence[Row | BadRow]:
        return self.filling.rows()

    @cached_property
    def _encoder(self) -> Encoder:
        from kiwi_cli.engine.devices import choose_device, choose_dtype

        place = choose_device(self.device)
        return Encoder.from_folder(
            self.filling.model, place, choose_dtype(self.filling.dtype, place), self.filling.store
        )


def make_work(settings: dict[str, Any], device: str | None) -> RowsWork:
    """The work function of a process."""
    return RowsWork(Filling.from_plain(settings), device)
