"""Pictures and sequences: exact, upright, with their depth, transparency and text."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from kiwi_cli.errors import UsageError
from kiwi_cli.video import probe, read_frames, read_metadata, select
from kiwi_cli.video.pictures import flatten, merge, read_picture
from kiwi_cli.video.png import png_bytes

from .media import make_clip, make_sequence, picture, psnr, run_through

RNG = np.random.default_rng(3)


def noise(shape, dtype=np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape, dtype)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_is_exact_at_every_depth(tmp_path, channels, dtype):
    pixels = noise((37, 53, channels), dtype)
    path = tmp_path / "in.png"
    path.write_bytes(png_bytes(pixels))
    assert (read_picture(path).pixels == pixels).all()
    if dtype == np.uint8:
        assert (np.asarray(Image.open(path)) == pixels).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [3, 4])
def test_a_picture_comes_back_bit_for_bit(tmp_path, channels, dtype):
    pixels = noise((37, 53, channels), dtype)
    (tmp_path / "in.png").write_bytes(png_bytes(pixels))
    clip = probe(tmp_path / "in.png")
    assert (clip.kind, clip.size, clip.bit_depth) == ("image", (53, 37), 8 * np.dtype(dtype).itemsize)
    assert clip.has_alpha == (channels == 4)
    seen, writer = run_through(clip, tmp_path / "out.png")
    assert (seen[0] == flatten(pixels)).all()
    assert (read_picture(writer.path).pixels == pixels).all()


def test_grey_of_16_bits(tmp_path):
    grey = noise((20, 30), np.uint16)
    Image.fromarray(grey).save(tmp_path / "in.png")
    assert (read_picture(tmp_path / "in.png").pixels == grey[..., None]).all()


def test_transparent_parts_are_white_to_the_model_and_stay_transparent(tmp_path):
    pixels = noise((16, 24, 4))
    pixels[:8, :, 3] = 0
    pixels[8:, :, 3] = 255
    (tmp_path / "in.png").write_bytes(png_bytes(pixels))
    clip = probe(tmp_path / "in.png")
    seen, writer = run_through(clip, tmp_path / "out.png", edit=lambda rgb: 255 - rgb)
    assert (seen[0][:8] == 255).all()
    back = read_picture(writer.path).pixels
    assert (back[..., 3] == pixels[..., 3]).all()
    assert (back[8:, :, :3] == 255 - pixels[8:, :, :3]).all()


def test_unchanged_pixels_keep_their_16_bits():
    original = noise((8, 8, 3), np.uint16)
    edited = flatten(original)
    edited[0, 0] ^= 255
    merged = merge(edited, original)
    assert (merged[1:] == original[1:]).all()
    assert (merged[0, 0] == edited[0, 0].astype(np.uint16) * 257).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    upright = picture(1, 48, 32)
    undo = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 1, 7: 3, 8: 3}[orientation]
    stored = np.rot90(upright, undo)
    if orientation in (2, 4, 5, 7):
        stored = stored[:, ::-1]
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010F] = "Maker"
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "in.png", exif=tags)
    clip = probe(tmp_path / "in.png")
    seen, writer = run_through(clip, tmp_path / "out.png")
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "in.png")))
    assert clip.size == expected.shape[1::-1]
    assert (seen[0] == expected).all()
    back = Image.open(writer.path)
    assert (np.asarray(back) == expected).all()
    assert back.getexif().get(0x0112, 1) == 1
    assert back.getexif().get(0x010F) == "Maker"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_16_bits(tmp_path, orientation):
    pixels = noise((6, 9, 3), np.uint16)
    tags = Image.Exif()
    tags[0x0112] = orientation
    (tmp_path / "deep.png").write_bytes(png_bytes(pixels, exif=tags.tobytes()))
    Image.fromarray((pixels >> 8).astype(np.uint8)).save(tmp_path / "flat.png", exif=tags)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "flat.png")))
    assert ((read_picture(tmp_path / "deep.png").pixels >> 8) == expected).all()


@pytest.mark.parametrize(("extension", "decibels"), [("png", 99), ("webp", 99), ("jpg", 38)])
def test_picture_formats(tmp_path, extension, decibels):
    Image.fromarray(picture(2, 96, 64)).save(tmp_path / "in.png")
    _, writer = run_through(probe(tmp_path / "in.png"), tmp_path / f"out.{extension}", metadata={"kiwi": '{"a": 1}'})
    back = probe(writer.path)
    assert (back.kind, back.size) == ("image", (96, 64))
    assert psnr(next(read_frames(back)).rgb, picture(2, 96, 64)) >= decibels
    assert read_metadata(writer.path)["kiwi"] == '{"a": 1}'


def test_the_colour_profile_is_kept(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for extension in ("png", "jpg", "webp"):
        Image.fromarray(picture(2, 96, 64)).save(tmp_path / f"in.{extension}", icc_profile=profile)
        _, writer = run_through(probe(tmp_path / f"in.{extension}"), tmp_path / f"out.{extension}")
        assert Image.open(writer.path).info["icc_profile"] == profile


def test_palette_and_cmyk_pictures_are_read(tmp_path):
    Image.fromarray(picture(2, 96, 64)).quantize(32).save(tmp_path / "palette.png")
    Image.fromarray(picture(2, 96, 64)).convert("CMYK").save(tmp_path / "ink.jpg")
    for name in ("palette.png", "ink.jpg"):
        assert next(read_frames(probe(tmp_path / name))).rgb.shape == (64, 96, 3)


def test_a_sequence_comes_back_bit_for_bit(tmp_path):
    folder = make_sequence(tmp_path / "in", frames=6, first=7)
    clip = probe(folder)
    assert (clip.kind, clip.frame_count, clip.size) == ("sequence", 6, (48, 32))
    assert "frame rate" in clip.notices[0]
    _, writer = run_through(clip, tmp_path / "out", metadata={"kiwi": "{}"})
    names = sorted(path.name for path in writer.path.glob("*.png"))
    assert names == sorted(path.name for path in folder.iterdir())
    for name in names:
        assert (np.asarray(Image.open(writer.path / name)) == np.asarray(Image.open(folder / name))).all()
    assert read_metadata(writer.path)["kiwi"] == "{}"


def test_a_sequence_of_16_bits_comes_back_bit_for_bit(tmp_path):
    (tmp_path / "in").mkdir()
    frames = [noise((20, 30, 3), np.uint16) for _ in range(3)]
    for number, pixels in enumerate(frames):
        (tmp_path / "in" / f"f{number}.png").write_bytes(png_bytes(pixels))
    _, writer = run_through(probe(tmp_path / "in"), tmp_path / "out")
    for number, pixels in enumerate(frames):
        assert (read_picture(writer.path / f"f{number}.png").pixels == pixels).all()


def test_a_video_to_pictures_and_back_has_its_rate(tmp_path):
    clip = probe(make_clip(tmp_path / "in.mp4", frames=6))
    seen, writer = run_through(clip, tmp_path / "frames")
    folder = probe(writer.path)
    assert (folder.fps, folder.notices, folder.frame_count) == (25, (), 6)
    for a, b in zip(seen, read_frames(folder), strict=True):
        assert (a == b.rgb).all()
    _, again = run_through(folder, tmp_path / "again.mp4")
    back = probe(again.path)
    assert (back.fps, back.frame_count, back.colour.matrix_tag, back.pixel_format) == (25, 6, 1, "yuv420p")


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "ffv1"])
def test_lossless_is_exact(tmp_path, codec):
    clip = probe(make_sequence(tmp_path / "in", frames=3))
    seen, writer = run_through(clip, tmp_path / "out.mkv", codec=codec, quality="lossless")
    for a, b in zip(seen, read_frames(probe(writer.path)), strict=True):
        assert (a == b.rgb).all()


def test_a_picture_does_not_hold_a_clip(tmp_path, clip_file):
    with pytest.raises(UsageError, match="one frame"):
        run_through(probe(clip_file), tmp_path / "out.png")
    clip = probe(clip_file)
    _, writer = run_through(clip, tmp_path / "out.png", select(clip, start=0.2, frames=1))
    assert probe(writer.path).size == (96, 64)


def test_a_picture_to_a_video(tmp_path):
    Image.fromarray(picture(2, 96, 64)).save(tmp_path / "in.png")
    _, writer = run_through(probe(tmp_path / "in.png"), tmp_path / "out.mp4")
    assert probe(writer.path).frame_count == 1
