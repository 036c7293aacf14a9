"""States on disk: whole or not there, whatever happens while they are written."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kiwi_cli.errors import CheckpointError, KiwiError
from kiwi_cli.train import state as states
from kiwi_cli.train.state import (
    State,
    changed_settings,
    check_fit,
    clear_partial,
    find_latest,
    optimiser_tensors,
    read_state,
    restore_optimiser,
    save_state,
)

from ..conftest import ROOT


def make(step: int, width: int = 3, stage: str = "instruction") -> State:
    generator = torch.Generator().manual_seed(step)
    weights = {"a.weight": torch.randn(width, 4, generator=generator), "b": torch.randn((), generator=generator)}
    moments = {f"{name}/exp_avg": value * 2 for name, value in weights.items()}
    return State(
        step,
        stage,
        weights,
        optimiser={**moments, "b/step": torch.tensor(float(step))},
        ema={name: value + 1 for name, value in weights.items()},
        ema_updates=step,
        random={"0.cpu": torch.Generator().manual_seed(step).get_state()},
        config={"seed": 1, "optimiser": {"lr": 0.1}, "data": [{"cache": "x"}]},
    )


def same(one: State, two: State) -> bool:
    parts = ("weights", "optimiser", "ema", "random")
    tensors = [(getattr(one, part), getattr(two, part)) for part in parts]
    equal = all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in tensors)
    facts = ("step", "stage", "ema_updates", "config")
    return equal and all(getattr(one, fact) == getattr(two, fact) for fact in facts)


def test_back_to_the_bit_and_without_pickle(tmp_path: Path) -> None:
    state = make(5)
    folder = save_state(tmp_path, state)
    assert same(read_state(folder), state)
    assert find_latest(tmp_path) == folder == tmp_path / "states" / "step-00000005"
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    assert load_file(folder / "weights.safetensors")["a.weight"].dtype == torch.float32
    without = State(6, "alignment", state.weights)
    assert same(read_state(save_state(tmp_path, without)), without)


def test_old_states_are_deleted(tmp_path: Path) -> None:
    for step in range(1, 6):
        save_state(tmp_path, make(step), keep=2)
    assert sorted(path.name for path in (tmp_path / "states").iterdir()) == ["latest", "step-00000004", "step-00000005"]
    save_state(tmp_path, make(5), keep=1)  # the same step again
    assert [path.name for path in (tmp_path / "states").glob("step-*")] == ["step-00000005"]
    assert same(read_state(tmp_path / "states/step-00000005"), make(5))


@pytest.mark.parametrize("file", ["weights", "optimiser", "random", "ema", "state.json", "fsync", "rename"])
def test_a_full_disk_leaves_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    save_state(tmp_path, make(5))
    full = OSError(errno.ENOSPC, "No space left on device")
    write, write_text = states.write_file, Path.write_text

    def fill(path: Path, entries: Any) -> None:
        if path.stem == file:
            path.write_bytes(b"half a tensor")
            raise full
        write(path, entries)

    def fail(*arguments: Any) -> None:
        raise full

    def fill_text(path: Path, *arguments: Any, **options: Any) -> int:
        if path.name == file:
            raise full
        return write_text(path, *arguments, **options)

    monkeypatch.setattr(states, "write_file", fill)
    monkeypatch.setattr(Path, "write_text", fill_text)
    if file == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    if file == "rename":
        monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(KiwiError) as error:
        save_state(tmp_path, make(9))
    monkeypatch.undo()
    assert (
        "state of step 9 could not be saved" in error.value.message and "No space left on device" in error.value.message
    )
    assert "the last whole state is 'step-00000005'" in error.value.message
    assert "--resume" in error.value.hint and " kB a state" in error.value.hint
    latest = find_latest(tmp_path)
    assert latest is not None and same(read_state(latest), make(5))
    assert sorted(path.name for path in (tmp_path / "states").iterdir()) == ["latest", "step-00000005"]
    save_state(tmp_path, make(9))  # and with room it works
    assert same(read_state(tmp_path / "states/step-00000009"), make(9))


def test_a_full_disk_at_the_first_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(states, "write_file", full)
    with pytest.raises(KiwiError, match="there is no whole state yet"):
        save_state(tmp_path, make(1))
    assert find_latest(tmp_path) is None


KILLED = """
import os, signal, sys, time
from pathlib import Path
from kiwi_cli.train import state as states
from tests.train.test_state import make
out, point = Path(sys.argv[1]), sys.argv[2]
states.save_state(out, make(5))
write, pointer, discard = states.write_file, states._point, states._discard

def hang(*arguments):
    print("now", flush=True)
    time.sleep(60)

