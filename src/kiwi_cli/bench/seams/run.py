"""Clips through the windows that an edit was made in, or is made in now, and their figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from kiwi_cli.base.events import SILENT, Events
from kiwi_cli.base.text import count
from kiwi_cli.bench.seams.figures import Figures, Watch, figures
from kiwi_cli.bench.tiny.quality import FIRST_SEED, psnr
from kiwi_cli.editing import record
from kiwi_cli.editing.plan import EditPlan
from kiwi_cli.editing.prepare import prepare
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.editing.session import Session
from kiwi_cli.editing.windows import Windows
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.errors import UsageError
from kiwi_cli.synth.edits import STYLES, make_edit
from kiwi_cli.synth.scenes import make_scene
from kiwi_cli.synth.wordings import KINDS, wording
from kiwi_cli.video import Size, probe, read_frames, select

WIDEST = 320
"""Pixels across that frames of a file are looked at in: enough for a jump, and no codec's noise."""

DRAWN = Size(64, 64)
"""Pixels of a drawn clip: what the embedded model was trained at."""

Done = Callable[[int, int], None]


def boundaries(windows: Windows | None, frames: int) -> tuple[list[int], list[int]]:
    """Frames of each shot, and the frames where a window begins that is not a shot's first."""
    if windows is None:
        return [frames], []
    if windows.layout is None:
        return [frames], list(range(windows.frames, frames, windows.frames))
    starts = [0, *accumulate(windows.shots)]
    return list(windows.shots), [starts[w.shot] + w.first for w in windows.layout.windows if w.first]


def ends_of(plan: EditPlan, shots: Sequence[int]) -> list[int]:
    """The frames where parts that were made anew begin, and where the rest goes on; no shot's first."""
    cuts = {0, *accumulate(shots)}
    return sorted({frame for part in plan.parts for frame in (part.first, part.last)} - cuts)


def of_output(path: Path) -> tuple[Figures, EditPlan]:
    """The figures of an output of kiwi beside its source, by the windows that its settings give; of one with parts that
    were made anew, by their ends alone.

    Raises:
        UsageError: it was edited in one piece. MediaError: its settings or its source are not there any more.
    """
    settings, found = record.read_settings(path)
    base = found.absolute().parent
    request = record.request_from(settings, base)
    record.check_unchanged(settings, request, base)
    plan = prepare(request.changed(output=path, overwrite=True, keep_rest=False), fetch=False)
    if plan.windows is None:
        raise UsageError(f"'{path}' was edited in one piece", "pass an output that was edited in windows")
    shots, meet = boundaries(plan.windows, plan.span.frame_count)
    meet = ends_of(plan, shots) or meet
    size = _small(plan.clip.size)
    edited, before = Watch(), Watch()
    made = probe(path)
    for watch, clip, span in ((edited, made, select(made)), (before, plan.clip, plan.span)):
        with closing(read_frames(clip, span, size=size)) as stream:
            for frame in stream:
                watch.add(frame.rgb)
    if len(edited.labs) != len(before.labs):
        raise UsageError(
            f"'{path}' has {count(len(edited.labs), 'frame')} and its source {len(before.labs)}",
            "pass an output with the edited frames alone (no --keep-rest), at the clip's own rate",
        )
    return figures(edited, before, shots, meet, float(plan.clip.fps)), plan


def _small(size: Size) -> Size:
    scale = min(1.0, WIDEST / size.width)
    return Size(max(1, round(size.width * scale)), max(1, round(size.height * scale)))


def drawn(
    choice: ModelChoice,
    clips: int,
    frames: int,
    kinds: Sequence[str],
    options: dict[str, Any],
    events: Events = SILENT,
    done: Done = lambda count, total: None,
    size: Size = DRAWN,
) -> list[Figures]:
    """The figures of drawn clips with exact truth, edited with a model; each clip has the next of `kinds`.

    Args:
        options: of `EditRequest`, by name: windows, overlap, anchor, contexts, steps, seed, ...
        events: told of what the edits say. done: called with (clips done, clips).
    """
    if not set(kinds) <= set(STYLES):
        raise UsageError(f"not edits of the whole picture: {', '.join(kinds)}", f"use some of {', '.join(STYLES)}")
    found: list[Figures] = []
    with TemporaryDirectory() as name, Session(events=events) as session:
        for number in range(clips):
            kind, seed = kinds[number % len(kinds)], FIRST_SEED + number
            scene = make_scene(seed, *size, frames, held_out=True)
            edit = make_edit(scene, kind, np.random.default_rng([seed, KINDS.index(kind)]), held_out=True)
            words = wording(kind, edit.slots, np.random.default_rng(seed), "seen")
            folder = Path(name) / f"{number}"
            _write(folder, scene.source)
            request = EditRequest(folder, words, output=folder.with_name(f"{number}-out"), choice=choice)
            plan = prepare(request.changed(**{**options, "size": str(size)}), events)
            found.append(_measured(session, plan, edit.target))
            done(number + 1, clips)
    return found


def _measured(session: Session, plan: EditPlan, truth: np.ndarray) -> Figures:
    """Of the written result: what a person gets, with the detail that it has."""
    session.run(plan)
    made = probe(plan.output)
    edited, before = Watch(), Watch()
    shown: list[float] = []
    with closing(read_frames(made)) as results, closing(read_frames(plan.clip, plan.span)) as sources:
        for result, source, target in zip(results, sources, truth, strict=True):
            edited.add(result.rgb)
            before.add(source.rgb)
            shown.append(psnr(result.rgb, target))
    shots, meet = boundaries(plan.windows, plan.span.frame_count)
    return figures(edited, before, shots, meet, float(plan.clip.fps), shown)


def _write(folder: Path, frames: np.ndarray) -> None:
    from PIL import Image

    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number:05}.png", compress_level=1)
