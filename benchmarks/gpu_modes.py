"""Every way to edit at the full shape, once each, by `kiwi edit` itself: does it end well, by which plan, with how much
memory, and where does it wait for the device?

    python benchmarks/random_checkpoint.py /tmp/kiwi-5b
    python benchmarks/gpu_modes.py --model /tmp/kiwi-5b --out results
    python benchmarks/gpu_modes.py --model /tmp/kiwi-5b --out results --only auto 'stream*' --again
    python benchmarks/gpu_modes.py --rehearse --out results     # the small checkpoint, on the CPU

The cases: every memory level as it is, compiled, in int8 and in fp8; references; two clips with one model; a 1080p clip
with its own detail; a clip twice as long as a window; caps of the process's memory, which the allocator itself
enforces; and too little memory from each stage on. A case that fails is a line that says so. Every result is appended
to results/modes.jsonl as it comes, and the table written to results/modes.md; the same command goes on where it
stopped. It runs from a checkout that is not installed.

Weights are random. What it takes in seconds is gpu.py's subject.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import gc
import io
import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from gpu import append  # noqa: E402

from kiwi_cli.engine.demand import STAGES, Stage  # noqa: E402
from kiwi_cli.engine.memory import LEVELS  # noqa: E402
from kiwi_cli.engine.residency import Residency  # noqa: E402
from kiwi_cli.errors import EXIT_INTERRUPTED  # noqa: E402

INSTRUCTION = "make it snowy, with snow on the ground and on the roofs"
CAPS = (24, 16, 12, 8)  # GB
COMPILED = 8.5  # GB that the compiled decoder needs in its most strips: docs/performance.md
STEPS = 3
ROOM = 200_000_000
"""Bytes beside what is on the device already that a stage has when it is to run out of memory."""

KEPT = 100_000_000
"""Bytes that may stay on the device when a case is over: libraries keep their workspaces."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One edit.

    Attributes:
        options: of `kiwi edit`. reference: with a picture. clips: edited one after the other with one loaded model.
        larger: a clip larger than the model works at. times: as long as a window.
        cap: GB that the process may have. short: the stage from which on there is too little memory.
        refused: there is no exact plan under the cap.
    """

    name: str
    options: tuple[str, ...] = ()
    reference: bool = False
    clips: int = 1
    larger: bool = False
    times: int = 1
    cap: float | None = None
    short: Stage | None = None
    refused: bool = False


def cases() -> list[Case]:
    """All, by name."""
    found = [Case("auto")]
    ways = {"": (), " compiled": ("--compile",), " int8": ("--quantize", "int8"), " fp8": ("--quantize", "fp8")}
    found += [
        Case(f"{level}{name}", ("--memory", level, *options)) for level in LEVELS for name, options in ways.items()
    ]
    found += [Case("resident fp8 compiled", ("--memory", "resident", "--quantize", "fp8", "--compile"))]
    found += [Case(f"{level} reference", ("--memory", level), reference=True) for level in ("auto", "stream")]
    found += [Case(f"{level} two clips", ("--memory", level, "--compile"), clips=2) for level in ("auto", "stream")]
    found += [
        Case(f"{level} detail", ("--memory", level, "--detail", "source"), larger=True) for level in ("auto", "stream")
    ]
    found += [Case(f"{level} windows", ("--memory", level), times=2) for level in ("auto", "stream")]
    for cap in CAPS:
        limit = ("--max-memory", f"{cap}GB")
        found += [Case(f"{cap} GB", limit, cap=cap)]
        found += [Case(f"{cap} GB compiled", (*limit, "--compile"), cap=cap, refused=cap < COMPILED)]
    found += [
        Case(f"{level} short in {stage}", ("--memory", level), short=stage)
        for level in ("auto", "swap")
        for stage in STAGES
    ]
    return found


class Watch:
    """What the device does while a case runs: waits by stage, and the shortage of a case that has one."""

    def __init__(self, device: torch.device, short: Stage | None) -> None:
        self.device, self.short = device, short
        self.waits: dict[str, Counter[str]] = {stage: Counter() for stage in STAGES}

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """A context in which every stage is watched."""
        original, watch = Residency.stage, self

        @contextlib.contextmanager
        def stage(residency: Residency, name: Stage) -> Iterator[torch.device]:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")  # inside the command, which silences them
                try:
                    with original(residency, name) as device:
                        watch.run_short(name)
                        yield device
                finally:
                    watch.count(name, caught)

        Residency.stage = stage  # type: ignore[method-assign]
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            Residency.stage = original  # type: ignore[method-assign]
            if cuda:
                torch.cuda.set_sync_debug_mode("default")

    def run_short(self, stage: Stage) -> None:
        """The first time that the stage has its weights: leave it too little for its work."""
        if stage != self.short:
            return
        self.short = None
        if self.device.type != "cuda":
            raise torch.OutOfMemoryError("there is no allocator to limit here: only said")
        torch.cuda.empty_cache()
        limit(self.device, torch.cuda.memory_allocated(self.device) + ROOM)

    def count(self, stage: Stage, caught: list[warnings.WarningMessage]) -> None:
        """Add up waits by line of code; torch's own list of calls, which misses events."""
        for warning in caught:
            if "synchroniz" in str(warning.message):
                file = Path(warning.filename)
                self.waits[stage][f"{file.parent.name}/{file.name}:{warning.lineno}"] += 1


