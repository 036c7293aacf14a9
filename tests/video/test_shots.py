"""Shots of drawn clips: cuts where they were drawn, and none in flashes, fades and fast moves."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from kiwi_cli.errors import MediaError
from kiwi_cli.video import find_shots, probe, select
from kiwi_cli.video.filters import Chain
from kiwi_cli.video.shots import HEIGHT, LOOK_AHEAD, WIDTH, ShotFinder, scene_score

from .media import make_clip

SIZE = (160, 90)


def scene(seed: int, count: int, speed: float = 1.0, size: tuple[int, int] = SIZE) -> Iterator[np.ndarray]:
    """A drawn scene, (H, W, 3) uint8 frames: a ground, and blobs that move over it."""
    rng = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    ground = rng.uniform(30, 220, 3) + rng.uniform(-60, 60, 3) * (x / width)[..., None]
    ground = ground + rng.uniform(-60, 60, 3) * (y / height)[..., None]
    blobs = [
        (rng.uniform(0, width), rng.uniform(0, height), rng.uniform(8, 30), rng.uniform(0, 255, 3)) for _ in "12345"
    ]
    moves = rng.uniform(-1.5, 1.5, (5, 2)) * speed
    for number in range(count):
        frame = ground.copy()
        for (left, top, radius, colour), (dx, dy) in zip(blobs, moves, strict=True):
            frame[(x - left - dx * number) ** 2 + (y - top - dy * number) ** 2 < radius**2] = colour
        yield frame.clip(0, 255).astype(np.uint8)


def lengths(frames: Iterable[np.ndarray]) -> tuple[int, ...]:
    finder = ShotFinder()
    for frame in frames:
        finder.add(av.VideoFrame.from_ndarray(frame, format="rgb24"))
    return finder.finish().lengths


def brightened(frames: Iterable[np.ndarray], gains: Iterable[float], offset: float = 0.0) -> Iterator[np.ndarray]:
    for frame, gain in zip(frames, gains, strict=True):
        yield (frame * gain + offset).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("wanted", [(24, 9, 31), (12, 12), (40,), (3, 20, 3), (10, 1, 10), (10, 2, 1, 12), (1, 20)])
def test_cuts_are_found_where_they_are(wanted: tuple[int, ...]) -> None:
    frames = itertools.chain.from_iterable(scene(seed, count) for seed, count in enumerate(wanted))
    assert lengths(frames) == wanted


def test_cuts_are_found_in_many_drawn_clips() -> None:
    right = 0
    for seed in range(0, 100, 4):
        wanted = (9, 11, 14, 8)
        right += lengths(itertools.chain.from_iterable(scene(seed + n, k) for n, k in enumerate(wanted))) == wanted
    assert right >= 24  # of 25: two scenes may be alike


def test_a_cut_at_every_frame() -> None:
    frames = [next(scene(seed, 1)) for seed in range(12)]
    assert sum(lengths(frames)) == 12


@pytest.mark.parametrize("white", [1, 2, 4])
def test_a_flash_is_no_cut(white: int) -> None:
    gains = [1.0] * 12 + [9.0] * white + [1.0] * 12
    assert lengths(brightened(scene(3, len(gains)), gains, 0)) == (len(gains),)
    flash = [np.full((SIZE[1], SIZE[0], 3), 255, np.uint8)] * white
    before, after = list(scene(3, 24))[:12], list(scene(3, 24))[12:]
    assert lengths([*before, *flash, *after]) == (24 + white,)


def test_a_picture_shown_for_a_moment_is_no_cut() -> None:
    moving, other = list(scene(3, 24)), list(scene(8, LOOK_AHEAD - 1))
    assert lengths([*moving[:12], *other, *moving[12:]]) == (24 + LOOK_AHEAD - 1,)


@pytest.mark.parametrize("steps", [4, 8, 20])
def test_a_fade_is_no_cut(steps: int) -> None:
    down = list(np.linspace(1, 0, steps))
    gains = [*[1.0] * 10, *down, 0.0, 0.0, *down[::-1], *[1.0] * 10]
    assert lengths(brightened(scene(5, len(gains)), gains)) == (len(gains),)


def test_a_cut_over_black_is_one() -> None:
    black = [np.zeros((SIZE[1], SIZE[0], 3), np.uint8)] * 5
    assert lengths([*scene(1, 12), *black, *scene(2, 12)]) == (17, 12)


def test_a_fast_move_is_no_cut() -> None:
    assert lengths(scene(6, 40, speed=4.0)) == (40,)


def test_a_slow_dissolve_is_no_cut() -> None:
    one, other = list(scene(1, 40)), list(scene(2, 40))
    mixed = [a * (1 - t) + b * t for a, b, t in zip(one, other, np.linspace(0, 1, 40), strict=True)]
    assert lengths(frame.astype(np.uint8) for frame in mixed) == (40,)


def test_plain_frames_are_one_shot() -> None:
    assert lengths(np.full((64, 64, 3), grey, np.uint8) for grey in [0, 0, 255, 255, 128, 0]) == (6,)


@pytest.mark.skipif(not hasattr(av.VideoFrame, "metadata"), reason="this PyAV does not say what filters say")
def test_scores_are_those_of_scdet() -> None:
    frames = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in [*scene(0, 5), *scene(1, 5)]]
    small = (("scale", f"{WIDTH}:{HEIGHT}:flags=area"), ("format", "gray"))
    plain, scored = (Chain(frames[0], *small, *more) for more in ((), (("scdet", "threshold=100"),)))
    last, before = None, 0.0
    for frame in frames:
        picture = plain(frame).to_ndarray().astype(float)
        change = 0.0 if last is None else float(np.abs(picture - last).mean()) * 100 / 256
        theirs = scored(frame).metadata["lavfi.scd.score"]
        assert scene_score(change, before) == pytest.approx(float(theirs), abs=2e-3)
        last, before = picture, change


def test_no_frames_are_an_error() -> None:
    with pytest.raises(MediaError, match="no frames"):
        ShotFinder().finish()


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 30 frames, of which the last 12 are another scene: written by itself and joined."""
    path = tmp_path_factory.mktemp("shots") / "cut.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "18", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for frame in itertools.chain(scene(0, 18), scene(1, 12)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_shots_of_a_span_are_those_of_its_frames(cut: Path) -> None:
    clip, told = probe(cut), []
    assert find_shots(clip, select(clip), lambda *done: told.append(done)).lengths == (18, 12)
    assert told[-1] == (30, 30)
    assert find_shots(clip, select(clip, start=Fraction(8, 25), frames=15)).lengths == (10, 5)
    assert find_shots(clip, select(clip, fps=12.5)).lengths == (9, 6)


def test_pictures_have_shots_too(tmp_path: Path) -> None:
    from PIL import Image

    for number, frame in enumerate([*scene(0, 5), *scene(1, 4)]):
        Image.fromarray(frame).save(tmp_path / f"{number:02}.png")
    clip = probe(tmp_path)
    assert find_shots(clip, select(clip)).lengths == (5, 4)


def test_a_turned_clip_and_one_with_a_moving_ramp_are_one_shot(tmp_path: Path) -> None:
    clip = probe(make_clip(tmp_path / "turned.mp4", frames=20, rotation=90))
    assert find_shots(clip, select(clip)).lengths == (20,)
