"""Memory of a clip's way through an edit, by its length, and how soon the first word comes.

    python benchmarks/clip_memory.py            # about a minute
    python benchmarks/clip_memory.py --keep-rest    # also writes the whole ten minutes: a quarter of an hour
    python benchmarks/clip_memory.py --model tiny --seconds 600 --fps 12 --size 1920x1080    # hours

The model is left out (its frames come back as they are): what it needs does not depend on the clip's length. Each case
runs in a process of its own, whose peak of resident memory is reported. The long clip is one short clip's packets over
and over, so that it takes seconds to make.

With `--model` nothing is left out: a clip of ten seconds and one of so many go through `kiwi edit` with that model and
all defaults. Reported are the peak of each, and how far a flash and a beep near the end are apart in what comes out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import marked_clip
import numpy as np
import watched_run

from kiwi_cli.video import Size

ROOT = Path(__file__).resolve().parents[1]
FRAMES, FPS, MINUTES = 81, 25, 10

CHILD = """
import json, sys, time
from pathlib import Path
from kiwi_cli.editing.prepare import prepare
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.editing.session import Session
from kiwi_cli.editors.base import Edited, Identity

class Same:
    name, multiple, most_frames, takes_references = "same", 1, None, True
    def __init__(self, choice):
        self.choice = choice
    def identity(self):
        return Identity(self.choice)
    def edit(self, frames, instruction, references=(), **options):
        return Edited(self.chunks(frames))
    def chunks(self, frames):
        yield frames[:1]
        for start in range(1, len(frames), 4):
            yield frames[start : start + 4]
    def close(self):
        pass

source, output, options = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
begin = time.perf_counter()
plan = prepare(EditRequest.of(source, "x", model=sys.argv[4], output=output, overwrite=True, **options))
result = Session(Same(plan.request.choice)).run(plan)
seconds = time.perf_counter() - begin
print(json.dumps({"resident": result.memory["resident"], "frames": result.frames, "seconds": seconds}))
"""


def make(short: Path, long: Path) -> None:
    """A 1080p clip of 81 frames, and one of ten minutes made of its packets."""
    y, x = np.mgrid[0:1080, 0:1920]
    picture = np.stack([x % 256, y % 256, (x + y) // 12 % 256], -1).astype(np.uint8)
    packets: list[tuple[bytes, int, int, bool]] = []
    for path, repeats in ((short, 1), (long, MINUTES * 60 * FPS // FRAMES + 1)):
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "23", "bf": "0"})
            stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
            stream.time_base = Fraction(1, FPS)
            if not packets:
                for number in range(FRAMES):
                    rgb = np.roll(picture, (4 * number, 8 * number), (0, 1))
                    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
                    frame.pts = number
                    packets += [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in stream.encode(frame)]
                packets += [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in stream.encode(None)]
            else:
                stream.encode(None) if stream.codec_context.is_open else stream.codec_context.open()
            for turn in range(repeats):
                for data, pts, dts, key in packets:
                    packet = av.Packet(data)
                    packet.pts, packet.dts = pts + turn * FRAMES, dts + turn * FRAMES
                    packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, FPS), stream, key
                    container.mux(packet)


def measure(source: Path, output: Path, **options: object) -> dict[str, float]:
    """One edit in a process of its own."""
    command = [sys.executable, "-c", CHILD, str(source), str(output), json.dumps(options)]
    done = subprocess.run([*command, str(ROOT / "examples" / "checkpoint")], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def first_word(arguments: list[str], repeats: int = 9) -> float:
    """Seconds until a command's first line on stderr or stdout, median."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "kiwi_cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert process.stdout is not None
        process.stdout.readline()
        times.append(time.perf_counter() - begin)
        process.kill()
        process.communicate()
    return statistics.median(times)


def through(model: str, folder: Path, seconds: int, fps: int, size: Size) -> watched_run.Watched:
    """A marked clip through `kiwi edit` with a model."""
    clip, output = folder / f"{seconds}s.mp4", folder / f"{seconds}s-edited.mp4"
    if not clip.exists():
        marked_clip.make(clip, seconds, fps, size)
    command = [sys.executable, "-m", "kiwi_cli", "edit", str(clip), "turn it into a night scene", "--model", model]
    command += ["--device", "cpu", "--overwrite", "-o", str(output)]
    found = watched_run.run(command, folder, folder / f"{seconds}s.log")
    print(
        f"{seconds} s of {size}, {fps} frames a second: {found.peak / 1e6:.0f} MB at the peak, "
        f"{found.disk / 1e6:.0f} MB on disk, {found.processor:.0f} s of the processor, {found.seconds:.0f} s",
        flush=True,
    )
    for near in marked_clip.marks(seconds):
        flash, beep = marked_clip.flash_at(output, near), marked_clip.beep_at(output, near)
        print(f"  flash at {flash:.3f} s, beep at {beep:.3f} s: {1000 * (beep - flash):+.0f} ms", flush=True)
    return found


def with_model(model: str, folder: Path, seconds: int, fps: int, size: Size) -> None:
    """Ten seconds and so many of a clip, compared."""
    short, long = (through(model, folder, each, fps, size) for each in (10, seconds))
    print(f"{seconds} s take {(long.peak - short.peak) / 1e6:+.0f} MB beside 10 s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep-rest", action="store_true", help="also write the whole ten minutes")
    parser.add_argument("--model", help="let clips through this model, such as tiny")
    parser.add_argument("--seconds", type=int, default=60 * MINUTES, help="of the long clip, with --model")
    parser.add_argument("--fps", type=int, default=12, help="with --model")
    parser.add_argument("--size", default="1920x1080", help="with --model")
    parser.add_argument("--folder", type=Path, help="where clips and results stay, with --model")
    arguments = parser.parse_args()
    if arguments.model:
        size = Size(*(int(side) for side in arguments.size.split("x")))
        with tempfile.TemporaryDirectory() as folder:
            place = arguments.folder or Path(folder)
            place.mkdir(parents=True, exist_ok=True)
            with_model(arguments.model, place, arguments.seconds, arguments.fps, size)
        return
    with tempfile.TemporaryDirectory() as folder:
        short, long, output = (Path(folder) / name for name in ("short.mp4", "long.mp4", "out.mp4"))
        make(short, long)
        cases = {
            "81 frames of 81": measure(short, output),
            "the first 81 of ten minutes": measure(long, output),
            "81 from 5:00 of ten minutes": measure(long, output, start=300.0),
        }
        if arguments.keep_rest:
            cases["the same, the rest kept"] = measure(long, output, start=300.0, keep_rest=True)
        least = cases["81 frames of 81"]["resident"]
        print(f"{'1080p, 25 frames a second':<30}{'peak':>10}{'more':>10}{'time':>9}")
        for name, found in cases.items():
            more = f"{(found['resident'] - least) / 1e6:+.0f} MB"
            print(f"{name:<30}{found['resident'] / 1e6:>7.0f} MB{more:>10}{found['seconds']:>7.1f} s")
        checkpoint = str(ROOT / "examples" / "checkpoint")
        edit = ["edit", str(short), "x", "--model", checkpoint, "-o", str(output.with_name("new.mp4"))]
        for name, command in {
            "kiwi --version": ["--version"],
            "kiwi edit --help": ["edit", "--help"],
            "kiwi edit missing.mp4": ["edit", "missing.mp4", "x"],
            "kiwi edit clip.mp4": edit,
        }.items():
            print(f"first word of {name:<24}{first_word(command):>6.2f} s")


if __name__ == "__main__":
    main()