def limit(device: torch.device, size: float | None) -> None:
    """Let this process's allocator have `size` bytes of a device at most; None: all."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(1.0 if size is None else min(1.0, size / total), device)


class Modes:
    """Runs cases on one clip.

    Args:
        model: a checkpoint. folder: of the clip and the results, emptied by the caller.
        small: a clip for the small checkpoint.
    """

    def __init__(self, model: Path, folder: Path, small: bool) -> None:
        from kiwi_cli.engine.devices import choose_device

        self.model, self.folder = model, folder
        self.device = choose_device("auto")
        self.frames, self.width, self.height = (9, 64, 64) if small else (81, 1280, 704)
        self.picture = folder / "picture.png"

    def clip_of(self, case: Case) -> Path:
        """The case's clip, drawn when it is first needed, beside a reference picture."""
        import av
        from PIL import Image

        from kiwi_cli.engine.random_model import moving_picture

        height, width = (self.height * 3 // 2 + 24, self.width * 3 // 2) if case.larger else (self.height, self.width)
        path = self.folder / f"clip-{case.times}-{height}.mp4"
        if path.exists():
            return path
        frames = moving_picture(self.frames, height, width)
        Image.fromarray(frames[0]).save(self.picture)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=16, options={"preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for number in range(self.frames * case.times):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frames[number % len(frames)])))
            container.mux(stream.encode(None))
        return path

    def run(self, case: Case) -> Record:
        """The record of a case, whatever comes of it."""
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        limit(self.device, None if case.cap is None else case.cap * 1e9)
        watch, begin = Watch(self.device, case.short), time.perf_counter()
        record: Record = {"section": case.name, "options": list(case.options), "steps": STEPS}
        try:
            with watch.on():
                record |= self.command(case) if case.clips == 1 else self.loaded(case)
        except Exception as error:
            record["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        record["seconds"] = round(time.perf_counter() - begin, 1)
        record["waits"] = {stage: dict(found) for stage, found in watch.waits.items() if found}
        if cuda:
            record["peak"] = torch.cuda.max_memory_allocated(self.device)
            record["reserved"] = torch.cuda.max_memory_reserved(self.device)
        torch._dynamo.reset()
        gc.collect()
        limit(self.device, None)
        if cuda:
            torch.cuda.empty_cache()
            record["left"] = torch.cuda.memory_allocated(self.device)
        return record | {"well": self.well(case, record)}

    def command(self, case: Case) -> Record:
        """`kiwi edit`, or `kiwi ref-edit`, in this process."""
        from kiwi_cli.cli import run

        out = self.folder / "out.mp4"
        clip = self.clip_of(case)
        words = ["ref-edit" if case.reference else "edit", str(clip), INSTRUCTION, "--model", str(self.model)]
        words += ["--ref", str(self.picture)] if case.reference else []
        words += ["--steps", str(STEPS), "--device", "auto", *case.options, "--json", "--overwrite", "-o", str(out)]
        said, told = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
            code = run(words)
        if code == EXIT_INTERRUPTED:
            raise KeyboardInterrupt
        lines = [line for line in told.getvalue().splitlines() if line.strip()]
        record: Record = {"code": code, "placed": [line for line in lines if "memory: " in line]}
        if code == 0:
            result = json.loads(said.getvalue())
            return record | {"frames": result["frames"], "not_exact": result["approximations"]}
        wrong = next((line for line in lines if line.startswith("error: ")), " ".join(lines[-2:]))
        return record | {"error": wrong.removeprefix("error: ")}

    def loaded(self, case: Case) -> Record:
        """Clips one after the other with one loaded model: what `kiwi edit` calls, and graphs made for each."""
        import kiwi_cli
        from kiwi_cli.base.events import Silent
        from kiwi_cli.editors.base import Editor

        placed: list[str] = []
        events = Silent()
        events.note = placed.append  # type: ignore[method-assign]
        names = {"--memory": "memory", "--max-memory": "max_memory"}
        options: dict[str, Any] = {
            names[name]: value for name, value in zip(case.options, case.options[1:], strict=False) if name in names
        }
        clip = self.clip_of(case)
        editor: Editor = kiwi_cli.load(str(self.model), compile="--compile" in case.options, **options)
        counts, frames = [], 0
        try:
            for number in range(case.clips):
                out = self.folder / f"out-{number}.mp4"
                result = kiwi_cli.edit(
                    clip, INSTRUCTION, editor=editor, events=events, output=out, overwrite=True, steps=STEPS
                )
                frames += result.frames
                counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        finally:
            editor.close()
        return {"code": 0, "frames": frames, "placed": placed, "graphs": counts}

    def well(self, case: Case, record: Record) -> bool:
        """Whether a case ended as it must: whole, under its cap; a short one may also end with the words for it."""
        if record.get("left", 0) > KEPT:
            return False
        if "error" in record:
            words = "out of memory on" if case.short else "this edit needs" if case.refused else None
            return words is not None and record["error"].startswith(words)
        if case.cap is not None and record.get("reserved", 0) > case.cap * 1e9:
            return False
        graphs = record.get("graphs", [0])
        return record["frames"] == self.frames * case.times * case.clips and len(set(graphs)) == 1


def table(records: dict[str, Record], note: str) -> str:
    """Markdown: a line for each case."""
    lines = [f"**{note}**", ""] if note else []
    lines += [
        "| case | plan | peak, GB | reserved, GB | waits in prompt, encode, steps, decode | |",
        "|---|---|---|---|---|---|",
    ]
    for name, record in records.items():
        plan = ", then ".join(line.split("memory: ")[-1] for line in record.get("placed", ()) if "memory: " in line)
        counts = ", ".join(str(sum(record["waits"].get(stage, {}).values())) for stage in STAGES)
        peaks = [f"{record[key] / 1e9:.1f}" if key in record else "" for key in ("peak", "reserved")]
        end = record.get("error", "whole") if record["well"] else f"**FAILED** {record.get('error', '')}"
        lines.append(f"| {' | '.join([name, plan, *peaks, counts, end])} |")
    return "\n".join(lines) + "\n"


def read(path: Path) -> dict[str, Record]:
    """Records by case; a later one replaces an earlier one."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return {record["section"]: record for record in map(json.loads, lines)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and not there yet; 1 when a case did not end well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="a checkpoint folder of the full size")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    parser.add_argument(
        "--only", metavar="PATTERN", nargs="+", default=["*"], help="cases with such names, in turn, as 'stream*'"
    )
    parser.add_argument("--again", action="store_true", help="also the cases that are there already")
    parser.add_argument("--note", default="", help="a line above the table")
    parser.add_argument("--rehearse", action="store_true", help="the small checkpoint and a small clip")
    options = parser.parse_args(arguments)
    model = ROOT / "examples" / "checkpoint" if options.rehearse else options.model
    if model is None or not model.is_dir():
        parser.error("no checkpoint: benchmarks/random_checkpoint.py writes one for --model")
    note = "; ".join(filter(None, ["REHEARSAL with a small model" if options.rehearse else "", options.note]))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / ("modes-rehearsal.jsonl" if options.rehearse else "modes.jsonl")
    there = {} if options.again else read(path)
    named = {case.name: case for pattern in options.only for case in cases() if fnmatch.fnmatch(case.name, pattern)}
    todo = [case for name, case in named.items() if name not in there]
    with tempfile.TemporaryDirectory() as folder:
        modes = Modes(model, Path(folder), options.rehearse)
        for case in todo:
            record = modes.run(case) | {"note": note}
            append(path, record)
            print(table({case.name: record}, "").splitlines()[-1], flush=True)
    records = read(path)
    path.with_suffix(".md").write_text(table(records, note))
    return int(not all(record["well"] for record in records.values()))


if __name__ == "__main__":
    sys.exit(main())
