"""A run is the same however it is cut: into micro-batches, among processes, by an interruption."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from kiwi_cli.cli.console import Console
from kiwi_cli.errors import CheckpointError, KiwiError, UsageError
from kiwi_cli.train import curves, state
from kiwi_cli.train.curves import read_metrics
from kiwi_cli.train.loop import Result, Stop, train

from .toy import Toy, ToyRows, collate, held_out, rows, settings

TOLERANCE = 1e-5
"""Of the weights, relative: sums are taken in another order, and AdamW's first steps divide by small numbers."""


def run(out: Path, model: Toy | None = None, stop: Stop | None = None, resume: bool = False, **changes: Any) -> Any:
    """(the model, how the run ended)"""
    model = model or Toy()
    result = train(
        settings(out, **changes),
        model,
        rows(),
        held_out=held_out(),
        collate=collate,
        resume=resume,
        stop=stop,
        device="cpu",
    )
    return model, result


def distance(one: torch.nn.Module, two: torch.nn.Module) -> float:
    pairs = list(zip(one.parameters(), two.parameters(), strict=True))
    return max(float((a - b).detach().norm() / a.detach().norm()) for a, b in pairs)


class StopAfter(Stop):
    """Asks to stop in a given step."""

    running = False

    def __init__(self, step: int) -> None:
        self.left = step

    @property
    def requested(self) -> bool:  # type: ignore[override]
        self.left -= 1
        return self.left <= 0


