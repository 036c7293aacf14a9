"""Files as cameras, recorders and other programs write them, made with ffmpeg: they come back right, and in step.

Each has a white flash and a beep at 0.52, 1.52 and 2.52 s, and is 3 s long, or what was cut of that.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from kiwi_cli.errors import MediaError
from kiwi_cli.video import open_writer, probe
from kiwi_cli.video.decode import frames_of

from .media import picture, run_through

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed: it makes the files")

FLASH = "color=c=gray:s=96x64:r=25:d=3,drawbox=c=white:t=fill:enable='between(mod(t,1),0.519,0.559)'"
BEEP = "aevalsrc='if(between(mod(t,1),0.52,0.56),sin(2*PI*1000*t)*0.8,0)':s=48000:d=3"
H264 = ("-c:v", "libx264", "-preset", "veryfast", "-bf", "2", "-c:a", "aac")
MPEG2 = ("-c:v", "mpeg2video", "-b:v", "1M", "-flags", "+ilme+ildct", "-c:a", "mp2")
PACKET = 188  # bytes of a transport stream


def ffmpeg(*arguments: object) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True, timeout=60)


def made(path: Path, *options: object) -> Path:
    """The flashes and beeps in a file."""
    ffmpeg("-f", "lavfi", "-i", FLASH, "-f", "lavfi", "-i", BEEP, *options, path)
    return path


def changed(path: Path, source: Path, *options: object) -> Path:
    """A file of the same packets."""
    ffmpeg(*options[: options.index("-i")], "-i", source, "-c", "copy", *options[options.index("-i") + 1 :], path)
    return path


def camera(folder: Path) -> Path:
    """A phone's: turned by a quarter, with a timecode track."""
    base = made(folder / "base.mp4", *H264)
    turned = ("-i", "-metadata:s:v", "rotate=90", "-timecode", "01:00:00:00")
    return changed(folder / "camera.mov", base, *turned)


def avchd(folder: Path) -> Path:
    """A camcorder's: interlaced H.264 with AC-3, in packets of 192 bytes."""
    interlaced = ("-c:v", "libx264", "-flags", "+ilme+ildct", "-x264opts", "tff=1", "-c:a", "ac3")
    return made(folder / "00001.mts", *interlaced, "-f", "mpegts", "-mpegts_m2ts_mode", "1")


def trimmed(folder: Path) -> Path:
    """A lossless trim whose edit list hides what is before 0.72 s."""
    return changed(folder / "trimmed.mp4", made(folder / "gop.mp4", *H264, "-g", "250"), "-ss", "0.72", "-i")


def late_picture(folder: Path) -> Path:
    """An empty edit before the picture: it begins 0.4 s after the sound."""
    base = made(folder / "base.mp4", *H264)
    ffmpeg("-itsoffset", "0.4", "-i", base, "-i", base, "-map", "0:v", "-map", "1:a", "-c", "copy", folder / "late.mp4")
    return folder / "late.mp4"


