"""`python -m tests.cli.with_identity edit ...`: the command line with an editor that changes nothing, and no torch.

With KIWI_TEST_STEPS, it takes that many steps of 20 ms.
"""

from __future__ import annotations

import os
import sys

from kiwi_cli.cli import run

from .. import fakes

with fakes.commands_use(fakes.SlowEditor(int(os.environ.get("KIWI_TEST_STEPS", 1)))):
    sys.exit(run())
