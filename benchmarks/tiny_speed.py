"""How long `kiwi edit` takes with a small model on the CPU: from the command to the file.

    python benchmarks/tiny_speed.py                       # the model `tiny`, on two cores
    python benchmarks/tiny_speed.py --model FOLDER --cores 4 --repeats 5

Two seconds of 1280x720 at 24 frames a second, with sound, made on the spot. Each run is a new process that starts
Python, loads the model, edits every frame and writes the clip; files it has read before may be in the page cache.
The result is read back: it must have the clip's size, frames and sound.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from kiwi_cli.synth.scenes import make_scene

WIDTH, HEIGHT, RATE, SECONDS, SAMPLE_RATE = 1280, 720, 24, 2, 48_000
LIMIT = 20.0  # seconds that an edit is wanted in, on two cores
INSTRUCTION = "make it black and white"


def make_clip(path: Path) -> None:
    """A synthetic scene as H.264 with a tone as AAC."""
    frames = RATE * SECONDS
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "20"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        # Drawn at a quarter of the size: 48 frames of 720p at once would take gigabytes.
        for picture in make_scene(7, WIDTH // 4, HEIGHT // 4, frames).source:
            large = np.ascontiguousarray(picture.repeat(4, axis=0).repeat(4, axis=1))
            container.mux(video.encode(av.VideoFrame.from_ndarray(large, format="rgb24")))
        container.mux(video.encode())
        time_axis = np.arange(SAMPLE_RATE * SECONDS, dtype=np.float32) / SAMPLE_RATE
        samples = av.AudioFrame.from_ndarray(0.2 * np.sin(2 * np.pi * 220 * time_axis)[None], "fltp", "mono")
        samples.sample_rate, samples.time_base, samples.pts = SAMPLE_RATE, Fraction(1, SAMPLE_RATE), 0
        container.mux(audio.encode(samples))
        container.mux(audio.encode())


def check(path: Path) -> None:
    """Whether the file is the clip with all it had.

    Raises:
        SystemExit: it is not.
    """
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        size, sound = (video.width, video.height), len(container.streams.audio)
        frames = sum(1 for _ in container.decode(video))
    if (size, frames, sound) != ((WIDTH, HEIGHT), RATE * SECONDS, 1):
        sys.exit(f"error: the result has {frames} frames of {size[0]}x{size[1]} and {sound} sound tracks")


def processor() -> str:
    """The CPU's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a model's name or a checkpoint's folder")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    if args.cores < 1 or args.repeats < 1:
        parser.error("--cores and --repeats are 1 or more")
    pinned = hasattr(os, "sched_setaffinity")
    if pinned:
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < args.cores:
            parser.error(f"--cores {args.cores}: there are {len(allowed)}")
        os.sched_setaffinity(0, set(allowed[: args.cores]))  # the child inherits it
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.cores)}
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        clip, result = Path(folder) / "clip.mp4", Path(folder) / "result.mp4"
        make_clip(clip)
        command = [sys.executable, "-m", "kiwi_cli", "edit", str(clip), INSTRUCTION, "--model", args.model]
        command += ["--device", "cpu", "--no-download", "--overwrite", "-o", str(result)]
        for number in range(args.repeats):
            begin = time.perf_counter()
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            times.append(time.perf_counter() - begin)
            if done.returncode:
                sys.exit(done.stderr)
            check(result)
            result.unlink()
            print(f"run {number + 1}: {times[-1]:.1f} s", flush=True)
    figures = {
        "seconds": [round(value, 2) for value in times],
        "median": round(statistics.median(times), 2),
        "clip": f"{SECONDS} s of {WIDTH}x{HEIGHT} at {RATE} fps, with sound",
        "cores": args.cores,
        "pinned": pinned,
        "cpu": processor(),
    }
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    verdict = "under" if figures["median"] < LIMIT else "NOT under"
    print(f"{figures['clip']}: {figures['median']:.1f} s, median of {len(times)}; {verdict} {LIMIT:.0f} s")
    print(f"{args.cores} threads{', pinned' if pinned else ''}, {figures['cpu']}")


if __name__ == "__main__":
    main()
