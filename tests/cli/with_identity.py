"""`python -m tests.cli.with_identity edit ...`: the command line with a model that changes nothing, and no torch.

With KIWI_TEST_STEPS, the model takes that many steps of 20 ms.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from kiwi_cli import job
from kiwi_cli.cli import run

from .terminal import Identity

STEPS = int(os.environ.get("KIWI_TEST_STEPS", 1))


class Slow(Identity):
    def __call__(self, frames: Any, instruction: str, references: Any = (), **options: Any) -> Any:
        progress = options["progress"]
        for stage, total in (("instruction", 1), ("encode", 1), ("denoise", STEPS), ("decode", 1)):
            for done in range(total):
                progress(stage, done + 1, total)
                time.sleep(0.02)
        return super().__call__(frames, instruction, references, **options)


real = job.run
job.prepare = lambda work, console=None: work  # type: ignore[assignment]
job.run = lambda work, progress=None, console=None: real(work, progress, Slow())  # type: ignore[assignment]
sys.exit(run())
