"""What all judges have in common: the request, the answer, and the three ways to fail."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

from kiwi_cli.base.identity import hash_file

RETRY_STATUS = (408, 425, 429)
"""Besides all of 5xx."""


class Passing(Exception):
    """It may work the next time: the service is busy, failing, or did not answer in time.

    Args:
        wait: seconds that the service asks to wait, or None.
        sent: whether the request may have been carried out, and be charged.
    """

    def __init__(self, problem: str, wait: float | None = None, sent: bool = False) -> None:
        super().__init__(problem)
        self.problem, self.wait, self.sent = problem, wait, sent


class Rejected(Exception):
    """This request will never be answered; others may be."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


@dataclass(frozen=True)
class Request:
    """One question to a judge.

    Attributes:
        item: its id. names: the scores that must come back.
        rubric: the words. place: 'system' or 'first' (of the contents).
        media: pictures and clips in the order of the protocol; labels: what each is.
        identity: everything else that shapes the answer; part of the hash.
    """

    item: str
    names: tuple[str, ...]
    rubric: str
    place: str
    media: tuple[Path, ...]
    labels: tuple[str, ...]
    model: str
    temperature: float | None
    identity: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def hash(self) -> str:
        """The same question about the same files has the same hash."""
        parts = {
            "item": self.item,
            "names": self.names,
            "rubric": self.rubric,
            "place": self.place,
            "media": [hash_media(path) for path in self.media],
            "model": self.model,
            "temperature": self.temperature,
            **self.identity,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def hash_media(path: Path) -> str:
    """sha256 of a file; read again only when it has changed."""
    stat = path.stat()
    return _hash_media(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hash_media(path: Path, size: int, changed: int) -> str:
    return hash_file(path)


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        answered_by: the model version that the service says gave it; '' when it does not say.
        input_tokens, output_tokens: as charged (thoughts are output); None when it does not say.
    """

    text: str
    answered_by: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    finish: str = ""


class Judge(Protocol):
    """Called from several threads at once.

    Attributes:
        backend: 'gemini', 'openai' or 'local'.
        model: what is asked for.
        settings: how clips are shown; part of the request's hash.
    """

    backend: str
    model: str
    settings: dict[str, Any]

    def prepare(self, request: Request, note: Any) -> Any:
        """Whatever costs nothing: uploads, sampled frames. `note(kind, name)` records what must be cleaned up.

        Raises:
            Passing, Rejected, KiwiError.
        """

    def ask(self, request: Request, prepared: Any) -> Answer:
        """The one call that is charged.

        Raises:
            Passing, Rejected, KiwiError (which ends the run: the key is refused, the model unknown).
        """

    def release(self, prepared: Any, note: Any) -> None:
        """Delete what was uploaded; failing to is not an error."""

    def discard(self, name: str) -> bool:
        """Delete an upload that an earlier process left behind."""


def tokens(value: Any) -> int | None:
    """A service's count of tokens; None for anything that is no count."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def written(value: Any) -> str:
    """The text of an answer: a string, or parts of one; '' for anything else, which then cannot be read as scores."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        return "".join(written(part.get("text") if isinstance(part, dict) else part) for part in value)
    return ""


def retry_after(headers: Any) -> float | None:
    """Seconds of a `Retry-After` header."""
    value = str(headers.get("retry-after") or "") if headers is not None else ""
    return float(value) if value.replace(".", "", 1).isdigit() else None


def mime_of(path: Path) -> str:
    """By the extension; the services need one."""
    return {
        ".mp4": "video/mp4",
        ".mov": "video/quicktime",
        ".webm": "video/webm",
        ".mkv": "video/x-matroska",
        ".png": "image/png",
        ".webp": "image/webp",
        ".gif": "image/gif",
        ".bmp": "image/bmp",
    }.get(path.suffix.lower(), "image/jpeg")
