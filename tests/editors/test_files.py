"""A clip as a file and back: its frames, its rate, its length and its size, and what is said of each change."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kiwi_cli.editors.files import Given, Limits, Timing, give, size_within, take, timing_for
from kiwi_cli.errors import KiwiError
from kiwi_cli.video import Size, probe
from kiwi_cli.video.plain import write_mp4

from ..conftest import random_frames

RATE = Fraction(8)
KLING = Limits((Fraction(3), Fraction(10)), (Fraction(24), Fraction(60)), (720, 2160))


def counting(count: int, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """Frames that say which one they are: each of one grey, 12 levels above the one before."""
    grey = np.arange(20, 20 + 12 * count, 12, dtype=np.uint8)
    return np.broadcast_to(grey[:, None, None, None], (count, size[1], size[0], 3)).copy()


def numbers(frames: np.ndarray) -> list[int]:
    """Which frames of `counting` these are."""
    return [round((float(frame.mean()) - 20) / 12) for frame in frames]


def written(path: Path, frames: np.ndarray, rate: Fraction = RATE) -> Path:
    write_mp4(path, [frames], rate, Size(frames.shape[2], frames.shape[1]), "1")
    return path


def test_a_clip_comes_back_as_it_was_given(tmp_path: Path) -> None:
    frames = random_frames(5)
    given = give(frames, tmp_path / "clip.mp4", RATE)
    assert (given.timing, given.size, given.frames, given.changes) == (Timing(RATE, 5), Size(64, 64), 5, ())
    assert probe(given.path).fps == RATE
    taken = take(given.path, given.timing, frames.shape, "it")
    assert taken.changes == () and np.abs(taken.frames.astype(int) - frames).mean() < 4
    assert [len(chunk) for chunk in taken.stream()] == [5]


@pytest.mark.parametrize("size", [(64, 64), (1280, 704)])
def test_colours_stay_at_any_size(size: tuple[int, int], tmp_path: Path) -> None:
    """Readers guess the matrix of a clip that does not say it by its size; this one says it."""
    frames = np.zeros((2, size[1], size[0], 3), np.uint8)
    frames[:, :, :, 0], frames[:, :, :, 1] = 200, 40
    given = give(frames, tmp_path / "clip.mp4", RATE)
    taken = take(given.path, given.timing, frames.shape, "it")
    assert np.abs(taken.frames.astype(int) - frames).max() <= 3


def test_a_picture_is_given_and_taken_as_one(tmp_path: Path) -> None:
    frames = random_frames(1)
    given = give(frames, tmp_path / "clip.mp4", RATE)
    assert given.path.suffix == ".png" and np.array_equal(np.asarray(Image.open(given.path)), frames[0])
    assert np.array_equal(take(given.path, given.timing, frames.shape, "it").frames, frames)
    with pytest.raises(KiwiError, match="takes clips, not pictures"):
        give(frames, tmp_path / "clip.mp4", RATE, Limits(pictures=False))


def test_the_same_number_of_frames_is_taken_one_by_one_at_any_rate(tmp_path: Path) -> None:
    frames = counting(9)
    taken = take(written(tmp_path / "a.mp4", frames, Fraction(30)), Timing(RATE, 9), frames.shape, "it")
    assert numbers(taken.frames) == list(range(9)) and taken.changes == ()


def test_another_rate_is_taken_by_the_frames_times(tmp_path: Path) -> None:
    """16 frames at 16 a second last as long as 8 at 8."""
    path = written(tmp_path / "a.mp4", counting(16), Fraction(16))
    taken = take(path, Timing(RATE, 8), (8, 64, 64, 3), "it")
    assert numbers(taken.frames) == [1, 3, 5, 7, 9, 11, 13, 15]
    assert taken.changes == ("came back as 16 frames, not 8: taken by their times",)


def test_a_few_frames_less_are_made_good_and_said(tmp_path: Path) -> None:
    taken = take(written(tmp_path / "a.mp4", counting(9)), Timing(RATE, 12), (12, 64, 64, 3), "it")
    assert numbers(taken.frames) == [*range(9), 8, 8, 8]
    assert taken.changes[1] == "came back short: its last frame stands for 3 more"


@pytest.mark.parametrize("count", [1, 7, 17, 20])
def test_another_length_is_an_error(count: int, tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4", counting(min(count, 18))[:count].repeat(1, axis=0))
    with pytest.raises(KiwiError, match=rf"it gave {min(count, 18)} frames? .* for a clip of 12 \(1\.50 s\)"):
        take(path, Timing(RATE, 12), (12, 64, 64, 3), "it")


def test_another_size_is_scaled_and_said(tmp_path: Path) -> None:
    frames = counting(5, (128, 64))
    frames[:, :, :32] = 255  # goes with the sides of a crop
    path = written(tmp_path / "a.mp4", frames)
    scaled = take(path, Timing(RATE, 5), (5, 64, 64, 3), "it")
    assert scaled.changes == ("came back at 128x64, scaled to 64x64",) and scaled.frames[0, 32, 5].min() > 200
    cropped = take(path, Timing(RATE, 5), (5, 64, 64, 3), "it", "crop")
    assert cropped.changes == ("came back at 128x64, its middle scaled to 64x64",)
    assert numbers(cropped.frames[:, :, 4:]) == list(range(5))


@pytest.mark.parametrize("contents", [b"", b"\x00" * 5000, b"<html>502 Bad Gateway</html>"])
def test_what_is_no_clip_is_an_error(contents: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(contents)
    with pytest.raises(KiwiError, match="it gave no clip that can be read"):
        take(tmp_path / "a.mp4", Timing(RATE, 5), (5, 64, 64, 3), "it")


@pytest.mark.parametrize(
    ("frames", "rate", "expected"),
    [
        (81, 24, Timing(Fraction(24), 81)),
        (81, 15, Timing(Fraction(24), 81)),  # 5.4 s at 15 a second; 3.4 s at the slowest rate that is taken
        (81, 30, Timing(Fraction(27), 81)),  # 2.7 s is too short: slowed down
        (40, 30, Timing(Fraction(24), 72, 32)),  # and where that is not enough, the last frame is held
        (300, 25, Timing(Fraction(30), 300)),  # 12 s: faster
        (120, 120, Timing(Fraction(40), 120)),
    ],
)
def test_a_clip_is_brought_within_a_services_limits(frames: int, rate: int, expected: Timing) -> None:
    timing = timing_for(frames, Fraction(rate), KLING)
    assert timing == expected and 3 <= timing.seconds <= 10 and 24 <= timing.rate <= 60


def test_without_a_slowest_rate_clips_are_slowed_down_to_twelve_a_second() -> None:
    limits = Limits(seconds=(Fraction(2), Fraction(30)))
    assert timing_for(30, Fraction(24), limits) == Timing(Fraction(15), 30)
    assert timing_for(5, Fraction(8), limits) == Timing(Fraction(8), 16, 11)
    with pytest.raises(KiwiError, match=r"the clip is 40\.0 s long, and at most 30 s are taken"):
        timing_for(400, Fraction(10), limits)


def test_sizes_within_limits() -> None:
    assert size_within(Size(1280, 704), KLING) == Size(1310, 720)
    assert size_within(Size(3840, 2160), KLING) == Size(2160, 1216)
    assert size_within(Size(1280, 720), KLING) == Size(1280, 720)
    with pytest.raises(KiwiError, match="no size with sides from 720 to 2160"):
        size_within(Size(1280, 64), KLING)


def test_what_is_changed_for_a_service_is_said_and_undone(tmp_path: Path) -> None:
    frames = counting(5, (96, 64))
    limits = Limits((Fraction(1), Fraction(10)), (Fraction(24), Fraction(60)), (128, 256))
    given: Given = give(frames, tmp_path / "clip.mp4", RATE, limits)
    assert given.changes == (
        "given at 192x128, not 96x64",
        "given at 24 frames a second, not 8",
        "given with its last frame 19 times more, to 1.00 s",
    )
    clip = probe(given.path)
    assert (clip.size, clip.frame_count, clip.fps) == (Size(192, 128), 24, 24)
    taken = take(given.path, given.timing, frames.shape, "it")
    assert numbers(taken.frames) == list(range(5))


def test_too_large_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KiwiError, match="at most 100 are taken"):
        give(random_frames(5), tmp_path / "clip.mp4", RATE, Limits(bytes=100))
