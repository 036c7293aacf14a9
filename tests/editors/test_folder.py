"""`--editor folder:DIR`: clips that exist are found by the item's id or the source's name, and read."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from kiwi_cli.base.events import SILENT
from kiwi_cli.editors.base import Denoising, Origin
from kiwi_cli.editors.folder import KIND, find_clip
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.errors import KiwiError, UsageError
from kiwi_cli.video import Size
from kiwi_cli.video.plain import write_mp4

from .test_files import counting, numbers

ORIGIN = Origin(Path("videos/dog.mp4"), Path("run/edits/local_add/dog-123.mp4"), Fraction(8))


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    (tmp_path / "clips" / "local_add").mkdir(parents=True)
    return tmp_path / "clips"


def put(path: Path, first: int = 0) -> Path:
    write_mp4(path, [counting(5 + first)[first:]], Fraction(8), Size(64, 64), "1")
    return path


def test_the_items_id_comes_before_the_sources_name_and_its_category_before_all(clips: Path) -> None:
    for number, name in enumerate(("dog.mp4", "local_add/dog.mp4", "dog-123.mp4", "local_add/dog-123.mp4")):
        path = put(clips / name, number)
        assert find_clip(clips, ORIGIN) == (path, number > 1)
    choice = ModelChoice(editor=f"folder:{clips}")
    editor = KIND.load(KIND.find(choice), choice, SILENT)
    done = editor.edit(np.zeros((5, 64, 64, 3), np.uint8), "x", denoising=Denoising(1), origin=ORIGIN)
    assert numbers(np.concatenate(list(done.frames))) == [3, 4, 5, 6, 7] and done.changes == ()


def test_a_clip_that_is_not_there_or_there_twice(clips: Path) -> None:
    with pytest.raises(KiwiError, match=r"no clip in '.*' is named 'dog-123' or 'dog'") as error:
        find_clip(clips, ORIGIN)
    assert error.value.hint == "name it 'dog-123.mp4'"
    put(clips / "dog.mp4")
    shutil.copy(clips / "dog.mp4", clips / "dog.mov")
    with pytest.raises(KiwiError, match=r"several clips for 'dog' in '.*': 'dog.mp4', 'dog.mov'"):
        find_clip(clips, ORIGIN)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for name in ("", str(tmp_path / "nowhere")):
        with pytest.raises(UsageError, match="no such folder"):
            KIND.find(ModelChoice(editor=f"folder:{name}"))


def test_a_folder_that_changed_is_another_one(clips: Path) -> None:
    choice = ModelChoice(editor=f"folder:{clips}")

    def fingerprint() -> str:
        return KIND.identify(KIND.find(choice), choice)

    put(clips / "dog.mp4")
    first = fingerprint()
    assert fingerprint() == first
    put(clips / "dog.mp4", 1)
    second = fingerprint()
    put(clips / "cat.mp4")
    assert len({first, second, fingerprint()}) == 3
