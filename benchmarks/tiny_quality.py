"""How well a small model edits held-out synthetic clips: the table of docs/tiny.md, and its contact sheets.

    python benchmarks/tiny_quality.py tiny --out results/tiny
    python benchmarks/tiny_quality.py tiny --out results/tiny-natural --natural    # grounds nearer to filmed ones
    python benchmarks/tiny_quality.py MODEL_FOLDER --count 8 --kinds night snow --out results/trial

For each kind of edit and both sorts of wordings, the same held-out scenes are edited by the real sampler and measured
against their exact truth (kiwi_cli/bench/tiny/quality.py). A run that was interrupted goes on when it is started again;
`--count` may have grown meanwhile. In the folder: `edits.jsonl` (every edit's figures), `table.md`, `table.json` (with
the kinds that pass) and `sheets/`. The edits are made in batches, which the start of each run compares with the
pipeline's own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kiwi_cli.bench.tiny import quality, sheets
from kiwi_cli.synth.edits import STYLES
from kiwi_cli.synth.wordings import KINDS, SPLITS
from kiwi_cli.weights.hub import locate

SCENES_A_TASK = 4
SHEET_SCENES = 8
SHEETS = {
    "tones": tuple(kind for kind in STYLES if kind not in ("night", "snow", "pencil")),
    "scenes": ("night", "snow", "pencil", "background"),
    "local": ("change", "remove", "add"),
    "references": quality.REFERENCES,
}
Work = tuple[int, tuple[tuple[str, str], ...]]  # a scene and its (kind, wordings) that are still to do

_editor: Any = None  # of a worker process
_run: dict[str, Any] = {}


def start_worker(run: dict[str, Any]) -> None:
    """Load the model, once for each process."""
    global _editor
    import torch

    from kiwi_cli.bench.tiny.edits import BatchEditor
    from kiwi_cli.engine.pipeline import KiwiPipeline

    torch.set_num_threads(1)
    _run.update(run)
    pipe = KiwiPipeline.from_pretrained(run["folder"], device="cpu", dtype="float32")
    _editor = BatchEditor(pipe, run["steps"])


def make(number: int) -> quality.Case:
    return quality.make_case(number, *_run["size"], _run["frames"], _run["natural"])


def check_batches(_: int = 0) -> int:
    """The largest difference of a pixel, of 255, between batched edits and the pipeline's own, over six edits."""
    from kiwi_cli.bench.tiny.edits import Task

    cases = [make(number) for number in range(2)]
    tasks = []
    for number, case in enumerate(cases):
        for kind in ("night", "remove", "reference-subject"):
            prompt = case.prompt(kind, SPLITS[number])
            tasks.append(Task(number, prompt, case.edits[kind].reference, number))
    return _editor.against_pipeline([case.scene.source for case in cases], tasks)


def edit_scenes(group: list[Work]) -> list[dict[str, Any]]:
    """Edit some scenes; the figures of each edit. Last frames for the sheets are written on the way."""
    from kiwi_cli.bench.tiny.edits import Task

    cases = {number: make(number) for number, _ in group}
    order = list(cases)
    tasks, wanted = [], []
    for number, pairs in group:
        case = cases[number]
        for kind, split in pairs:
            prompt = case.prompt(kind, split)  # type: ignore[arg-type]
            for edit in (case.edits[kind], case.others.get(kind)):
                if edit is not None:
                    tasks.append(Task(order.index(number), prompt, edit.reference, number))
            wanted.append((number, kind, split, prompt))
    results = iter(_editor([cases[number].scene.source for number in order], tasks))
    truths = sorted({(number, kind) for number, kind, _, _ in wanted})
    ceilings = _editor.reconstruct([cases[number].edits[kind].target for number, kind in truths])
    ceiling_of = dict(zip(truths, ceilings, strict=True))
    records = []
    for number, kind, split, prompt in wanted:
        result = next(results)
        other = next(results) if kind in quality.REFERENCES else None
        if number < SHEET_SCENES:
            for name, clip in (("result", result), ("other", other)):
                if clip is not None:
                    save_picture(frame_path(_run["out"], kind, split, number, name), clip[-1])
        figures = quality.measure(cases[number], kind, result, ceiling_of[number, kind], other)
        records.append({"scene": number, "kind": kind, "split": split, "prompt": prompt, **figures})
    return records


