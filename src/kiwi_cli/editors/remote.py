"""Editors behind a service: the clip goes up, a task is watched and paid for, and its result is fetched at once."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Protocol, TypeVar

from kiwi_cli.base.text import format_bytes, format_seconds
from kiwi_cli.editors.by_file import FileEditor, Job, Made
from kiwi_cli.editors.files import Limits, timing_for
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.errors import KiwiError, UsageError

POLL = 5.0  # seconds between two looks at a task
RETRIES, FIRST_WAIT, LONGEST_WAIT = 6, 2.0, 60.0  # of what a service is too busy for; seconds, doubled each time
REQUEST_TIMEOUT = 60.0  # seconds for one answer
PIECE = 1 << 20  # bytes
EXPIRED = (403, 404, 410)
SPARE = 64 << 20  # bytes that a result may have beyond twice the clip's frames, uncompressed

Value = TypeVar("Value")


class Busy(Exception):
    """The service took nothing of it; it may the next time.

    Args:
        wait: seconds that it asks to wait, or None.
    """

    def __init__(self, problem: str, wait: float | None = None) -> None:
        super().__init__(problem)
        self.problem, self.wait = problem, wait


class Expired(Exception):
    """A result's address that does not hold any more."""


@dataclass(frozen=True)
class State:
    """How far a task is.

    Attributes:
        done: nothing more will happen. part: of the work, from 0 to 1. url: of the result.
        failed: why there is none. dollars: what was charged, when the service says it.
    """

    done: bool = False
    part: float = 0.0
    url: str = ""
    failed: str = ""
    dollars: float | None = None


class Service(Protocol):
    """One service, through its own client. Every call raises Busy, or KiwiError with the service's words."""

    def upload(self, path: Path) -> str:
        """The address of a file that was uploaded."""
        ...

    def submit(self, clip: str, instruction: str, references: Sequence[str], seed: int) -> Any:
        """The task that was begun; from here on it may be charged."""
        ...

    def state(self, task: Any) -> State: ...

    def cancel(self, task: Any) -> None: ...


class RemoteEditor(FileEditor):
    """Lets a service edit each clip.

    Args:
        price: dollars of a clip of so many frames, at so many a second; None when not known.
    """

    def __init__(
        self,
        choice: ModelChoice,
        service: Service,
        limits: Limits,
        price: Callable[[int, Fraction], float | None],
        takes_references: bool = False,
    ) -> None:
        super().__init__(choice, takes_references)
        self.service, self.limits, self._price = service, limits, price

    def make(self, job: Job) -> Made:
        deadline = monotonic() + self.timeout
        service = self.service
        clip = self._patiently(lambda: service.upload(job.given.path), deadline)
        pictures = [self._patiently(partial(service.upload, path), deadline) for path in job.references]
        task = self._patiently(lambda: service.submit(clip, job.instruction, pictures, job.seed), deadline)
        try:
            state = self._wait(task, deadline, job)
        except BaseException:  # also Ctrl-C: what is not wanted is not paid for
            with contextlib.suppress(Exception):
                service.cancel(task)
            raise
        if state.failed:
            raise KiwiError(f"'{self.name}' did not edit it: {state.failed}", "see what the service says of it")
        most = 2 * job.raw + SPARE
        try:
            fetch(state.url, job.output, most)
        except Expired:
            state = self._patiently(lambda: service.state(task), deadline)  # fresh addresses, if there are any
            try:
                fetch(state.url, job.output, most)
            except Expired:
                raise KiwiError(f"the result of '{self.name}' has expired", "edit it again") from None
        known = self._price(job.given.timing.count, job.given.timing.rate)
        dollars, how = (known, "at list price") if state.dollars is None else (state.dollars, "as charged")
        said = () if dollars is None else (f"cost {dollars:.2f} dollars, {how}",)
        return Made(job.output, dollars, said)

    def _wait(self, task: Any, deadline: float, job: Job) -> State:
        while True:
            state = self._patiently(lambda: self.service.state(task), deadline)
            if state.done:
                return state
            job.report(min(0.99, state.part))
            if monotonic() >= deadline:
                raise KiwiError(
                    f"'{self.name}' was not done after {format_seconds(self.timeout)}, and was cancelled",
                    "give it longer: --editor-timeout SECONDS",
                )
            time.sleep(POLL)

    def _patiently(self, call: Callable[[], Value], deadline: float) -> Value:
        """What a call gives, made again while the service is busy."""
        wait = FIRST_WAIT
        for attempt in range(RETRIES + 1):
            try:
                return call()
            except Busy as busy:
                pause = min(max(wait, busy.wait or 0.0), LONGEST_WAIT)
                if attempt == RETRIES or monotonic() + pause > deadline:
                    raise KiwiError(f"'{self.name}': {busy.problem}", "try again later") from None
                time.sleep(pause)
                wait *= 2
        raise AssertionError


def fetch(url: str, path: Path, most: int) -> None:
    """Download a result.

    Raises:
        Expired: it is not there any more. KiwiError: it cannot be fetched, or is far too large.
    """
    if not url.startswith(("https://", "http://")):
        raise KiwiError(f"not the address of a result: '{url[:100]}'", "the service has changed")
    try:
        with urllib.request.urlopen(url, timeout=REQUEST_TIMEOUT) as answer, path.open("wb") as file:
            size = int(answer.headers.get("Content-Length") or 0)
            came = 0
            while size <= most and came <= most and (piece := answer.read(PIECE)):
                came += file.write(piece)
            if max(size, came) > most:
                raise KiwiError(f"the result is larger than {format_bytes(most)}", "it is far too large for the clip")
            if came < size:
                raise KiwiError("the result was cut off on its way", "run the same command again")
    except urllib.error.HTTPError as error:
        if error.code in EXPIRED:
            raise Expired from None
        raise KiwiError(f"cannot fetch the result: {error.code} {error.reason}", "run the same command again") from None
    except (OSError, ValueError) as error:
        raise KiwiError(f"cannot fetch the result: {error}", "run the same command again") from None


def check_client(name: str, module: str, extra: str, variable: str) -> None:
    """That a service's client is installed, and its key is in the environment.

    Raises:
        UsageError: one of them is not.
    """
    if importlib.util.find_spec(module) is None:
        raise UsageError(f"--editor {name} needs {module}", f"pip install 'kiwi-cli[{extra}]'")
    if not os.environ.get(variable):
        raise UsageError(f"--editor {name} needs a key in {variable}", f"set {variable} to the service's key")


def second_price(
    choice: ModelChoice, limits: Limits, own: float | None, least: float = 0.0
) -> Callable[[int, Fraction], float | None]:
    """The price of a clip that is paid by the second of it: as --editor-price says, else `own` dollars."""

    def price(frames: int, rate: Fraction) -> float | None:
        dollars = choice.editor_price or own
        if dollars is None:
            return None
        try:
            seconds = float(timing_for(frames, rate, limits).seconds)
        except KiwiError:  # too long: it will be refused, and cost nothing
            return 0.0
        return seconds * dollars if choice.editor_price else max(least, seconds * dollars)

    return price
