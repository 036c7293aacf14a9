"""What a killed run leaves is cleaned by the next to the same folder, and nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kiwi_cli.video import open_writer, probe

from .media import make_clip, run_through

KILLED = """
import os, signal, sys
import numpy as np
from kiwi_cli.video import open_writer, probe
clip = probe(sys.argv[1])
with open_writer(sys.argv[2], clip) as writer:
    writer.write(np.zeros((3, clip.height, clip.width, 3), np.uint8))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def partials(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "kiwi-partial" in path.name)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither SIGKILL nor flock")
def test_the_next_run_cleans_what_a_killed_one_left(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4")
    out = tmp_path / "new"
    out.mkdir()
    for name in ("a.mp4", "b"):
        done = subprocess.run([sys.executable, "-c", KILLED, str(clip), str(out / name)], env=os.environ, check=False)
        assert done.returncode == -signal.SIGKILL
    assert partials(out), "nothing was left to clean"
    strangers = [out / ".mine.kiwi-partial", out / ".x-12.kiwi-partial"]
    strangers[0].write_text("a file")
    strangers[1].mkdir()
    (strangers[1] / "photo.png").write_text("not ours: it has no lock")
    (out / "kiwi-partial").mkdir()
    with open_writer(out / "other.mp4", probe(clip)) as working:
        running = [name for name in partials(out) if name.startswith(".other")]
        assert len(running) == 1
        run_through(probe(clip), out / "c.mp4")
        assert running[0] in partials(out)  # another's run is left alone
        working.write(np.zeros((8, 64, 96, 3), np.uint8))
    assert partials(out) == [".mine.kiwi-partial", ".x-12.kiwi-partial", "kiwi-partial"]
    assert (strangers[1] / "photo.png").exists()


def test_planning_leaves_nothing_and_cleans_nothing(tmp_path):
    clip = make_clip(tmp_path / "clip.mp4")
    open_writer(tmp_path / "out.mp4", probe(clip))
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
