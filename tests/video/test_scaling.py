"""One step between stored samples and RGB of another size, held against Lanczos in floating point."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from kiwi_cli.video import Clip, Size, probe, read_frames
from kiwi_cli.video.samples import WEIGHTS

from .media import make_clip, run_through

LARGE, SMALL = Size(192, 128), Size(128, 96)
PLACES = {"left": (0.0, 0.5), "center": (0.5, 0.5), "topleft": (0.0, 0.0)}
FACTORS = {"yuv420p": (2, 2), "yuvj420p": (2, 2), "yuv422p": (2, 1), "yuv444p": (1, 1), "yuv410p": (4, 4)}
MATRICES = {1: "bt709", 6: "bt601", 9: "bt2020"}
KINDS = [
    ("yuv420p", "left", False, 1),
    ("yuv420p", "topleft", True, 6),
    ("yuv420p", "center", True, 1),
    ("yuv422p", "left", False, 9),
    ("yuv444p", "unspecified", True, 1),
    ("yuv410p", "center", False, 6),
]


def smooth(seed: int, size: Size) -> np.ndarray:
    """(H, W, 3) floats, 0..255: colours with room around them, down to a few pixels."""
    cells = np.random.default_rng(seed).integers(64, 192, (size.height // 8, size.width // 8, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC), np.float64)


def lanczos(count: int, places: np.ndarray, step: float) -> np.ndarray:
    """(places, count): weights of samples at 0..count-1 for values at `places`, which lie `step` samples apart."""
    wide = max(1.0, step)
    reach = int(np.ceil(3 * wide)) + 1
    near = np.floor(places).astype(int)[:, None] + np.arange(-reach, reach + 1)
    away = (places[:, None] - near) / wide
    weights = np.where(np.abs(away) < 3, np.sinc(away) * np.sinc(away / 3), 0)
    weights /= weights.sum(1, keepdims=True)
    found = np.zeros((len(places), count))
    np.add.at(found, (np.arange(len(places))[:, None], np.clip(near, 0, count - 1)), weights)
    return found


def scaled(plane: np.ndarray, size: Size, before: tuple[float, float], after: tuple[float, float]) -> np.ndarray:
    """A plane at another size. `before` and `after`: where its first sample lies, in its own samples' widths from the
    picture's edge, across and down."""
    axes = []
    for count, new, first, then in zip(plane.shape[::-1], size, before, after, strict=True):
        step = count / new
        axes.append(lanczos(count, (np.arange(new) + then) * step - first, step))
    return axes[1] @ plane @ axes[0].T


def first_chroma(kind: str, siting: str) -> tuple[float, float]:
    """Where the first chroma sample lies, in chroma samples from the picture's edge."""
    place = PLACES.get(siting, (0.5, 0.5))
    return tuple((s * (f - 1) + 0.5) / f for s, f in zip(place, FACTORS[kind], strict=True))  # type: ignore[return-value]


def levels(full: bool) -> tuple[float, float, float]:
    return (255.0, 0.0, 255.0) if full else (219.0, 16.0, 224.0)


def to_yuv(rgb: np.ndarray, matrix: str, full: bool) -> list[np.ndarray]:
    red, blue = WEIGHTS[matrix]
    scale, offset, spread = levels(full)
    r, g, b = (rgb[..., i] / 255 for i in range(3))
    y = red * r + (1 - red - blue) * g + blue * b
    return [y * scale + offset, (b - y) / (2 * (1 - blue)) * spread + 128, (r - y) / (2 * (1 - red)) * spread + 128]


def to_rgb(planes: list[np.ndarray], matrix: str, full: bool) -> np.ndarray:
    red, blue = WEIGHTS[matrix]
    scale, offset, spread = levels(full)
    y, b, r = (planes[0] - offset) / scale, (planes[1] - 128) / spread, (planes[2] - 128) / spread
    r, b = y + 2 * (1 - red) * r, y + 2 * (1 - blue) * b
    return 255 * np.stack([r, (y - red * r - blue * b) / (1 - red - blue), b], -1)


def store(path: Path, planes: list[np.ndarray], kind: str, siting: str, full: bool, tag: int) -> Clip:
    height, width = planes[0].shape
    options = {"level": "3"} | ({"chroma_sample_location": siting} if siting != "unspecified" else {})
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25, options=options, width=width, height=height)
        stream.pix_fmt = kind
        stream.codec_context.color_range, stream.codec_context.colorspace = 1 + full, tag
        frame = av.VideoFrame(width, height, kind)
        for plane, values in zip(frame.planes, planes, strict=True):
            lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            lines[: plane.height, : plane.width] = values
        frame.color_range, frame.colorspace = 1 + full, tag
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return probe(path)


def stored(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        return [
            np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]
            for plane in frame.planes
        ]


