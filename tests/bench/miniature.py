"""Miniatures of the three data sets: the same files, columns and odd paths, with clips of a few 64x64 frames."""

from __future__ import annotations

import csv
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

OPENVE_TYPES = (
    "global_style",
    "background_change",
    "local_change",
    "local_remove",
    "local_add",
    "subtitle_edit",
    "creative_edit",
    "camera_edit",
)


def clip(path: Path, seed: int, frames: int = 5, size: tuple[int, int] = (64, 64)) -> None:
    """A small H.264 clip of moving colours."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[0 : size[1], 0 : size[0]] / 16.0
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(8), options={"crf": "28", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = size[0], size[1], "yuv420p"
        for t in range(frames):
            planes = [127 + 100 * np.sin(x * (1 + c) + y + 0.4 * t + seed + c) for c in range(3)]
            rgb = np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())


def picture(path: Path, seed: int, size: tuple[int, int] = (64, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)


def openve(folder: Path, per_type: int = 1, extra: tuple[tuple[str, str, str], ...] = ()) -> Path:
    """All eight types; the first rows have the odd paths of the real table and of careless copies."""
    rows: list[tuple[str, str, str]] = []
    for number, kind in enumerate(OPENVE_TYPES):
        for k in range(per_type):
            name = f"videos/{number}_{k}.mp4"
            if (number, k) == (1, 0):
                name = "videos/Straße, übung (1).mp4"
            elif (number, k) == (2, 0):
                name = "videos/deeper/0_0.mp4"  # the basename of another item
            clip(folder / name, seed=number * 7 + k)
            written = {0: f"OpenVE-Bench/{name}", 3: "./" + name, 4: name.split("/")[-1], 5: name.replace("/", "\\")}
            rows.append((kind, f'Make the {kind} "{number}", please, with commas', written.get(number, name)))
    rows += extra
    with (folder / "benchmark_videos.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("edited_type", "prompt", "original_video"))
        writer.writerows(rows)
    return folder


def refvie(folder: Path, subjects: int = 2, backgrounds: int = 1) -> Path:
    lines = []
    for k in range(subjects + backgrounds):
        kind = "subject" if k < subjects else "background"
        source, reference = f"source_videos/{kind}/a b {k}.mp4", f"ref_images/{k}.{'png' if k % 2 else 'jpg'}"
        clip(folder / source, seed=k)
        picture(folder / reference, seed=k)
        lines.append(
            f"- src_video: {json.dumps(source)}\n  instruction: {json.dumps(f'Put it there: {k}')}\n"
            f"  ref_img: {reference}\n  edit_type: {kind}\n"
        )
    (folder / "refvie_bench.yaml").write_text("".join(lines), encoding="utf-8")
    return folder


def imgedit(folder: Path, count: int = 3) -> Path:
    inner = folder / "Benchmark" / "singleturn"
    table = {}
    for k, kind in zip(range(count), ("add", "remove", "style") * count, strict=False):
        name = f"{'animal' if k % 2 else 'human'}/0000.jpg"  # basenames repeat, as in the real one
        picture(inner / name, seed=k)
        table[str(k)] = {"id": name, "prompt": f"Change it {k}", "edit_type": kind}
    inner.mkdir(parents=True, exist_ok=True)
    (inner / "singleturn.json").write_text(json.dumps(table), encoding="utf-8")
    return folder
