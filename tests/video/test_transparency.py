"""Transparent pictures are edited in their own colours where the result keeps the transparency, else on white."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from kiwi_cli.video import for_output, load_mask, probe, read_frames, select, write_sheet
from kiwi_cli.video.pictures import flatten, on_white, read_picture
from kiwi_cli.video.png import png_bytes
from kiwi_cli.video.straight import straight

from ..cli.terminal import inside
from .media import make_clip, picture, psnr, run_through
from .test_picture_files import grey_profile

SIZE = (48, 32)


def negative(rgb: np.ndarray) -> np.ndarray:
    return 255 - rgb


def soft_alpha(width: int = 48, height: int = 32) -> np.ndarray:
    """(H, W) uint8: 0 on the left, 255 on the right, and every level between."""
    ramp = np.clip(np.arange(width) * 320 // width - 32, 0, 255)
    return np.broadcast_to(ramp.astype(np.uint8), (height, width)).copy()


def see_through(number: int = 1, dtype: type = np.uint8) -> np.ndarray:
    """(H, W, 4): a picture behind `soft_alpha`; what cannot be seen is of a colour that is nowhere else."""
    pixels = np.dstack([picture(number, *SIZE), soft_alpha()])
    pixels[pixels[..., 3] == 0, :3] = (1, 2, 3)
    return pixels if dtype == np.uint8 else pixels.astype(np.uint16) * 257


def kind_of_file(kind: str, folder: Path) -> Path:
    """A picture with transparency, stored in one of the ways that there are."""
    path = folder / ("in.webp" if kind == "WebP" else "in.png")
    pixels = see_through()
    if kind == "16 bits":
        pixels = see_through(dtype=np.uint16)
        pixels[8:, :, 0] ^= 5  # bits that 8 do not hold
        path.write_bytes(png_bytes(pixels))
    elif kind == "LA":
        Image.fromarray(pixels).convert("LA").save(path)
    elif kind == "palette":
        Image.fromarray(pixels[..., :3]).quantize(32).save(path, transparency=bytes(range(0, 256, 8)))
    elif kind == "one colour":
        Image.fromarray(pixels[..., :3]).save(path, transparency=(1, 2, 3))
    elif kind == "grey profile":
        grey = Image.fromarray(pixels[..., 0])
        grey.save(path, transparency=1, icc_profile=grey_profile(1.0))
    else:
        Image.fromarray(pixels).save(path, **({"lossless": True, "exact": True} if kind == "WebP" else {}))
    return path


@pytest.mark.parametrize("output", ["out.png", "out.webp", "out"])
@pytest.mark.parametrize("kind", ["RGBA", "WebP", "16 bits", "LA", "palette", "one colour", "grey profile"])
def test_what_is_edited_are_the_stored_colours(tmp_path, kind, output):
    path = kind_of_file(kind, tmp_path)
    stored = read_picture(path).pixels
    levels, alpha = stored[..., :3], stored[..., 3]
    visible = alpha > 0
    assert not visible.all() and visible.any()
    clip = for_output(probe(path), tmp_path / output)
    seen, writer = run_through(clip, tmp_path / output, edit=negative)
    back = read_picture(writer.path / "000001.png" if output == "out" else writer.path).pixels
    wide = stored.dtype == np.uint16
    eight = ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8) if wide else levels
    assert (seen[0][visible] == eight[visible]).all()
    if wide and output == "out.webp":  # it has 8 bits
        assert (back[visible, :3] == 255 - eight[visible]).all()
        return
    assert back.dtype == stored.dtype and (back[..., 3] == alpha).all()
    assert (back[visible, :3] == (255 - eight[visible]).astype(back.dtype) * (257 if wide else 1)).all()
    assert (back[~visible] == stored[~visible]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_not_edited_keeps_every_bit(tmp_path, dtype):
    pixels = np.random.default_rng(2).integers(0, np.iinfo(dtype).max + 1, (*SIZE[::-1], 4), dtype)
    pixels[:9, :9, 3] = 0
    (tmp_path / "in.png").write_bytes(png_bytes(pixels))
    clip = for_output(probe(tmp_path / "in.png"), "out.png")
    _, writer = run_through(clip, tmp_path / "out.png", edit=negative, mask=load_mask("8,8,20,16", clip))
    back = read_picture(writer.path).pixels
    inside_mask = np.zeros(SIZE[::-1], bool)
    inside_mask[8:24, 8:28] = True
    assert (back[~inside_mask] == pixels[~inside_mask]).all()
    visible = inside_mask & (pixels[..., 3] > 0)
    assert (back[visible, :3] != pixels[visible, :3]).any(-1).all()


def test_a_folder_in_which_not_all_pictures_are_transparent(tmp_path):
    (tmp_path / "in").mkdir()
    frames = [picture(0, *SIZE), see_through(1), picture(2, *SIZE)]
    for number, pixels in enumerate(frames):
        Image.fromarray(pixels).save(tmp_path / "in" / f"{number}.png")
    _, writer = run_through(for_output(probe(tmp_path / "in"), "out"), tmp_path / "out", edit=negative)
    for number, pixels in enumerate(frames):
        back = np.asarray(Image.open(writer.path / f"{number}.png"))
        visible = pixels[..., 3] > 0 if pixels.shape[-1] == 4 else np.ones(SIZE[::-1], bool)
        assert back.shape == pixels.shape and (back[visible, :3] == 255 - pixels[visible, :3]).all()


def transparent_video(path: Path, frames: int = 3, codec: str = "png", pixel_format: str = "rgba", transfer: int = 0):
    """A .mov with an alpha channel."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, width=SIZE[0], height=SIZE[1])
        stream.pix_fmt = pixel_format
        stream.codec_context.color_trc = transfer
        stream.codec_context.color_primaries = 9 if transfer else 2
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(see_through(number), format="rgba").reformat(format=pixel_format)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            frame.color_trc, frame.color_primaries = transfer, 9 if transfer else 2
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_a_transparent_video(tmp_path):
    clip = probe(transparent_video(tmp_path / "in.mov"))
    assert clip.has_alpha
    _, writer = run_through(for_output(clip, "out"), tmp_path / "out", edit=negative)
    for number in range(3):
        pixels, back = see_through(number), np.asarray(Image.open(writer.path / f"{number + 1:06d}.png"))
        visible = pixels[..., 3] > 0
        assert (back[..., 3] == pixels[..., 3]).all() and (back[visible, :3] == 255 - pixels[visible, :3]).all()
    assert for_output(clip, "out.mp4") == clip
    seen, _ = run_through(clip, tmp_path / "out.mp4")
    assert all((rgb == flatten(see_through(number))).all() for number, rgb in enumerate(seen))