def drawn(path: Path, kind: str, siting: str, full: bool, tag: int) -> tuple[Clip, list[np.ndarray]]:
    """A clip of one frame at LARGE, and its samples."""
    across, down = FACTORS[kind]
    planes = to_yuv(smooth(0, LARGE), MATRICES[tag], full)
    planes = [np.rint(plane).astype(np.uint8) for plane in (planes[0], *(p[::down, ::across] for p in planes[1:]))]
    return store(path, planes, kind, siting, full, tag), planes


def assert_near(found: np.ndarray, wanted: np.ndarray) -> None:
    """No further apart than by rounding (0.29 levels root mean square) and a little, and not to one side."""
    error = found - wanted
    assert np.sqrt(np.mean(error**2)) < 0.32
    assert np.abs(error.mean((0, 1))).max() < 0.03


@pytest.mark.parametrize(("kind", "siting", "full", "tag"), KINDS)
def test_a_frame_is_read_as_floats_would_read_it(tmp_path, kind, siting, full, tag):
    clip, planes = drawn(tmp_path / "in.mkv", kind, siting, full, tag)
    middle, chroma = (0.5, 0.5), first_chroma(kind, siting)
    wanted = [scaled(plane, SMALL, chroma if i else middle, middle) for i, plane in enumerate(planes)]
    (frame,) = read_frames(clip, size=SMALL)
    assert_near(frame.rgb, to_rgb(wanted, MATRICES[tag], full))


@pytest.mark.parametrize(("kind", "siting", "full", "tag"), KINDS)
def test_a_frame_is_written_as_floats_would_write_it(tmp_path, kind, siting, full, tag):
    clip, _ = drawn(tmp_path / "in.mkv", kind, siting, full, tag)
    edited = smooth(1, SMALL).astype(np.uint8)
    run_through(clip, tmp_path / "out.mkv", size=SMALL, edit=lambda rgb: edited, codec="ffv1")
    middle, chroma = (0.5, 0.5), first_chroma(kind, siting)
    across, down = FACTORS[kind]
    small = Size(LARGE.width // across, LARGE.height // down)
    for index, (plane, found) in enumerate(
        zip(to_yuv(edited, MATRICES[tag], full), stored(tmp_path / "out.mkv"), strict=True)
    ):
        assert_near(found, scaled(plane, small if index else LARGE, middle, chroma if index else middle))


@pytest.mark.parametrize(("fit", "size"), [("crop", Size(96, 96)), ("pad", Size(128, 128))])
def test_a_part_and_bars(tmp_path, fit, size):
    """The same picture as by way of RGB at full size, chroma's coarser interpolation there aside."""
    clip, planes = drawn(tmp_path / "in.mkv", "yuv444p", "unspecified", False, 1)
    (frame,) = read_frames(clip, size=size, fit=fit)
    whole = to_rgb([plane.astype(float) for plane in planes], "bt709", False)
    if fit == "crop":
        wanted = [scaled(whole[:, 32:160, i], size, (0.5, 0.5), (0.5, 0.5)) for i in range(3)]
        assert_near(frame.rgb, np.stack(wanted, -1))
    else:
        wanted = [scaled(whole[..., i], Size(128, 85), (0.5, 0.5), (0.5, 0.5)) for i in range(3)]
        assert_near(frame.rgb[21:106], np.stack(wanted, -1))
        assert not frame.rgb[:21].any() and not frame.rgb[106:].any()


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_turned_clip_is_read_upright(tmp_path, rotation):
    flat = probe(make_clip(tmp_path / "flat.mp4", frames=1, options={"qp": "0"}))
    clip = probe(make_clip(tmp_path / "in.mp4", rotation=rotation, frames=1, options={"qp": "0"}))
    size = Size(96, 64) if rotation == 180 else Size(64, 96)
    (upright,) = read_frames(clip, size=Size(*(side * 2 // 3 // 2 * 2 for side in size)))
    (stored_way,) = read_frames(flat, size=Size(64, 42))
    np.testing.assert_array_equal(upright.rgb, np.rot90(stored_way.rgb, rotation // 90))


@pytest.mark.parametrize("size", [(97, 63), (95, 64)])
def test_odd_sides_are_scaled_as_well(tmp_path, size):
    """There is half a chroma sample at the edge, so RGB is scaled; the picture stays in its place."""
    source = make_clip(tmp_path / "in.mkv", size=size, codec="ffv1", options={"level": "3"}, frames=1)
    seen, writer = run_through(probe(source), tmp_path / "out.mkv", size=Size(64, 32), codec="ffv1")
    assert seen[0].shape == (32, 64, 3)
    before, after = stored(source), stored(writer.path)
    assert [plane.shape for plane in before] == [plane.shape for plane in after]
    inner = (slice(20, -4), slice(4, -4))
    assert np.abs(before[0][inner].astype(int) - after[0][inner]).mean() < 1
