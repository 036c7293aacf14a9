"""Stage `edit`: every item of a run through the model, once.

An item is done when its result lies under its name; what is not there is made. A failure is written down with its
reason and tried again at the next start.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi_cli import __version__
from kiwi_cli.bench.items import Item
from kiwi_cli.bench.journal import Journal, read_lines
from kiwi_cli.bench.media import floor_size, write_clip
from kiwi_cli.bench.runs import Run
from kiwi_cli.errors import KiwiError
from kiwi_cli.video import probe, read_frames, select, working_size

if TYPE_CHECKING:
    from kiwi_cli.pipeline import KiwiPipeline

GRID = 32  # pixels: what the model's sizes are multiples of


@dataclass(frozen=True)
class Profile:
    """How items are edited. The defaults are the settings of the published runs.

    Attributes:
        frames: at most, from the clip's first. max_pixels: larger clips are shrunk to it.
        size: 'WxH' instead of the clip's own, floored to multiples of 32.
        fit: the clip's middle is taken. sigma_min: the published runs' schedule ends at 0.
    """

    name: str = "published"
    frames: int = 81
    max_pixels: int = 1280 * 720
    size: str | None = None
    fit: str = "crop"
    steps: int = 50
    seed: int = 0
    sigma_min: float = 0.0

    def changed(self, **values: Any) -> Profile:
        """With other values; the name says which."""
        given = {key: value for key, value in values.items() if value is not None and value != getattr(self, key)}
        if not given:
            return self
        words = ", ".join(f"{key} {value}" for key, value in given.items())
        return replace(self, name=f"{self.name} but {words}", **given)

    def describe(self) -> dict[str, Any]:
        """What a run remembers of it."""
        return asdict(self)

    def __str__(self) -> str:
        size = self.size or f"the clip's size up to {self.max_pixels} pixels, floored to {GRID}"
        return f"{self.name}: {self.frames} frames, {size}, {self.fit}, {self.steps} steps, seed {self.seed}"


@dataclass
class EditSummary:
    """Outcome of a stage. `failures` maps item id to reason."""

    done: int
    made: int
    failures: dict[str, str]
    seconds: float


def fingerprint(folder: Path) -> str:
    """Stands for a checkpoint: names and sizes of its files and the text of its configs; the weights are not read."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".json", ".safetensors", ".txt", ".model"):
            digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
            if path.suffix == ".json" and path.stat().st_size < 1_000_000:
                digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def edit_items(
    run: Run,
    items: Sequence[Item],
    profile: Profile,
    load: Callable[[], KiwiPipeline],
    shard: tuple[int, int] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    failed: Callable[[Item, str], None] | None = None,
) -> EditSummary:
    """Make what is missing. The model is loaded when the first item needs it, and once.

    Args:
        load: gives the model.
        progress: called with ('items', done, total). failed: called with each item that could not be made.
    """
    begin = time.perf_counter()
    todo = [item for item in items if not run.edited(item).is_file()]
    summary = EditSummary(len(items) - len(todo), 0, {}, 0.0)
    report = progress or (lambda stage, done, total: None)
    if not todo:
        return summary
    with Journal(run.folder, "edits", shard) as journal:
        pipe = load()
        for number, item in enumerate(todo, 1):
            started = time.perf_counter()
            record: dict[str, Any] = {"item": item.id, "time": round(time.time(), 3)}
            try:
                frames = edit_item(pipe, run, item, profile)
                summary.made += 1
                record |= {"state": "done", "frames": frames}
            except Exception as error:  # one bad item never ends a run, whatever is wrong with it
                reason = error.message if isinstance(error, KiwiError) else f"{type(error).__name__}: {error}"
                summary.failures[item.id] = reason
                record |= {"state": "failed", "reason": reason}
                if failed is not None:
                    failed(item, reason)
                _free_memory()
            journal.append(record | {"seconds": round(time.perf_counter() - started, 3)})
            report("items", len(items) - len(todo) + number, len(items))
    summary.done += summary.made
    summary.seconds = time.perf_counter() - begin
    return summary


def edit_item(pipe: KiwiPipeline, run: Run, item: Item, profile: Profile) -> int:
    """One item through the model; returns the number of frames written.

    The result has the working size, as the published results do: what the crop took away is not put back, because a
    judge would see an unedited edge. Its rate is the clip's own (the released script writes 15 frames a second).
    """
    import numpy as np

    from kiwi_cli.job import open_reference

    clip = probe(run.source(item))
    if profile.size:
        size = working_size(*clip.display_size, profile.size)
    else:
        size = floor_size(*clip.display_size, profile.max_pixels, GRID)
    span = select(clip, frames=1 if run.benchmark.kind == "image" else profile.frames)
    frames = np.stack([frame.rgb for frame in read_frames(clip, span, size=size, fit=profile.fit)])  # type: ignore[arg-type]
    reference = run.reference(item)
    stream = pipe(
        frames,
        item.instruction,
        [open_reference(reference)] if reference else [],
        steps=profile.steps,
        seed=profile.seed,
        sigma_min=profile.sigma_min,
        output="stream",
    )
    note = json.dumps({"kiwi": __version__, "model": run.identity["model"].get("name"), "profile": profile.name})
    return write_clip(run.edited(item), stream, clip.fps, size, note)


def last_failures(run: Run) -> dict[str, str]:
    """Item id -> why it could not be made, of items that still have no result."""
    reasons: dict[str, str] = {}
    for record in read_lines(run.folder, "edits"):
        reasons.pop(str(record.get("item")), None)
        if record.get("state") == "failed":
            reasons[str(record["item"])] = str(record["reason"])
    by_id = {item.id: item for item in run.items}
    return {key: why for key, why in reasons.items() if key in by_id and not run.edited(by_id[key]).is_file()}


def _free_memory() -> None:
    """After a failure, so that one item that did not fit does not take the next ones with it."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
