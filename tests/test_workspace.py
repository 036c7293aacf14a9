"""What a killed run leaves is gone on with, to the bit; anything else begins anew, or is refused."""

from __future__ import annotations

import errno
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from kiwi_cli.base.whole import write_text
from kiwi_cli.engine import estimate, kept_latents, workspace
from kiwi_cli.engine.joint import JointDenoising, fill_noise, noise_of
from kiwi_cli.engine.layout import STATES, lay_out, table_bytes
from kiwi_cli.engine.made import Made
from kiwi_cli.engine.workspace import Workspace
from kiwi_cli.errors import KiwiError, UsageError
from kiwi_cli.model.sampling import flow_sigmas

SHAPE = (2, 3, 4)
LAYOUT = lay_out((61, 9), 5, 2, "frame")
SIGMAS = flow_sigmas(5)
EVERY = 1e-9  # seconds: after every window


class Killed(Exception):
    pass


def velocity(latents: torch.Tensor, step: int, window: int) -> torch.Tensor:
    return torch.sin(latents * (1 + step)) + 0.3 * latents.mean(dim=2, keepdim=True)


def work(space: Workspace, solver: str = "euler", stop: Callable[[int], None] = lambda done: None) -> torch.Tensor:
    """A run from noise, or from what is in the workspace, with `stop` called after every window."""
    form = (LAYOUT.rows, STATES[solver], SHAPE)
    saved = space.load(*form)
    tables = space.tables(*form)
    run = JointDenoising(LAYOUT, tables.states, SIGMAS, solver)
    if saved is None:
        tables.source.fill_(7.0)
        fill_noise(tables.states[0], LAYOUT, 3)
        space.keep({"context 0": torch.ones(2)})
    else:
        run.step, run.window, run.pending = saved.step, saved.window, saved.pending
        assert torch.equal(saved.fixed["context 0"], torch.ones(2)) and bool((tables.source == 7).all())

    def after() -> None:
        if space.due(run):
            space.save(run)
        stop(run.done)

    return run.run(velocity, after).clone()


def killed_at(windows: int) -> Callable[[int], None]:
    def stop(done: int) -> None:
        if done == windows:
            os.kill(os.getpid(), signal.SIGKILL)

    return stop


TOTAL = len(LAYOUT.windows) * (len(SIGMAS) - 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("solver", ["euler", "unipc"])
@pytest.mark.parametrize("limit", [1 << 30, 0], ids=["memory", "mapped"])
@pytest.mark.parametrize("every", [EVERY, 5.0], ids=["each window", "now and then"])
def test_a_killed_run_is_gone_on_with_to_the_bit(tmp_path: Path, limit: int, solver: str, every: float) -> None:
    """Killed again and again at random windows, each time a little further on, in a process of its own."""
    whole = work(Workspace(), solver)
    points = sorted(random.Random(f"{limit} {solver} {every}").sample(range(2, TOTAL), 4))
    folder = tmp_path / "work"

    def space() -> Workspace:
        ticks = iter(range(10**6))
        return Workspace(folder, {"seed": 3}, every, limit, clock=lambda: float(next(ticks)))

    for point in points:
        child = os.fork()
        if not child:
            work(space(), solver, killed_at(point))
            os._exit(1)  # it was not killed
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    last = space()
    done: list[int] = []
    assert last.found() == []
    assert torch.equal(work(last, solver, done.append), whole)
    assert len(done) < TOTAL  # it did not begin anew
    last.clear()
    assert not folder.exists()


def interrupted(space: Workspace, windows: int = 20) -> None:
    def stop(done: int) -> None:
        if done == windows:
            raise Killed

    with pytest.raises(Killed):
        work(space, stop=stop)


def test_a_changed_setting_is_named(tmp_path: Path) -> None:
    interrupted(Workspace(tmp_path / "work", {"seed": 3, "steps": 5}, EVERY))
    other = Workspace(tmp_path / "work", {"seed": 4, "steps": 5, "cache": "off"}, EVERY)
    assert other.found() == ["cache", "seed"]
    assert other.load(LAYOUT.rows, 1, SHAPE) is None
    other.clear()
    assert other.found() is None and not (tmp_path / "work").exists()


def test_nothing_is_written_before_it_is_time(tmp_path: Path) -> None:
    now = [0.0]
    space = Workspace(tmp_path / "work", {}, 180.0, clock=lambda: now[0])
    work(space)
    assert not (tmp_path / "work").exists() and not space.has_state
    work(Workspace(tmp_path / "never", {}, 0.0))
    assert not (tmp_path / "never").exists()


def test_only_the_first_process_saves_and_all_go_on_from_there(tmp_path: Path) -> None:
    whole = work(Workspace())
    for limit in (1 << 30, 0):
        folder = tmp_path / f"{limit}"
        interrupted(Workspace(folder, {}, EVERY, limit))
        before = sorted(path.name for path in folder.iterdir() if path.suffix)
        assert torch.equal(work(Workspace(folder, {}, EVERY, limit, rank=1)), whole)
        assert sorted(path.name for path in folder.iterdir() if path.suffix) == before


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "diary.txt").write_text("mine")
    with pytest.raises(UsageError, match="in the way"):
        Workspace(folder, {}, EVERY).found()
    (folder / "state.json").write_text("{}")
    with pytest.raises(UsageError, match="in the way"):
        Workspace(folder, {}, EVERY).found()
    assert (folder / "diary.txt").read_text() == "mine"


