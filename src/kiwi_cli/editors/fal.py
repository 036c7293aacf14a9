"""`--editor fal:MODEL`: the video editing models at fal.ai, through its own client."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi_cli.base.events import Events
from kiwi_cli.editors import remote
from kiwi_cli.editors.base import Found, Named
from kiwi_cli.editors.by_file import TIMEOUT, ByOrigin
from kiwi_cli.editors.contents import digest_of
from kiwi_cli.editors.files import Limits
from kiwi_cli.editors.remote import Busy, RemoteEditor, State, check_client, second_price
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.errors import KiwiError, UsageError
from kiwi_cli.weights.settings import ModelSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "FAL_KEY"
KEPT = 86_400  # seconds that the service keeps what is uploaded
CLIPS = Limits(pictures=False)
KLING = Limits(
    seconds=(Fraction(3), Fraction(10)),
    rate=(Fraction(24), Fraction(60)),
    side=(720, 2160),
    bytes=200_000_000,
    pictures=False,
)


@dataclass(frozen=True)
class Endpoint:
    """What a model takes.

    Attributes:
        pictures: the field for reference pictures; '' when it takes none. most: of them.
        dollars: a second of the clip, as listed in November 2026; None when not known here.
        more: other arguments.
    """

    limits: Limits = CLIPS
    pictures: str = ""
    most: int = 0
    dollars: float | None = None
    more: dict[str, Any] = field(default_factory=dict)


SILENT_CLIP = {"keep_audio": False}
MODELS = {
    "fal-ai/kling-video/o1/video-to-video/edit": Endpoint(KLING, "image_urls", 4, None, SILENT_CLIP),
    "fal-ai/kling-video/o3/pro/video-to-video/edit": Endpoint(KLING, "image_urls", 4, 0.336, SILENT_CLIP),
}
OTHER = Endpoint()
"""Any other model is given `video_url` and `prompt` alone."""


def model_of(choice: ModelChoice) -> str:
    """The model's id at the service.

    Raises:
        UsageError: it is none.
    """
    model = choice.editor.partition(":")[2]
    if len(model.split("/")) < 2 or not all(model.split("/")):
        raise UsageError(f"not a model of fal: '{model}'", f"such as --editor fal:{next(iter(MODELS))}")
    return model


class Fal:
    """See `Service`."""

    def __init__(self, model: str, limit: float) -> None:
        import fal_client

        self._fal: Any = fal_client
        self.model, self.endpoint, self._limit = model, MODELS.get(model, OTHER), limit
        self._client: Any = fal_client.SyncClient(key=os.environ[KEY], default_timeout=remote.REQUEST_TIMEOUT)

    def upload(self, path: Path) -> str:
        from fal_client.client import StorageSettings

        with self._explained():
            return str(self._client.upload_file(path, lifecycle=StorageSettings(expires_in=KEPT)))

    def submit(self, clip: str, instruction: str, references: Sequence[str], seed: int) -> Any:
        arguments: dict[str, Any] = {"prompt": instruction, "video_url": clip, **self.endpoint.more}
        if references:
            if len(references) > self.endpoint.most:
                raise KiwiError(
                    f"{len(references)} reference pictures, and '{self.model}' takes {self.endpoint.most}",
                    "pass fewer of them",
                )
            arguments[self.endpoint.pictures] = list(references)
        with self._explained(begins=True):
            # With a limit of its own the client does not send a submission twice when no answer comes.
            return self._client.submit(self.model, arguments, start_timeout=self._limit)

    def state(self, task: Any) -> State:
        with self._explained():
            found = task.status()
            if not isinstance(found, self._fal.Completed):
                return State(part=0.5 if isinstance(found, self._fal.InProgress) else 0.0)
            if found.error:
                return State(True, failed=f"{found.error}" + (f" ({found.error_type})" if found.error_type else ""))
            result = task.get()
        video = result.get("video") if isinstance(result, dict) else None
        url = video.get("url") if isinstance(video, dict) else None
        if not isinstance(url, str):
            return State(True, failed="it gave no video")
        return State(True, 1.0, url)

    def cancel(self, task: Any) -> None:
        task.cancel()

    @contextmanager
    def _explained(self, begins: bool = False) -> Iterator[None]:
        """The client's errors as ours; `begins`: the call begins a task."""
        import httpx
        from fal_client.client import FalClientHTTPError

        doubt = " (whether it was charged is not known)" if begins else ""
        try:
            yield
        except FalClientHTTPError as error:
            status, words = error.status_code, _words(error.message)
            if status in (408, 429, 503):
                raise Busy(f"the service is busy ({status})") from None
            if status in (401, 403):
                raise KiwiError(f"fal refused the key: {words}", f"check {KEY}") from None
            if status == 422:
                raise KiwiError(f"refused: {words}", "see what the model takes") from None
            raise KiwiError(
                f"fal answered {status}: {words}{doubt if status >= 500 else ''}", "run the same command again"
            ) from None
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status in (401, 403):
                raise KiwiError(f"fal refused the key ({status})", f"check {KEY}") from None
            raise Busy(f"the service answered {status}") from None
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise KiwiError(f"no answer from fal: {reason}{doubt}", "run the same command again") from None


def _words(message: Any) -> str:
    """A service's reasons: a text, or a list of what is wrong with the arguments."""
    if isinstance(message, list):
        message = "; ".join(str(each.get("msg", each)) if isinstance(each, dict) else str(each) for each in message)
    return " ".join(str(message).split())[:300]


class Kind(Named):
    """A kind of editor: models at fal."""

    def uses(self, choice: ModelChoice) -> Collection[str]:
        return {"editor_timeout", "editor_price"}

    def find(self, choice: ModelChoice) -> Found:
        endpoint = MODELS.get(model_of(choice), OTHER)
        price = second_price(choice, endpoint.limits, endpoint.dollars)
        settings = ModelSettings(multiple=ByOrigin.multiple)
        return Found(None, settings=settings, takes_references=bool(endpoint.pictures), pads=False, price=price)

    def identify(self, found: Found, choice: ModelChoice) -> str:
        """The model's name: which version answers behind it, nobody says."""
        return digest_of(f"{self.name} {model_of(choice)}", ())

    def admit(self, found: Found, choice: ModelChoice) -> None:
        check_client(self.name, "fal_client", "fal", KEY)

    def load(self, found: Found, choice: ModelChoice, events: Events) -> RemoteEditor:
        assert found.price is not None
        service = Fal(model_of(choice), choice.editor_timeout or TIMEOUT)
        return RemoteEditor(choice, service, service.endpoint.limits, found.price, found.takes_references)


KIND = Kind("fal")
