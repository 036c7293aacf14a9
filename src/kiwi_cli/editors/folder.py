"""`--editor folder:DIR`: clips that somebody made already, found by their names. Nothing is edited, only read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kiwi_cli.base.events import Events
from kiwi_cli.editors import files
from kiwi_cli.editors.base import Edited, Found, Named, Origin
from kiwi_cli.editors.by_file import ByOrigin
from kiwi_cli.editors.contents import digest_of
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.errors import KiwiError, UsageError
from kiwi_cli.weights.settings import ModelSettings

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".png", ".jpg", ".jpeg", ".webp")


def folder_of(choice: ModelChoice) -> Path:
    """The folder with the clips.

    Raises:
        UsageError: there is none.
    """
    name = choice.editor.partition(":")[2]
    path = Path(name).expanduser()
    if not name or not path.is_dir():
        raise UsageError(f"no such folder: '{name}'", "pass the folder with the edited clips: --editor folder:DIR")
    return path


def find_clip(folder: Path, origin: Origin) -> tuple[Path, bool]:
    """The clip that was made already, and whether it has the result's name (the item's id, in a benchmark), which is
    looked for before the source's; in a folder of the category's name as well as in DIR itself.

    Raises:
        KiwiError: there is none, or there are several.
    """
    for stem in dict.fromkeys((origin.output.stem, origin.source.stem)):
        for place in (folder / origin.output.parent.name, folder):
            found = [path for suffix in SUFFIXES if (path := place / f"{stem}{suffix}").is_file()]
            if len(found) > 1:
                names = ", ".join(f"'{path.name}'" for path in found)
                raise KiwiError(f"several clips for '{stem}' in '{place}': {names}", "keep one of them")
            if found:
                return found[0], stem == origin.output.stem
    raise KiwiError(
        f"no clip in '{folder}' is named '{origin.output.stem}' or '{origin.source.stem}'",
        f"name it '{origin.output.stem}.mp4'",
    )


class FolderEditor(ByOrigin):
    """Reads the clip that has the name."""

    def work(
        self,
        frames: np.ndarray,
        instruction: str,
        references: Sequence[Image.Image],
        origin: Origin,
        seed: int,
        report: Callable[[float], None],
    ) -> Edited:
        path = find_clip(folder_of(self.choice), origin)[0]
        timing = files.Timing(origin.rate, len(frames))
        taken = files.take(path, timing, frames.shape, f"'{path.name}'", "crop")
        return Edited(taken.stream(), changes=taken.changes)


class Folder(Named):
    """A kind of editor: folders of clips."""

    def find(self, choice: ModelChoice) -> Found:
        folder_of(choice)
        return Found(None, settings=ModelSettings(multiple=ByOrigin.multiple), pads=False)

    def identify(self, found: Found, choice: ModelChoice) -> str:
        """The names and contents of all clips in the folder: a folder that changed is another one."""
        return digest_of("folder", [folder_of(choice)])

    def load(self, found: Found, choice: ModelChoice, events: Events) -> FolderEditor:
        return FolderEditor(choice, takes_references=True)


KIND = Folder("folder")
