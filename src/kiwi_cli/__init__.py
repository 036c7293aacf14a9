"""kiwi: edit video with the Kiwi-Edit models (arXiv 2603.02175), from the command line and from Python.

    import kiwi_cli as kiwi
    kiwi.edit("clip.mp4", "make it snowy", output="snowy.mp4")    # what `kiwi edit` does
    pipe = kiwi.KiwiPipeline.from_pretrained("instruct-reference")  # a diffusers pipeline

All names are resolved when they are first used, so that `import kiwi_cli` (and with it `kiwi --help`) loads neither
torch nor diffusers nor transformers. docs/python.md shows them at work.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kiwi_cli.base.version import __version__

if TYPE_CHECKING:
    from kiwi_cli.editing.call import edit, load
    from kiwi_cli.editing.request import EditRequest
    from kiwi_cli.editing.session import EditResult
    from kiwi_cli.engine.pipeline import KiwiPipeline
    from kiwi_cli.errors import CheckpointError, DeviceError, KiwiError, MediaError, UsageError

__all__ = [
    "CheckpointError",
    "DeviceError",
    "EditRequest",
    "EditResult",
    "KiwiError",
    "KiwiPipeline",
    "MediaError",
    "UsageError",
    "__version__",
    "edit",
    "load",
]

_HOMES = {
    "edit": "editing.call",
    "load": "editing.call",
    "EditRequest": "editing.request",
    "EditResult": "editing.session",
    "KiwiPipeline": "engine.pipeline",
    "CheckpointError": "errors",
    "DeviceError": "errors",
    "KiwiError": "errors",
    "MediaError": "errors",
    "UsageError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"kiwi_cli.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
