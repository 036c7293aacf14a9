"""Which level is chosen for a card, and what is said when none fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kiwi_cli import KiwiPipeline
from kiwi_cli.engine import demand as asks
from kiwi_cli.engine import memory as mem
from kiwi_cli.errors import DeviceError, UsageError

from ..conftest import CHECKPOINT
from .work import FRAMES, GB, work_of

CARDS = {  # GB free: (level, decode strips)
    80: ("resident", 1),
    40: ("resident", 1),
    26.2: ("resident", 1),
    23.5: ("release", 1),
    18.6: ("release", 1),
    15.6: ("swap", 1),
    12.6: ("swap", 1),
    12.0: ("stream", 1),
    8.1: ("stream", 1),
    8.0: ("stream", 2),
    7.5: ("stream", 4),
}


@pytest.mark.parametrize("free", CARDS)
def test_auto_picks_the_level_for_a_card(full: Any, weights: mem.Weights, free: float) -> None:
    chosen = mem.place(weights, work_of(full), int(free * GB))
    assert (chosen.level.name, chosen.decode_strips) == CARDS[free]
    assert chosen.level.exact and chosen.peak + mem.RESERVE <= free * GB


def test_below_what_works_it_is_refused_with_what_would_fit(full: Any, weights: mem.Weights) -> None:
    with pytest.raises(DeviceError) as error:
        mem.place(weights, work_of(full), int(5 * GB))
    assert "needs" in error.value.message and "5.0 GB may be used" in error.value.message
    size = error.value.hint.rsplit(" ", 1)[1]
    width, height = map(int, size.split("x"))
    smaller = work_of(full, (81, height, width, 3))
    assert mem.place(weights, smaller, int(5 * GB)).level.exact  # the advice is true
    assert width < 1280 and not width % 32 and not height % 32
    with pytest.raises(DeviceError, match=r"0\.5 GB may be used"):
        mem.place(weights, work_of(full), int(0.5 * GB))


def test_a_compiled_decoder_is_planned_with_what_its_graph_needs(full: Any, weights: mem.Weights) -> None:
    """9.5 GB of activations at the full shape, where the layers one by one need 6.3."""
    work = replace(work_of(full), compiled=True)
    assert work.activations("decode", 1) == pytest.approx(9.5 * GB, rel=0.02)
    for strips in asks.STRIPS:
        assert work.activations("decode", strips) > work_of(full).activations("decode", strips)
    assert work.activations("denoise", 1) == work_of(full).activations("denoise", 1)
    whole, strips = (mem.place(weights, each, int(8.5 * GB), "stream") for each in (work_of(full), work))
    assert (whole.decode_strips, strips.decode_strips) == (1, 4)


def test_an_edit_of_a_compiled_model_is_planned_so() -> None:
    from kiwi_cli.engine.compilation import compile_model

    pipe = KiwiPipeline.from_pretrained(str(CHECKPOINT), device="cpu", dtype="float32")
    before = work_of(pipe, FRAMES.shape)
    compile_model(pipe, backend="eager")
    assert work_of(pipe, FRAMES.shape) == replace(before, compiled=True)


def test_tiled_is_never_chosen_by_itself_and_says_what_it_is(full: Any, weights: mem.Weights) -> None:
    work = work_of(full)
    tiled = mem.place(weights, work, int(5 * GB), "tiled")
    assert not tiled.level.exact and "NOT exact" in tiled.describe()
    assert mem.place(weights, work, int(4.7 * GB), "tiled").encode_strips == 4  # the encoder has no tiles, but strips
    assert all(mem.place(weights, work, int(free * GB)).level.exact for free in (8, 10, 20, 50))


def test_a_level_asked_for_is_kept(full: Any, weights: mem.Weights) -> None:
    assert mem.place(weights, work_of(full), int(80 * GB), "swap").level.name == "swap"
    with pytest.raises(DeviceError, match="--memory resident"):
        mem.place(weights, work_of(full), int(16 * GB), "resident")
    with pytest.raises(UsageError, match="'huge'"):
        mem.place(weights, work_of(full), None, "huge")


@pytest.mark.parametrize(
    ("text", "count"), [("12GB", 12e9), ("12 GiB", 12 * 2**30), ("800MB", 8e8), ("12", 12e9), ("1.5g", 1.5e9)]
)
def test_amounts_of_memory(text: str, count: float) -> None:
    assert mem.parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "much", "-3GB", "0", "12 apples", "nan"])
def test_not_amounts_of_memory(text: str) -> None:
    with pytest.raises(UsageError, match="not an amount of memory"):
        mem.parse_bytes(text)


def test_the_next_plan_is_by_what_is_free_then(full: Any, weights: mem.Weights) -> None:
    work = work_of(full)
    current = mem.place(weights, work, int(80 * GB))
    for free in (26.2, 18.6, 12.6, 8.1):
        smaller = mem.step_down(current, weights, work, int(free * GB), "denoise")
        assert smaller is not None and smaller.peak + mem.RESERVE <= free * GB
        assert smaller.level.name == (CARDS[free][0] if free < 20 else "release")
    least = mem.step_down(current, weights, work, int(2 * GB), "denoise")
    assert least is not None and (least.level.name, least.decode_strips) == ("stream", 4)
    # What failed in the decode is not tried again with as much there.
    strips = mem.step_down(current, weights, work, int(80 * GB), "decode")
    assert strips is not None and (strips.level.name, strips.encode_strips, strips.decode_strips) == ("resident", 1, 2)
    assert mem.step_down(least, weights, work, None, "decode") is None
    assert mem.step_down(current, weights, work, None, "denoise", "resident") is None
