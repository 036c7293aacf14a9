"""The figures of looks: a perfect editor passes everything, one that does nothing or another look passes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kiwi_cli.bench.tiny import looks
from kiwi_cli.synth.edits import is_held_out
from kiwi_cli.synth.natural import natural_scene
from kiwi_cli.synth.phrases_looks import ADJECTIVES
from kiwi_cli.synth.scenes import Scene, make_scene

SCENES: dict[str, Any] = {"drawn": make_scene, "natural": natural_scene}


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(5, 48, 48, 5, held_out=True)


def records(editor: str) -> list[dict[str, Any]]:
    found = []
    for footage, made in SCENES.items():
        scene = made(1, 32, 32, 1, held_out=True)
        truths = looks.truths(scene)
        for ask in looks.ASKS:
            for split in ("seen", "held-out"):
                result = truths[{"perfect": ask.name, "idle": "source", "sepia": "sepia"}[editor]]
                figures = looks.measure(ask, truths, result, truths[ask.name], truths["source"])
                order = {"ordered": [editor == "perfect"] * 3} if split == "seen" else {}
                found.append({"ask": ask.name, "footage": footage, "scene": 1, "split": split, **figures, **order})
    return found


def test_a_perfect_editor_passes_and_others_do_not() -> None:
    rows = looks.summarise(records("perfect"))
    kinds = {ask.kind for ask in looks.ASKS}
    assert set(looks.passing(rows)) == kinds and len(rows) == 2 * len(looks.ASKS)
    assert all(row.gap_db == 0 and row.detailed_db < row.ceiling_db for row in rows)
    assert all(row.right == {"seen": (1.0, 0.0), "held-out": (1.0, 0.0)} for row in rows)
    assert looks.markdown(rows).count("| pass |") == len(rows)
    for editor in ("idle", "sepia"):
        rows = looks.summarise(records(editor))
        assert looks.passing(rows) == []
        assert all("seen 0 %, not" in row.failures[0] and "strengths 0 %" in " ".join(row.failures) for row in rows)


def test_one_colour_that_fails_takes_the_tint_away() -> None:
    worse = [{**record, "right": False} if record["ask"] == "tint red" else record for record in records("perfect")]
    assert set(looks.passing(looks.summarise(worse))) == {ask.kind for ask in looks.ASKS} - {"tint"}


@pytest.mark.parametrize("ask", looks.ASKS, ids=lambda ask: ask.name)
def test_the_amount_is_that_of_the_truth(ask: looks.Ask, scene: Scene) -> None:
    assert looks.amount_of(ask, scene, scene.source) == 0
    amounts = [looks.amount_of(ask, scene, ask.frames(scene.picture, strength)) for strength in looks.AMOUNTS]
    assert amounts[2] == pytest.approx(1.0) and (amounts == sorted(amounts) or ask.name in looks.UNORDERED)


def test_it_is_asked_for_in_words(scene: Scene) -> None:
    rng = np.random.default_rng(0)
    for ask in looks.ASKS:
        for strength in looks.AMOUNTS:
            text = ask.prompt("held-out", strength, rng)
            assert "{" not in text and (not ask.slots or ask.slots["colour"] in text.lower())


def test_results_are_held_to_a_least_quality_and_to_what_the_autoencoder_can() -> None:
    perfect = records("perfect")
    assert all(row.failures == () for row in looks.summarise(perfect))
    rows = looks.summarise({**record, "result_db": 21.0, "gap_db": 0.0} for record in perfect)
    assert all(row.failures == ("21.0 dB, not 22",) for row in rows) and looks.passing(rows) == []
    rows = looks.summarise({**record, "result_db": 30.0, "gap_db": 4.0} for record in perfect)
    assert all(row.failures == ("4.0 dB below the ceiling, not 3",) for row in rows)


def test_two_looks_are_asked_for_in_pairs_that_no_training_clip_has(scene: Scene) -> None:
    asks = [looks.pair_ask(number) for number in range(60)]
    assert {ask.name for ask in asks} == {"two-looks"} and len({ask.pair for ask in asks}) == 30
    assert all(is_held_out(ask.pair) for ask in asks)  # type: ignore[arg-type]
    ask = looks.pair_ask(1)
    text = ask.prompt("seen", "plain", np.random.default_rng(0))
    assert all(ADJECTIVES[kind] in text for kind in ask.pair)
    both, truths = ask.frames(scene.picture, "plain"), looks.truths(scene)
    figures = looks.measure(ask, {**truths, ask.name: both}, both, both, both)
    assert figures["right"] and figures["gap_db"] == 0
    assert all(
        not looks.measure(ask, {**truths, ask.name: both}, truths[kind], both, both)["right"] for kind in ask.pair
    )


def test_strengths_are_judged_over_clips_of_every_sort() -> None:
    found = records("perfect")
    natural = [r for r in found if r["ask"] == "fog" and r["footage"] == "natural" and "ordered" in r]
    natural[0]["ordered"] = [True, False, True]  # five of six pairs: 83 %
    rows = [row for row in looks.summarise(found) if row.name == "fog"]
    assert [row.ordered for row in rows] == [5 / 6, 5 / 6] and "fog" not in looks.passing(rows)
    assert all(row.failures == ("strengths 83 %, not 90 %",) for row in rows)
    more = [{**r, "scene": number} for number in range(2, 4) for r in records("perfect") if r["ask"] == "fog"]
    assert "fog" in looks.passing(looks.summarise([*found, *more]))  # 17 of 18
