"""A file appears under its name when it is whole; until then, and after a failure, an older one stays."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from kiwi_cli.base.whole import publish_beside, whole_file, write_text


def test_it_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    with whole_file(path, synced=True) as part:
        part.write_text("new")
        assert part.suffix == ".txt" and part.parent == tmp_path and not path.exists()
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    write_text(path, "old ö")
    with pytest.raises(RuntimeError), whole_file(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "old ö" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("links", [True, False], ids=["", "a disk without links"])
def test_a_name_that_is_taken_is_not_taken_again(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:

        def refuse(*arguments: object, **options: object) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr("os.link", refuse)
    path = tmp_path / "out.png"
    path.write_text("somebody's")
    for number, text in ((2, "mine"), (3, "mine too")):
        part = tmp_path / "part"
        part.write_text(text)
        assert publish_beside(part, path) == tmp_path / f"out-{number}.png"
        assert (tmp_path / f"out-{number}.png").read_text() == text and not part.exists()
    assert path.read_text() == "somebody's"
    part.write_text("free")
    assert publish_beside(part, tmp_path / "other.png") is None
    assert (tmp_path / "other.png").read_text() == "free" and not part.exists()


def test_folders_are_not_replaced_either(tmp_path: Path) -> None:
    for name in ("out", "part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_text(name)
    assert publish_beside(tmp_path / "part", tmp_path / "out") == tmp_path / "out-2"
    assert (tmp_path / "out/1.png").read_text() == "out" and (tmp_path / "out-2/1.png").read_text() == "part"


RACE = (
    "import sys, time\nfrom pathlib import Path\nfrom kiwi_cli.base.whole import publish_beside\n"
    "folder, number = Path(sys.argv[1]), sys.argv[2]\n"
    "part = folder / f'part-{number}'\npart.write_text(number)\n"
    "while not (folder / 'go').exists(): pass\n"
    "print(publish_beside(part, folder / 'out.txt'))"
)


def test_of_several_at_once_each_has_a_name_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    racing = [subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True) for n in range(4)]
    while len(list(tmp_path.glob("part-*"))) < 4:
        time.sleep(0.01)
    (tmp_path / "go").touch()
    said = [process.communicate(timeout=120)[0].strip() for process in racing]
    assert said.count("None") == 1 and len(set(said)) == 4
    assert {path.read_text() for path in tmp_path.glob("out*.txt")} == {"0", "1", "2", "3"}
