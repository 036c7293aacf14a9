"""Stored samples: chroma stays in its place, depth and levels survive where the picture is not edited."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from kiwi_cli.video import load_mask, open_writer, probe, select

from .media import make_clip, run_through

SITINGS = ["left", "center", "topleft", "unspecified"]
CORNER = "0,0,16,16"


def textured(path, pixel_format="yuv420p", siting="unspecified", frames=3, full_range=False, size=(96, 64), **tags):
    """A lossless clip of noise with hard colours, written sample by sample. Returns its planes."""
    rng = np.random.default_rng(3)
    codec = "ffv1" if path.suffix == ".mkv" else "libx264"
    options = {"chroma_sample_location": siting} if siting != "unspecified" else {}
    options |= {"qp": "0", "preset": "ultrafast"} if codec == "libx264" else {"level": "3"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options, width=size[0], height=size[1])
        stream.pix_fmt = pixel_format
        stream.codec_context.color_range = 2 if full_range else 1
        stream.codec_context.colorspace = tags.get("matrix", 1)
        for _ in range(frames):
            frame = av.VideoFrame(*size, pixel_format)
            deep = frame.format.components[0].bits
            for plane, component in zip(frame.planes, frame.format.components, strict=False):
                values = np.frombuffer(memoryview(plane), np.uint8 if deep == 8 else np.uint16)
                values = values.reshape(plane.height, -1)
                low, high = (0, 1 << deep) if full_range else (16 << deep - 8, 236 << deep - 8)
                if not component.is_luma:
                    low, high = 96 << deep - 8, 160 << deep - 8
                values[:] = rng.integers(low, high, values.shape)
            frame.color_range = 2 if full_range else 1
            frame.colorspace = tags.get("matrix", 1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def planes(path, number=0) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index == number:
                deep = frame.format.components[0].bits
                return [
                    np.frombuffer(memoryview(plane), np.uint8 if deep == 8 else np.uint16)
                    .reshape(plane.height, -1)[:, : plane.width]
                    .copy()
                    for plane in frame.planes
                ]
    raise AssertionError("no such frame")


def shift_of(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Chroma samples by which `after` lies right of and below `before` (smooth pictures): least squares."""
    before, after = before.astype(float), after.astype(float)
    dy, dx = np.gradient(before)
    inner = (slice(4, -4), slice(4, -4))
    matrix = np.stack([dx[inner].ravel(), dy[inner].ravel(), np.ones(dx[inner].size)], axis=1)
    found = np.linalg.lstsq(matrix, (before - after)[inner].ravel(), rcond=None)[0]
    return float(found[0]), float(found[1])


@pytest.mark.parametrize("siting", SITINGS)
@pytest.mark.parametrize(("extension", "codec"), [("mkv", "ffv1"), ("mp4", "h264")])
def test_edited_chroma_stays_in_its_place(tmp_path, siting, extension, codec):
    source = tmp_path / f"in.{extension}"
    options = {"chroma_sample_location": siting} if siting != "unspecified" else {}
    options |= {"qp": "0"} if extension == "mp4" else {"level": "3"}
    make_clip(source, codec="ffv1" if extension == "mkv" else "libx264", size=(192, 128), options=options, frames=2)
    quality = None if codec == "ffv1" else 0
    # every pixel is edited, so that no sample can be taken over from the source
    run_through(
        probe(source),
        tmp_path / f"out.{extension}",
        edit=lambda rgb: rgb ^ 1,
        codec=codec,
        quality=quality,
    )
    for before, after in list(zip(planes(source), planes(tmp_path / f"out.{extension}"), strict=True))[1:]:
        across, down = shift_of(before[20:], after[20:])
        assert abs(across) < 0.03
        assert abs(down) < 0.03