def frame_path(out: str | Path, kind: str, split: str, number: int, name: str) -> Path:
    return Path(out) / "frames" / f"{kind}-{split}-{number}-{name}.png"


def save_picture(path: Path, frame: np.ndarray) -> None:
    partial = path.with_suffix(".part")
    Image.fromarray(frame).save(partial, format="PNG")
    partial.replace(path)


# -- what is done already --------------------------------------------------------------------------------------


def fingerprint(folder: Path) -> str:
    """sha256 of a model's weights and configs."""
    found = hashlib.sha256()
    for path in sorted([*folder.rglob("*.safetensors"), *folder.rglob("config.json")]):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                found.update(chunk)
    return found.hexdigest()


def check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Edits of another model or size must not be counted together."""
    path = out / "settings.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != settings:
        sys.exit(f"error: '{out}' holds edits of another model or with other settings\n\nhint: pass another --out")
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_records(path: Path) -> dict[tuple[int, str, str], dict[str, Any]]:
    """Lines that are there; one that was cut off by a kill is dropped from the file."""
    found: dict[tuple[int, str, str], dict[str, Any]] = {}
    if not path.is_file():
        return found
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    for line in whole.splitlines():
        record = json.loads(line)
        found[record["scene"], record["kind"], record["split"]] = record
    return found


def groups(todo: dict[int, list[tuple[str, str]]]) -> Iterator[list[Work]]:
    scenes = [(number, tuple(pairs)) for number, pairs in sorted(todo.items())]
    for start in range(0, len(scenes), SCENES_A_TASK):
        yield scenes[start : start + SCENES_A_TASK]


# -- results ---------------------------------------------------------------------------------------------------


def draw_sheets(args: argparse.Namespace, records: dict[tuple[int, str, str], dict[str, Any]]) -> list[Path]:
    """The first scenes' last frames: source, result and truth, and of references both pictures and both results."""
    count = min(args.count, SHEET_SCENES)
    cases = [quality.make_case(number, *args.size, args.frames, args.natural) for number in range(count)]
    folder = args.out / "sheets"
    folder.mkdir(exist_ok=True)
    written = []
    for name, kinds in SHEETS.items():
        for split in args.wordings:
            content: dict[str, list[sheets.Column]] = {}
            for kind in kinds:
                columns = []
                for case in cases:
                    if (case.number, kind, split) not in records:
                        continue

                    def frame(which: str, kind: str = kind, number: int = case.number, split: str = split) -> Any:
                        return np.asarray(Image.open(frame_path(args.out, kind, split, number, which)))

                    edit = case.edits[kind]
                    pictures = {"source": case.scene.source[-1], "result": frame("result"), "truth": edit.target[-1]}
                    if edit.reference is not None:
                        other = case.others[kind]
                        pictures = {"source": pictures.pop("source"), "reference": edit.reference, **pictures}
                        pictures |= {"another": other.reference, "result ": frame("other"), "truth ": other.target[-1]}
                    columns.append(sheets.Column(case.prompt(kind, split), pictures))
                if columns:
                    content[kind] = columns
            if content:
                page = sheets.sheet(content, f"Held-out scenes, {split} wordings, last frame")
                written.append(sheets.save(page, folder / f"{name}-{split}"))
    return written


