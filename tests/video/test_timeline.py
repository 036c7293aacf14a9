"""Which frames are edited."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from kiwi_cli.errors import UsageError
from kiwi_cli.video import Clip, Size, probe, read_frames, select

from .media import make_clip, number_of

CLIP = Clip(
    path=Path("clip.mp4"),
    kind="video",
    width=64,
    height=64,
    storage_size=Size(64, 64),
    frame_count=200,
    fps=Fraction(25),
    duration=Fraction(8),
    container="mp4",
    codec="h264",
    pixel_format="yuv420p",
)


def test_the_whole_clip_by_default():
    span = select(CLIP)
    assert (span.frame_count, span.source_frames, span.whole, span.notices) == (200, 200, True, ())


def test_start_and_frames():
    span = select(CLIP, start=2, frames=81)
    assert (span.frame_count, span.source_frames, span.whole) == (81, 81, False)
    assert span.duration == Fraction(81, 25)
    assert "81 of the clip's 200 frames" in span.notices[0]


def test_duration_ends_before_the_frame_that_begins_at_its_end():
    assert select(CLIP, duration=4).frame_count == 100
    assert select(CLIP, start=1, duration=2).frame_count == 50
    assert select(CLIP, duration=100).whole


def test_start_between_frames_takes_the_one_on_screen():
    assert select(CLIP, start=7.99).frame_count == 1
    assert select(CLIP, start=0.05, frames=1).duration == Fraction(1, 25)


def test_sampling_covers_the_same_time_with_fewer_frames():
    span = select(CLIP, fps=12.5)
    assert (span.frame_count, span.source_frames) == (100, 200)
    span = select(CLIP, fps=10, frames=20)
    assert (span.frame_count, span.source_frames) == (20, 50)
    assert select(CLIP, fps=8).frame_count == 64


def test_sampling_above_the_clips_rate_takes_every_frame():
    span = select(CLIP, fps=60)
    assert span.frame_count == 200
    assert "every frame is used" in span.notices[0]


def test_sampling_a_variable_rate():
    ticks = (0, 1, 2, 3, 50, 51, 100)
    clip = replace(
        CLIP, frame_count=7, timestamps=ticks, time_base=Fraction(1, 100), variable_rate=True, duration=Fraction(11, 10)
    )
    # at 10 a second: the first; the one on screen from 0.03; from 0.51; the one from 1.00
    span = select(clip, fps=Fraction(5))
    assert span.source_frames == 7
    assert span.frame_count == 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"start": -1},
        {"start": 8},
        {"start": 1e9},
        {"start": float("nan")},
        {"frames": 0},
        {"frames": -5},
        {"duration": 0},
        {"duration": -1},
        {"fps": 0},
        {"fps": -3},
        {"fps": float("inf")},
    ],
)
def test_numbers_that_cannot_be_meant(wrong):
    with pytest.raises(UsageError) as caught:
        select(CLIP, **wrong)
    assert caught.value.exit_code == 2
    assert caught.value.hint


@pytest.mark.parametrize("start", [0, 3.3, 5, 5.02, 7.5])
def test_seeking_finds_the_same_frames_as_walking(tmp_path, start):
    path = make_clip(tmp_path / "long.mp4", frames=200, size=(64, 48), options={"g": "30", "bf": "2"})
    clip = probe(path)
    frames = list(read_frames(clip, select(clip, start=start, frames=3)))
    expected = int(start * 25 + 1e-6)
    assert [number_of(frame.rgb) for frame in frames] == [expected, expected + 1, expected + 2]
    assert [frame.source_index for frame in frames] == [expected, expected + 1, expected + 2]
    assert [frame.time for frame in frames] == [Fraction(expected + i, 25) for i in range(3)]


def test_the_reader_reads_what_select_counted(tmp_path):
    path = make_clip(tmp_path / "clip.mp4", frames=50, fps=Fraction(30000, 1001), size=(64, 48))
    clip = probe(path)
    for options in (
        {},
        {"fps": 12},
        {"start": 0.5, "fps": 7.5},
        {"start": 1, "duration": 0.3},
        {"frames": 7, "fps": 5},
    ):
        span = select(clip, **options)
        assert len(list(read_frames(clip, span))) == span.frame_count


def test_shorthand_without_a_span(clip_file):
    frames = list(read_frames(probe(clip_file), start=0.2, count=4, size=Size(64, 32)))
    assert [frame.source_index for frame in frames] == [5, 6, 7, 8]
    assert all(frame.rgb.shape == (32, 64, 3) for frame in frames)