def test_hdr_with_transparency_is_on_white_too(tmp_path):
    path = transparent_video(tmp_path / "in.mov", 1, "prores_ks", "yuva444p10le", 16)
    clip = probe(path)
    assert clip.has_alpha and clip.colour.is_hdr
    assert (next(read_frames(clip)).rgb[:, 0] == 255).all()


@pytest.mark.parametrize("output", ["out.jpg", "out.mkv", "out.gif"])
def test_what_keeps_no_transparency_is_edited_on_white(tmp_path, output):
    Image.fromarray(see_through()).save(tmp_path / "in.png")
    clip = for_output(probe(tmp_path / "in.png"), output)
    options = {"codec": "ffv1"} if output == "out.mkv" else {}
    seen, writer = run_through(clip, tmp_path / output, edit=negative, **options)
    assert (seen[0] == flatten(see_through())).all()
    assert psnr(next(read_frames(probe(writer.path))).rgb, 255 - seen[0]) > 30
    assert any("transparent parts are put on white" in note for note in writer.notices)


@pytest.mark.parametrize("output", ["out.png", "out.mkv"])
def test_a_comparison_is_on_white(tmp_path, output):
    pixels = see_through()
    Image.fromarray(pixels).save(tmp_path / "in.png")
    clip = for_output(probe(tmp_path / "in.png"), "result.png")
    options = {"codec": "ffv1"} if output == "out.mkv" else {}
    _, writer = run_through(clip, tmp_path / output, edit=negative, compare="side", **options)
    back = probe(writer.path)
    assert not back.has_alpha and any("transparent parts are put on white" in note for note in writer.notices)
    rgb = next(read_frames(back)).rgb[16:]  # the words are above
    edited = on_white(255 - pixels[..., :3], pixels[..., 3])
    assert np.abs(rgb.astype(int) - np.concatenate([flatten(pixels), edited], axis=1)[16:]).max() <= (
        0 if output == "out.png" else 1
    )


