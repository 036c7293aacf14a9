"""A source that was read is decoded no second time where its times are all that is wanted of it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from kiwi_cli.errors import KiwiError
from kiwi_cli.video import Size, Span, Walked, load_mask, open_writer, probe, read_frames, select

from .media import make_clip

SMALL = Size(48, 32)
UNEVEN = [Fraction(number * number, 100) for number in range(12)]


def read(path: Path, span: Span, size: Size, walked: Walked | None) -> np.ndarray:
    return np.stack([frame.rgb for frame in read_frames(probe(path), span, size=size, walked=walked)])


def written(path: Path, source: Path, span: Span, size: Size, walked: Walked | None, **options) -> bytes:
    """The file of the span's frames, unedited."""
    frames, clip = read(source, span, size, walked), probe(source)
    with open_writer(path, clip, span, size=size, overwrite=True, walked=walked, **options) as writer:
        for frame in frames:
            writer.write(frame[None])
    return path.read_bytes()


@pytest.mark.parametrize("times", [None, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("asked", [{}, {"start": 0.1, "frames": 5}, {"fps": 10}, {"start": 0.2, "duration": 0.3}])
def test_the_file_is_the_same_to_the_byte(tmp_path, asked, times):
    source = make_clip(tmp_path / "clip.mp4", frames=12, times=times)
    span = select(probe(source), **asked)
    decoded_again = written(tmp_path / "out.mp4", source, span, SMALL, None)
    assert written(tmp_path / "out.mp4", source, span, SMALL, Walked()) == decoded_again


@pytest.mark.parametrize("name", ["out.mp4", "out.webm", "out.gif"])
def test_a_source_that_was_read_is_not_needed_to_write(tmp_path, name):
    source = make_clip(tmp_path / "clip.mp4", frames=6)
    clip, span, walked = probe(source), select(probe(source)), Walked()
    frames = read(source, span, SMALL, walked)
    with open_writer(tmp_path / name, clip, span, size=SMALL, walked=walked) as writer:
        source.unlink()
        writer.write(frames)
    assert writer.frames_written == len(frames) == probe(tmp_path / name).frame_count


@pytest.mark.parametrize("name", ["out.mp4", "out"])
def test_one_that_was_not_read_to_its_end_is(tmp_path, name):
    source = make_clip(tmp_path / "clip.mp4", frames=6)
    clip, span, walked = probe(source), select(probe(source)), Walked()
    frames = read(source, span, SMALL, None)
    stream = read_frames(clip, span, size=SMALL, walked=walked)
    for _ in range(5):
        next(stream)
    stream.close()
    assert not walked.knows(clip, span)
    source.unlink()  # before a thread of the writer can open it
    with (
        pytest.raises(KiwiError, match=r"clip\.mp4"),
        open_writer(tmp_path / name, clip, span, size=SMALL, walked=walked) as writer,
    ):
        writer.write(frames)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    "options",
    [{"compare": "side"}, {"keep_rest": True}, {"fit": "crop"}, {"mask": "20,10,40,30"}, {}],
    ids=["compare", "rest", "crop", "mask", "own size"],
)
def test_what_takes_its_pixels_has_them(tmp_path, options):
    source = make_clip(tmp_path / "clip.mp4", frames=8)
    clip = probe(source)
    span = select(clip, start=0.08, frames=4)
    size = SMALL if options else Size(96, 64)
    options = {name: load_mask(value, clip) if name == "mask" else value for name, value in options.items()}
    decoded_again = written(tmp_path / "out.mp4", source, span, size, None, **options)
    assert written(tmp_path / "out.mp4", source, span, size, Walked(), **options) == decoded_again


def test_too_few_frames_are_an_error_as_ever(tmp_path):
    source = make_clip(tmp_path / "clip.mp4", frames=6)
    clip, span, walked = probe(source), select(probe(source)), Walked()
    frames = read(source, span, SMALL, walked)
    for count in (0, 5):
        with (
            pytest.raises(KiwiError, match="fewer edited frames"),
            open_writer(tmp_path / "out.mp4", clip, span, size=SMALL, walked=walked) as writer,
        ):
            for frame in frames[:count]:
                writer.write(frame[None])


def test_times_of_another_part_are_not_taken_for_a_spans_own(tmp_path):
    """As when plans of several moments of a clip share what was read."""
    source, walked = make_clip(tmp_path / "clip.mp4", frames=12, times=UNEVEN), Walked()
    clip = probe(source)
    one, other = select(clip, frames=4), select(clip, start=0.25, frames=4)
    expected = written(tmp_path / "out.mp4", source, one, SMALL, None)
    frames = read(source, one, SMALL, walked)
    read(source, other, SMALL, walked)
    assert walked.knows(clip, other) and not walked.knows(clip, one)
    with open_writer(tmp_path / "out.mp4", clip, one, size=SMALL, overwrite=True, walked=walked) as writer:
        writer.write(frames)
    assert (tmp_path / "out.mp4").read_bytes() == expected
