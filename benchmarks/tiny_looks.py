"""How well a small model makes looks: the table of docs/tiny.md, and a contact sheet.

    python benchmarks/tiny_looks.py MODEL --out results/looks
    python benchmarks/tiny_looks.py MODEL --out results/looks --count 24 --clips bunny.mp4 street.mp4

Held-out scenes, drawn and nearer to filmed ones, and crops of the clips that are given, a few frames each, get every
look in seen and held-out wordings, the first of them in three strengths, and two looks that no training clip has
together (kiwi_cli/bench/tiny/looks.py says what is right). All are four times as large as the model works, and judged
as a person gets them: with the source's detail, against the look of the source at full size. `--times 1` judges scenes
as the model gives them. The ceiling is the truth through the autoencoder, enlarged; how near the truth comes with the
same detail is in a column beside it.
In the folder: `looks.jsonl` (every edit's figures), `table.md`, `passing.json`, and the sheets.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kiwi_cli.bench.tiny import looks, sheets
from kiwi_cli.bench.tiny.quality import FIRST_SEED, mse_of_all
from kiwi_cli.cli.console import Console
from kiwi_cli.errors import KiwiError, UsageError
from kiwi_cli.synth.natural import natural_scene
from kiwi_cli.synth.scenes import Scene, make_scene, scene_of
from kiwi_cli.synth.wordings import SPLITS
from kiwi_cli.video.detail import DetailSettings, transfer
from kiwi_cli.video.geometry import Size
from kiwi_cli.video.opening import check_input, open_media, picture_stream
from kiwi_cli.video.resize import scale
from kiwi_cli.weights.hub import locate
from kiwi_cli.weights.settings import read_settings

WORKED_AT = Size(144, 80)  # crops, by the embedded model
STRENGTHS = ("slight", "strong")
SHEET_SCENES = 6
Work = tuple[str, int]  # footage and number

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
    _editor = BatchEditor(KiwiPipeline.from_pretrained(run["folder"], device="cpu", dtype="float32"), run["steps"])


def crops(path: Path, count: int, frames: int, full: Size) -> list[np.ndarray]:
    """Parts of a clip at several moments and places, (frames, H, W, 3) uint8 each, of the size `full`.

    Raises:
        UsageError, MediaError: a clip that is not there, cannot be read, or is shorter than `frames`.
    """
    check_input(path)
    with open_media(path) as container:
        clip = [frame.to_image() for frame in container.decode(picture_stream(container, path))]
    if len(clip) < frames:
        raise UsageError(f"'{path}' has {len(clip)} frames, not {frames}", "pass a longer clip, or a smaller --frames")
    rng = np.random.default_rng(len(clip))
    found = []
    for number in range(count):
        first = round((len(clip) - frames) * number / max(1, count - 1))
        wide, high = clip[0].size
        side = min(wide / full.width, high / full.height) * rng.uniform(0.6, 1.0)
        left, top = rng.uniform(0, wide - side * full.width), rng.uniform(0, high - side * full.height)
        box = (left, top, left + side * full.width, top + side * full.height)
        cut = [frame.resize(full, Image.Resampling.BICUBIC, box) for frame in clip[first : first + frames]]
        found.append(np.stack([np.asarray(frame) for frame in cut]))
    return found


def scene(work: Work) -> Scene:
    footage, number = work
    if footage == "filmed":
        clips = np.load(_run["filmed"], mmap_mode="r")
        return scene_of(clips[number].astype(np.float32) / 255.0, "filmed", True)
    made = make_scene if footage == "drawn" else natural_scene
    wide, high = (side * _run["times"] for side in _run["size"])
    return made(FIRST_SEED + number, wide, high, _run["frames"], held_out=True)


def edited(source: np.ndarray, tasks: list[Any], looked: list[np.ndarray]) -> tuple[list[Any], list[Any], list[Any]]:
    """Results of the tasks; of the truths `looked` what the autoencoder gives back, enlarged, and with the detail."""
    times = _run["times"]
    if times == 1:
        made = _editor.reconstruct(looked)
        return _editor([source], tasks), made, made
    high, wide = source.shape[1:3]
    worked_at, full = Size(wide // times, high // times), Size(wide, high)
    small, *truths = [np.stack([scale(frame, worked_at) for frame in clip]) for clip in (source, *looked)]
    trip, *made = _editor.reconstruct([small, *truths])
    settings = DetailSettings(**_run["detail"])

    def with_detail(clips: list[np.ndarray]) -> list[np.ndarray]:
        return [np.stack(list(transfer(zip(clip, trip, source, strict=True), settings))) for clip in clips]

    enlarged = [np.stack([scale(frame, full) for frame in clip]) for clip in made]
    return with_detail(_editor([small], tasks)), enlarged, with_detail(made)


def edit_scene(work: Work) -> list[dict[str, Any]]:
    """All looks of one scene; the figures of each. Last frames for the sheet are written on the way."""
    from kiwi_cli.bench.tiny.edits import Task

    source, (footage, number) = scene(work), work
    asks = (*looks.ASKS, looks.pair_ask(number))
    found = looks.truths(source)
    candidates = found | {asks[-1].name: asks[-1].frames(source.picture, "plain")}
    rng = np.random.default_rng([number, len(footage)])
    wanted: list[tuple[looks.Ask, str, str]] = [(ask, split, "plain") for ask in asks for split in SPLITS]
    ordered = [ask for ask in looks.ASKS if ask.name not in looks.UNORDERED and not ask.slots]
    if number >= _run["strengths"]:
        ordered = []
    wanted += [(ask, "seen", strength) for ask in ordered for strength in STRENGTHS]
    prompts = [ask.prompt(split, strength, rng) for ask, split, strength in wanted]  # type: ignore[arg-type]
    asked = [candidates[ask.name] for ask in asks]
    results, *made = edited(source.source, [Task(0, prompt, None, number) for prompt in prompts], asked)
    ceilings = {ask.name: clips for ask, *clips in zip(asks, *made, strict=True)}
    amounts = {
        (ask.name, strength): looks.amount_of(ask, source, result)
        for (ask, split, strength), result in zip(wanted, results, strict=True)
        if split == "seen"
    }
    measured = len(asks) * len(SPLITS)  # those of plain strength come first
    errors = mse_of_all(results[:measured], list(candidates.values())).tolist()
    records = []
    for (ask, split, _), prompt, result, row in zip(wanted, prompts, results, errors, strict=False):
        known = candidates if ask.pair else found  # the pair comes last
        figures = looks.measure(ask, known, result, *ceilings[ask.name], row[: len(known)])
        if split == "seen" and (ask.name, "strong") in amounts:
            slight, plain, strong = (amounts[ask.name, name] for name in ("slight", "plain", "strong"))
            figures["ordered"] = [slight < plain, plain < strong, slight < strong]
        records.append(
            {"ask": ask.name, "footage": footage, "scene": number, "split": split, "prompt": prompt, **figures}
        )
        if split == "held-out" and number < SHEET_SCENES:
            Image.fromarray(result[-1]).save(frame_path(footage, number, ask.name))
    return records


def frame_path(footage: str, number: int, name: str) -> Path:
    return Path(_run["out"]) / "frames" / f"{footage}-{number}-{name.replace(' ', '-')}.png"


def draw_sheets(todo: list[Work], records: list[dict[str, Any]]) -> Iterator[Path]:
    """For each sort of clips, some scenes with every look: source, result, truth."""
    prompts = {(r["footage"], r["scene"], r["ask"]): r["prompt"] for r in records if r["split"] == "held-out"}
    for footage in dict.fromkeys(footage for footage, _ in todo):
        shown = [work for work in todo if work[0] == footage and work[1] < SHEET_SCENES]
        content: dict[str, list[sheets.Column]] = {}
        for work in shown:
            source = scene(work)
            found = looks.truths(source)
            for ask in looks.ASKS:
                pictures = {
                    "source": source.source[-1],
                    "result": np.asarray(Image.open(frame_path(footage, work[1], ask.name))),
                    "truth": found[ask.name][-1],
                }
                high, wide = source.source.shape[1:3]
                size = Size(wide // _run["times"], high // _run["times"])
                pictures = {name: scale(picture, size) for name, picture in pictures.items()}
                column = sheets.Column(prompts[footage, work[1], ask.name], pictures)
                content.setdefault(ask.name, []).append(column)
        path = Path(_run["out"]) / f"sheet-{footage}"
        yield sheets.save(sheets.sheet(content, f"{footage} clips, held-out wordings, last frame"), path)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint's folder, or a model's name")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100, help="drawn scenes")
    parser.add_argument("--natural", type=int, default=20, help="scenes nearer to filmed ones")
    parser.add_argument("--strengths", type=int, default=30, help="scenes of each sort that are asked for in strengths")
    parser.add_argument("--clips", type=Path, nargs="*", default=[], help="filmed or rendered clips")
    parser.add_argument("--crops", type=int, default=20, help="of each clip")
    parser.add_argument("--size", default="64x64", help="at which scenes are edited; crops are at 144x80")
    parser.add_argument("--times", type=int, default=4, help="how much larger clips are than the model works")
    parser.add_argument("--frames", type=int, default=5, help="of each clip")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args(given)
    try:
        width, height = (int(side) for side in args.size.split("x"))
    except ValueError:
        parser.error(f"--size is WIDTHxHEIGHT, not '{args.size}'")
    if width % 16 or height % 16 or min(width, height) < 32:
        parser.error("--size is in multiples of 16 from 32x32")
    if args.frames < 5 or args.frames % 4 != 1:
        parser.error("--frames is 5, 9, 13, ... 4k + 1")
    if min(args.crops, args.times, args.steps, args.processes) < 1:
        parser.error("--crops, --times, --steps and --processes are 1 or more")
    if min(args.count, args.natural, args.strengths) < 0:
        parser.error("--count, --natural and --strengths are 0 or more")
    if not (args.count or args.natural or args.clips):
        parser.error("nothing to edit: --count or --natural is 1 or more, or --clips names one")
    args.size = (width, height)
    return args


def main(given: Sequence[str] | None = None) -> int:
    args = arguments(given)
    try:
        measure(args)
    except KiwiError as error:
        Console().error(error.message, error.hint)
        return error.exit_code
    return 0


def measure(args: argparse.Namespace) -> None:
    """Edit everything and write what the folder holds."""
    folder = locate(args.model)  # first: clips take a while to read
    settings = read_settings(folder)
    full = Size(WORKED_AT.width * args.times, WORKED_AT.height * args.times)
    filmed = [clip for path in args.clips for clip in crops(path, args.crops, args.frames, full)]
    (args.out / "frames").mkdir(parents=True, exist_ok=True)
    np.save(args.out / "filmed.npy", np.stack(filmed) if filmed else np.empty(0))
    run: dict[str, Any] = {"folder": str(folder), "out": str(args.out), "size": args.size, "steps": args.steps}
    run |= {"times": args.times, "frames": args.frames}
    trust = settings.trust or DetailSettings().trust
    run |= {"strengths": args.strengths, "detail": {"steady": settings.steady, "trust": trust}}
    run["filmed"] = str(args.out / "filmed.npy")
    _run.update(run)
    counts = {"drawn": args.count, "natural": args.natural}
    todo: list[Work] = [(footage, number) for footage, count in counts.items() for number in range(count)]
    todo += [("filmed", number) for number in range(len(filmed))]
    os.environ["OMP_NUM_THREADS"] = "1"  # before the workers load their libraries
    records: list[dict[str, Any]] = []
    began = time.perf_counter()
    path = args.out / "looks.jsonl"
    with get_context("spawn").Pool(args.processes, start_worker, (run,)) as pool, path.open("w") as file:
        for number, made in enumerate(pool.imap_unordered(edit_scene, todo), 1):
            records += made
            file.writelines(json.dumps(record) + "\n" for record in made)
            print(f"{number} of {len(todo)}, {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    rows = looks.summarise(records)
    found = looks.passing(rows)
    table = looks.markdown(rows) + f"\n{len(found)} kinds pass: {', '.join(found) or 'none'}.\n"
    (args.out / "table.md").write_text(table, encoding="utf-8")
    (args.out / "passing.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table)
    for sheet in draw_sheets(todo, records):
        print(sheet, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
