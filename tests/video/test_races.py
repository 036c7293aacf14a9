"""Two writers of one name: nothing that is there is replaced unasked, and nothing that was made is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kiwi_cli.editing.paths import sidecar_of
from kiwi_cli.errors import MediaError
from kiwi_cli.video import open_writer, probe, read_frames

from .. import fakes
from .media import make_clip


@pytest.mark.parametrize("name", ["out.mp4", "out.png", "out.gif", "frames"])
def test_what_comes_to_be_meanwhile_stays_and_the_result_is_kept_beside(name: str, tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", frames=1 if name.endswith(".png") else 5)
    out = tmp_path / name
    clip = probe(source)
    with (
        pytest.raises(
            MediaError, match=r"came to be while this was made, and stays as it is; the result is '.*-2"
        ) as told,
        open_writer(out, clip) as writer,
    ):
        writer.write(np.stack([frame.rgb for frame in read_frames(clip)]))
        if name == "frames":
            out.mkdir()
            (out / "mine.txt").write_text("somebody's")
        else:
            out.write_text("somebody's")
    kept = out.with_name(f"{out.stem}-2{out.suffix}")
    assert (out / "mine.txt" if name == "frames" else out).read_text() == "somebody's"
    assert probe(kept).frame_count == clip.frame_count and "--overwrite" in told.value.hint
    assert not list(tmp_path.glob(".*"))


def test_with_overwrite_it_is_replaced(tmp_path: Path) -> None:
    clip = probe(make_clip(tmp_path / "in.mp4", frames=3))
    with open_writer(tmp_path / "out.mp4", clip, overwrite=True) as writer:
        writer.write(np.stack([frame.rgb for frame in read_frames(clip)]))
        (tmp_path / "out.mp4").write_text("older")
    assert probe(tmp_path / "out.mp4").frame_count == 3


PROGRAM = (
    "import sys\nfrom pathlib import Path\nfrom kiwi_cli.base.lock import claimed\n"
    "from kiwi_cli.errors import KiwiError\n"
    "try:\n    with claimed(Path(sys.argv[1])): print('begun')\n"
    "except KiwiError as error: print(error.message)"
)


def test_two_runs_to_one_name_are_not_begun(tmp_path: Path) -> None:
    """Else, with --overwrite, the picture of one may end beside the record of the other."""
    source, out = make_clip(tmp_path / "in.mp4", frames=1), tmp_path / "out.mp4"
    (tmp_path / "link").symlink_to(tmp_path)
    told: list[str] = []

    def meanwhile(frames: np.ndarray) -> np.ndarray:
        for name in (out, tmp_path / "link" / "out.mp4", tmp_path / "other.mp4"):
            command = [sys.executable, "-c", PROGRAM, str(name)]
            told.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        return frames

    fakes.edit(source, out, fakes.FakeEditor(meanwhile), sidecar=True, overwrite=True)
    assert f"another run is writing '{out}' (process {os.getpid()} on" in told[0] and "is writing" in told[1]
    assert told[2] == "begun\n"  # another name beside it is free
    assert not list(tmp_path.glob(".*"))
    again = subprocess.run([sys.executable, "-c", PROGRAM, str(out)], capture_output=True, text=True, check=True)
    assert again.stdout == "begun\n"


def test_the_loser_has_no_record_beside_the_winners(tmp_path: Path) -> None:
    source, out = make_clip(tmp_path / "in.mp4", frames=3), tmp_path / "out.mp4"
    record = sidecar_of(out)

    def rival(frames: np.ndarray) -> np.ndarray:
        out.write_text("the winner's")
        record.write_text("the winner's too")
        return frames

    with pytest.raises(MediaError, match="came to be"):
        fakes.edit(source, out, fakes.FakeEditor(rival), sidecar=True, instruction="the loser's")
    assert out.read_text() == "the winner's" and record.read_text() == "the winner's too"
    assert probe(tmp_path / "out-2.mp4").frame_count == 3
