"""A plan -> a sheet of a few moments, small and in few steps, and how long the whole will take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kiwi_cli.base import processes
from kiwi_cli.base.events import SILENT, Events, Silent, Stages
from kiwi_cli.base.text import count, format_seconds
from kiwi_cli.editing.counted import counted
from kiwi_cli.editing.moments import Moment, moments
from kiwi_cli.editing.plan import EditPlan
from kiwi_cli.editing.session import STAGES, EditResult, Session
from kiwi_cli.engine.demand import Stage
from kiwi_cli.engine.estimate import Estimate
from kiwi_cli.errors import MediaError
from kiwi_cli.video import Size, probe, read_frames, select, sheets, size_of_area
from kiwi_cli.video.planning import try_place

STEPS = 10
"""At most: enough to see what an edit does."""
PIXELS = 832 * 480
"""At most, of the working size: the released models were trained at this size too."""
CELL = Size(320, 320)
"""That a picture of the sheet is fitted into."""
COLUMNS = 3


@dataclass(frozen=True)
class Preview:
    """What was made, and what the whole would take.

    Attributes:
        path: of the sheet. output: where the whole edit would be written.
        moments: that are shown, each of a picture of the clip and one for each of `seeds`.
        size: worked at. steps: of each edit.
        seconds: that the preview took: 'load', of the model, and 'total'. expected: that the whole edit takes.
        approximations: why the pictures are not the model's exact ones.
    """

    path: Path
    output: Path
    moments: Sequence[Moment]
    seeds: Sequence[int]
    size: Size
    steps: int
    device: str
    dtype: str
    seconds: dict[str, float]
    expected: float
    approximations: Sequence[str] = ()


@dataclass
class _Taken:
    """Seconds of the moments' edits, to tell the whole's from.

    Attributes:
        stages: of each edit. counted: what one of them is, in operations; frames: of the clip.
        frame, seek: of reading the clip: one frame, and what the first one takes more.
    """

    counted: Estimate | None = None
    frames: int = 1
    stages: list[dict[str, float]] = field(default_factory=list)
    frame: list[float] = field(default_factory=list)
    seek: list[float] = field(default_factory=list)

    def whole(self, plan: EditPlan) -> float:
        """Seconds that an edit of the whole plan takes: stage by stage, as its operations are to the moment's.

        The quickest moment counts: the first one of a process warms things up. Reading is counted apart, because a
        moment has to be looked for in the file, once for each time that the clip is read.
        """
        found, part = counted(plan)[0], self.counted
        assert part is not None
        least = {name: min(each[name] for each in self.stages) for name in STAGES}
        passes = 2 if plan.detail == "source" else 1  # beside the output's frames, and for detail
        least["decode"] = max(least["decode"] - passes * min(self.seek), 0.1 * least["decode"])
        total = self.stages[0]["load"] + plan.span.frame_count * min(self.frame)
        computed: tuple[Stage, ...] = ("instruction", "encode", "denoise")
        for name in computed:
            total += least[name] * found.stages[name] / max(part.stages[name], 1e-9)
        written = plan.span.frame_count / self.frames
        return total + least["decode"] * max(written, found.stages["decode"] / max(part.stages["decode"], 1e-9))


def preview(plan: EditPlan, next_command: str, events: Events = SILENT) -> Preview:
    """Make the sheet that a plan asks for. Nothing else is written.

    Args:
        next_command: what to type to have the whole; with seeds, the one to put a seed's number into.

    Raises:
        KiwiError: as of an edit, or the sheet cannot be written.
    """
    begin, request = time.perf_counter(), plan.request
    size = plan.size if plan.size.width * plan.size.height <= PIXELS else _smaller(plan)
    if processes.is_first():
        try_place(plan.extras["preview"])
    shown = moments(plan, size)
    seeds = range(request.sampling.seed, request.sampling.seed + (request.previewing.seeds or 1))
    steps, taken = min(plan.steps, STEPS), _Taken()
    parts = [_part(plan, moment, size, steps) for moment in shown]
    columns: list[list[Any]] = []
    edits: dict[tuple[int, int], EditResult] = {}  # by first frame and seed: moments of a short clip share theirs
    with (
        TemporaryDirectory(prefix="kiwi-preview-") as folder,
        _Told(events, len({moment.first for moment in shown}) * len(seeds)).heard() as told,
        Session(events=told) as session,
    ):
        for part, moment in zip(parts, shown, strict=True):
            columns.append([_source(part, moment, taken)])
            for seed in seeds:
                if (moment.first, seed) not in edits:
                    path = Path(folder) / f"{len(edits)}{plan.output.suffix}"
                    asked = part.request.changed(seed=seed)
                    edits[moment.first, seed] = session.sample(replace(part, request=asked, output=path))
                    told.done = len(edits)
                if processes.is_first():
                    columns[-1].append(_result(edits[moment.first, seed].output, moment, plan))
    results = list(edits.values())
    taken.stages = [result.seconds for result in results]
    taken.counted, taken.frames = counted(parts[0])[0], parts[0].span.frame_count
    made = Preview(
        plan.extras["preview"],
        plan.output,
        shown,
        seeds,
        size,
        steps,
        results[0].device,
        results[0].dtype,
        {"load": taken.stages[0]["load"], "total": time.perf_counter() - begin},
        taken.whole(plan),
        results[-1].approximations,
    )
    if processes.is_first():
        page = _drawn(plan, made, columns, next_command)
        sheets.save(page, made.path, overwrite=request.overwrite)
    return made


def _smaller(plan: EditPlan) -> Size:
    return size_of_area(*plan.size, PIXELS, plan.settings.multiple)


def _part(plan: EditPlan, moment: Moment, size: Size, steps: int) -> EditPlan:
    """The plan of a moment: as the whole's, but small, in few steps and in one piece, and every step is made."""
    request = plan.request.changed(
        **{"preview": False, "seeds": None, "compare": None, "keep_rest": False, "sound": False, "to": None},
        **{"windows": None, "overlap": None, "anchor": None, "contexts": None},
        **{"cache": "off", "cache_threshold": None, "cache_ratios": None},
        **{"keep_latents": False, "parts": ()},
    )
    return replace(
        plan,
        request=request,
        span=moment.span,
        size=size,
        steps=steps,
        windows=None,
        parts=(),
        extras={},
        noise=moment.noise,
    )


