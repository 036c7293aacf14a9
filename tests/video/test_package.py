"""The package is light to import and keeps to its own libraries; long and large clips are handled."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import pytest

import kiwi_cli.video
from kiwi_cli.video import probe, read_frames, scan, select

from .media import Sound, make_clip, number_of, packets, run_through, samples
from .test_sound import chirp, lag

HEAVY = ("torch", "diffusers", "transformers", "typer", "rich", "click")


def python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing():
    loaded = python("import sys, kiwi_cli.video; print(*sys.modules)").split()
    assert not {"av", "numpy", "PIL", *HEAVY} & set(loaded)


def test_no_module_of_it_needs_the_model_or_the_terminal():
    names = [path.stem for path in Path(kiwi_cli.video.__file__).parent.glob("*.py")]
    code = "import sys, importlib\nfor n in sys.argv[1:]: importlib.import_module('kiwi_cli.video.' + n)\n"
    loaded = python(code + "print(*sys.modules)", *names).split()
    assert not set(HEAVY) & set(loaded)


def test_every_public_name_is_there():
    for name in kiwi_cli.video.__all__:
        assert getattr(kiwi_cli.video, name) is not None
    with pytest.raises(AttributeError):
        kiwi_cli.video.nothing  # noqa: B018


UNEVEN = [Fraction(n * n, 50) for n in range(20)]


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_files_too_large_to_read_through(tmp_path, monkeypatch, extension):
    monkeypatch.setattr(scan, "_SCAN_BYTES", 0)
    source = make_clip(tmp_path / f"in.{extension}", frames=20, times=UNEVEN, size=(64, 48))
    clip = probe(source)
    assert clip.timestamps is None
    assert clip.frame_count_exact == (extension == "mp4")
    assert not select(clip).exact
    _, writer = run_through(clip, tmp_path / f"out.{extension}")
    assert [t for t, _ in packets(writer.path, "video")] == [t for t, _ in packets(source, "video")]
    assert [number_of(frame.rgb) for frame in read_frames(probe(writer.path))] == list(range(20))


def test_a_cut_of_a_file_too_large_to_read_through_is_in_step(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "_SCAN_BYTES", 0)
    source = chirp(tmp_path / "in.mp4", 8.0, frames=200)
    clip = probe(source)
    _, writer = run_through(clip, tmp_path / "out.mp4", select(clip, start=5.03, frames=25))
    heard, rate, start = samples(writer.path)
    wanted = samples(source)[0][5 * rate : 6 * rate]  # the frame on screen at 5.03 s began at 5.00
    assert abs(lag(wanted, heard, rate) + float(start)) < 0.002


def test_chapters_are_kept_with_the_whole_clip(tmp_path):
    source = tmp_path / "in.mkv"
    chapter = {"id": 1, "start": 0, "end": 200, "time_base": Fraction(1, 1000), "metadata": {"title": "Dawn"}}
    with av.open(str(source), "w") as container:
        container.set_chapters([chapter])
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    clip = probe(source)
    _, writer = run_through(clip, tmp_path / "out.mp4")
    assert [c["metadata"]["title"] for c in probe(writer.path).chapters] == ["Dawn"]
    _, writer = run_through(clip, tmp_path / "cut.mp4", select(clip, frames=3))
    assert any("chapters" in notice for notice in writer.notices)


@pytest.mark.parametrize("extension", ["mp4", "mkv", "webm"])
def test_sound_that_begins_before_the_picture(tmp_path, extension):
    source = make_clip(
        tmp_path / "in.mp4",
        frames=10,
        times=[Fraction(1, 2) + Fraction(n, 25) for n in range(10)],
        sound=Sound(seconds=0.9),
        size=(64, 48),
    )
    clip = probe(source)
    assert clip.start == Fraction(1, 2)
    assert clip.audio[0].start == Fraction(-1, 2)
    _, writer = run_through(clip, tmp_path / f"out.{extension}")
    assert abs(packets(writer.path, "video")[0][0] - Fraction(1, 2)) <= Fraction(1, 1000)
    heard, rate, start = samples(writer.path)
    assert abs(start) < 0.03
    assert abs(len(heard) / rate - 0.9) < 0.03


PEAK = """
import re, sys
import numpy as np
from kiwi_cli.video import open_writer, probe, read_frames, select
clip = probe(sys.argv[1])
span = select(clip, start=float(sys.argv[3]), frames=81)
frames = np.stack([frame.rgb for frame in read_frames(clip, span)])
with open_writer(sys.argv[2], clip, span, keep_rest=sys.argv[4] == "rest") as writer:
    writer.write(frames)
# kilobytes; getrusage would count the parent's memory from before the new program was loaded
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("rest", ["rest", "cut"])
def test_memory_does_not_grow_with_the_clip(tmp_path, rest):
    peaks = []
    for name, frames, start in (("short.mp4", 81, "0"), ("long.mp4", 6000, "100")):
        source = make_clip(tmp_path / name, frames=frames, size=(320, 176), sound=Sound(seconds=frames / 25))
        peaks.append(int(python(PEAK, str(source), str(tmp_path / f"out-{name}"), start, rest)))
    # the frames of the long clip would take 1 GB
    assert peaks[1] - peaks[0] < 100_000