def test_what_a_run_left_before_its_first_state_is_no_state(tmp_path: Path) -> None:
    Workspace(tmp_path / "work", {}, EVERY, limit=0).tables(LAYOUT.rows, 1, SHAPE)
    again = Workspace(tmp_path / "work", {}, EVERY, limit=0)
    assert again.found() is None
    assert torch.equal(work(again), work(Workspace()))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["the system's word", "the library's word"],
)
def test_a_full_disk_is_said_and_the_state_before_stays(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work"
    interrupted(Workspace(folder, {}, EVERY))

    def full(*arguments: object) -> None:
        raise error

    def reserved(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(workspace, "save_file", full)
        with pytest.raises(KiwiError, match="No space left") as raised:
            work(Workspace(folder, {}, EVERY))
        assert "--output" in str(raised.value.hint)
        patch.setattr(workspace, "_reserve", reserved)
        with pytest.raises(KiwiError, match="No space left"):
            Workspace(tmp_path / "other", {}, EVERY, limit=0).tables(LAYOUT.rows, 1, SHAPE)
    assert torch.equal(work(Workspace(folder, {}, EVERY)), work(Workspace()))


def test_bytes_are_those_of_the_tables() -> None:
    tables = Workspace().tables(LAYOUT.rows, 4, SHAPE)
    held = tables.source.nbytes + sum(each.nbytes for each in tables.states)
    assert held == table_bytes(LAYOUT.rows, 4, 2 * 3 * 4)


def high_water(work: Callable[[], object]) -> int:
    """Bytes that are resident at the most while `work` runs, more than before it."""

    def bytes_of(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the system does not let the high water be set back")
    before = bytes_of("VmRSS")
    work()
    return bytes_of("VmHWM") - before


def test_a_state_is_saved_and_read_without_a_second_copy(tmp_path: Path) -> None:
    shape = (16, 60, 80)  # 120 MB of tables
    space = Workspace(tmp_path / "work", {}, EVERY, limit=1 << 30)
    tables = space.tables(LAYOUT.rows, 4, shape)
    for each in (tables.source, *tables.states):
        each.normal_()
    run = JointDenoising(LAYOUT, tables.states, SIGMAS, "unipc")
    run.window = 1
    space.keep({})
    held = table_bytes(LAYOUT.rows, 4, 16 * 60 * 80)
    assert high_water(lambda: space.save(run)) < 0.3 * held
    again = Workspace(tmp_path / "work", {}, EVERY, limit=1 << 30)
    assert high_water(lambda: again.load(LAYOUT.rows, 4, shape)) < 1.3 * held
    assert torch.equal(again.tables(LAYOUT.rows, 4, shape).states[1], tables.states[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_mapped_tables_leave_memory_as_work_goes_on(tmp_path: Path) -> None:
    """What is resident does not grow with the clip: 60 MB are written and read, and none of it stays."""

    def resident() -> int:
        status = Path("/proc/self/status").read_text()
        return sum(int(line.split()[1]) for line in status.splitlines() if line.startswith(("RssFile", "RssShmem")))

    space = Workspace(tmp_path / "work", limit=0)
    tables = space.tables(5_000, 1, (10, 10, 10))
    told: list[tuple[str, int, int]] = []
    report = space.watched(lambda *progress: told.append(progress))
    before = resident()
    most = 0
    for start in range(0, 5_000, 500):
        rows = slice(start, start + 500)
        tables.source[rows], tables.states[0][rows], tables.states[1][rows] = start, start + 1, start + 2
        most = max(most, resident())
        report("encode", start, 5_000)
    assert resident() - before < 2_000 and 4_000 < most - before < 20_000  # kB
    for start in range(0, 5_000, 500):
        values = [float(table[start + 499].mean()) for table in (tables.source, *tables.states)]
        assert values == [start, start + 1, start + 2]
    assert told[-1] == ("encode", 4_500, 5_000)
    space.clear()


def test_noise_and_kept_latents_of_mapped_tables_leave_memory(tmp_path: Path) -> None:
    """20 MB of noise are written, and 40 MB of tables kept: a few rows of them are resident at a time."""
    layout, shape = lay_out((20_000,), 5, 2, "none"), (10, 10, 10)
    size = table_bytes(layout.rows, 0, 1_000)
    space = Workspace(tmp_path / "work", {}, limit=0)
    tables = space.tables(layout.rows, 1, shape)
    made = Made(layout, 3, tables.states[0][:, 0], tables.source)
    assert high_water(lambda: fill_noise(tables.states[0], layout, 3, space.let_go)) < 0.3 * size
    assert torch.equal(made.latents[[4]], noise_of(layout, [4], shape, 3))
    path = tmp_path / "kept"
    assert high_water(lambda: kept_latents.write(path, made, {}, space.let_go)) < 0.3 * size
    assert path.stat().st_size > 2 * size
    space.clear()


@pytest.mark.parametrize("limit", [1 << 30, 0], ids=["memory", "mapped"])
def test_the_working_folder_takes_what_is_planned(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state lies beside the one before until it is whole."""
    shape, lying = (8, 30, 40), [0]
    monkeypatch.setattr(estimate, "HOST_BYTES", limit)
    planned = estimate.OnHost(table_bytes(LAYOUT.rows, 1, 8 * 30 * 40), 1_000_000)
    space = Workspace(tmp_path / "work", {}, EVERY, limit=limit)
    tables = space.tables(LAYOUT.rows, 1, shape)
    space.keep({"context 0": torch.zeros(250, 1_000)})
    run = JointDenoising(LAYOUT, tables.states, SIGMAS)

    def folder(path: Path, text: str) -> None:
        lying.append(sum(file.stat().st_size for file in space.folder.iterdir()))  # type: ignore[union-attr]
        write_text(path, text)

    monkeypatch.setattr(workspace, "write_text", folder)  # the last that is done before the state before goes
    run.run(velocity, lambda: space.save(run))
    assert max(lying) == pytest.approx(planned.on_disk(True), rel=0.15)
    assert planned.on_disk(False) == (planned.tables if planned.mapped else 0)
