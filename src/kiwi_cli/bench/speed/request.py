"""What `kiwi bench speed` is asked to measure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SpeedRequest:
    """What to measure.

    Attributes:
        model: '5b', 'mid' or 'small': random weights of that size.
        width, height, frames, steps: of the edit; multiples of 32, and 4k + 1 frames.
        reference: with one reference picture.
        memory, max_memory: as `KiwiPipeline.manage`; on CUDA the process is capped at `max_memory` for real.
        attention, compile: kernel, and whether the transformer's blocks are compiled.
        quantize, solver, cache, cache_threshold: approximate modes, as of an edit.
        against_library: also compare with the plain library path on the same weights.
        warmups, repeats: runs of every stage before and while it is timed.
        save: folder that the final latents and frames are written to, to compare runs with; None keeps nothing.
    """

    model: str = "mid"
    width: int = 416
    height: int = 224
    frames: int = 17
    steps: int = 4
    reference: bool = False
    device: str = "auto"
    dtype: str = "auto"
    memory: str = "auto"
    max_memory: str | None = None
    attention: str = "auto"
    compile: bool = False
    quantize: str = "as-stored"
    solver: str = "euler"
    cache: str = "off"
    cache_threshold: float | None = None
    against_library: bool = False
    warmups: int = 1
    repeats: int = 3
    save: str | None = None