@pytest.mark.parametrize("siting", SITINGS)
@pytest.mark.parametrize(
    ("extension", "codec", "pixel_format"),
    [
        ("mp4", "h264", "yuv420p"),
        ("mkv", "ffv1", "yuv420p"),
        ("mkv", "ffv1", "yuv422p"),
        ("mkv", "ffv1", "yuv411p"),
        ("mkv", "ffv1", "yuv420p10le"),
    ],
)
def test_samples_outside_a_mask_are_the_sources_own(tmp_path, siting, extension, codec, pixel_format):
    source = textured(tmp_path / f"in.{extension}", pixel_format, siting)
    clip = probe(source)
    quality = 0 if codec == "h264" else None
    options = {"codec": codec, "quality": quality, "mask": load_mask(CORNER, clip)}
    run_through(clip, tmp_path / f"out.{extension}", edit=lambda rgb: 255 - rgb, **options)
    for number in range(3):
        for index, (before, after) in enumerate(
            zip(*(planes(tmp_path / f"{n}.{extension}", number) for n in ("in", "out")), strict=True)
        ):
            rows, columns = (-(-16 * n // total) for n, total in zip(before.shape, (64, 96), strict=True))
            assert (before[rows:] == after[rows:]).all() and (before[:, columns:] == after[:, columns:]).all()
            assert index or (before[:rows, :columns] != after[:rows, :columns]).any()


FORMATS = ["yuv420p", "yuv422p", "yuv444p", "yuv440p", "yuv410p", "yuv420p10le", "yuv422p12le", "gbrp10le", "bgr0"]


@pytest.mark.parametrize(
    ("pixel_format", "siting", "full_range", "matrix"),
    [(name, "left", False, 1) for name in FORMATS]
    + [("yuv420p", name, True, 6) for name in SITINGS]
    + [("yuv420p10le", name, True, 9) for name in SITINGS],
)
def test_ten_generations_of_an_identity_edit_are_the_first(tmp_path, pixel_format, siting, full_range, matrix):
    if pixel_format.startswith(("gbr", "bgr")):
        matrix, siting = 0, "unspecified"
    path = textured(tmp_path / "0.mkv", pixel_format, siting, frames=2, full_range=full_range, matrix=matrix)
    first = probe(path)
    for generation in range(10):
        run_through(probe(path), tmp_path / f"{generation + 1}.mkv", codec="ffv1")
        path = tmp_path / f"{generation + 1}.mkv"
    last = probe(path)
    assert (last.colour.siting, last.colour.matrix, last.colour.full_range) == (
        first.colour.siting,
        first.colour.matrix,
        first.colour.full_range,
    )
    for number in range(2):
        for before, after in zip(planes(tmp_path / "0.mkv", number), planes(path, number), strict=True):
            assert (before == after).all()


def test_a_soft_mask_is_blended_in_ten_bits(tmp_path):
    source = tmp_path / "in.mkv"
    ramp = np.arange(96 * 4).reshape(1, -1).repeat(64, 0)[:, ::4] + 256
    with av.open(str(source), "w") as container:
        stream = container.add_stream("ffv1", rate=25, width=96, height=64, options={"level": "3"})
        stream.pix_fmt = "yuv444p10le"
        frame = av.VideoFrame(96, 64, "yuv444p10le")
        for index, plane in enumerate(frame.planes):
            values = np.frombuffer(memoryview(plane), np.uint16).reshape(64, -1)
            values[:, :96] = ramp if index == 0 else 512
        container.mux([*stream.encode(frame), *stream.encode(None)])
    clip = probe(source)
    run_through(
        clip,
        tmp_path / "out.mkv",
        edit=lambda rgb: rgb // 2 + 60,
        codec="ffv1",
        mask=load_mask("0,0,96,64", clip, feather=24),
    )
    luma = planes(tmp_path / "out.mkv")[0]
    assert len(np.unique(luma[:24] & 3)) == 4  # all four of the levels between two 8-bit ones


def test_frames_outside_the_span_keep_ten_bits(tmp_path):
    source = textured(tmp_path / "in.mkv", "yuv420p10le", "left", frames=5)
    clip = probe(source)
    run_through(
        clip,
        tmp_path / "out.mkv",
        select(clip, start=0.08, frames=1),
        edit=lambda rgb: 255 - rgb,
        codec="ffv1",
        keep_rest=True,
    )
    for number in (0, 1, 3, 4):
        ours, theirs = planes(source, number), planes(tmp_path / "out.mkv", number)
        assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))


def test_a_folder_of_a_deep_video_has_sixteen_bits(tmp_path):
    source = textured(tmp_path / "in.mkv", "gbrp10le", matrix=0, frames=2)
    run_through(probe(source), tmp_path / "out")
    back = probe(tmp_path / "out")
    assert back.bit_depth == 16
    from kiwi_cli.video.pictures import read_picture

    pixels = read_picture(back.files[0]).pixels
    green, blue, red = planes(source)
    assert (pixels[..., 1] >> 6 == green).all() and (pixels[..., 2] >> 6 == blue).all()
    assert (pixels[..., 0] >> 6 == red).all()


