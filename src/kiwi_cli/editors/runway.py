"""`--editor runway`: Runway's Aleph 2 through its own client. Aleph 1, which tables name, is gone from the service."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from kiwi_cli.base.events import Events
from kiwi_cli.editors import remote
from kiwi_cli.editors.base import Found, Named
from kiwi_cli.editors.by_file import ByOrigin
from kiwi_cli.editors.contents import digest_of
from kiwi_cli.editors.files import Limits
from kiwi_cli.editors.remote import Busy, RemoteEditor, State, check_client, second_price
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.errors import KiwiError, UsageError
from kiwi_cli.weights.settings import ModelSettings

MODEL = "aleph2"
KEY = "RUNWAYML_API_SECRET"
LIMITS = Limits(seconds=(Fraction(2), Fraction(30)), bytes=200_000_000, pictures=False)
CREDIT = 0.01  # dollars
SECOND, LEAST = 28 * CREDIT, 56 * CREDIT  # of Aleph 2, as listed in September 2026
MOST_SEED = 2**32
CLIENT_RETRIES = 4  # of what can be asked twice: looks at a task, uploads


class Runway:
    """See `Service`."""

    def __init__(self) -> None:
        import runwayml

        self._errors: Any = runwayml
        self._client: Any = runwayml.RunwayML(timeout=remote.REQUEST_TIMEOUT, max_retries=CLIENT_RETRIES)
        # Tasks are begun without retries of the client's: of a 500 or a lost answer nobody knows whether it was taken.
        self._once: Any = self._client.with_options(max_retries=0)

    def upload(self, path: Path) -> str:
        with self._explained():
            return str(self._client.uploads.create_ephemeral(file=path).uri)

    def submit(self, clip: str, instruction: str, references: Sequence[str], seed: int) -> str:
        with self._explained(begins=True):
            task = self._once.video_to_video.create(
                model=MODEL, video_uri=clip, prompt_text=instruction, seed=seed % MOST_SEED
            )
            return str(task.id)

    def state(self, task: str) -> State:
        with self._explained():
            found = self._client.tasks.retrieve(task)
        cost = getattr(found, "cost", None)
        dollars = None if cost is None else CREDIT * float(cost.credits)
        if found.status == "SUCCEEDED":
            return State(True, 1.0, str(found.output[0]) if found.output else "", dollars=dollars)
        if found.status == "FAILED":
            code = getattr(found, "failure_code", None)
            why = f"{found.failure} ({code})" if code else str(found.failure)
            return State(True, failed=f"refused: {why}" if str(code).startswith("SAFETY") else why, dollars=dollars)
        if found.status == "CANCELLED":
            return State(True, failed="the task was cancelled at the service", dollars=dollars)
        return State(part=float(getattr(found, "progress", 0.0) or 0.0))

    def cancel(self, task: str) -> None:
        self._client.tasks.delete(task)

    def _explained(self, begins: bool = False) -> _Explained:
        return _Explained(self._errors, begins)


class _Explained:
    """Turns the client's errors into ours; `begins`: the call begins a task."""

    def __init__(self, errors: Any, begins: bool) -> None:
        self._errors, self._begins = errors, begins

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        known = self._errors
        if isinstance(error, known.APIStatusError):
            status, words = error.status_code, _words(error)
            if status in (429, 503):
                asked = error.response.headers.get("retry-after", "")
                raise Busy(f"the service is busy ({status})", float(asked) if asked.isdigit() else None) from None
            if status in (401, 403):
                raise KiwiError(f"Runway refused the key: {words}", f"check {KEY}") from None
            doubt = " (whether it was charged is not known)" if self._begins and status >= 500 else ""
            raise KiwiError(f"Runway answered {status}: {words}{doubt}", "run the same command again") from None
        if isinstance(error, known.APIConnectionError):
            doubt = " (whether it was charged is not known)" if self._begins else ""
            raise KiwiError(f"no answer from Runway: {error.message}{doubt}", "run the same command again") from None


def _words(error: Any) -> str:
    body = error.body
    said = body.get("error") if isinstance(body, dict) else None
    return " ".join(str(said or error.message).split())[:300]


class Kind(Named):
    """A kind of editor: Runway."""

    def uses(self, choice: ModelChoice) -> Collection[str]:
        return {"editor_timeout", "editor_price", "seed"}

    def find(self, choice: ModelChoice) -> Found:
        if choice.editor != self.name:
            raise UsageError(f"--editor runway takes no more words: '{choice.editor}'", "pass --editor runway")
        price = second_price(choice, LIMITS, SECOND, LEAST)
        settings = ModelSettings(multiple=ByOrigin.multiple)
        return Found(None, settings=settings, takes_references=False, pads=False, price=price)

    def identify(self, found: Found, choice: ModelChoice) -> str:
        """The model's name: which version answers behind it, nobody says."""
        return digest_of(f"{self.name} {MODEL}", ())

    def admit(self, found: Found, choice: ModelChoice) -> None:
        check_client(self.name, "runwayml", "runway", KEY)

    def load(self, found: Found, choice: ModelChoice, events: Events) -> RemoteEditor:
        assert found.price is not None
        return RemoteEditor(choice, Runway(), LIMITS, found.price)


KIND = Kind("runway")
