"""A checkpoint as few files, none over 16 MiB: what comes back from a machine that is only lent.

pack     a folder in the released layout -> its large files side by side, the small ones in `rest.zip`
unpack   and back: a folder that `kiwi edit --model` takes
"""

from __future__ import annotations

import json
import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from kiwi_cli.base.failures import writing_hint
from kiwi_cli.errors import CheckpointError, KiwiError

LARGE = 1 << 20
REST, INDEX = "rest.zip", "parts.json"
_HINT = "give the folder that `scripts/train_tiny.py --out` wrote"


def pack(folder: Path, out: Path) -> None:
    """Write a folder's parts to `out`; older ones of the same names are replaced."""
    out.mkdir(parents=True, exist_ok=True)
    large: dict[str, str] = {}
    with zipfile.ZipFile(out / f"{REST}.part", "w", zipfile.ZIP_DEFLATED) as rest:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            if path.stat().st_size < LARGE:
                rest.write(path, name)
                continue
            flat = name.replace("/", "-")
            large[flat] = name
            shutil.copyfile(path, out / f"{flat}.part")
    for flat in (*large, REST):
        (out / f"{flat}.part").replace(out / flat)
    (out / INDEX).write_text(json.dumps(large, indent=2) + "\n")


def unpack(parts: Path, folder: Path) -> None:
    """Write the folder whose parts these are. It appears when it is whole, in the place of an older checkpoint.

    Raises:
        CheckpointError: parts that are not there, names that lead out of the folder, or a folder of something else.
        KiwiError: the folder cannot be written.
    """
    place = folder.resolve()
    if place.exists() and not (place / "model_index.json").exists() and not _is_empty(place):
        raise CheckpointError(
            f"'{folder}' is there, and is no checkpoint that could be replaced", "choose a folder that is not there"
        )
    contents = _read(parts)  # all of it before anything is written, so that each failure is known for what it is
    temporary = place.with_name(f".{place.name}.part")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        for name, content in contents.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)
        if place.exists():
            shutil.rmtree(place)
        temporary.replace(place)
    except OSError as error:
        raise KiwiError(f"'{folder}' cannot be written: {error.strerror or error}", writing_hint(error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_empty(place: Path) -> bool:
    return place.is_dir() and not any(place.iterdir())


def _read(parts: Path) -> dict[str, bytes]:
    """Name in the folder -> content."""
    try:
        large = json.loads((parts / INDEX).read_text())
        with zipfile.ZipFile(parts / REST) as rest:
            for name in (*large.values(), *rest.namelist()):
                if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                    raise CheckpointError(f"'{name}' leads out of the folder", _HINT)
            contents = {name: rest.read(name) for name in rest.namelist()}
        return contents | {name: (parts / flat).read_bytes() for flat, name in large.items()}
    except (OSError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise CheckpointError(f"'{parts}' holds no whole parts: {error}", _HINT) from error
