"""`--metrics`: figures without a judge, for every item that has a result. Diagnostics, not a ranking.

LPIPS is not among them: its networks come with torchvision, which kiwi does not depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kiwi_cli.batch.journal import Journal
from kiwi_cli.bench.judges.base import hash_media
from kiwi_cli.bench.metrics import pixels
from kiwi_cli.bench.metrics.store import STEM, read_metrics
from kiwi_cli.bench.run import Run
from kiwi_cli.bench.suites.items import Item
from kiwi_cli.errors import KiwiError
from kiwi_cli.video import Size, probe, read_frames, select

if TYPE_CHECKING:
    from kiwi_cli.bench.metrics.models import ModelMetrics

MAX_SIDE = 256  # pixels of the longer side at which pixels are compared
LOOKS = 8  # frames that the models look at, spread over the clip


def measure_run(
    run: Run,
    items: Sequence[Item],
    device: str = "auto",
    shard: tuple[int, int] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    models: ModelMetrics | None = None,
) -> dict[str, str]:
    """Measure what has not been measured.

    Args:
        models: loaded already; None loads them when the first item needs them.

    Returns:
        Item id -> why it could not be measured.
    """
    known = read_metrics(run)
    todo = [item for item in run.complete(items) if item.id not in known]
    failures: dict[str, str] = {}
    if not todo:
        return failures
    if models is None:
        from kiwi_cli.bench.metrics.models import ModelMetrics

        models = ModelMetrics(device)
    with Journal(run.folder, STEM, shard) as journal:
        for number, item in enumerate(todo, 1):
            try:
                values = measure_item(run, item, models)
                journal.append({"item": item.id, "edited": hash_media(run.edited(item)), "values": values})
            except (KiwiError, OSError, ValueError) as error:
                failures[item.id] = (
                    error.message if isinstance(error, KiwiError) else f"{type(error).__name__}: {error}"
                )
            if progress is not None:
                progress("items", number, len(todo))
    return failures


def measure_item(run: Run, item: Item, models: ModelMetrics) -> dict[str, float]:
    """All figures of one item, by name."""
    source, edit = paired_frames(run, item)
    values: dict[str, float | None] = {
        "psnr_source": pixels.psnr(source, edit),
        "ssim_source": pixels.ssim(source, edit),
        "flicker": pixels.flicker(edit),
        "flicker_source": pixels.flicker(source),
        "warp_error": pixels.warp_error(source, edit),
        "warp_error_source": pixels.warp_error(source, source),
    }
    reference = run.reference(item)
    picture = next(read_frames(probe(reference))).rgb if reference is not None else None
    some = np.unique(np.linspace(0, len(edit) - 1, LOOKS).round().astype(int))
    values |= models.measure(source[some], edit[some], item.instruction, picture)
    return {name: round(float(value), 6) for name, value in values.items() if value is not None}


def paired_frames(run: Run, item: Item) -> tuple[np.ndarray, np.ndarray]:
    """Source and edit at the same moments and of the same size: the source is cut as the edit's profile cut it."""
    edited, original = probe(run.edited(item)), probe(run.source(item))
    scale = min(1.0, MAX_SIDE / max(edited.size))
    size = Size(*(max(round(side * scale), pixels.BLOCK) for side in edited.size))
    edit = np.stack([frame.rgb for frame in read_frames(edited, select(edited), size=size)])
    span = select(original, frames=len(edit))
    fit = run.identity["settings"].get("fit", "crop")
    source = np.stack([frame.rgb for frame in read_frames(original, span, size=size, fit=fit)])
    count = min(len(source), len(edit))
    return source[:count], edit[:count]
