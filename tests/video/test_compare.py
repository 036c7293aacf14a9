"""Comparisons and contact sheets."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from kiwi_cli.errors import UsageError
from kiwi_cli.video import probe, read_frames, select, write_sheet
from kiwi_cli.video.compare import compare

from .media import make_sequence, run_through


def test_side_by_side(tmp_path):
    clip = probe(make_sequence(tmp_path / "in"))
    _, writer = run_through(clip, tmp_path / "out", compare="side", edit=lambda rgb: 255 - rgb)
    for source, both in zip(read_frames(clip), read_frames(probe(writer.path)), strict=True):
        assert (both.rgb[:, :48] == source.rgb).all()
        assert (both.rgb[:, 48:] == 255 - source.rgb).all()


@pytest.mark.parametrize("how", ["side", "wipe"])
def test_comparisons_keep_sound_and_length(tmp_path, clip_file, how):
    clip = probe(clip_file)
    _, writer = run_through(clip, tmp_path / "out.mp4", compare=how)
    back = probe(writer.path)
    assert back.size == ((192, 64) if how == "side" else (96, 64))
    assert (back.frame_count, back.duration, len(back.audio)) == (12, clip.duration, 1)


def test_the_divider_moves():
    black, white = np.zeros((10, 100, 3), np.uint8), np.full((10, 100, 3), 200, np.uint8)
    edges = []
    for time in (Fraction(0), Fraction(1), Fraction(3)):
        frame = compare(black, white, "wipe", time)
        assert (frame[:, 0] == 0).all()
        assert (frame[:, -1] == 200).all()
        edges.append(int(np.flatnonzero(frame[0, :, 0])[0]))
    assert edges[2] < edges[0] < edges[1]


def test_an_unknown_comparison(tmp_path, clip_file):
    with pytest.raises(UsageError, match="'diagonal'"):
        run_through(probe(clip_file), tmp_path / "out.mp4", compare="diagonal")


@pytest.mark.parametrize("keep_rest", [False, True])
def test_a_sheet_shows_the_same_moments_of_both(tmp_path, keep_rest):
    clip = probe(make_sequence(tmp_path / "in", frames=9, size=(96, 64)))
    span = select(clip, start=0.1, frames=5)
    _, writer = run_through(clip, tmp_path / "out", span, keep_rest=keep_rest, edit=lambda rgb: 255 - rgb)
    write_sheet(tmp_path / "sheet.png", clip, span, writer.path, keep_rest=keep_rest, columns=3, width=96)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (18 + 64 + 4 + 64, 3 * 96 + 2 * 4, 3)
    sources = [frame.rgb for frame in read_frames(clip, span)]
    for column, number in enumerate((0, 2, 4)):
        left = column * 100
        assert (sheet[18:82, left : left + 96] == sources[number]).all()
        assert (sheet[86:150, left : left + 96] == 255 - sources[number]).all()


def test_a_sheet_is_a_png_and_is_not_overwritten(tmp_path, clip_file):
    clip = probe(clip_file)
    with pytest.raises(UsageError, match="PNG"):
        write_sheet(tmp_path / "sheet.mp4", clip, select(clip), clip_file)
    (tmp_path / "sheet.png").write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists"):
        write_sheet(tmp_path / "sheet.png", clip, select(clip), clip_file)
