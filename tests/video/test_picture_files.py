"""Pictures of many kinds: their profiles, what they say of themselves, large ones, and names."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from kiwi_cli.errors import MediaError, UsageError
from kiwi_cli.video import load_mask, open_writer, probe, read_frames

from .media import make_clip, picture, run_through


def grey_profile(gamma: float = 1.0) -> bytes:
    """An ICC profile of a grey with a gamma, built by hand: header, tags, white point, curve."""
    import struct

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"grey\0" + bytes(78)
    text += bytes(-len(text) % 4)
    tags, data, offset = b"", b"", 128 + 4 + 3 * 12
    for name, body in ((b"desc", text), (b"wtpt", white), (b"kTRC", curve)):
        tags += name + struct.pack(">2I", offset + len(data), len(body))
        data += body
    body = struct.pack(">I", 3) + tags + data
    header = struct.pack(">I4sI4s4s4s", 128 + len(body), b"none", 0x02400000, b"mntr", b"GRAY", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + body


def test_grey_goes_through_its_profile(tmp_path):
    levels = np.arange(256, dtype=np.uint8)[None].repeat(32, 0)
    Image.fromarray(levels).save(tmp_path / "in.png", icc_profile=grey_profile(1.0))
    seen = next(read_frames(probe(tmp_path / "in.png"))).rgb
    assert 180 < seen[0, 128, 0] < 195  # half the light is 188 in sRGB
    _, writer = run_through(probe(tmp_path / "in.png"), tmp_path / "out.png")
    with Image.open(writer.path) as back:
        assert back.mode == "RGB" and "icc_profile" not in back.info
        assert (np.asarray(back) == seen).all()


def test_cmyk_does_not_keep_a_profile_that_is_none_of_its_own(tmp_path):
    cmyk = Image.fromarray(picture(1, 48, 32)).convert("CMYK")
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[16:20] = b"CMYK"
    cmyk.save(tmp_path / "in.jpg", icc_profile=bytes(profile), quality=95)
    _, writer = run_through(probe(tmp_path / "in.jpg"), tmp_path / "out.png")
    with Image.open(writer.path) as back:
        assert "icc_profile" not in back.info


def test_an_rgb_profile_stays(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(picture(1, 48, 32)).save(tmp_path / "in.png", icc_profile=profile)
    _, writer = run_through(probe(tmp_path / "in.png"), tmp_path / "out.png")
    with Image.open(writer.path) as back:
        assert back.info["icc_profile"] == profile


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf>harbour</rdf></x:xmpmeta>'


@pytest.mark.parametrize("after", ["png", "jpg", "webp"])
@pytest.mark.parametrize("before", ["png", "jpg"])
def test_resolution_and_xmp_are_kept(tmp_path, before, after):
    options = {"dpi": (300, 300)}
    if before == "png":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", XMP.decode())
        options["pnginfo"] = text
    else:
        options["xmp"] = XMP
    Image.fromarray(picture(1, 48, 32)).save(tmp_path / f"in.{before}", **options)
    _, writer = run_through(probe(tmp_path / f"in.{before}"), tmp_path / f"out.{after}")
    with Image.open(writer.path) as back:
        found = back.info.get("xmp", back.info.get("XML:com.adobe.xmp"))
        assert XMP in (found if isinstance(found, bytes) else found.encode())
        if after != "webp":  # which has no field for it
            assert [round(value) for value in back.info["dpi"]] == [300, 300]


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.bmp", {}), ("a.ppm", {}), ("a.tif", {}), ("a.tiff", {"compression": "tiff_lzw"}), ("a.jp2", {})],
)
def test_other_kinds_of_picture_are_read(tmp_path, name, options):
    pixels = picture(5, 48, 32)
    Image.fromarray(pixels).save(tmp_path / name, **options)
    clip = probe(tmp_path / name)
    assert (clip.kind, clip.size) == ("image", (48, 32))
    assert (next(read_frames(clip)).rgb == pixels).all()


def test_what_is_not_read_says_what_to_do(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.tif")
    pages = [Image.fromarray(picture(n, 16, 16)) for n in range(2)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    for name, words in (("deep.tif", "16-bit PNG"), ("pages.tif", "convert it")):
        with pytest.raises(MediaError) as caught:
            probe(tmp_path / name)
        assert words in caught.value.hint


@pytest.mark.parametrize("name", ["x" * 300 + ".mp4", "é" * 130 + ".mp4"])
def test_a_name_that_no_file_system_holds(tmp_path, clip_file, name):
    with pytest.raises(UsageError, match="name is too long"):
        open_writer(tmp_path / name, probe(clip_file))


@pytest.mark.parametrize("name", ["x" * 251 + ".mp4", "é" * 125 + ".mp4"])
def test_a_name_that_just_fits(tmp_path, clip_file, name):
    _, writer = run_through(probe(clip_file), tmp_path / name)
    assert probe(writer.path).frame_count == 12


LARGE = """
import sys
import numpy as np
from kiwi_cli.base.hardware import peak_resident
from kiwi_cli.video import Size, load_mask, open_writer, probe, read_frames
clip = probe(sys.argv[1])
size = Size(1024, 512)
mask = load_mask("0,0,9000,8000", clip)
with open_writer(sys.argv[2], clip, size=size, mask=mask) as writer:
    for frame in read_frames(clip, size=size):
        writer.write(255 - frame.rgb[None])
print(peak_resident() // 2**20)
"""


@pytest.mark.slow
def test_a_picture_of_128_megapixels_in_3_gb(tmp_path):
    Image.linear_gradient("L").resize((16_384, 8_192)).convert("RGB").save(tmp_path / "in.png", compress_level=1)
    run = [sys.executable, "-c", LARGE, str(tmp_path / "in.png"), str(tmp_path / "out.png")]
    done = subprocess.run(run, env=os.environ, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 3_000  # MiB
    assert probe(tmp_path / "out.png").size == (16_384, 8_192)


def test_a_large_picture_is_written_in_strips(tmp_path):
    from kiwi_cli.video.pictures import read_picture
    from kiwi_cli.video.png import write_png

    rng = np.random.default_rng(0)
    for kind in (np.uint8, np.uint16):
        pixels = rng.integers(0, np.iinfo(kind).max, (1500, 1000, 3), kind)
        file = io.BytesIO()
        write_png(file, pixels)
        Path(tmp_path / "a.png").write_bytes(file.getvalue())
        assert (read_picture(tmp_path / "a.png").pixels == pixels).all()


def test_hdr_pictures_say_what_their_values_are(tmp_path):
    options = {"crf": "4", "preset": "ultrafast", "x265-params": "log-level=none"}
    source = make_clip(
        tmp_path / "in.mp4",
        codec="libx265",
        pixel_format="yuv420p10le",
        colour=(9, 9, 16, 1),
        options=options,
        frames=5,
    )
    clip = probe(source)
    _, writer = run_through(clip, tmp_path / "out", mask=load_mask("0,0,8,8", clip))
    data = (writer.path / "000001.png").read_bytes()
    assert data[data.index(b"cICP") + 4 :][:4] == bytes([9, 16, 0, 1])
