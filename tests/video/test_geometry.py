"""Sizes, frame counts and placements."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from kiwi_cli.errors import UsageError
from kiwi_cli.video import (
    Size,
    framing,
    latent_frame_count,
    padded_frame_count,
    requested_size,
    working_size,
)
from kiwi_cli.video.resize import from_working, scale, to_working

from .media import picture, psnr


@pytest.mark.parametrize(
    ("clip", "size", "expected"),
    [
        ((1280, 720), None, (1280, 704)),
        ((1920, 1080), None, (1280, 704)),
        ((832, 480), None, (832, 480)),
        ((854, 480), None, (864, 480)),
        ((640, 360), None, (640, 352)),
        ((16, 16), None, (32, 32)),
        ((720, 1280), None, (704, 1280)),
        ((640, 360), "720p", (1280, 704)),
        ((1920, 1080), "480p", (832, 480)),
        ((1920, 1080), "source", (1920, 1088)),
        ((1920, 1080), "832x480", (832, 480)),
        ((1920, 1080), "850x490", (864, 480)),
        ((10_000, 50), None, (4096, 32)),
    ],
)
def test_working_size(clip, size, expected):
    assert working_size(*clip, size) == expected


def test_working_sizes_stay_on_the_grid_and_within_the_budget():
    for width in range(40, 3000, 77):
        for height in range(40, 3000, 91):
            size = working_size(width, height)
            assert size.width % 32 == size.height % 32 == 0
            assert size.width * size.height <= 1280 * 720
            if width * height <= 1280 * 720:
                assert abs(size.width - width) <= 32
                assert abs(size.height - height) <= 32


@pytest.mark.parametrize("size", ["31x480", "0x0", "480x5000", "99999x32", "720", "wide", "", "-32x32"])
def test_impossible_sizes_are_usage_errors(size):
    with pytest.raises(UsageError) as caught:
        working_size(1280, 720, size)
    assert caught.value.hint


def test_a_source_of_8k_is_refused_as_working_size():
    with pytest.raises(UsageError, match="too large"):
        working_size(7680, 4320, "source")


def test_the_caller_can_tell_that_a_size_was_rounded():
    assert requested_size("850x490") == (850, 490) != working_size(1, 1, "850x490")
    assert requested_size("720p") is None


@pytest.mark.parametrize(
    ("frames", "padded", "latent"), [(1, 1, 1), (2, 5, 2), (5, 5, 2), (80, 81, 21), (81, 81, 21), (82, 85, 22)]
)
def test_frame_counts(frames, padded, latent):
    assert padded_frame_count(frames) == padded
    assert latent_frame_count(frames) == latent


def test_no_frames_is_a_usage_error():
    with pytest.raises(UsageError):
        padded_frame_count(0)


def test_stretch_covers_everything():
    place = framing(Size(1280, 720), Size(1280, 704))
    assert place.covers_clip
    assert not place.is_identity
    assert framing(Size(64, 32), Size(64, 32)).is_identity


def test_crop_takes_the_middle_and_pad_the_whole():
    crop = framing(Size(200, 100), Size(96, 96), "crop")
    assert crop.source == (50, 0, 150, 100)
    assert crop.target == (0, 0, 96, 96)
    pad = framing(Size(200, 100), Size(96, 96), "pad")
    assert pad.source == (0, 0, 200, 100)
    assert pad.target == (0, 24, 96, 72)


def test_distortion():
    assert framing(Size(1280, 720), Size(1280, 704)).distortion == pytest.approx(720 / 704 - 1)
    assert framing(Size(200, 100), Size(96, 96)).distortion == pytest.approx(1)
    assert framing(Size(200, 100), Size(96, 96), "pad").distortion < 0.02
    assert framing(Size(720, 576), Size(1024, 768), "stretch", Fraction(16, 15)).distortion < 0.001


def test_pixel_aspect_counts_in_the_shape():
    # 720x576 with 16:15 pixels is shown as 768x576, which is 4:3
    assert framing(Size(720, 576), Size(1024, 768), "crop", Fraction(16, 15)).covers_clip


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_there_and_back_keeps_the_picture(fit):
    frame = picture(5, 320, 180)
    place = framing(Size(320, 180), Size(352, 160), fit)
    back = from_working(to_working(frame, place), place, frame)
    assert back.shape == frame.shape
    # the narrowest of the three, pad, works on 284x160 of the 320x180 pixels
    assert psnr(back, frame) > 30
    assert abs(back.mean(axis=(0, 1)) - frame.mean(axis=(0, 1))).max() < 0.5


def test_lower_and_wider_is_scaled_in_height_first_whatever_pillow_does():
    rgb = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)

    def in_turn(*sizes):
        image = Image.fromarray(rgb)
        for size in sizes:
            image = image.resize(size, Image.Resampling.LANCZOS)
        return np.asarray(image).astype(int)

    expected = in_turn((64, 48), (72, 48))
    assert np.array_equal(scale(rgb, Size(72, 48)), expected)
    assert np.abs(in_turn((72, 64), (72, 48)) - expected).max() > 5  # the order shows


def test_crop_keeps_the_source_outside_bit_for_bit():
    frame = picture(1, 200, 100)
    place = framing(Size(200, 100), Size(96, 96), "crop")
    back = from_working(np.zeros((96, 96, 3), np.uint8), place, frame)
    assert (back[:, :50] == frame[:, :50]).all()
    assert (back[:, 150:] == frame[:, 150:]).all()
    assert (back[:, 50:150] == 0).all()


def test_unknown_fit():
    with pytest.raises(UsageError, match="'fill'"):
        framing(Size(64, 64), Size(64, 64), "fill")  # type: ignore[arg-type]