def test_whiter_than_white_is_kept_where_nothing_is_edited(tmp_path):
    source = tmp_path / "in.mkv"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("ffv1", rate=25, width=96, height=64, options={"level": "3"})
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame(96, 64, "yuv420p")
        for index, plane in enumerate(frame.planes):
            np.frombuffer(memoryview(plane), np.uint8)[:] = 250 if index == 0 else 128
        container.mux([*stream.encode(frame), *stream.encode(None)])
    clip = probe(source)
    run_through(clip, tmp_path / "out.mkv", edit=lambda rgb: rgb // 2, codec="ffv1", mask=load_mask(CORNER, clip))
    assert (planes(tmp_path / "out.mkv")[0][:, 16:] == 250).all()


def test_what_a_codec_cannot_hold_of_the_colour_is_said(tmp_path):
    clip = probe(textured(tmp_path / "in.mkv", "yuv444p"))
    assert any("4:4:4 colour becomes 4:2:0" in note for note in open_writer(tmp_path / "o.mp4", clip).notices)
    assert not any("4:4:4" in note for note in open_writer(tmp_path / "o.mkv", clip, codec="ffv1").notices)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_turned_clip_keeps_its_luma(tmp_path, rotation):
    source = make_clip(tmp_path / "in.mp4", rotation=rotation, options={"qp": "0"}, frames=2)
    clip = probe(source)
    run_through(clip, tmp_path / "out.mkv", codec="ffv1")
    stored = planes(source)[0]
    assert (planes(tmp_path / "out.mkv")[0] == np.rot90(stored, rotation // 90)).all()


HDR = (9, 9, 16, 1)
DISPLAY = "G(8500,39850)B(6550,2300)R(35400,14600)WP(15635,16450)L(10000000,50)"


@pytest.mark.parametrize("codec", ["hevc", "av1"])
def test_hdr_records_are_kept(tmp_path, codec):
    options = {"crf": "10", "preset": "ultrafast"}
    options["x265-params"] = f"log-level=none:hdr10=1:master-display={DISPLAY}:max-cll=900,300"
    source = make_clip(
        tmp_path / "in.mp4", codec="libx265", pixel_format="yuv420p10le", colour=HDR, options=options, frames=3
    )
    clip = probe(source)
    assert clip.colour.light == (900, 300)
    assert clip.colour.mastering is not None and clip.colour.mastering[-1] == 1000
    _, writer = run_through(clip, tmp_path / "out.mp4", codec=codec)
    back = probe(writer.path).colour
    assert back.light == (900, 300)
    assert back.mastering is not None
    assert all(abs(a - b) < Fraction(1, 1000) for a, b in zip(back.mastering, clip.colour.mastering, strict=True))
    dropped = open_writer(tmp_path / "o.mkv", clip, codec="ffv1").notices
    assert any("mastering display" in note for note in dropped)


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_is_tone_mapped_for_the_model_and_back(transfer):
    from kiwi_cli.video.hdr import from_sdr, to_sdr

    grey = np.linspace(0, 65_535, 256).astype(np.uint16)
    picture = np.repeat(grey[None, :, None], 3, axis=2)
    seen = to_sdr(picture, transfer, 9, 1000)
    assert (np.diff(seen[0, :, 1].astype(int)) >= 0).all()
    if transfer == 16:  # diffuse white, 203 cd/m2 (ITU-R BT.2408), is stored as 0.58 and bright on an SDR screen
        assert 170 < seen[0, 148, 1] < 240
    back = to_sdr(from_sdr(seen, transfer, 9, 1000), transfer, 9, 1000)
    assert np.abs(back.astype(int) - seen).max() <= 1
    rng = np.random.default_rng(0)
    colours = rng.integers(40, 200, (8, 8, 3), np.uint8)
    back = to_sdr(from_sdr(colours, transfer, 9, 1000), transfer, 9, 1000)
    assert np.abs(back.astype(int) - colours).mean() < 1.5


def test_an_hdr_edit_is_as_bright_as_the_clip(tmp_path):
    options = {"crf": "4", "preset": "ultrafast", "x265-params": "log-level=none"}
    source = make_clip(
        tmp_path / "in.mp4", codec="libx265", pixel_format="yuv420p10le", colour=HDR, options=options, frames=5
    )
    clip = probe(source)
    assert any("HDR" in note and "BT.2446" in note for note in clip.notices)
    run_through(
        clip,
        tmp_path / "out.mkv",
        edit=lambda rgb: rgb ^ 1,
        codec="ffv1",
    )
    before, after = planes(source)[0].astype(int), planes(tmp_path / "out.mkv")[0].astype(int)
    assert abs(before.mean() - after.mean()) < 24  # of 1024: the picture's purest colours lie beyond SDR's
    assert probe(tmp_path / "out.mkv").colour.transfer_tag == 16
