"""A mask limits the edit: outside it, what goes to the encoder is the source's own, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from kiwi_cli.errors import MediaError, UsageError
from kiwi_cli.video import Size, load_mask, open_writer, probe, read_frames, select
from kiwi_cli.video import writer as writer_module
from kiwi_cli.video.mask import composite, feathered

from .media import make_clip, make_sequence, run_through


def negative(rgb: np.ndarray) -> np.ndarray:
    return 255 - rgb


@pytest.fixture
def handed(monkeypatch):
    """The frames that the encoder is given."""
    frames: list[np.ndarray] = []
    real = writer_module.open_sink

    def spying(path, target):
        sink = real(path, target)
        add = sink.add

        def spy(rgb, frame, time):
            frames.append(rgb.copy())
            add(rgb, frame, time)

        sink.add = spy
        return sink

    monkeypatch.setattr(writer_module, "open_sink", spying)
    return frames


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("feather", [0, 6])
def test_outside_the_mask_the_encoder_gets_the_source(tmp_path, clip_file, handed, fit, feather):
    clip = probe(clip_file)
    mask = load_mask("20,10,40,30", clip, feather=feather)
    run_through(clip, tmp_path / "out.mp4", size=Size(64, 32), fit=fit, edit=negative, mask=mask)
    sources = [frame.rgb for frame in read_frames(clip)]
    outside = np.ones((clip.height, clip.width), bool)
    outside[10:40, 20:60] = False
    assert len(handed) == len(sources) == 12
    for given, source in zip(handed, sources, strict=True):
        assert (given[outside] == source[outside]).all()
        assert (given[20:30, 35:45] != source[20:30, 35:45]).any()


def test_outside_the_mask_pictures_are_the_source(tmp_path):
    folder = make_sequence(tmp_path / "in")
    clip = probe(folder)
    _, writer = run_through(clip, tmp_path / "out", edit=negative, mask=load_mask("0,0,10,32", clip))
    for name in (path.name for path in folder.glob("*.png")):
        before, after = (np.asarray(Image.open(d / name)) for d in (folder, writer.path))
        assert (after[:, 10:] == before[:, 10:]).all()
        assert (after[:, :10] == 255 - before[:, :10]).all()


def test_a_picture_as_mask_is_scaled_to_the_clip(tmp_path, clip_file, handed):
    white = np.zeros((128, 192), np.uint8)
    white[:, 96:] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    clip = probe(clip_file)
    run_through(clip, tmp_path / "out.mp4", edit=negative, mask=load_mask(tmp_path / "mask.png", clip))
    source = next(read_frames(clip)).rgb
    assert (handed[0][:, :46] == source[:, :46]).all()
    assert (handed[0][:, 50:] == 255 - source[:, 50:]).all()


def test_a_moving_mask_moves_with_the_clip(tmp_path, clip_file, handed):
    folder = tmp_path / "masks"
    folder.mkdir()
    for number in range(12):
        white = np.zeros((64, 96), np.uint8)
        white[:, number * 8 : number * 8 + 8] = 255
        Image.fromarray(white).save(folder / f"{number:03d}.png")
    clip = probe(clip_file)
    mask = load_mask(folder, clip)
    run_through(clip, tmp_path / "out.mp4", select(clip, start=0.12), edit=negative, mask=mask)
    sources = [frame.rgb for frame in read_frames(clip)][3:]
    for number, (given, source) in enumerate(zip(handed, sources, strict=True), start=3):
        changed = (given != source).any(-1).any(0)
        assert np.flatnonzero(changed).tolist() == list(range(number * 8, number * 8 + 8))


def test_a_video_as_mask_goes_by_time(tmp_path, handed):
    clip = probe(make_clip(tmp_path / "in.mp4", frames=20, fps=20))
    with open_writer(tmp_path / "mask.mp4", clip, select(clip)) as writer:
        for number in range(20):
            # black for half a second, then white
            writer.write(np.full((1, 64, 96, 3), 255 if number >= 10 else 0, np.uint8))
    handed.clear()
    mask = load_mask(tmp_path / "mask.mp4", clip)
    run_through(clip, tmp_path / "out.mp4", edit=negative, mask=mask)
    sources = [frame.rgb for frame in read_frames(clip)]
    for number, (given, source) in enumerate(zip(handed, sources, strict=True)):
        assert (given == (255 - source if number >= 10 else source)).all()


def test_composite_is_exact_at_its_ends():
    rng = np.random.default_rng(0)
    edited, source = rng.integers(0, 256, (2, 64, 64, 3), np.uint8)
    mask = rng.integers(0, 256, (64, 64), np.uint8)
    out = composite(edited, source, mask)
    assert (out[mask == 0] == source[mask == 0]).all()
    assert (out[mask == 255] == edited[mask == 255]).all()
    exact = (edited * (mask[..., None] / 255) + source * (1 - mask[..., None] / 255)).round()
    assert np.abs(out - exact).max() <= 1


def test_feather_fades_inwards():
    mask = np.zeros((60, 60), np.uint8)
    mask[20:40, 20:40] = 255
    soft = feathered(mask, 6)
    assert (soft[mask == 0] == 0).all()
    assert soft[30, 30] == 255
    profile = soft[30, 20:31].astype(int)
    assert profile[0] < 60
    assert (np.diff(profile) >= 0).all()


@pytest.mark.parametrize("spec", ["500,500,10,10", "-20,0,10,10"])
def test_a_rectangle_outside_the_clip(clip_file, spec):
    with pytest.raises(UsageError, match="outside the clip"):
        load_mask(spec, probe(clip_file))


def test_masks_that_cannot_be_used(tmp_path, clip_file):
    clip = probe(clip_file)
    with pytest.raises(UsageError, match=r"mask not found: 'nothere\.png'"):
        load_mask("nothere.png", clip)
    Image.new("L", (96, 64)).save(tmp_path / "black.png")
    with pytest.raises(MediaError, match="black all over"):
        load_mask(tmp_path / "black.png", clip)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    with pytest.raises(MediaError):
        load_mask(tmp_path / "broken.png", clip)
    with pytest.raises(UsageError, match="feather"):
        load_mask("0,0,10,10", clip, feather=-1)


def test_a_mask_of_another_shape_or_length_is_said(tmp_path, clip_file):
    clip = probe(clip_file)
    Image.new("L", (64, 64), 255).save(tmp_path / "square.png")
    assert "another shape" in load_mask(tmp_path / "square.png", clip).notices[0]
    mask = load_mask(make_sequence(tmp_path / "few", frames=3, size=(96, 64)), clip)
    assert "3 frames for 12" in mask.notices[0]
    _, writer = run_through(clip, tmp_path / "out.mp4", mask=mask)
    assert mask.notices[0] in writer.notices
