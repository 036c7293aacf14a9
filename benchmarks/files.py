"""Read, scale to the working size, scale back, encode: beside ffmpeg on the same clip, cores and settings.

    python benchmarks/files.py                    # a drawn clip, 1080p and 2160p, 81 and 21 frames
    python benchmarks/files.py clip.mp4           # a clip of one's own

Both decode, scale to 1280x704 with Lanczos, scale back, and write H.264 (x264 medium, CRF 17) with as many threads as
they like. `ffmpeg` has kiwi's flags for its scaling, `ffmpeg, steady` also the options with which kiwi has x264 write
the same bytes every time, `ffmpeg, default` the scaling that it has itself (bicubic). kiwi
holds the frames at the working size between reading and writing, as an edit does. Seconds are the least of the
rounds, which alternate; kiwi's imports are left out, for an edit has them anyway.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import av
import numpy as np
from detail import SIZES, WORKING, picture

from kiwi_cli.video.codecs import steady_x264
from kiwi_cli.video.geometry import Size

FRAMES = {"1080p": 81, "2160p": 21}
FLAGS = "lanczos+accurate_rnd+full_chroma_int+full_chroma_inp"

CHILD = f"""
import json, sys, time
import numpy as np
from kiwi_cli.base.hardware import peak_resident
from kiwi_cli.video import Size, Walked, open_writer, probe, read_frames, select
import kiwi_cli.video.sinks
begin = time.perf_counter(), time.process_time()
clip = probe(sys.argv[1])
span, walked = select(clip), Walked()
size = Size({WORKING.width}, {WORKING.height})
frames = np.empty((span.frame_count, size.height, size.width, 3), np.uint8)
for number, frame in enumerate(read_frames(clip, span, size=size, walked=walked)):
    frames[number] = frame.rgb
middle = time.perf_counter(), time.process_time()
with open_writer(sys.argv[2], clip, span, size=size, overwrite=True, walked=walked) as writer:
    for start in range(0, len(frames), 4):
        writer.write(frames[start : start + 4])
end = time.perf_counter(), time.process_time()
peak = peak_resident() / 1e6
print(json.dumps([end[0] - begin[0], end[1] - begin[1], middle[0] - begin[0], middle[1] - begin[1], peak]))
"""


def make(path: Path, size: Size, frames: int, grain: float) -> None:
    """A panning picture with film grain, (H, W, 3) levels of `grain` root mean square."""
    whole = picture(1, Size(size.width + 4 * frames, size.height + 2 * frames)).astype(np.int16)
    rng = np.random.default_rng(0)
    noise = rng.normal(0, grain, (size.height + 256, size.width + 256, 1)).round().astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "fast", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            x, y = 4 * number, 2 * number
            left, top = rng.integers(0, 256, 2)
            shown = whole[y : y + size.height, x : x + size.width]
            shown = shown + noise[top : top + size.height, left : left + size.width]
            frame = av.VideoFrame.from_ndarray(np.clip(shown, 0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def ffmpeg(clip: Path, size: Size, output: Path, flags: str, options: Mapping[str, str] = {}) -> list[float]:
    """Wall and processor seconds. options: of x264."""
    small, large = (f"scale={s.width}:{s.height}{flags and f':flags={flags}'}" for s in (WORKING, size))
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-y",
        "-i",
        str(clip),
        "-vf",
        f"{small},{large}",
        "-an",
        "-fps_mode",
        "passthrough",
    ]
    command += ["-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "medium", "-crf", "17"]
    command += [*itertools.chain(*((f"-{name}", value) for name, value in options.items())), str(output)]
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return [wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime]


def kiwi(clip: Path, output: Path) -> list[float]:
    """Wall and processor seconds, of these until all is read, and the peak of memory in MB."""
    command = [sys.executable, "-c", CHILD, str(clip), str(output)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def psnr_of(clip: Path, output: Path) -> float:
    """Of the luma against the clip's own, mean over the frames, dB."""
    with av.open(str(clip)) as first, av.open(str(output)) as second:
        found = []
        for a, b in zip(first.decode(video=0), second.decode(video=0), strict=True):
            x, y = (np.asarray(frame.to_ndarray(format="gray"), np.float32) for frame in (a, b))
            found.append(10 * np.log10(255**2 / np.mean((x - y) ** 2)))
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="*", type=Path)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="of the drawn clips")
    parser.add_argument("--grain", type=float, default=4.0, help="of the drawn clips, levels of 255")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, load average {os.getloadavg()[0]:.1f}\n")
    print("| clip | frames | by | wall, s | processor, s | PSNR, dB | size, MB | kiwi's wall over it | processor |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        clips = list(args.clips)
        for name in () if clips else args.sizes:
            clips.append(Path(folder) / f"{name}.mp4")
            make(clips[-1], SIZES[name], FRAMES[name], args.grain)
        for clip in clips:
            measure(clip, Path(folder), args.rounds)


def measure(clip: Path, folder: Path, rounds: int) -> None:
    """The rows of one clip."""
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        size = Size(stream.width, stream.height)
        count = stream.frames
    ways: dict[str, Callable[[Path], list[float]]] = {
        "kiwi": lambda output: kiwi(clip, output),
        "ffmpeg": lambda output: ffmpeg(clip, size, output, FLAGS),
        "ffmpeg, steady": lambda output: ffmpeg(clip, size, output, FLAGS, steady_x264()),
        "ffmpeg, default": lambda output: ffmpeg(clip, size, output, ""),
    }
    outputs = {name: folder / f"{number}.mp4" for number, name in enumerate(ways)}
    found: dict[str, list[list[float]]] = {name: [] for name in outputs}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(way(outputs[name]))
    least = {name: [min(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    for name, (wall, processor, *rest) in least.items():
        cells = [f"{wall:.2f}", f"{processor:.2f}", f"{psnr_of(clip, outputs[name]):.2f}"]
        cells.append(f"{outputs[name].stat().st_size / 1e6:.2f}")
        ratios = [least["kiwi"][0] / wall, least["kiwi"][1] / processor]
        cells += ["", ""] if name == "kiwi" else [f"{ratio:.2f}" for ratio in ratios]
        print("|", " | ".join([clip.stem, str(count), name, *cells]), "|", flush=True)
        if rest:
            print(f"<!-- reading: {rest[0]:.2f} s wall, {rest[1]:.2f} s processor; peak {rest[2]:.0f} MB -->")


if __name__ == "__main__":
    main()
