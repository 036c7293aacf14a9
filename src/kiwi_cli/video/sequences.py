"""Folders of numbered pictures."""

from __future__ import annotations

import itertools
import json
import re
from fractions import Fraction
from pathlib import Path

from kiwi_cli.errors import MediaError
from kiwi_cli.video.failures import reading
from kiwi_cli.video.pictures import PICTURE_SUFFIXES

FALLBACK_FPS = Fraction(24)  # what a folder without a record of its rate is taken to have
RECORD = "kiwi.json"  # beside the frames: the rate and how they were made
_NUMBER = re.compile(r"(\d+)(?!.*\d)")  # the last number in a name
_MAX_RECORD = 1 << 20  # bytes


def numbered_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of the last number in their names.

    Raises:
        MediaError: there are none, a name has no number, a number is missing or comes twice.
    """
    with reading(folder):
        names = sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".") and path.is_file()
        )
    if not names:
        raise MediaError(f"no pictures in '{folder}'", "pass a folder of numbered PNG, JPEG or WebP files")
    found: dict[int, Path] = {}
    for path in names:
        match = _NUMBER.search(path.stem)
        if match is None:
            raise MediaError(f"no number in the name: '{path}'", "name the pictures 0001.png, 0002.png, ...")
        number = int(match[1])
        if number in found:
            raise MediaError(
                f"two pictures with the number {number}: '{found[number].name}' and '{path.name}' in '{folder}'",
                "keep one numbered sequence in the folder",
            )
        found[number] = path
    numbers = sorted(found)
    for before, after in itertools.pairwise(numbers):
        if after != before + 1:
            gap = f"{before + 1}" if after == before + 2 else f"{before + 1} to {after - 1}"
            raise MediaError(
                f"a gap in the numbering of '{folder}': {gap} is missing after '{found[before].name}'",
                "add the missing pictures or renumber the rest",
            )
    return [found[number] for number in numbers]


def read_record(folder: Path) -> dict[str, str]:
    """The text beside the frames of a sequence that kiwi wrote; empty when there is none."""
    path = folder / RECORD
    if not path.is_file() or path.stat().st_size > _MAX_RECORD:
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(record, dict):
        return {}
    return {str(key): value for key, value in record.items() if isinstance(value, str)}


def write_record(folder: Path, text: dict[str, str], fps: Fraction) -> None:
    """Leave the frame rate and `text` beside the frames."""
    record = {"fps": str(fps), **text}
    (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sequence_fps(folder: Path) -> tuple[Fraction, bool]:
    """(frames a second, whether that is only assumed)."""
    try:
        fps = Fraction(read_record(folder).get("fps", ""))
    except (ValueError, ZeroDivisionError):
        return FALLBACK_FPS, True
    return (fps, False) if Fraction(1, 3600) <= fps <= 1000 else (FALLBACK_FPS, True)