def test_training_lowers_the_held_out_loss_and_writes_what_it_did(tmp_path: Path) -> None:
    model, result = run(
        tmp_path, steps=60, validate={"every": 20}, schedule={"warm_up": 5, "decay": "linear"}, clip=0.5
    )
    assert [step for step, _ in result.held_out] == [0, 20, 40, 60]
    assert set(result.held_out[0][1]) == {"images", "videos", "all"}
    for name in ("images", "videos", "all"):
        assert result.held_out[-1][1][name] < 0.8 * result.held_out[0][1][name]
    assert (result.step, result.interrupted) == (60, False)
    lines = [line for line in read_metrics(tmp_path) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert lines[0]["lr"] == pytest.approx(0.002) and lines[5]["lr"] == 0.01 and lines[-1]["lr"] == 0.0
    assert all(line["grad_norm"] > 0 and line["samples_per_second"] > 0 for line in lines)
    assert lines[-1]["loss"] == result.loss
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (960, 1000) and len(set(picture.convert("L").tobytes())) > 20
    weights = load_file(result.state / "weights.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in model.named_parameters() if value.requires_grad)


def test_frozen_parts_stay_and_trained_parts_all_move(tmp_path: Path) -> None:
    model = Toy()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    run(tmp_path, model, steps=2)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("frozen"), name
    assert "autocast" not in repr(model.forward)  # the caller's model is as it was


@pytest.mark.parametrize(("at", "optimiser"), [(1, "adamw"), (5, "muon"), (8, "adamw")])
def test_resumed_equals_unbroken_to_the_bit(tmp_path: Path, at: int, optimiser: str) -> None:
    changes: dict[str, Any] = {
        "ema": 0.9,
        "log_every": 3,
        "schedule": {"warm_up": 4, "decay": "cosine"},
        "bucket_batch": 4,
        "optimiser": {"name": optimiser},
    }
    whole, one = run(tmp_path / "whole", Toy(dropout=0.3), **changes)
    _, broken = run(tmp_path / "broken", Toy(dropout=0.3), StopAfter(at), **changes)
    assert broken.interrupted and broken.step == at and broken.state.name == f"step-{at:08d}"
    torch.manual_seed(99)
    other = Toy(dropout=0.3)
    with torch.no_grad():
        for value in other.parameters():
            if value.requires_grad:
                value.zero_()
    torch.manual_seed(98)
    resumed, two = run(tmp_path / "broken", other, resume=True, **changes)
    assert not two.interrupted and two.step == 12
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    for name in ("weights", "optimiser", "ema", "random"):
        a, b = (load_file(result.state / f"{name}.safetensors") for result in (one, two))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), name
    assert one.held_out[-1] == two.held_out[-1]


def test_a_run_that_was_killed_does_the_lost_steps_again(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole")
    run(tmp_path / "cut", stop=StopAfter(9), save={"every": 4, "keep": 3})
    shutil.rmtree(tmp_path / "cut/states/step-00000009")  # as if the process had died there
    resumed, _ = run(tmp_path / "cut", resume=True)
    assert distance(whole, resumed) == 0
    steps = [line["step"] for line in read_metrics(tmp_path / "cut") if "loss" in line]
    assert steps == list(range(1, 13))


def test_accumulation_equals_the_larger_batch(tmp_path: Path) -> None:
    whole, one = run(tmp_path / "one", micro_batch=8, clip=0.3)
    for micro_batch in (1, 2, 4):
        model, result = run(tmp_path / f"micro{micro_batch}", micro_batch=micro_batch, clip=0.3)
        assert 0 < distance(whole, model) < TOLERANCE
        assert result.loss == pytest.approx(one.loss, rel=1e-5)
        assert result.held_out[-1][1] == pytest.approx(one.held_out[-1][1], rel=1e-5)
    lines = [
        [line["grad_norm"] for line in read_metrics(tmp_path / name) if "loss" in line] for name in ("one", "micro1")
    ]
    assert lines[0] == pytest.approx(lines[1], rel=1e-4)


def test_buckets_inside_a_batch(tmp_path: Path) -> None:
    """With bucket_batch 2 each batch of 8 has both kinds, however it is cut."""
    whole, _ = run(tmp_path / "two", bucket_batch=2, micro_batch=2, steps=4)
    model, _ = run(tmp_path / "one", bucket_batch=2, micro_batch=1, steps=4)
    other, _ = run(tmp_path / "all", bucket_batch=0, micro_batch=2, steps=4)
    assert distance(whole, model) < TOLERANCE < distance(whole, other)


def test_checkpointing_changes_nothing(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "kept", Toy())
    model, _ = run(tmp_path / "again", Toy(checkpointing=True))
    assert distance(whole, model) == 0


def test_held_out_loss_is_comparable(tmp_path: Path) -> None:
    """Of the same weights it is the same in runs of another seed and cut."""
    _, one = run(tmp_path / "one", steps=1, seed=1)
    _, two = run(tmp_path / "two", steps=1, seed=2, micro_batch=2)
    assert one.held_out[0][1] == pytest.approx(two.held_out[0][1], rel=1e-6)
    assert one.held_out[1][1] != pytest.approx(two.held_out[1][1], rel=1e-6)


def test_the_average_is_what_is_validated(tmp_path: Path) -> None:
    _, plain = run(tmp_path / "plain")
    model, averaged = run(tmp_path / "averaged", ema=0.99)
    assert averaged.loss == plain.loss and averaged.held_out[-1] != plain.held_out[-1]
    ema = load_file(averaged.state / "ema.safetensors")
    with averaged.ema.swapped():
        assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in ema.items())


def test_every_sample_is_drawn_by_ratio(tmp_path: Path) -> None:
    data = rows()
    train(settings(tmp_path, steps=30), Toy(), data, ratios={"images": 1, "videos": 3}, collate=collate, device="cpu")
    assert abs(len(data["images"].used) - 60) <= 16 and abs(len(data["videos"].used) - 180) <= 16
    assert set(data["videos"].used) == set(range(40))


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="global_batch 8 is no multiple of 3"):
        run(tmp_path / "odd", micro_batch=3)
    with pytest.raises(UsageError, match="no parameter is trained"):
        run(tmp_path / "frozen", Toy().requires_grad_(False))
    with pytest.raises(UsageError, match="tracker 'abacus' is not installed"):
        run(tmp_path / "tracker", trackers=["abacus"])
    with pytest.raises(UsageError, match="strategy is 'ddp' and no processes were started") as error:
        run(tmp_path / "alone", strategy="ddp")
    assert "torchrun" in error.value.hint
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="2 processes were started and strategy is 'none'"):
        run(tmp_path / "two")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_folder_that_holds_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, steps=2)
    with pytest.raises(UsageError, match="holds a run that is at step 2") as error:
        run(tmp_path, steps=2)
    assert "--resume" in error.value.hint
    with pytest.raises(CheckpointError, match="stage 'instruction', not 'reference'"):
        run(tmp_path, resume=True, stage="reference")
    with pytest.raises(CheckpointError, match=r"'image' is \(16,\), not \(24,\)"):
        run(tmp_path, Toy(width=24), resume=True)
    with pytest.raises(CheckpointError, match="the state is of the optimiser 'adamw', not 'muon'"):
        run(tmp_path, resume=True, optimiser={"name": "muon"})
    (tmp_path / "states/.partial-step-00000004").mkdir()
    config = settings(tmp_path, steps=3, seed=5)
    train(config, Toy(), rows(), collate=collate, resume=True, events=Console(), device="cpu")
    err = capsys.readouterr().err
    assert "going on from" in err and "the save of 'step-00000004' was cut off" in err
    assert "settings differ from the saved run's: seed 5 (was 0); steps 3 (was 2)" in err


