"""Stages that do next to nothing, for tests of many rows: what they leave follows from the row's key alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from kiwi_cli.base.hardware import peak_resident
from kiwi_cli.batch.jobs import Job
from kiwi_cli.batch.worker import Place
from kiwi_cli.data.reference.files import Files, Stage
from kiwi_cli.data.reference.recipe import Recipe
from kiwi_cli.data.reference.running import StageWork
from kiwi_cli.data.reference.triplets import Triplet


class Nothing:
    """Any stage."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, row: Triplet, files: Files) -> dict[str, Any]:
        share = int(row.key[:4], 16) / 0xFFFF
        if self.name == "score":
            return {"following": round(10 * share, 4), "consistency": 10.0}
        if self.name == "make":
            files.new(".png").write_bytes(row.key.encode())
        if self.name == "deduplicate":
            vector = np.random.default_rng(int(row.key[4:12], 16)).standard_normal(32).astype(np.float32)
            np.save(files.new(".npy"), vector / np.linalg.norm(vector), allow_pickle=False)
        return {"changed": 1.0, "agreement": round(share, 4)}


class Killing(StageWork):
    """Does nothing, notes what it begins with its memory, and ends its process at chosen rows, once each.

    Settings come from a folder named in the environment: what is begun goes to `begun`, and `kill-STAGE-KEY` there is
    removed by the worker that ends at that row.
    """

    def __init__(self, out: Path, recipe: Recipe) -> None:
        super().__init__(out, recipe, "cpu")
        self.notes = Path(os.environ["KIWI_TEST_NOTES"])

    def stage(self, name: str) -> Stage:
        return Nothing(name)

    def __call__(self, job: Job, place: Place) -> dict[str, Any]:
        name = f"{job.work['stage']}-{job.work['row']['key']}"
        peak = (peak_resident() or 0) // 2**20  # MiB
        with (self.notes / "begun").open("a") as file:
            file.write(f"{name} {os.getpid()} {peak}\n")
        done = super().__call__(job, place)
        if (self.notes / f"kill-{name}").exists():
            (self.notes / f"kill-{name}").unlink()
            os._exit(9)
        return done


def killing(settings: dict[str, Any], device: str | None) -> Killing:
    return Killing(Path(settings["out"]), Recipe.from_plain(settings["recipe"]))
