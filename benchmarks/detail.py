"""The tables of docs/detail.md: what the source's detail gains, what it does in motion, and what it costs.

    python benchmarks/detail.py truth                        # drawn truths at 1080p and 2160p
    python benchmarks/detail.py motion clip.mp4 other.mp4    # the embedded model's five styles, and sharp edits
    python benchmarks/detail.py motion clip.mp4 --no-sharp --styles golden-hour neon noir    # its looks
    python benchmarks/detail.py speed                        # beside x264
    python benchmarks/detail.py memory                       # beside the same frames without detail

`model` is the edit enlarged as video/resize.py does it, `source` the same with the source's detail. In `truth` an
edited clip is drawn at full size and goes through an autoencoder at the working size: a blur, a blur with noise, or the
embedded model's own. PSNR and SSIM are of the middle frame, inside and outside the edited region; `ghost` is the
correlation of edges with the source's where a thing was removed.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from kiwi_cli.base.hardware import peak_resident
from kiwi_cli.bench.seams.run import boundaries
from kiwi_cli.bench.tiny.quality import edge_correlation, edge_strength, psnr
from kiwi_cli.editing.prepare import prepare
from kiwi_cli.editing.request import EditRequest, ModelChoice
from kiwi_cli.editing.session import Session
from kiwi_cli.synth.wordings import LOOK_KINDS
from kiwi_cli.video import probe, read_frames
from kiwi_cli.video.detail import Detail, DetailSettings, transfer
from kiwi_cli.video.geometry import Size, size_of_area
from kiwi_cli.video.resize import scale
from kiwi_cli.weights.hub import locate
from kiwi_cli.weights.settings import read_settings

SIZES = {"1080p": Size(1920, 1080), "2160p": Size(3840, 2160)}
WORKING = Size(1280, 704)
SMALL = Size(144, 80)  # the embedded model's
TINY = DetailSettings(steady=True)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
WORDS = {
    "night": "turn it into a night scene",
    "snow": "make it snowy",
    "sepia": "make it sepia",
    "black and white": "make it black and white",
    "negative": "make it a negative",
}
_TINY = read_settings(locate("tiny"))
LOOKED = {kind: _TINY.understands[kind][0] for kind in _TINY.offers if kind in LOOK_KINDS}
"""Its looks, each in the first sentence that it was trained with."""
EDITS = ("light", "grade", "negative", "recolour", "remove", "insert", "move", "background", "another picture")
Code = Callable[[list[np.ndarray]], list[np.ndarray]]  # a clip at the working size, as an autoencoder gives it back


# -- drawn truths ----------------------------------------------------------------------------------------------


def picture(seed: int, size: Size) -> np.ndarray:
    """Cloudy colours down to the pixel, with shapes and thin lines on them, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    total = np.full((size.height, size.width, 3), 120, np.float32)
    for cell, strength in ((480, 45), (120, 30), (30, 20), (8, 14), (2, 9)):
        grid = rng.uniform(0, 255, (size.height // cell + 2, size.width // cell + 2, 3)).astype(np.uint8)
        cloud = np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC), np.float32)
        total += (cloud - 127) * (strength / 64)
    image = Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        x, y, side = rng.uniform(0, size.width), rng.uniform(0, size.height), rng.uniform(0.01, 0.08) * size.height
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        kind = rng.integers(3)
        if kind == 0:
            draw.ellipse((x - side, y - side, x + side, y + side), fill=colour)
        elif kind == 1:
            draw.rectangle((x - side, y - side / 2, x + side, y + side / 2), fill=colour)
        else:
            draw.line(
                (x, y, x + 9 * side, y + rng.uniform(-5, 5) * side), fill=colour, width=max(1, size.height // 540)
            )
    return np.asarray(image)


class Case(NamedTuple):
    """A drawn edit: `source` and `truth` (F, H, W, 3) uint8, where it is (H, W) and where a thing was removed."""

    name: str
    source: list[np.ndarray]
    truth: list[np.ndarray]
    inside: np.ndarray
    removed: np.ndarray | None = None


def to_bytes(frame: np.ndarray) -> np.ndarray:
    return (np.clip(frame, 0, 255) + 0.5).astype(np.uint8)


def light(frame: np.ndarray) -> np.ndarray:
    curve = 255 * (np.arange(256) / 255) ** 1.3
    return to_bytes(curve.astype(np.float32)[frame] * (0.35, 0.42, 0.6) + (0, 2, 14))


def grade(frame: np.ndarray) -> np.ndarray:
    matrix = np.array([[0.9, 0.1, 0.0], [0.1, 0.75, 0.1], [0.0, 0.15, 0.6]], np.float32)
    return to_bytes(frame.astype(np.float32) @ matrix + 8)


def cases(size: Size, frames: int) -> Iterator[Case]:
    """Nine edits of a panning picture; things stand in the picture and pan with it."""
    ground, other, stuff = (picture(seed, size) for seed in (1, 2, 3))
    y, x = np.mgrid[: size.height, : size.width]
    radius = size.height // 6
    here, there = (np.hypot(x - size.width * a, y - size.height * 0.5) < radius for a in (0.35, 0.7))
    core = np.hypot(x - size.width * 0.35, y - size.height * 0.5) < 0.8 * radius
    everywhere = np.ones(here.shape, bool)
    half = x < size.width // 2
    shift = round(size.width * 0.35)

    def pan(frame: np.ndarray, number: int) -> np.ndarray:
        return np.roll(frame, (number, 2 * number), (0, 1))

    def case(name: str, source: np.ndarray, truth: np.ndarray, inside: np.ndarray, removed: Any = None) -> Case:
        numbers = range(-(frames // 2), frames - frames // 2)  # the middle one has not moved
        return Case(name, [pan(source, n) for n in numbers], [pan(truth, n) for n in numbers], inside, removed)

    def mix(where: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.where(where[..., None], first, second)

    with_thing = mix(here, stuff, ground)
    yield case("light", ground, light(ground), everywhere)
    yield case("grade", ground, grade(ground), everywhere)
    yield case("negative", ground, 255 - ground, everywhere)
    yield case("recolour", ground, mix(half, ground[..., [2, 0, 1]], ground), half)
    yield case("remove", with_thing, ground, here, core)
    yield case("insert", ground, with_thing, here)
    yield case("move", with_thing, mix(there, np.roll(stuff, shift, 1), ground), here | there, core)
    yield case("background", ground, mix(here, ground, other), ~here)
    yield case("another picture", ground, other, everywhere)


def blur(sigma: float, noise: float = 0.0) -> Code:
    rng = np.random.default_rng(0)

    def code(frames: list[np.ndarray]) -> list[np.ndarray]:
        soft = [Image.fromarray(frame).filter(ImageFilter.GaussianBlur(sigma)) for frame in frames]
        found = [np.asarray(frame, np.float32) for frame in soft]
        return [to_bytes(frame + rng.normal(0, noise, frame.shape) if noise else frame) for frame in found]

    return code


def tiny() -> Any:
    from kiwi_cli import KiwiPipeline

    return KiwiPipeline.from_pretrained("tiny", device="cpu", dtype="float32")


def embedded(pipe: Any) -> Code:
    """The embedded model's autoencoder, in windows of 5."""

    def code(frames: list[np.ndarray]) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        for start in range(0, len(frames), 5):
            window = np.stack(frames[start : start + 5])
            found += [frame for chunk in pipe.decode(pipe.encode_source(window), len(window)) for frame in chunk]
        return found

    return code


def ssim_map(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of the luma, in boxes of 8 (Wang et al. 2004), (H, W)."""
    import torch
    import torch.nn.functional as F

    a, b = (torch.from_numpy(frame.astype(np.float32) @ LUMA) for frame in (first, second))
    rows = torch.stack([a, b, a * a, b * b, a * b])[None]
    mean_a, mean_b, aa, bb, ab = F.avg_pool2d(F.pad(rows, (3, 4, 3, 4), mode="replicate"), 8, 1)[0]
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * (ab - mean_a * mean_b) + c2)
    return (top / ((mean_a**2 + mean_b**2 + c1) * (aa - mean_a**2 + bb - mean_b**2 + c2))).numpy()


def ghost(result: np.ndarray, source: np.ndarray, where: np.ndarray) -> float:
    first, second = (edge_strength(frame[None])[0][where] for frame in (result, source))
    return float(np.corrcoef(first, second)[0, 1])


def truth(args: argparse.Namespace) -> None:
    coders: dict[str, tuple[Code, Size, DetailSettings]] = {
        "blur 1": (blur(1), WORKING, DetailSettings()),
        "blur 2": (blur(2), WORKING, DetailSettings()),
        "blur 1, noise 1 %": (blur(1, 2.55), WORKING, DetailSettings()),
        "embedded": (embedded(tiny()), size_of_area(*SIZES["1080p"], 11520, 16), TINY),
    }
    print("| size | autoencoder | edit | in: model | source | out: model | source | SSIM in | SSIM out | ghost |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    worst = 99.0
    for name in args.sizes:
        drawn = (case for case in cases(SIZES[name], args.frames) if case.name in args.edits)
        for case, (kind, (code, working, settings)) in itertools.product(drawn, coders.items()):
            edited, trip = (code([scale(f, working) for f in clip]) for clip in (case.truth, case.source))
            middle = len(edited) // 2
            target, source = case.truth[middle], case.source[middle]
            plain = scale(edited[middle], SIZES[name])
            detailed = list(transfer(zip(edited, trip, case.source, strict=True), settings))[middle]
            cells: list[str] = []
            structure = [ssim_map(result, target) for result in (plain, detailed)]
            shares: list[str] = []
            for where in (case.inside, ~case.inside):
                if not where.any():
                    cells += ["", ""]
                    shares.append("")
                    continue
                found = [psnr(result, target, where) for result in (plain, detailed)]
                worst = min(worst, found[1] - found[0])
                cells += [f"{value:.1f}" for value in found]
                shares.append(" -> ".join(f"{one[where].mean():.2f}" for one in structure))
            trace = "" if case.removed is None else f"{ghost(detailed, source, case.removed):.2f}"
            print("|", " | ".join([name, kind, case.name, *cells, *shares, trace]), "|", flush=True)
    print(f"\nworst: {worst:+.2f} dB")


# -- motion ----------------------------------------------------------------------------------------------------


def unrest(frames: np.ndarray) -> float:
    """Second differences in time of block means of the luma, in the clip's own contrast; nine blocks high."""
    light_of = np.stack([frame.astype(np.float32) @ LUMA for frame in frames])
    side = frames.shape[1] // 9
    height, width = 9, frames.shape[2] // side
    cut = light_of[:, : height * side, : width * side]
    blocks = cut.reshape(len(cut), height, side, width, side).mean(axis=(2, 4))
    return float(np.abs(blocks[2:] - 2 * blocks[1:-1] + blocks[:-2]).mean() / light_of.std())


def joins(frames: np.ndarray, meet: list[int]) -> float:
    """Frame change where windows meet, at the frames that begin one, over that inside them."""
    change = np.array([np.abs(b.astype(np.float32) - a).mean() for a, b in itertools.pairwise(frames)])
    joint = np.isin(np.arange(1, len(frames)), meet)
    return float(change[joint].mean() / change[~joint].mean())


def edited(session: Session, source: np.ndarray, words: str, folder: Path) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """What `kiwi edit` makes with the embedded model, scaled up and with detail, and the frames where windows meet."""
    results: list[np.ndarray] = []
    meet: list[int] = []
    for detail in ("model", "source"):
        request = EditRequest(folder, words, output=folder.with_name(detail), choice=ModelChoice("tiny", device="cpu"))
        plan = prepare(request.changed(detail=detail, overwrite=True))
        session.run(plan)
        results.append(np.stack([frame.rgb for frame in read_frames(probe(plan.output))]))
        meet = boundaries(plan.windows, len(source))[1]
    return results[0], results[1], meet


def read(path: Path, frames: int, height: int = 360) -> np.ndarray:
    with av.open(str(path)) as container:
        found = [frame.to_ndarray(format="rgb24") for frame in itertools.islice(container.decode(video=0), frames)]
    size = Size(round(found[0].shape[1] * height / found[0].shape[0]), height)
    return np.stack([scale(frame, size) for frame in found])


def motion(args: argparse.Namespace) -> None:
    size = Size(640, 360)
    drawn = next(cases(size, args.frames))
    clips = {"drawn": np.stack(drawn.source), **{path.stem[:12]: read(path, args.frames) for path in args.clips}}
    print("| clip | edit | flicker: model | source | joins: model | source | the clip's own | edges: model | source |")
    print("|---|---|---|---|---|---|---|---|---|")

    def row(clip: str, edit: str, results: list[np.ndarray], source: np.ndarray, meet: list[int]) -> None:
        cells = [f"{unrest(x) / unrest(source):.2f}" for x in results]
        cells += [f"{joins(x, meet):.2f}" for x in (*results, source)] if meet else [""] * 3
        cells += [f"{edge_correlation(x, source):.2f}" for x in results]
        print("|", " | ".join([clip, edit, *cells]), "|", flush=True)

    for name, source in clips.items():
        with TemporaryDirectory() as place, Session() as session:
            folder = Path(place) / "clip"
            folder.mkdir()
            for number, frame in enumerate(source):
                Image.fromarray(frame).save(folder / f"{number:04d}.png")
            for style in args.styles:
                plain, detailed, meet = edited(session, source, (WORDS | LOOKED)[style], folder)
                row(name, f"tiny: {style}", [plain, detailed], source, meet)
                if args.out:
                    args.out.mkdir(parents=True, exist_ok=True)
                    shown = range(0, len(source), max(1, len(source) // 6))
                    strips = [np.concatenate(clip[shown], axis=1) for clip in (source, plain, detailed)]
                    Image.fromarray(np.concatenate(strips)).save(args.out / f"{name}-{style}.png")
    if args.sharp:
        sharp(size, args.frames, row)


def sharp(size: Size, frames: int, row: Callable[..., None]) -> None:
    """The rows of sharp drawn edits through a blur with noise."""
    noisy = blur(1, 2.55)
    for case in cases(size, frames):
        soft, trip = (noisy([scale(f, Size(320, 192)) for f in clip]) for clip in (case.truth, case.source))
        plain = np.stack([scale(frame, size) for frame in soft])
        detailed = np.stack(list(transfer(zip(soft, trip, case.source, strict=True))))
        row("drawn", f"sharp: {case.name}", [plain, detailed], np.stack(case.truth), [])


# -- speed -----------------------------------------------------------------------------------------------------


def x264(frames: list[np.ndarray], path: str) -> tuple[float, float]:
    """Wall and processor seconds a frame, medium, as a file is written."""
    height, width = frames[0].shape[:2]
    with av.open(path, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "medium", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        begin = time.perf_counter(), time.process_time()
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
        return (time.perf_counter() - begin[0]) / len(frames), (time.process_time() - begin[1]) / len(frames)


def speed(args: argparse.Namespace) -> None:
    heads = ("size", "wall, ms a frame", "own thread, ms", "processor, ms", "x264 medium: wall", "processor")
    print("|", " | ".join((*heads, "ratio of processor time")), "|")
    print("|---|---|---|---|---|---|---|")
    for name in args.sizes:
        clip = next(cases(SIZES[name], args.frames))
        small = blur(1)([scale(frame, WORKING) for frame in clip.source])
        edited = [light(frame) for frame in small]
        detail, times = Detail(device=args.device), []
        for source, *pair in zip(clip.source, edited, small, strict=True):
            clocks = time.perf_counter, time.thread_time, time.process_time
            begin = [clock() for clock in clocks]
            detail.add(*pair)
            if detail.due:
                detail.result(source)  # of an earlier frame, which is as large
                times.append([clock() - then for clock, then in zip(clocks, begin, strict=True)])
        wall, own, processor = (float(np.median(column)) for column in zip(*times, strict=True))
        wall_x, processor_x = x264(clip.source, "/dev/null")
        cells = [1e3 * wall, 1e3 * own, 1e3 * processor, 1e3 * wall_x, 1e3 * processor_x]
        print("|", name, "|", " | ".join(f"{v:.0f}" for v in cells), f"| {processor / processor_x:.2f} |", flush=True)


# -- memory ----------------------------------------------------------------------------------------------------


def peak_of(name: str, working: Size, steady: bool, with_detail: bool, frames: int) -> int:
    """Peak of resident bytes of a process that has frames come; torch's code has been read in before, for a picture."""
    size = SIZES[name]
    rng = np.random.default_rng(0)
    tile = rng.integers(0, 256, (size.height, size.width + frames, 3), np.uint8)
    small = scale(tile[:, : size.width], working)
    edit, detail = light(small), Detail(DetailSettings(steady=steady))
    list(transfer([(small[:64, :96], small[:64, :96], tile[:128, :192])]))
    for number in range(frames):
        if with_detail:
            detail.add(edit.copy(), small.copy())
        source = np.ascontiguousarray(tile[:, number : number + size.width])
        if detail.due:
            detail.result(source)
    peak = peak_resident()
    assert peak is not None
    return peak


def memory(args: argparse.Namespace) -> None:
    print("| size | working size | steady | without, MB | with, MB | more, in frames at full size |")
    print("|---|---|---|---|---|---|")
    for name, (working, steady) in itertools.product(args.sizes, ((WORKING, False), (WORKING, True), (SMALL, True))):
        peaks = []
        for with_detail in (False, True):  # a process for each: a peak does not go down again
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                peaks.append(pool.submit(peak_of, name, working, steady, with_detail, args.frames).result())
        frame = 3 * SIZES[name].width * SIZES[name].height
        cells = [name, str(working), "yes" if steady else "no", *(f"{peak / 1e6:.0f}" for peak in peaks)]
        print("|", " | ".join([*cells, f"{(peaks[1] - peaks[0]) / frame:.1f}"]), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, frames in ((truth, 3), (motion, 25), (speed, 15), (memory, 15)):
        sub = commands.add_parser(command.__name__)
        sub.set_defaults(run=command)
        sub.add_argument("--frames", type=int, default=frames)
        if command is motion:
            sub.add_argument("clips", nargs="*", type=Path)
            sub.add_argument("--out", type=Path, help="folder for pictures: source, model, source's detail")
            sub.add_argument("--styles", nargs="+", choices=[*WORDS, *LOOKED], default=list(WORDS))
            sub.add_argument("--no-sharp", dest="sharp", action="store_false", help="the embedded model's rows alone")
        else:
            sub.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
        if command is speed:
            sub.add_argument("--device", default="cpu", help="where detail is made: cpu, cuda, cuda:1")
        if command is truth:
            sub.add_argument("--edits", nargs="+", choices=EDITS, default=EDITS)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
