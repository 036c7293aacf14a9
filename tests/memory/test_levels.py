"""Every exact level gives the resident result, and keeps to its word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kiwi_cli import KiwiPipeline
from kiwi_cli.engine import demand as asks
from kiwi_cli.engine import memory as mem

from ..cli.terminal import FAST, REFERENCE, inside
from ..conftest import CHECKPOINT, random_frames, relative_error
from .work import FRAMES, GB, work_of


@pytest.mark.parametrize("strips", [1, 3])
@pytest.mark.parametrize("level", mem.exact_levels(), ids=lambda level: level.name)
def test_every_exact_level_is_the_resident_result(managed: Any, level: mem.Level, strips: int) -> None:
    """To the bit, but for the strips' own rounding (a kernel's order of sums depends on the width)."""
    picture = FRAMES[0]
    resident = managed(mem.Placement(mem.LEVELS["resident"]))
    expected = resident.edit(FRAMES, "make it snowy", [picture], steps=2, output="latents")
    whole = np.concatenate(list(resident.decode(expected, len(FRAMES))))
    resident.to("cpu")
    moved = managed(mem.Placement(level, strips, strips))
    latents = moved.edit(FRAMES, "make it snowy", [picture], steps=2, output="latents")
    assert relative_error(latents, expected) <= (0 if strips == 1 else 1e-6)
    frames = np.concatenate(list(moved.decode(expected, len(FRAMES))))
    assert np.abs(frames.astype(int) - whole).max() <= (0 if strips == 1 else 1)


@pytest.mark.parametrize("level", ["resident", "release", "swap"])
def test_a_stage_holds_what_its_level_says(managed: Any, level: str) -> None:
    pipe = managed(mem.Placement(mem.LEVELS[level]))
    host = {name: tensor.data_ptr() for name, tensor in pipe.transformer.named_parameters()}
    seen: dict[str, set[str]] = {}
    pipe.edit(
        FRAMES,
        "make it snowy",
        steps=1,
        progress=lambda stage, *_: seen.setdefault(stage, set(pipe.residency.on_device)),
    )
    everything = set(mem.UNITS)
    assert (
        seen
        == {
            "resident": dict.fromkeys(asks.STAGES, everything),
            "release": {
                "instruction": {"mllm"},
                **dict.fromkeys(("encode", "denoise", "decode"), everything - {"mllm"}),
            },
            "swap": {stage: {unit} for stage, unit in mem.NEEDED.items()},
        }[level]
    )
    pipe.to("cpu")  # gives the parts back as they were
    assert {name: tensor.data_ptr() for name, tensor in pipe.transformer.named_parameters()} == host


def test_a_level_is_its_row(
    managed: Any,
    full: Any,
    weights: mem.Weights,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One row more is planned, described, taken by --memory, and carried out."""
    row = mem.Level("coders", keeps=("vae_encoder", "vae_decoder"), streamed=True)
    monkeypatch.setitem(mem.LEVELS, "coders", row)
    demand = work_of(full)
    chosen = mem.place(weights, demand, int(9 * GB), "coders")
    assert chosen.level is row and "memory: coders; about 8." in chosen.describe()
    both = weights.whole["vae_encoder"] + weights.whole["vae_decoder"]
    assert chosen.peak == both + demand.activations("decode", 1)
    seen: dict[str, set[str]] = {}
    pipe = managed(mem.Placement(mem.LEVELS["resident"]))
    expected = pipe.edit(FRAMES, "make it snowy", steps=1)
    pipe.to("cpu")
    pipe = managed(mem.Placement(row))
    got = pipe.edit(
        FRAMES,
        "make it snowy",
        steps=1,
        progress=lambda stage, *_: seen.setdefault(stage, set(pipe.residency.on_device)),
    )
    assert np.array_equal(got, expected)
    coders = {"vae_encoder", "vae_decoder"}
    assert seen == {"instruction": {"mllm"}, "encode": coders, "denoise": {"transformer"}, "decode": coders}
    picture = ("edit", REFERENCE, "in red", *FAST, "--device", "cpu", "-o", tmp_path / "out.png")
    code, _, err = inside(capsys, *picture, "--memory", "coders")
    assert code == 0 and "memory: coders" in err and (tmp_path / "out.png").exists()
    assert inside(capsys, *picture, "--overwrite", "--memory", "coder")[0] == 2


def test_tiled_is_another_result_and_a_whole_clip(pipe: Any, managed: Any) -> None:
    frames = random_frames(5, 32, 288)  # wider than a tile
    latents = pipe.encode_source(frames)
    tiled = np.concatenate(list(managed(mem.Placement(mem.LEVELS["tiled"])).decode(latents, 5)))
    whole = np.concatenate(list(pipe.decode(latents, 5)))
    assert tiled.shape == whole.shape
    # 10.4 levels measured: the random decoder's pictures are nearly noise.
    assert np.abs(tiled.astype(int) - whole).mean() == pytest.approx(10.4, rel=0.1)


def test_the_librarys_own_offload_still_works(pipe: Any) -> None:
    other = KiwiPipeline.from_pretrained(str(CHECKPOINT), device="cpu", dtype="float32")
    other.enable_model_cpu_offload(device="cpu")
    call = {"steps": 2, "output": "latents"}
    ours, theirs = (each.edit(FRAMES, "make it snowy", **call) for each in (other, pipe))
    assert relative_error(ours, theirs) < 1e-6
