"""Damaged files: no exception but ours, no hang, nothing half-written. Seeded, so that a failure repeats."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from PIL import Image

from kiwi_cli.errors import KiwiError
from kiwi_cli.video import probe, select

from .media import Sound, make_clip, make_sequence, picture, run_through

MUTATIONS = 300
SECONDS_EACH = 5.0  # a whole clip takes 0.02 s


def originals(folder: Path) -> list[Path]:
    small = {"frames": 4, "size": (48, 32), "sound": Sound(seconds=0.2)}
    files = [
        make_clip(folder / "a.mp4", **small),
        make_clip(folder / "b.mkv", **small),
        make_clip(folder / "c.mov", codec="prores_ks", pixel_format="yuv422p10le", frames=2, size=(48, 32)),
        make_clip(folder / "d.webm", codec="libvpx-vp9", frames=4, size=(48, 32)),
        make_clip(folder / "e.avi", codec="mjpeg", pixel_format="yuvj420p", frames=4, size=(48, 32)),
        make_clip(folder / "f.ts", frames=4, size=(48, 32)),
        make_clip(folder / "g.mp4", codec="libx265", frames=4, size=(64, 64)),
    ]
    run_through(probe(files[0]), folder / "h.gif")
    for name in ("i.png", "j.jpg", "k.webp"):
        Image.fromarray(picture(1, 48, 32)).save(folder / name)
    return [*files, *(folder / name for name in ("h.gif", "i.png", "j.jpg", "k.webp"))]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Flip, zero, cut, repeat or move bytes; often in the header, where it hurts most."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 40))):
        limit = min(len(out), 600) if rng.random() < 0.5 else len(out)
        at = rng.randrange(max(limit, 1))
        kind = rng.randrange(6)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.choice((0, 0xFF, 0x7F, 0x80, rng.randrange(256)))
        elif kind == 2:
            out[at : at + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", rng.randbytes(4)))
        elif kind == 3 and rng.random() < 0.3:
            del out[at:]
        elif kind == 4:
            del out[at : at + rng.randrange(1, 32)]
        else:
            out[at:at] = out[at : at + rng.randrange(1, 64)]
        if not out:
            return b"\0"
    return bytes(out)


@pytest.mark.parametrize("part", range(6))
def test_damaged_files(tmp_path, part):
    rng = random.Random(1000 + part)
    (tmp_path / "in").mkdir()
    sources = originals(tmp_path / "in")
    work = tmp_path / "work"
    work.mkdir()
    outcomes = {"written": 0, "refused": 0}
    for number in range(MUTATIONS // 6):
        source = rng.choice(sources)
        path = work / f"{number}{source.suffix}"
        path.write_bytes(mutated(source.read_bytes(), rng))
        output = work / (
            "out.png" if source.suffix in (".png", ".jpg", ".webp") else rng.choice(("out.mp4", "out.mkv"))
        )
        begin = time.monotonic()
        try:
            clip = probe(path, allow_truncated=rng.random() < 0.5)
            run_through(clip, output, select(clip, frames=20), quality="low")
            outcomes["written"] += 1
            assert output.exists()
            output.unlink()
        except KiwiError as error:
            outcomes["refused"] += 1
            assert error.message
            assert "\n" not in error.message
        assert time.monotonic() - begin < SECONDS_EACH, (number, source.name)
        assert [p.name for p in work.iterdir()] == [path.name], (number, source.name)
        path.unlink()
    # both happen, or the mutations are too gentle or too rough to test anything
    assert outcomes["written"] > 5
    assert outcomes["refused"] > 5


@pytest.mark.parametrize("part", range(2))
def test_damaged_sequences(tmp_path, part):
    rng = random.Random(part)
    for number in range(10):
        folder = make_sequence(tmp_path / f"in{number}", frames=4)
        victim = rng.choice(sorted(folder.iterdir()))
        victim.write_bytes(mutated(victim.read_bytes(), rng))
        try:
            run_through(probe(folder), tmp_path / f"out{number}")
        except KiwiError:
            assert not (tmp_path / f"out{number}").exists()