def report(args: argparse.Namespace, notes: dict[str, Any], records: dict[tuple[int, str, str], dict[str, Any]]) -> str:
    """Write `table.md` and `table.json`; the text that is printed."""
    rows = quality.summarise(
        record
        for (number, kind, split), record in records.items()
        if number < args.count and kind in args.kinds and split in args.wordings
    )
    result = {**notes, **quality.as_json(rows)}
    lines = [
        quality.markdown(rows),
        f"Passing: {', '.join(result['passing']) or 'none'}.",
        "",
        f"{notes['steps']} steps, {notes['size']}, {notes['frames']} frames, "
        f"{'natural' if notes['natural'] else 'drawn'} grounds, fp32; batched edits differ from the "
        f"pipeline's own by {notes['batched_difference']} of 255 at most, over six edits; {notes['seconds']:.0f} s "
        f"for {notes['edited']} edits with {notes['processes']} processes.",
    ]
    if not result["enough"]:
        lines += ["", f"A trial: fewer than {quality.LEAST_COUNT} scenes of a kind, or one sort of wordings only."]
    text = "\n".join(lines) + "\n"
    (args.out / "table.md").write_text(text, encoding="utf-8")
    (args.out / "table.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return text


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint's folder, or a model's name")
    parser.add_argument("--count", type=int, default=100, help="scenes of each kind and wordings")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--wordings", nargs="+", choices=SPLITS, default=list(SPLITS))
    parser.add_argument("--size", default="64x64")
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--natural", action="store_true", help="things on grounds nearer to filmed ones")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    try:
        width, height = (int(side) for side in args.size.split("x"))
    except ValueError:
        parser.error(f"--size is WIDTHxHEIGHT, not '{args.size}'")
    if width % 16 or height % 16 or min(width, height) < 32:
        parser.error("--size is in multiples of 16 from 32x32")
    if args.frames < 5 or args.frames % 4 != 1:
        parser.error("--frames is 5, 9, 13, ... 4k + 1")
    if args.count < 1 or args.steps < 1 or args.processes < 1:
        parser.error("--count, --steps and --processes are 1 or more")
    args.size = (width, height)
    return args


def main() -> None:
    args = arguments()
    folder = locate(args.model)
    (args.out / "frames").mkdir(parents=True, exist_ok=True)
    size = "x".join(map(str, args.size))
    settings = {"model": fingerprint(folder), "size": size, "frames": args.frames, "steps": args.steps}
    settings["natural"] = args.natural
    check_settings(args.out, settings)
    path = args.out / "edits.jsonl"
    records = read_records(path)
    todo: dict[int, list[tuple[str, str]]] = {}
    for number in range(args.count):
        for kind in args.kinds:
            for split in args.wordings:
                if (number, kind, split) not in records:
                    todo.setdefault(number, []).append((kind, split))
    run = {**settings, "folder": str(folder), "out": str(args.out), "size": args.size}
    os.environ["OMP_NUM_THREADS"] = "1"  # before the workers load their libraries
    edits = sum(1 + (kind in quality.REFERENCES) for pairs in todo.values() for kind, _ in pairs)
    begin, done = time.perf_counter(), 0
    work = list(groups(todo))
    with get_context("spawn").Pool(min(args.processes, max(len(work), 1)), start_worker, (run,)) as pool:
        difference = pool.apply_async(check_batches)
        with path.open("a", encoding="utf-8") as file:
            for made in pool.imap_unordered(edit_scenes, work):
                for record in made:
                    file.write(json.dumps(record) + "\n")
                    records[record["scene"], record["kind"], record["split"]] = record
                    done += 1 + (record["kind"] in quality.REFERENCES)
                file.flush()
                seconds = time.perf_counter() - begin
                left = seconds / done * (edits - done)
                print(f"{done} of {edits} edits, {seconds:.0f} s, {left:.0f} s to go", file=sys.stderr, flush=True)
        notes = {
            **settings,
            "count": args.count,
            "batched_difference": difference.get(),
            "edited": done,
            "seconds": round(time.perf_counter() - begin, 1),
            "processes": args.processes,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
        }
    print(report(args, notes, records))
    for sheet in draw_sheets(args, records):
        print(f"{sheet} ({sheet.stat().st_size // 1000} kB)", file=sys.stderr)


if __name__ == "__main__":
    main()