def half(path, entries):
    if path.stem == point:
        path.write_bytes(b"half a tensor")
        hang()
    write(path, entries)

states.write_file = half
if point == "latest":
    states._point = hang
if point == "delete":
    states._discard = hang
states.save_state(out, make(9), keep=1)
"""


@pytest.mark.parametrize(("point", "whole"), [("optimiser", 5), ("ema", 5), ("latest", 5), ("delete", 9)])
def test_a_kill_in_the_middle_of_a_save(tmp_path: Path, point: str, whole: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), point], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    latest = find_latest(tmp_path)
    assert latest is not None and same(read_state(latest), make(whole))
    assert clear_partial(tmp_path) == (["step-00000009"] if point in ("optimiser", "ema") else [])
    assert same(read_state(save_state(tmp_path, make(10))), make(10))


def test_the_pointer_may_be_lost(tmp_path: Path) -> None:
    for step in (5, 9):
        save_state(tmp_path, make(step))
    pointer = tmp_path / "states/latest"
    for text in ("", "step-00000007\n", "../../elsewhere\n"):
        pointer.write_text(text)
        assert find_latest(tmp_path) == tmp_path / "states/step-00000009"
    pointer.unlink()
    assert find_latest(tmp_path) == tmp_path / "states/step-00000009"


def test_states_that_do_not_fit(tmp_path: Path) -> None:
    state = make(5)
    check_fit(state, "instruction", state.weights)
    with pytest.raises(CheckpointError, match="stage 'instruction', not 'reference'"):
        check_fit(state, "reference", state.weights)
    with pytest.raises(CheckpointError, match=r"'a.weight' is \(3, 4\), not \(8, 4\)") as error:
        check_fit(state, "instruction", make(1, width=8).weights)
    assert "settings" in error.value.hint
    with pytest.raises(CheckpointError, match=r"'c' \(2,\) is missing in it"):
        check_fit(state, "instruction", {**state.weights, "c": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"'b' \(\) is not trained now"):
        check_fit(state, "instruction", {"a.weight": state.weights["a.weight"]})
    many = {f"x{number}": torch.zeros(1) for number in range(9)}
    with pytest.raises(CheckpointError, match="and 8 more"):
        check_fit(state, "instruction", many)


def test_damaged_states(tmp_path: Path) -> None:
    folder = save_state(tmp_path, make(5))
    facts = json.loads((folder / "state.json").read_text())
    data = (folder / "ema.safetensors").read_bytes()
    (folder / "ema.safetensors").write_bytes(data[:-3])
    with pytest.raises(CheckpointError, match="damaged"):
        read_state(folder)
    (folder / "ema.safetensors").write_bytes(data)
    for change, words in (
        ({"format": 2}, "has format 2, not 1"),
        ({"parameters": {"a.weight": [3, 4]}}, "does not hold the weights"),
        ({"step": "many"}, "cannot read the state"),
    ):
        (folder / "state.json").write_text(json.dumps({**facts, **change}))
        with pytest.raises(CheckpointError, match=words):
            read_state(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot read the state"):
        read_state(folder)


def test_what_changed_is_named() -> None:
    state = make(1)
    assert changed_settings(state, state.config) == []
    changes = changed_settings(state, {"seed": 2, "optimiser": {"lr": 0.1}, "data": [{"cache": "y"}], "clip": 1.0})
    assert changes == ["clip 1.0 (was None)", "data.0.cache 'y' (was 'x')", "seed 2 (was 1)"]


def test_an_optimiser_by_name() -> None:
    def fresh() -> tuple[dict[str, torch.nn.Parameter], torch.optim.AdamW]:
        torch.manual_seed(0)
        named = {name: torch.nn.Parameter(torch.randn(5)) for name in ("a", "b", "unused")}
        return named, torch.optim.AdamW(named.values(), lr=0.1)

    def step(named: dict[str, torch.nn.Parameter], optimiser: torch.optim.AdamW, number: int) -> None:
        for name in ("a", "b"):
            named[name].grad = torch.full((5,), float(number))
        optimiser.step()

    one, first = fresh()
    for number in range(6):
        if number == 3:
            two, second = fresh()
            restore_optimiser(second, two, optimiser_tensors(first, one))
            with torch.no_grad():
                for name, value in two.items():
                    value.copy_(one[name])
        step(one, first, number)
        if number >= 3:
            step(two, second, number)
    assert sorted(optimiser_tensors(first, one)) == [
        f"{n}/{k}" for n in "ab" for k in ("exp_avg", "exp_avg_sq", "step")
    ]
    assert all(torch.equal(one[name], two[name]) for name in one)