def test_a_full_disk_ends_the_run_with_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = state.write_file

    def fill(path: Path, entries: Any) -> None:
        if "step-00000008" in str(path):
            raise OSError(28, "No space left on device")
        write(path, entries)

    monkeypatch.setattr(state, "write_file", fill)
    with pytest.raises(KiwiError, match=r"step 8 could not be saved.*the last whole state is 'step-00000004'"):
        run(tmp_path, save={"every": 4})
    monkeypatch.undo()
    whole, _ = run(tmp_path / "whole")
    resumed, _ = run(tmp_path, resume=True)
    assert distance(whole, resumed) == 0


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(KiwiError, match=r"the loss is (nan|inf) at step \d+") as error:
        run(tmp_path, steps=200, optimiser={"lr": 1e30}, save={"every": 2})
    assert "optimiser.lr" in error.value.hint
    last = read_metrics(tmp_path)[-1]
    assert last["loss"] is None and json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1]) == last


def test_what_fails_while_data_is_read_is_raised(tmp_path: Path) -> None:
    class Broken(ToyRows):
        def __getitem__(self, index: int) -> Any:
            raise KiwiError(f"row {index} is gone")

    with pytest.raises(KiwiError, match=r"row \d+ is gone"):
        train(settings(tmp_path), Toy(), {"broken": Broken("image", 20)}, collate=collate, device="cpu")


def test_previews_see_the_average(tmp_path: Path) -> None:
    seen: list[tuple[int, torch.Tensor]] = []
    config = settings(tmp_path, steps=6, ema=0.9, validate={"preview_every": 3})
    model = Toy()

    def preview(trained: torch.nn.Module, step: int) -> None:
        seen.append((step, trained.image.detach().clone()))

    result: Result = train(config, model, rows(), collate=collate, preview=preview, device="cpu")
    assert [step for step, _ in seen] == [3, 6]
    assert result.ema is not None and torch.equal(seen[-1][1], result.ema.tensors()["image"])
    assert not torch.equal(seen[-1][1], model.image)


def test_curves_of_a_cut_off_file(tmp_path: Path) -> None:
    assert curves.draw_curves(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 0.5, "held_out": {"a": 1, "b": null}}\n{"step": 2, "lo'
    )
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    assert curves.draw_curves(tmp_path) == tmp_path / "curves.png"
    (tmp_path / "metrics.jsonl").write_text('{"loss": 0.5}\n{"step": 2}\n')
    with pytest.raises(KiwiError, match="line 1 of"):
        read_metrics(tmp_path)
    assert curves.smooth([(1, 2.0), (2, 4.0), (3, 9.0)], 2) == [(1, 2.0), (2, 3.0), (3, 6.5)]


def test_a_tracker_of_accelerate(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run(tmp_path, trackers=["tensorboard"], steps=2)
    assert list((tmp_path / "kiwi-instruction").glob("events*"))