def test_a_wipe_is_of_two_pictures_on_white(tmp_path):
    pixels = see_through()
    (tmp_path / "in").mkdir()
    for number in range(9):
        Image.fromarray(pixels).save(tmp_path / f"in/{number}.png")
    clip = for_output(probe(tmp_path / "in"), "result")
    _, writer = run_through(clip, tmp_path / "out.mkv", edit=negative, compare="wipe", codec="ffv1")
    source, edited = flatten(pixels), on_white(255 - pixels[..., :3], pixels[..., 3])
    shares = []
    for frame in read_frames(probe(writer.path)):
        of_source, of_edit = (
            (np.abs(frame.rgb.astype(int) - one)[16:].max(-1) <= 1).mean() for one in (source, edited)
        )
        assert of_source + of_edit > 0.8  # all but the line between them
        shares.append(of_edit)
    assert max(shares) - min(shares) > 0.4


def test_a_sheet_is_on_white(tmp_path):
    Image.fromarray(see_through()).save(tmp_path / "in.png")
    clip = for_output(probe(tmp_path / "in.png"), "out.png")
    _, writer = run_through(clip, tmp_path / "out.png")
    write_sheet(tmp_path / "sheet.png", clip, select(clip), writer.path, width=48)
    whites = (np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")) == 255).all(-1)
    assert whites.sum() >= 2 * 4 * 32  # of the source and of the result, where nothing is visible


def test_what_is_invisible_takes_the_colours_nearby():
    pixels = np.zeros((64, 96, 4), np.uint8)
    pixels[20:40, 10:30] = (200, 30, 20, 255)
    pixels[20:40, 60:80] = (20, 40, 210, 1)
    found = straight(pixels)
    visible = pixels[..., 3] > 0
    assert (found[visible] == pixels[visible, :3]).all()
    assert np.abs(found[19, 12:28].astype(int) - (200, 30, 20)).max() < 30
    assert np.abs(found[40, 62:78].astype(int) - (20, 40, 210)).max() < 30


def test_one_visible_pixel_is_enough():
    pixels = np.zeros((301, 203, 4), np.uint8)
    assert (straight(pixels) == 255).all()
    pixels[300, 202] = (200, 30, 20, 1)
    assert (np.abs(straight(pixels).astype(int) - (200, 30, 20)) <= 3).all()  # Pillow cuts off


def cut_out(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """A dark figure with soft edges as cut.png, and opaque as whole.png: (the colours, the alpha)."""
    width, height = 240, 160
    alpha = Image.new("L", (width, height))
    ImageDraw.Draw(alpha).ellipse((60, 20, 180, 140), fill=255)
    level = np.asarray(alpha.filter(ImageFilter.GaussianBlur(4)))
    y, x = np.mgrid[0:height, 0:width]
    colours = np.stack([90 + 30 * np.sin(x / 17), 60 + 20 * np.cos(y / 13), 70 + 20 * np.sin((x + y) / 19)], -1)
    colours = colours.round().astype(np.uint8)
    Image.fromarray(colours).save(folder / "whole.png")
    stored = np.dstack([colours, level])
    stored[level == 0] = 0
    Image.fromarray(stored).save(folder / "cut.png")
    return colours, level


@pytest.mark.parametrize("detail", ["source", "model"])
def test_the_edges_of_a_cut_out_do_not_shine(tmp_path, capsys, detail):
    _, alpha = cut_out(tmp_path)
    made = {}
    for name in ("cut", "whole"):
        out = tmp_path / f"{name}-edited.png"
        words = ("edit", tmp_path / f"{name}.png", "make it warmer", "--model", "tiny", "--device", "cpu")
        assert inside(capsys, *words, "--detail", detail, "-o", out)[0] == 0
        made[name] = np.asarray(Image.open(out)).astype(float)
    assert (made["cut"][..., 3] == alpha).all()
    difference = np.abs(made["cut"][..., :3] - made["whole"]).max(-1)
    assert difference[alpha >= 128].max() <= (3 if detail == "source" else 8)  # 1 and 4; on white it was 124
    on_black, whole = (made[name][..., :3] * alpha[..., None] / 255 for name in ("cut", "whole"))
    edge = (alpha > 0) & (alpha < 255)
    assert on_black[edge].max() <= whole[edge].max() + 3 and (on_black - whole)[edge].max() <= 8


def test_an_opaque_picture_is_what_it_was(tmp_path):
    clip = probe(make_clip(tmp_path / "in.mp4", frames=2))
    assert for_output(clip, "out.png") == clip
    Image.fromarray(picture(1, *SIZE)).save(tmp_path / "in.png")
    clip = probe(tmp_path / "in.png")
    assert for_output(clip, "out.png") == clip
