"""The figures of seams: they see a seam that was put there, and nothing where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kiwi_cli.bench.seams.figures import Figures, Spread, Summary, Watch, figures, mean_lab
from kiwi_cli.bench.seams.run import boundaries
from kiwi_cli.editing.windows import Windows
from kiwi_cli.engine.layout import lay_out

from .. import fakes
from ..cli.terminal import inside
from ..conftest import make_model

COUNT, MEET = 60, (16, 32, 48)


def moving(seed: int = 0) -> np.ndarray:
    """A drawn clip that moves evenly, (F, H, W, 3) uint8."""
    y, x = np.mgrid[0:36, 0:64].astype(np.float32)
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    return np.stack(
        [
            np.stack([128 + 80 * np.sin(x / 7 + t * 0.2 + p) * np.cos(y / 5 - t * 0.1) for p in phase], -1)
            for t in range(COUNT)
        ]
    ).astype(np.uint8)


def measured(edit: np.ndarray, source: np.ndarray, **options: object) -> Figures:
    watches = []
    for clip in (edit, source):
        watches.append(Watch())
        for frame in clip:
            watches[-1].add(frame)
    return figures(watches[0], watches[1], (COUNT,), MEET, 12.0, **options)  # type: ignore[arg-type]


def with_seams(clip: np.ndarray, levels: int) -> np.ndarray:
    """Every second window brighter."""
    window = np.searchsorted(MEET, np.arange(COUNT), side="right")
    return (clip.astype(int) + levels * (window % 2)[:, None, None, None]).clip(0, 255).astype(np.uint8)


def test_an_edit_that_moves_as_its_source_has_no_seams() -> None:
    found = measured(255 - moving(), moving())
    assert len(found.ratios) == COUNT - 1 and len(found.at(found.ratios, True)) == len(MEET)
    assert all(value == pytest.approx(1, abs=0.02) for value in found.ratios.values())
    assert measured(moving(), moving()).drifts == (0.0,) and found.psnr_gap is None


def test_a_seam_is_seen_where_it_is() -> None:
    found = measured(with_seams(moving(), 12), moving())
    meet, other = found.at(found.ratios, True), found.at(found.ratios, False)
    assert min(meet) > 1.3 > max(other)
    assert min(found.at(found.steps, True)) > 3 > max(found.at(found.steps, False))
    assert Summary.of([found]).unseen is False
    assert Summary.of([measured(with_seams(moving(), 0), moving())]).unseen is True


def test_a_cut_of_the_source_is_no_seam() -> None:
    """What jumps in the source as well is no fault of windows."""
    source = np.concatenate([moving(0)[: MEET[1]], moving(5)[MEET[1] :]])
    found = measured(255 - source, source)
    assert found.ratios[MEET[1]] == pytest.approx(1, abs=0.05)


def test_drift_is_what_edit_and_source_came_apart_by() -> None:
    ramp = np.linspace(0, 30, COUNT)[:, None, None, None]
    found = measured((moving() * 0.5 + ramp).astype(np.uint8), moving())
    assert found.drifts[0] > 3 * measured((moving() * 0.5).astype(np.uint8), moving()).drifts[0]


def test_psnr_beside_seams_and_elsewhere() -> None:
    beside = {frame - side for frame in MEET for side in (0, 1)}
    psnr = [20.0 if frame in beside else 26.0 for frame in range(COUNT)]
    found = measured(moving(), moving(), psnr=psnr)
    assert found.psnr_gap == pytest.approx(-6)
    total = Summary.of([found, found])
    assert total.psnr_gap == (pytest.approx(-6), 0.0) and total.clips == 2


def test_mean_colours_are_lab() -> None:
    for rgb, lab in (((255, 255, 255), (100, 0, 0)), ((0, 0, 0), (0, 0, 0)), ((255, 0, 0), (53.2, 80.1, 67.2))):
        assert mean_lab(np.full((2, 2, 3), rgb, np.uint8)) == pytest.approx(lab, abs=0.3)


def test_a_spread_of_nothing_is_none() -> None:
    assert Spread.of([]) is None
    assert Spread.of(range(101)) == Spread(50, 95, 100, 101)


# -- clips through an editor -------------------------------------------------------------------------------------


def brighter(frames: np.ndarray) -> np.ndarray:
    return (frames * 0.6 + 40).astype(np.uint8)


def test_drawn_clips_have_their_truth_and_windows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An editor whose every second window is darker: the command sees it, and says where."""
    calls: list[int] = []

    class Uneven(fakes.FakeEditor):
        def edit(self, frames: np.ndarray, *arguments: Any, **options: Any) -> Any:
            calls.append(len(frames))
            return super().edit((frames // (1 + len(calls) % 2)).astype(np.uint8), *arguments, **options)

    model = make_model(tmp_path / "model", working={"pixels": 4096, "frames": 9, "steps": 1})
    drawn = ("--model", model, "--clips", 1, "--frames", 28, "--detail", "model", "--plot", tmp_path / "seams.svg")
    with fakes.commands_use(Uneven()):
        code, out, err = inside(capsys, "bench", "seams", *drawn, "--json")
    assert code == 0, err
    data = json.loads(out)
    assert len(calls) == 4 and data["clips"] == 1 and data["unseen"] is False
    assert data["ratio"]["count"] == 3 and data["ratio"]["median"] > 3 > data["ratio_null"]["p95"]
    assert data["psnr"][0] > 0 and data["psnr_gap"] is not None
    assert (tmp_path / "seams.svg").read_text().count("<circle") == 3
    with fakes.commands_use(fakes.FakeEditor()):
        assert inside(capsys, "bench", "seams", *drawn)[0] == 2  # the plot is there


def test_an_output_is_measured_beside_its_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(tmp_path / "model", working={"pixels": 4096, "frames": 9, "steps": 1})
    source = tmp_path / "clip"
    source.mkdir()
    for number, frame in enumerate(moving()[:30]):
        Image.fromarray(frame).save(source / f"{number:02}.png")
    with fakes.commands_use(fakes.FakeEditor(brighter)):
        made = inside(capsys, "edit", source, "x", "--model", model, "--detail", "model", "-o", tmp_path / "out")
        assert made[0] == 0, made[2]
        code, out, err = inside(capsys, "bench", "seams", tmp_path / "out")
        assert code == 0, err
        assert "within the null" in out and "seam ratio" in out
        assert inside(capsys, "edit", source, "x", "--model", model, "--frames", 5, "-o", tmp_path / "short")[0] == 0
        code, _, err = inside(capsys, "bench", "seams", tmp_path / "short")
        assert code == 2 and "edited in one piece" in err


def test_where_joint_windows_meet() -> None:
    layout = lay_out((21, 30), 3, 1, "frame")
    windows = Windows(9, len(layout.windows), layout=layout)
    shots, meet = boundaries(windows, 51)
    assert shots == [21, 30] and meet == sorted(set(meet)) and meet[0] == 5 and 21 not in meet
    assert boundaries(Windows.of(28, 9), 28) == ([28], [9, 18, 27]) and boundaries(None, 7) == ([7], [])