def broken_start(folder: Path) -> Path:
    """A capture that begins in the middle of a packet and of a group of pictures."""
    data = made(folder / "whole.ts", *MPEG2, "-g", "12", "-f", "mpegts").read_bytes()
    (folder / "capture.ts").write_bytes(data[len(data) // 6 + 31 :])
    return folder / "capture.ts"


def lossy(folder: Path) -> Path:
    """A capture without its first tables, and with three packets lost."""
    data = made(folder / "whole.ts", *MPEG2, "-f", "mpegts").read_bytes()
    packets = [data[at : at + PACKET] for at in range(0, len(data), PACKET)]
    lost = {0, 1, len(packets) // 2, len(packets) * 3 // 4, len(packets) * 3 // 4 + 5}
    (folder / "lossy.ts").write_bytes(b"".join(each for number, each in enumerate(packets) if number not in lost))
    return folder / "lossy.ts"


def two_programs(folder: Path) -> Path:
    """A capture of two programs."""
    programs = ("-program", "title=One:st=0:st=1", "-program", "title=Two:st=2:st=3")
    return made(folder / "two.ts", *("-map", "0", "-map", "1") * 2, *MPEG2, *programs, "-f", "mpegts")


def fragmented(folder: Path) -> Path:
    """A screen recorder's: fragments, and no edit list for the pictures that come out late."""
    return made(folder / "screen.mp4", *H264, "-movflags", "+frag_keyframe+empty_moov+default_base_moof")


def browser(folder: Path) -> Path:
    """A browser's: no duration, no index."""
    path = made(folder / "whole.webm", "-c:v", "libvpx", "-b:v", "500k", "-c:a", "libopus")
    with path.open("rb") as file, (folder / "browser.webm").open("wb") as out:
        command = ["ffmpeg", "-v", "error", "-i", "-", "-c", "copy", "-f", "webm", "-live", "1", "-"]
        subprocess.run(command, stdin=file, stdout=out, check=True, timeout=60)
    return folder / "browser.webm"


def theora(folder: Path) -> Path:
    """Theora, whose empty packets show the picture before once more."""
    path = made(folder / "repeats.ogv", "-c:v", "libtheora", "-b:v", "500k", "-c:a", "libvorbis")
    with av.open(str(path)) as container:
        assert any(packet.size == 0 and packet.pts is not None for packet in container.demux(video=0))
    return path


MAKERS: dict[Any, tuple[list[float], list[float], int]] = {
    # flashes and beeps, seconds after the first picture; pictures
    camera: ([0.52, 1.52, 2.52], [0.52, 1.52, 2.52], 75),
    avchd: ([0.52, 1.52, 2.52], [0.52, 1.52, 2.52], 75),
    trimmed: ([0.8, 1.8], [0.8, 1.8], 57),
    late_picture: ([0.52, 1.52, 2.52], [0.12, 1.12, 2.12], 75),
    broken_start: ([], [], 0),  # by what is left of it
    lossy: ([0.52, 1.52, 2.52], [0.52, 1.52, 2.52], 75),
    two_programs: ([0.52, 1.52, 2.52], [0.52, 1.52, 2.52], 75),
    fragmented: ([0.52, 1.52, 2.52], [0.52, 1.52, 2.52], 75),
    browser: ([0.52, 1.52, 2.52], [0.52, 1.52, 2.52], 75),
    theora: ([0.52, 1.52, 2.52], [0.52, 1.52, 2.52], 65),  # libtheora keeps repeats at the end to itself
}


def measured(path: Path) -> tuple[list[float], list[float], int]:
    """(flashes, beeps, pictures): seconds after the first picture."""
    times, flashes, beeps = [], [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            times.append(float(frame.time))
            middle = frame.to_ndarray(format="gray")[16:-16, 16:-16].mean()
            if middle > 185 and (not flashes or times[-1] - flashes[-1] > 0.2):
                flashes.append(times[-1])
    last = -1.0
    with av.open(str(path)) as container:
        for packet in container.demux(audio=0):
            with contextlib.suppress(av.error.InvalidDataError):  # what was copied damaged is damaged
                for sound in packet.decode():
                    samples = av.AudioResampler("flt", "mono").resample(sound)[0].to_ndarray().ravel()
                    for index in np.nonzero(np.abs(samples) > 0.15)[0]:
                        at = float(sound.time) + index / sound.sample_rate
                        beeps += [at] if at - last > 0.2 or not beeps else []
                        last = at
    return [time - times[0] for time in flashes], [time - times[0] for time in beeps], len(times)


@needs_ffmpeg
@pytest.mark.parametrize("extension", ["mp4", "mkv"])
@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_it_comes_back_in_step(maker: Any, extension: str, tmp_path: Path) -> None:
    flashes, beeps, count = MAKERS[maker]
    clip = probe(maker(tmp_path))
    _, writer = run_through(clip, tmp_path / f"out.{extension}")
    seen, heard, pictures = measured(writer.path)
    if maker in (broken_start, lossy):
        assert pictures > 45 and len(seen) == len(heard) > 1
        assert seen == pytest.approx(heard, abs=0.025)
        return
    assert pictures == count
    assert seen == pytest.approx(flashes, abs=0.005)
    assert heard == pytest.approx(beeps, abs=0.025)  # a frame of AAC is 21 ms
    assert clip.size == ((64, 96) if maker is camera else (96, 64))


@needs_ffmpeg
def test_what_of_them_is_not_kept_is_named(tmp_path: Path) -> None:
    assert "not kept: data streams" in open_writer(tmp_path / "a.mp4", probe(camera(tmp_path))).notices
    others = open_writer(tmp_path / "b.mp4", probe(two_programs(tmp_path))).notices
    assert "not kept: second video streams (mpeg2video)" in others


# -- GIFs, written byte by byte ----------------------------------------------------------------------------------

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
OTHERS = [(9, 9, 9), (200, 180, 0), (0, 90, 90), (250, 240, 230)]


def compressed(indices: list[int]) -> bytes:
    """Two-bit pixels as a GIF has them, the table of codes cleared before it grows."""
    bits, filled, data = 0, 0, bytearray()
    codes = [4]
    for number, index in enumerate(indices):
        codes += [index, 4] if number % 2 else [index]
    for code in [*codes, 5]:
        bits |= code << filled
        filled += 3
        while filled >= 8:
            data.append(bits & 255)
            bits, filled = bits >> 8, filled - 8
    data.append(bits & 255)
    blocks = [bytes(data[at : at + 255]) for at in range(0, len(data), 255)]
    return b"\2" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"


def gif(path: Path, frames: list[tuple[int, int, np.ndarray, int, int, int | None, bool]]) -> Path:
    """Frames: left, top, indices, hundredths of a second, disposal, transparent index, colours of its own."""
    data = b"GIF89a" + struct.pack("<HH", 48, 32) + b"\x81\0\0" + bytes(sum(COLOURS, ()))
    data += b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"
    for left, top, indices, delay, disposal, clear, own in frames:
        data += b"\x21\xf9\4" + struct.pack("<BHBB", disposal << 2 | (clear is not None), delay, clear or 0, 0)
        data += b"\x2c" + struct.pack("<HHHHB", left, top, *indices.shape[::-1], 0x81 if own else 0)
        data += (bytes(sum(OTHERS, ())) if own else b"") + compressed(indices.ravel().tolist())
    path.write_bytes(data + b"\x3b")
    return path


FULL, SQUARE, OTHER = np.zeros((32, 48), int), np.full((10, 12), 1), np.full((10, 12), 2)
HOLE = np.pad(np.full((4, 6), 3), 3, constant_values=2)
GIFS = {
    "restored background": [
        (0, 0, FULL, 10, 1, None, False),
        *((x, 5, SQUARE, 10, 2, None, False) for x in (5, 20, 1)),
    ],
    "restored picture": [(0, 0, FULL, 10, 1, None, False), *((x, 5, OTHER, 10, 3, None, False) for x in (5, 20, 1))],
    "holes": [(0, 0, FULL, 10, 1, None, False), (5, 5, HOLE, 10, 1, 3, False), (20, 9, HOLE, 10, 1, 3, False)],
    "colours of their own": [(0, 0, FULL, 10, 1, None, True), (5, 5, SQUARE, 10, 1, None, False)],
    "no delays": [(0, 0, FULL, 0, 1, None, False), (5, 5, SQUARE, 0, 1, None, True), (9, 9, OTHER, 50, 1, None, False)],
    "a small first picture": [(10, 10, SQUARE, 10, 1, None, False), (5, 5, OTHER, 10, 1, None, False)],
    "transparent from the start": [(5, 5, HOLE, 10, 2, 3, False), (20, 9, HOLE, 10, 2, 3, False)],
}


@pytest.mark.parametrize("name", GIFS)
def test_gifs_of_other_makers(name: str, tmp_path: Path) -> None:
    """As Pillow shows them; a delay of nothing is a tenth of a second, as in every browser."""
    path = gif(tmp_path / "in.gif", GIFS[name])
    clip = probe(path)
    shown = []
    with Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            white = Image.new("RGBA", frame.size, "white")
            white.alpha_composite(frame.convert("RGBA"))
            shown.append(np.asarray(white.convert("RGB")))
    for expected, got in zip(shown, frames_of(clip), strict=True):
        assert np.array_equal(expected, got.pixels.rgb())
    _, writer = run_through(clip, tmp_path / "out.gif")
    delays = [(frame[3] or 10) * 10 for frame in GIFS[name]]
    with Image.open(writer.path) as image:
        assert [frame.info["duration"] for frame in ImageSequence.Iterator(image)] == delays
        assert image.info["loop"] == 0


# -- what is known and not read ----------------------------------------------------------------------------------

FOREIGN = {
    "photo.heic": (b"\0\0\0\x18ftypheic" + bytes(50), "a HEIC or AVIF picture"),
    "anim.avif": (b"\0\0\0\x2cftypavis" + bytes(50), "a HEIC or AVIF picture"),
    "a.jxl": (b"\xff\x0a" + bytes(50), "a JPEG XL picture"),
    "a.exr": (b"\x76\x2f\x31\x01" + bytes(50), "an OpenEXR picture"),
    "a.psd": (b"8BPS\0\1" + bytes(50), "a Photoshop document"),
    "a.pdf": (b"%PDF-1.4\n" + bytes(50), "a PDF document"),
    "a.svg": (b'<?xml version="1.0"?>\n<svg xmlns="x">', "an SVG drawing"),
    "clip.mp4": (b"<!DOCTYPE html>\n<html><head>", "a web page"),
    "a.m3u8": (b"#EXTM3U\n#EXTINF:3,\na.ts\n", "a playlist"),
    "a.zip": (b"PK\x03\x04" + bytes(50), "an archive"),
    "a.tga": (bytes(60), "a Targa picture"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_read_is_called_what_it_is(name: str, tmp_path: Path) -> None:
    data, what = FOREIGN[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(MediaError, match="which is not read") as caught:
        probe(tmp_path / name)
    assert caught.value.message.startswith(what) and name in caught.value.message and caught.value.hint


def test_a_cameras_raw_picture_is_not_its_thumbnail(tmp_path: Path) -> None:
    thumbnail = io.BytesIO()
    Image.fromarray(picture(1, 64, 48)).save(thumbnail, "TIFF")
    (tmp_path / "IMG_1.dng").write_bytes(thumbnail.getvalue())
    with pytest.raises(MediaError, match="a camera's raw picture"):
        probe(tmp_path / "IMG_1.dng")
