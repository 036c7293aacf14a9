"""Other editors through the same bench: what a run remembers of its editor, and what is said of each clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from kiwi_cli.bench import edit
from kiwi_cli.bench import run as runs

from .conftest import Kiwi
from .test_stages import frames_of

COPY = "command:cp {input} {output}"


def done(run: runs.Run) -> list[dict[str, Any]]:
    """What is written down of the items that were done."""
    return edit.outcomes(run, [edit.job_of(run, item) for item in run.items])


SHORT = ("--size", "64x64", "--frames", "5")


def test_a_program_edits_a_benchmark(kiwi: Kiwi, tmp_path: Path, openve_data: Path) -> None:
    out = tmp_path / "run"
    command = ("bench", "openve", "--stage", "edit", "--data", openve_data, "--limit", 2, "--out", out, *SHORT)
    code, _, err = kiwi(*command, "--editor", COPY)
    assert code == 0 and "2 items edited" in err, err
    assert "settings published but frames 5, size 64x64: 5 frames, 64x64, crop\n" in err  # no steps and no seed
    run = runs.open_run(out)
    assert run.identity["model"]["editor"] == "command" and run.identity["model"]["name"] == COPY
    for item in run.complete(run.items):
        frames = frames_of(run.edited(item))
        assert frames.shape == (5, 64, 64, 3) and np.abs(frames.astype(int) - frames_of(run.source(item))).mean() < 10
    assert all("changes" not in line and "dollars" not in line for line in done(run))
    code, _, err = kiwi(*command, "--editor", "command:cp -f {input} {output}")
    assert code == 2 and "holds another run: its model is" in err and "nothing was changed" in err
    assert kiwi(*command, "--editor", COPY)[0] == 0


def test_two_fine_tunes_behind_one_command_never_share_a_run(kiwi: Kiwi, tmp_path: Path, openve_data: Path) -> None:
    weights, out = tmp_path / "weights.bin", tmp_path / "run"
    weights.write_bytes(b"a")
    line = f'command:sh -c \'cp "$0" "$1"\' {{input}} {{output}} {weights}'
    command = ("bench", "openve", "--stage", "edit", "--data", openve_data, "--limit", 1, "--out", out, *SHORT)
    assert kiwi(*command, "--editor", line)[0] == 0
    weights.write_bytes(b"b")
    code, _, err = kiwi(*command, "--editor", line)
    assert code == 2 and "holds another run: its model is" in err


def test_one_clip_that_fails_never_ends_a_run(kiwi: Kiwi, tmp_path: Path, openve_data: Path) -> None:
    """The program gives up on one instruction; the others are done, and the reason is kept."""
    out = tmp_path / "run"
    line = (
        'command:sh -c \'case "$2" in *local_add*) echo no GPU; exit 3;; esac; cp "$0" "$1"\' {input} {output} {text}'
    )
    types = ("--category", "local_add", "--category", "local_change")
    command = ("bench", "openve", "--stage", "edit", "--data", openve_data, "--out", out, *SHORT, *types)
    code, stdout, err = kiwi(*command, "--editor", line, "--json")
    assert code == 1 and "1 item failed" in err
    (reason,) = json.loads(stdout)["edited"]["failures"].values()
    assert reason == "'sh' failed with 3: no GPU" and json.loads(stdout)["edited"]["made"] == 1


def test_clips_that_exist_are_read_and_what_was_changed_is_kept(kiwi: Kiwi, tmp_path: Path, openve_data: Path) -> None:
    """By id and by the source's name; of another rate and size, which is said; and a name that two sources have."""
    from fractions import Fraction

    from kiwi_cli.bench.suites import data
    from kiwi_cli.bench.suites.items import BENCHMARKS
    from kiwi_cli.video import Size
    from kiwi_cli.video.plain import write_mp4

    from ..editors.test_files import counting, numbers

    items = {item.category: item for item in data.read(BENCHMARKS["openve"], openve_data, "folder").items}
    clips, out = tmp_path / "clips", tmp_path / "run"
    clips.mkdir()
    write_mp4(clips / f"{items['local_remove'].id}.mp4", [counting(10, (128, 96))], Fraction(16), Size(128, 96), "1")
    for category in ("local_add", "local_change", "global_style"):  # the sources of the last two have one name
        path = clips / f"{Path(items[category].source).stem}.mp4"
        write_mp4(path, [counting(5)], Fraction(8), Size(64, 64), "1")
    types = [word for name in ("local_remove", "local_add", "local_change") for word in ("--category", name)]
    command = ("bench", "openve", "--stage", "edit", "--data", openve_data, "--out", out, *SHORT, *types)
    code, stdout, err = kiwi(*command, "--editor", f"folder:{clips}", "--json")
    assert code == 1, err
    (reason,) = json.loads(stdout)["edited"]["failures"].values()
    assert "could be the clip of several items with the source '0_0.mp4'" in reason
    run = runs.open_run(out)
    assert [line["changes"] for line in done(run) if "changes" in line] == [
        ["came back as 10 frames, not 5: taken by their times", "came back at 128x96, its middle scaled to 64x64"]
    ]
    assert numbers(frames_of(run.edited(items["local_remove"]))) == [1, 3, 5, 7, 9]
    assert kiwi("bench", "report", out, "-q")[0] == 0
    report = json.loads((out / "report" / "report.json").read_text())["benchmarks"][0]
    assert report["runs"][0]["changed"] == {
        "came back as 10 frames, not 5: taken by their times": 1,
        "came back at 128x96, its middle scaled to 64x64": 1,
    }
    assert "in 1 clip: came back at 128x96, its middle scaled to 64x64" in (out / "report" / "report.md").read_text()


def test_options_that_an_editor_has_no_use_for_are_refused(kiwi: Kiwi, tmp_path: Path, openve_data: Path) -> None:
    command = ("bench", "openve", "--stage", "edit", "--data", openve_data, "--out", tmp_path / "run")
    for more, words in (
        (("--editor", COPY, "--quantize", "int8"), f"--quantize does nothing with --editor {COPY}"),
        (("--editor", COPY, "--seed", "3"), "--seed does nothing with"),
        (("--editor", COPY, "--model", "tiny"), "--model does nothing with"),
        (("--editor-timeout", "3"), "--editor-timeout does nothing with --editor kiwi"),
        (("--editor", "magic"), "unknown --editor: 'magic'"),
        (("--editor", COPY, "--editor-timeout", "-3"), "--editor-timeout must be more than 0, not -3"),
    ):
        code, _, err = kiwi(*command, *more)
        assert code == 2 and words in err, err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_another_editor(kiwi: Kiwi, tmp_path: Path, openve_data: Path) -> None:
    out = tmp_path / "run"
    command = ("bench", "openve", "--data", openve_data, "--out", out, "--dry-run", "--editor", COPY)
    code, _, err = kiwi(*command)
    assert code == 0 and "8 items to edit" in err and not out.exists(), err
