"""A clip of any length with a white flash and a beep together, made in seconds; and where both are in a result.

    python benchmarks/marked_clip.py clip.mp4 --seconds 600 --fps 12 --size 1920x1080

Pictures are examples/bunny.mp4 there and back again, ten seconds that are encoded once: their packets are written over
and over. The marks are at one second, and two before the end.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np

from kiwi_cli.video import Size, probe, read_frames

BUNNY = Path(__file__).resolve().parents[1] / "examples" / "bunny.mp4"
TURN = 10  # seconds after which the pictures begin again
RATE, TONE, BEEP = 48000, 1000, 0.1  # of the sound: samples a second, Hz, seconds
NEAR = 1.0  # seconds on either side in which a mark is looked for

Packets = list[tuple[bytes, int, bool]]
"""A second's packets: data, place in the second, whether it is a key frame."""


def marks(seconds: int) -> tuple[int, int]:
    """The seconds at which a clip of this length flashes and beeps."""
    return 1, seconds - 2


def make(path: Path, seconds: int, fps: int, size: Size) -> None:
    """Write the clip: H.264 and AAC.

    Args:
        seconds: at least 5. fps: at most what half the pictures last for, 24.
    """
    pictures = _pictures(fps, size)
    white = np.full((size.height, size.width, 3), 255, np.uint8)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps)
        _prepare(video, fps, size)
        video.codec_context.open()
        sound = container.add_stream("aac", rate=RATE, layout="mono")
        plain = [_encode(pictures[fps * second : fps * (second + 1)], fps, size) for second in range(TURN)]
        marked = {
            second: _encode([white, *pictures[fps * (second % TURN) + 1 : fps * (second % TURN + 1)]], fps, size)
            for second in marks(seconds)
        }
        for second in range(seconds):
            for data, place, key in marked.get(second, plain[second % TURN]):
                packet = av.Packet(data)
                packet.pts = packet.dts = fps * second + place
                packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, fps), video, key
                container.mux(packet)
            for frame in _heard(second, second in marked):
                container.mux(sound.encode(frame))
        container.mux(sound.encode(None))


def _prepare(stream: object, fps: int, size: Size) -> None:
    stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"  # type: ignore[attr-defined]
    stream.time_base = Fraction(1, fps)  # type: ignore[attr-defined]
    stream.options = {  # type: ignore[attr-defined]
        "preset": "veryfast", "crf": "23", "bf": "0", "g": str(fps), "sc_threshold": "0", "flags": "+cgop"
    }  # fmt: skip


def _pictures(fps: int, size: Size) -> list[np.ndarray]:
    """The pictures of a turn, the second half of which is the first backwards."""
    half = TURN * fps // 2
    with closing(read_frames(probe(BUNNY))) as frames:
        step = max(1, 24 // fps)
        there = [
            av.VideoFrame.from_ndarray(frame.rgb, format="rgb24")
            .reformat(*size, format="rgb24", interpolation="BICUBIC")
            .to_ndarray()
            for frame in islice(frames, 0, half * step, step)
        ]
    there = [there[place * len(there) // half] for place in range(half)]
    return there + there[::-1]


def _encode(pictures: list[np.ndarray], fps: int, size: Size) -> Packets:
    """A second, which needs nothing of what was before it."""
    codec = av.CodecContext.create("libx264", "w")
    codec.framerate = Fraction(fps)
    _prepare(codec, fps, size)
    found = []
    for number, picture in enumerate([*pictures, None]):
        frame = None if picture is None else av.VideoFrame.from_ndarray(picture, format="rgb24")
        if frame is not None:
            frame.pts = number
        found += [(bytes(packet), packet.pts, packet.is_keyframe) for packet in codec.encode(frame)]
    return found


def _heard(second: int, marked: bool) -> list[av.AudioFrame]:
    """A second of a low hum, which begins with a beep where it is marked."""
    time = second + np.arange(RATE) / RATE
    wave = 0.02 * np.sin(2 * np.pi * 220 * time)
    if marked:
        wave[: int(BEEP * RATE)] += 0.6 * np.sin(2 * np.pi * TONE * time[: int(BEEP * RATE)])
    frames = []
    for start in range(0, RATE, 1000):
        samples = wave[None, start : start + 1000].astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, second * RATE + start, Fraction(1, RATE)
        frames.append(frame)
    return frames


def flash_at(path: Path, near: float) -> float:
    """The time, in seconds, of the frame that is farthest above the one before it in brightness, around `near`."""
    lights = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        container.seek(int(max(0.0, near - 2 * NEAR) / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if frame.time > near + NEAR:
                break
            if frame.time >= near - NEAR:
                lights.append((frame.time, frame.to_ndarray(format="gray").mean()))
    rises = np.diff([light for _, light in lights])
    return lights[int(np.argmax(rises)) + 1][0]


def beep_at(path: Path, near: float) -> float:
    """The time, in seconds, at which the beep around `near` begins: where half of its loudness is reached."""
    parts, start = [], None
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        container.seek(int(max(0.0, near - 2 * NEAR) / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if frame.time > near + NEAR:
                break
            if frame.time >= near - NEAR:
                start = frame.time if start is None else start
                parts.append(frame.to_ndarray().reshape(-1, frame.samples)[0])
    assert start is not None
    wave = np.concatenate(parts)
    own = np.exp(-2j * np.pi * TONE * np.arange(len(wave)) / RATE)
    window = RATE // 100
    loud = np.abs(np.convolve(wave * own, np.ones(window) / window, "same"))
    return start + int(np.argmax(loud > loud.max() / 2)) / RATE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--fps", type=int, default=12)
    parser.add_argument("--size", default="1920x1080")
    options = parser.parse_args()
    make(options.clip, options.seconds, options.fps, Size(*(int(side) for side in options.size.split("x"))))
    for near in marks(options.seconds):
        print(f"flash {flash_at(options.clip, near):.3f} s, beep {beep_at(options.clip, near):.3f} s")


if __name__ == "__main__":
    main()
