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
        below = slice(16, None)  # the words are above
        assert (both.rgb[below, :48] == source.rgb[below]).all()
        assert (both.rgb[below, 48:] == 255 - source.rgb[below]).all()


@pytest.mark.parametrize("how", ["side", "wipe"])
def test_comparisons_keep_sound_and_length(tmp_path, clip_file, how):
    clip = probe(clip_file)
    _, writer = run_through(clip, tmp_path / "out.mp4", compare=how)
    back = probe(writer.path)
    assert back.size == ((192, 64) if how == "side" else (96, 64))
    assert (back.frame_count, back.duration, len(back.audio)) == (12, clip.duration, 1)


def test_the_divider_sweeps_over_the_whole_picture():
    black, white = np.zeros((200, 100, 3), np.uint8), np.full((200, 100, 3), 200, np.uint8)
    shown = [(compare(black, white, "wipe", Fraction(i, 10))[150, :, 0] == 200).mean() for i in range(11)]
    assert (shown[0], shown[-1]) == (0, 1)
    assert all(abs(part - i / 10) < 0.03 for i, part in enumerate(shown))


@pytest.mark.parametrize("frames", [5, 12])
def test_a_short_clips_wipe_shows_all_of_the_edit(tmp_path, frames):
    clip = probe(make_sequence(tmp_path / "in", frames=frames, size=(96, 64)))
    _, writer = run_through(clip, tmp_path / "out", compare="wipe", edit=lambda rgb: 255 - rgb)
    first, *_, last = (frame.rgb for frame in read_frames(probe(writer.path)))
    sources = [frame.rgb for frame in read_frames(clip)]
    assert (first[20:] == sources[0][20:]).all()
    assert (last[20:] == 255 - sources[-1][20:]).all()


@pytest.mark.parametrize("how", ["side", "wipe"])
def test_comparisons_say_which_is_which(how):
    grey = np.full((240, 320, 3), 120, np.uint8)
    frame = compare(grey, grey, how, Fraction(1, 2))
    top = frame[:14]
    parts = (top[:, :60], top[:, 320:380]) if how == "side" else (top[:, :60], top[:, -60:])
    for part in parts:
        assert (part == 255).any() and (part == 30).any()
    assert (frame[60:, :100] == 120).all()


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
