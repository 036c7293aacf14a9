"""Draws examples/clip.mp4 and examples/reference.png: a ball bouncing over hills, with sound. 2 s, 480x270, 24 fps.

Run `python examples/make_clip.py`.
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT, RATE, FRAMES, SAMPLE_RATE = 480, 270, 24, 48, 48_000
BEAT = 16  # frames from one bounce to the next
HERE = Path(__file__).resolve().parent


def picture(frame: int) -> Image.Image:
    """One frame, drawn at twice the size and halved, so that edges are smooth."""
    image = Image.new("RGB", (2 * WIDTH, 2 * HEIGHT))
    draw = ImageDraw.Draw(image)
    for y in range(2 * HEIGHT):
        t = y / (2 * HEIGHT)
        draw.line([(0, y), (2 * WIDTH, y)], fill=(int(110 + 110 * t), int(170 + 50 * t), int(235 - 25 * t)))
    draw.ellipse((760, 50, 860, 150), fill=(255, 236, 150))
    for depth, colour in enumerate([(116, 160, 118), (92, 142, 84), (70, 122, 60)]):
        shift = frame * (0.6 + 0.9 * depth)
        ridge = [
            (x, 330 + 62 * depth - 40 * math.sin((x + shift) / (190 - 30 * depth)) - 12 * math.sin((x + shift) / 47))
            for x in range(0, 2 * WIDTH + 8, 8)
        ]
        draw.polygon([(0, 2 * HEIGHT), *ridge, (2 * WIDTH, 2 * HEIGHT)], fill=colour)
    phase = frame % BEAT / BEAT
    height = 4 * phase * (1 - phase)
    x, y, radius = 120 + 15 * frame, 440 - 230 * height, 46
    draw.ellipse((x - 50, 476, x + 50, 492), fill=(50, 92, 44))
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(214, 58, 48))
    spin = frame / FRAMES * 720
    draw.pieslice((x - radius, y - radius, x + radius, y + radius), spin, spin + 60, fill=(245, 240, 232))
    draw.pieslice((x - radius, y - radius, x + radius, y + radius), spin + 180, spin + 240, fill=(245, 240, 232))
    return image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def sound() -> np.ndarray:
    """A soft knock at each bounce, (1, samples) float32 in [-1, 1]."""
    time = np.arange(FRAMES * SAMPLE_RATE // RATE) / SAMPLE_RATE
    since = time % (BEAT / RATE)
    return (0.4 * np.exp(-since * 14) * np.sin(2 * np.pi * 180 * since)).astype(np.float32)[None]


def main() -> None:
    with av.open(HERE / "clip.mp4", "w", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=RATE, options={"crf": "20"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for frame in range(FRAMES):
            container.mux(video.encode(av.VideoFrame.from_image(picture(frame))))
        container.mux(video.encode())
        samples = av.AudioFrame.from_ndarray(sound(), format="fltp", layout="mono")
        samples.sample_rate, samples.time_base, samples.pts = SAMPLE_RATE, Fraction(1, SAMPLE_RATE), 0
        container.mux(audio.encode(samples))
        container.mux(audio.encode())
    reference = Image.new("RGB", (240, 240), "white")
    draw = ImageDraw.Draw(reference)
    draw.ellipse((30, 30, 210, 210), fill=(40, 90, 200))
    draw.ellipse((80, 60, 130, 110), fill=(150, 190, 250))
    reference.save(HERE / "reference.png", optimize=True)


if __name__ == "__main__":
    main()
