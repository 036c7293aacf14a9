"""Edits in batches are the pipeline's own, and a contact sheet shows what it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kiwi_cli.bench.tiny import sheets
from kiwi_cli.bench.tiny.edits import BatchEditor, Task
from kiwi_cli.bench.tiny.quality import make_case
from kiwi_cli.errors import UsageError


@pytest.mark.slow
def test_batches_equal_the_pipeline(loaded: Any) -> None:
    cases = [make_case(number) for number in range(2)]
    sources = [case.scene.source for case in cases]
    tasks = [
        Task(number, case.prompt(kind, split), case.edits[kind].reference, seed=10 * number)
        for number, case in enumerate(cases)
        for kind, split in (("night", "seen"), ("remove", "held-out"), ("reference-subject", "seen"))
    ]
    editor = BatchEditor(loaded, steps=2)
    results = editor(sources, tasks)
    for task, result in zip(tasks, results, strict=True):
        references = [] if task.reference is None else [task.reference]
        alone = loaded.edit(sources[task.source], task.instruction, references, steps=2, seed=task.seed)
        # One level of 255: sums in another order, before rounding.
        assert np.abs(result.astype(int) - alone.astype(int)).max() <= 1
    assert editor.against_pipeline(sources, tasks) <= 1
    assert not np.array_equal(results[0], results[3])


def test_a_reconstruction_is_the_pipelines(loaded: Any) -> None:
    clips = [make_case(number).scene.source for number in range(3)]
    for clip, found in zip(clips, BatchEditor(loaded, 1, batch=2).reconstruct(clips), strict=True):
        alone = np.concatenate(list(loaded.decode(loaded.encode_source(clip))))
        assert found.shape == clip.shape and np.abs(found.astype(int) - alone.astype(int)).max() <= 1


def test_pictures_are_refused(loaded: Any) -> None:
    frame = np.zeros((1, 64, 64, 3), np.uint8)
    with pytest.raises(UsageError, match="pictures"):
        BatchEditor(loaded, 1)([frame], [Task(0, "make it snowy", None, 0)])


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def test_a_sheet_holds_every_picture_enlarged() -> None:
    columns = [
        sheets.Column("turn it into a snowy day", {"source": noise(2 * n), "result": noise(2 * n + 1)})
        for n in range(3)
    ]
    page = np.asarray(sheets.sheet({"snow": columns, "night": columns[:1]}, "Scenes"))
    windows = np.lib.stride_tricks.sliding_window_view(page[..., 0], (64, 64))
    for column in columns:
        for picture in column.pictures.values():
            large = picture[..., 0].repeat(2, axis=0).repeat(2, axis=1)
            starts = np.argwhere(windows[..., 0, 0] == large[0, 0])
            assert any(np.array_equal(windows[y, x], large) for y, x in starts)


def test_a_sheet_is_saved_small(tmp_path: Path) -> None:
    flat = Image.new("RGB", (200, 200), "green")
    assert sheets.save(flat, tmp_path / "a").suffix == ".png"
    busy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))
    written = sheets.save(busy, tmp_path / "a", most=80_000)
    assert written.suffix == ".jpg" and written.stat().st_size <= 80_000
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]
