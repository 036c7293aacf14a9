"""A whole clip through a pipeline in windows that are denoised together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from kiwi_cli.engine import long_decode
from kiwi_cli.engine.layout import ANCHORS, Layout, lay_out
from kiwi_cli.engine.long import LongEdit, LongSettings
from kiwi_cli.engine.long_decode import LongDecode
from kiwi_cli.engine.step_cache import StepCache
from kiwi_cli.engine.workspace import Workspace
from kiwi_cli.errors import UsageError
from kiwi_cli.model.sampling import SOLVERS
from kiwi_cli.video import Size

from .conftest import random_frames

SIZE = Size(64, 64)


def through(
    pipe: Any,
    frames: np.ndarray,
    layout: Layout,
    pairs: bool = False,
    space: Workspace | None = None,
    **settings: Any,
) -> np.ndarray:
    """The edited frames of a clip."""

    def frames_from(first: int) -> Iterator[np.ndarray]:
        yield from frames[first:]

    plan = LongSettings(**{"instruction": "make it snowy", "steps": 2, **settings})
    edit = LongEdit(pipe, frames_from, SIZE, layout, plan, space or Workspace())  # type: ignore[arg-type]
    edit.read()
    edit.denoise()
    decoding = LongDecode(pipe, edit.made)
    return np.concatenate(list(decoding.pairs() if pairs else decoding.frames()))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("count", [1, 6, 18])
def test_one_window_is_an_edit_to_the_bit(count: int, solver: str, pipe: Any) -> None:
    frames = random_frames(count)
    whole = pipe.edit(frames, "make it snowy", steps=2, seed=4, solver=solver)
    joined = through(pipe, frames, lay_out((count,), 21, 6, "frame"), seed=4, solver=solver)
    assert np.array_equal(joined, whole)


def test_shots_are_what_they_are_apart(pipe: Any) -> None:
    """Three shots, of which one has several windows and one a single frame."""
    frames, shots = random_frames(24), (5, 18, 1)
    whole = through(pipe, frames, lay_out(shots, 4, 1, "frame"))
    parts = [frames[:5], frames[5:23], frames[23:]]
    apart = [through(pipe, part, lay_out((len(part),), 4, 1, "frame")) for part in parts]
    assert np.array_equal(whole, np.concatenate(apart))
    assert np.array_equal(whole[:5], pipe.edit(parts[0], "make it snowy", steps=2))
    assert np.array_equal(whole[23:], pipe.edit(parts[2], "make it snowy", steps=2))


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("of_windows", [False, True])
def test_every_frame_is_edited(anchor: Any, of_windows: bool, pipe: Any) -> None:
    frames = random_frames(14)
    edited = through(pipe, frames, lay_out((14,), 3, 1, anchor), window_contexts=of_windows)
    assert edited.shape == frames.shape
    assert np.abs(edited.astype(int) - frames).mean(axis=(1, 2, 3)).min() > 20


def test_a_short_shot_is_filled(pipe: Any) -> None:
    frames = random_frames(2)
    filled = pipe.edit(np.concatenate([frames, frames[-1:], frames[-1:], frames[-1:]]), "make it snowy", steps=2)
    assert np.array_equal(through(pipe, frames, lay_out((2,), 2, 0, "frame", least=5)), filled[:2])


def test_pairs_are_the_edit_and_the_source_there_and_back(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = random_frames(21)
    layout = lay_out((21,), 4, 1, "none")
    monkeypatch.setattr(long_decode, "BLOCK", 4)  # fewer than there are
    pairs = through(pipe, frames, layout, pairs=True, steps=1)
    assert np.array_equal(pairs[:, 0], through(pipe, frames, layout, steps=1))
    back = np.concatenate(list(pipe.decode(pipe.encode_source(frames), len(frames))))
    assert np.array_equal(pairs[:, 1], back)


def test_references_are_seen_by_every_window(pipe: Any) -> None:
    from PIL import Image

    picture = Image.fromarray(random_frames(1, seed=9)[0])
    frames, layout = random_frames(21), lay_out((21,), 4, 1, "frame")
    assert np.array_equal(
        through(pipe, frames[:9], lay_out((9,), 4, 1, "frame"), pictures=(picture,)),
        pipe.edit(frames[:9], "make it snowy", [picture], steps=2),
    )
    without, with_picture = (through(pipe, frames, layout, pictures=each) for each in ((), (picture,)))
    assert np.abs(without.astype(int) - with_picture).mean(axis=(1, 2, 3)).min() > 1


def test_a_step_cache_keeps_its_state_for_each_window(pipe: Any) -> None:
    frames, layout = random_frames(13), lay_out((13,), 3, 1, "frame")
    exact = through(pipe, frames, layout, steps=6)
    assert np.array_equal(through(pipe, frames, layout, steps=6, cache=StepCache("easy", 0.0)), exact)
    skipped = through(pipe, frames, layout, steps=6, cache=StepCache("easy", 0.5))
    assert not np.array_equal(skipped, exact)
    one = lay_out((9,), 3, 1, "frame")
    alone = pipe.edit(frames[:9], "make it snowy", steps=6, cache=StepCache("easy", 0.5))
    assert np.array_equal(through(pipe, frames[:9], one, steps=6, cache=StepCache("easy", 0.5)), alone)
    with pytest.raises(UsageError, match="first-block"):
        through(pipe, frames, layout, cache=StepCache("first-block", 0.1))


@pytest.mark.parametrize("level", ["swap", pytest.param("stream", marks=pytest.mark.slow)])
def test_memory_levels_give_the_same(level: str, loaded: Any) -> None:
    from kiwi_cli import KiwiPipeline

    from .conftest import CHECKPOINT

    frames, layout = random_frames(13), lay_out((8, 5), 2, 0, "frame")
    managed = KiwiPipeline.from_pretrained(str(CHECKPOINT), device="cpu", dtype="float32", memory=level)
    for pairs in (False, True):
        assert np.array_equal(through(managed, frames, layout, pairs), through(loaded, frames, layout, pairs))


def test_a_clip_that_became_shorter_is_refused(pipe: Any) -> None:
    with pytest.raises(UsageError, match="fewer frames"):
        through(pipe, random_frames(19), lay_out((21,), 3, 1, "frame"))


def test_values_that_are_not_finite_are_refused(pipe: Any) -> None:
    from kiwi_cli.errors import KiwiError

    weight = pipe.transformer.proj_out.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] = torch.inf
    try:
        with pytest.raises(KiwiError, match=r"transformer\.proj_out"):
            through(pipe, random_frames(9), lay_out((9,), 2, 1, "none"))
    finally:
        with torch.no_grad():
            weight.copy_(before)


def test_an_autoencoder_that_begins_anew_sees_each_window_alone(pipe: Any) -> None:
    """Windows of two latent frames: source and result are those of five frames, of which the last four are the
    window's."""
    frames, layout = random_frames(13), lay_out((13,), 2, 0, "frame", restarts=True)
    pairs = through(pipe, frames, layout, pairs=True)
    assert np.array_equal(pairs[:, 0], through(pipe, frames, layout))
    for start in (0, 4, 8):
        own = frames[start : start + 5]
        back = np.concatenate(list(pipe.decode(pipe.encode_source(own), 5)))
        assert np.array_equal(pairs[start + (start > 0) : start + 5, 1], back[1 if start else 0 :])


@pytest.mark.parametrize("place", ["vae.quant_conv", "transformer.blocks.0", "vae.post_quant_conv"])
def test_out_of_memory_goes_on_with_less(place: str, loaded: Any) -> None:
    """In a chunk, a window or a latent frame in the middle: nothing is lost, and the result is the same."""
    from kiwi_cli import KiwiPipeline

    from .conftest import CHECKPOINT

    frames, layout = random_frames(13), lay_out((9, 4), 2, 0, "frame")
    managed = KiwiPipeline.from_pretrained(str(CHECKPOINT), device="cpu", dtype="float32", memory="auto")
    part, _, inner = place.partition(".")
    calls = 0

    def full(module: Any, given: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError("no room")

    getattr(managed, part).get_submodule(inner).register_forward_pre_hook(full)
    assert np.array_equal(through(managed, frames, layout, steps=1), through(loaded, frames, layout, steps=1))
    placed = managed.residency.placement
    assert calls > 3 and (placed.level.name, placed.encode_strips, placed.decode_strips) != ("resident", 1, 1)
