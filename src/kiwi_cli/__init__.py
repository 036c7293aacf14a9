"""kiwi: edit video from the command line with the Kiwi-Edit models (arXiv 2603.02175).

`from kiwi_cli import KiwiPipeline` is the Python entry point. It is resolved lazily, so that
`import kiwi_cli` (and with it `kiwi --help`) loads neither torch nor diffusers nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["KiwiPipeline", "__version__"]

if TYPE_CHECKING:
    from kiwi_cli.pipeline import KiwiPipeline


def __getattr__(name: str) -> Any:
    if name == "KiwiPipeline":
        from kiwi_cli.pipeline import KiwiPipeline

        return KiwiPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
