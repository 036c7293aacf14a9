"""Editors in a worker: loaded once, and what their failures mean for the worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kiwi_cli.base.events import SILENT, Events
from kiwi_cli.batch.jobs import Unable
from kiwi_cli.editors.base import Editor
from kiwi_cli.editors.registry import kind_of
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.errors import DeviceError, KiwiError

BROKEN = ("CUDA error", "cudaError", "device-side assert", "CUBLAS_STATUS", "CUDNN_STATUS")
"""In what torch raises when a device will do nothing more for this process."""


def load_editor(choice: ModelChoice, events: Events = SILENT) -> Editor:
    """The loaded editor of a choice, whose model is here.

    Raises:
        KiwiError: it cannot be had on this machine.
    """
    kind = kind_of(choice)
    found = kind.find(choice)
    kind.admit(found, choice)
    return kind.load(found, choice, events)


@contextmanager
def ending_the_worker() -> Iterator[None]:
    """A failure in this block is the worker's, not the job's: others may do it."""
    try:
        yield
    except KiwiError as error:
        raise Unable(error) from error
    except Exception as error:
        raise Unable(KiwiError(f"the model cannot be loaded: {type(error).__name__}: {error}")) from error


@contextmanager
def memory_given_back() -> Iterator[None]:
    """After a failure in this block the device's memory is free again: one job that did not fit takes no other along.

    A device that is broken for this process ends the worker.
    """
    try:
        yield
    except Exception as error:
        if any(sign in str(error) for sign in BROKEN):
            first = str(error).splitlines()[0]
            raise Unable(DeviceError(f"the device does nothing more for this process: {first}")) from error
        _free_memory()
        raise


def _free_memory() -> None:
    import gc
    import sys

    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
