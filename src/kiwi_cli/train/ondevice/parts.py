"""A checkpoint as few files, none over 16 MiB: what comes back from a machine that is only lent.

pack     a folder in the released layout -> its large files side by side, the small ones in `rest.zip`
unpack   and back: a folder that `kiwi edit --model` takes
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path, PurePosixPath

from kiwi_cli.errors import CheckpointError

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
    """Write the folder whose parts these are. It appears when it is whole, in the place of an older one.

    Raises:
        CheckpointError: parts that are not there, or names that lead out of the folder.
    """
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        large = json.loads((parts / INDEX).read_text())
        with zipfile.ZipFile(parts / REST) as rest:
            for name in (*large.values(), *rest.namelist()):
                if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                    raise CheckpointError(f"'{name}' leads out of the folder", _HINT)
            rest.extractall(temporary)
        for flat, name in large.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(parts / flat, temporary / name)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"'{parts}' holds no whole parts: {error}", _HINT) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