def _source(part: EditPlan, moment: Moment, taken: _Taken) -> Any:
    """The clip's own picture of a moment; how long reading takes is noted."""
    marks, found = [time.perf_counter()], None
    with closing(read_frames(replace(part.clip, keeps_alpha=False), part.span, size=_shown_size(part))) as frames:
        for number, frame in enumerate(frames):
            marks.append(time.perf_counter())
            if number == moment.frame - moment.first:
                found = frame.rgb
    if found is None:
        raise MediaError(f"'{part.clip.path}' has no frame at {float(moment.time):.2f} s", "pass --allow-truncated")
    each = [after - before for before, after in pairwise(marks[1:])]
    taken.frame.append(min(each, default=marks[1] - marks[0]))
    taken.seek.append(max(0.0, marks[1] - marks[0] - taken.frame[-1]))
    return found


def _result(path: Path, moment: Moment, plan: EditPlan) -> Any:
    """The picture of a moment in its output."""
    made = probe(path)
    at = moment.frame - moment.first
    with closing(read_frames(made, select(made), size=_shown_size(plan))) as frames:
        found = [frame.rgb for number, frame in enumerate(frames) if number <= at]
    return found[-1]


def _shown_size(plan: EditPlan) -> Size:
    return sheets.cell_within(Size(*plan.clip.display_size), CELL)


def _drawn(plan: EditPlan, made: Preview, pictures: Sequence[Sequence[Any]], next_command: str) -> Any:
    """The page: what is edited and how, the moments, and what comes next."""
    several = len({moment.shot for moment in made.moments}) > 1
    times = [
        (f"shot {moment.shot + 1}, " if several else "") + f"{float(moment.time):.2f} s" for moment in made.moments
    ]
    if plan.clip.frame_count == 1:
        times = ["the picture"]
    names = [f"seed {seed}" for seed in made.seeds] if plan.request.previewing.seeds is not None else ["edit"]
    rows: list[list[sheets.Tile]] = []
    if not plan.request.previewing.preview:
        words = [f"source, {times[0]}", *names]
        tiles = [sheets.Tile(picture, word) for picture, word in zip(pictures[0], words, strict=True)]
        rows = [tiles[start : start + COLUMNS] for start in range(0, len(tiles), COLUMNS)]
    else:
        for start in range(0, len(pictures), COLUMNS):
            band = range(start, min(start + COLUMNS, len(pictures)))
            rows.append([sheets.Tile(pictures[column][0], f"source, {times[column]}") for column in band])
            for number, name in enumerate(names, start=1):
                rows.append([sheets.Tile(pictures[column][number], name) for column in band])
    how, whole = (
        f"{size} in {count(steps, 'step')}" for size, steps in ((made.size, made.steps), (plan.size, plan.steps))
    )
    less = f"; the edit itself: {whole}" if how != whole else ""
    head = [f'"{plan.told(plan.request)}"', f"{plan.request.choice.name} at {how}{less}"]
    return sheets.draw(rows, _shown_size(plan), head, [expected_words(plan, made), f"next: {next_command}"])


def expected_words(plan: EditPlan, made: Preview) -> str:
    """How long the whole takes, in words."""
    what = "the picture" if plan.clip.frame_count == 1 else f"all {count(plan.span.frame_count, 'frame')}"
    return f"{what}: about {format_seconds(made.expected)} on {made.device} (estimate, from these moments)"


class _Told(Silent):
    """Events of all edits of a preview as one job: a line is passed on once, and steps are counted over all.

    Attributes:
        done: edits that are made.
    """

    def __init__(self, events: Events, total: int) -> None:
        self.events, self.total, self.done = events, total, 0
        self._said: set[str] = set()
        self._shown: Stages | None = None

    @contextmanager
    def heard(self) -> Iterator[_Told]:
        with self.events.stages({"load": STAGES["load"], "moments": "edit moments"}) as shown:
            self._shown = shown
            yield self

    def note(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self.events.note(message)

    def warn(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self.events.warn(message)

    @contextmanager
    def stages(self, labels: dict[str, str]) -> Iterator[Stages]:
        told = self

        class Forwarded(Stages):
            def show(self, stage: str, done: int, total: int, elapsed: float) -> None:
                assert told._shown is not None
                if stage == "load":
                    told._shown("load", done, total)
                elif stage == "denoise":
                    told._shown("moments", told.done * total + done, told.total * total)

        yield Forwarded(labels)
