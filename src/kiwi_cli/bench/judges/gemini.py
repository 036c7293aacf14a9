"""Gemini through google-genai: whole files are uploaded, waited for, asked about, and deleted again."""

from __future__ import annotations

import os
import time
from typing import Any

from kiwi_cli.bench.judges.base import RETRY_STATUS, Answer, Passing, Rejected, Request, mime_of, retry_after, tokens
from kiwi_cli.errors import KiwiError, UsageError

KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
LONGEST_PROCESSING = 300.0  # seconds until an upload must be ready
FIRST_POLL, LONGEST_POLL = 0.05, 4.0  # seconds


class GeminiJudge:
    """See `Judge`.

    Args:
        url: another place that speaks the protocol; None is Google's.
        timeout: seconds for one answer.

    Raises:
        UsageError: google-genai is not installed, or no key is set.
    """

    backend = "gemini"

    def __init__(self, model: str, url: str | None = None, timeout: float = 300.0) -> None:
        try:
            from google import genai
            from google.genai import types
        except ImportError:
            raise UsageError("google-genai is not installed", "pip install 'kiwi-cli[judge-gemini]'") from None
        key = next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
        if key is None:
            raise UsageError("no API key for Gemini", f"set {KEYS[0]} in the environment")
        self.model, self._url = model, url
        # The service samples one frame a second by itself; nothing is set, as in the published runs.
        self.settings: dict[str, Any] = {"media": "file"}
        # Each request is made once: retrying is the caller's, who keeps count of what is paid.
        options = types.HttpOptions(
            base_url=url, timeout=int(timeout * 1000), retry_options=types.HttpRetryOptions(attempts=1)
        )
        self._client: Any = genai.Client(api_key=key, http_options=options, vertexai=False)

    def prepare(self, request: Request, note: Any) -> list[Any]:
        files: list[Any] = []
        try:
            for path in request.media:
                # A file object and not a path: the client puts a path's name into a header, which must be ASCII.
                with path.open("rb") as file:
                    uploaded = self._guard(
                        lambda file=file, path=path: self._client.files.upload(
                            file=file, config={"mime_type": mime_of(path)}
                        )
                    )
                note("upload", uploaded.name)
                files.append(uploaded)
            return [self._ready(file) for file in files]
        except BaseException:
            self.release(files, note)
            raise

    def _ready(self, file: Any) -> Any:
        deadline, pause = time.monotonic() + LONGEST_PROCESSING, FIRST_POLL
        while file.state != "ACTIVE":
            if file.state == "FAILED":
                raise Rejected("the service could not read an uploaded file")
            if time.monotonic() > deadline:
                raise Passing(f"an uploaded file was not ready after {LONGEST_PROCESSING:.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_POLL)
            name = file.name
            file = self._guard(lambda name=name: self._client.files.get(name=name))
        return file

    def ask(self, request: Request, prepared: list[Any]) -> Answer:
        config: dict[str, Any] = {}
        contents = list(prepared)
        if request.place == "system":
            config["system_instruction"] = request.rubric
        else:
            contents.insert(0, request.rubric)
        if request.temperature is not None:
            config["temperature"] = request.temperature
        response = self._guard(
            lambda: self._client.models.generate_content(model=self.model, contents=contents, config=config), sent=True
        )
        usage = response.usage_metadata
        candidates = response.candidates or []
        parts = (candidates[0].content.parts or []) if candidates and candidates[0].content else []
        text = "".join(part.text for part in parts if part.text and not part.thought)
        blocked = response.prompt_feedback.block_reason if response.prompt_feedback else None
        finish = candidates[0].finish_reason if candidates else blocked
        output = None
        if usage is not None and usage.candidates_token_count is not None:
            output = usage.candidates_token_count + (usage.thoughts_token_count or 0)
        return Answer(
            text,
            response.model_version or "",
            tokens(usage.prompt_token_count) if usage is not None else None,
            output,
            str(getattr(finish, "value", finish) or ""),
        )

    def release(self, prepared: list[Any], note: Any) -> None:
        for file in prepared:
            if self.discard(file.name):
                note("deleted", file.name)

    def discard(self, name: str) -> bool:
        try:
            self._client.files.delete(name=name)
        except Exception as error:  # the service deletes them itself after two days
            return getattr(error, "code", None) in (403, 404)  # gone already
        return True

    def _guard(self, call: Any, sent: bool = False) -> Any:
        """Make a call; its failures become ours."""
        from google.genai import errors

        try:
            return call()
        except errors.APIError as error:
            raise self._explain(error) from None
        except Exception as error:
            # The HTTP library's own errors, and what the client raises on an answer it cannot read.
            timed_out = "timeout" in type(error).__name__.lower()
            problem = "no answer in time" if timed_out else f"{type(error).__name__}: {error}"
            unsent = type(error).__name__ in ("ConnectError", "ConnectTimeout")
            raise Passing(problem[:300], sent=sent and not unsent) from None

    def _explain(self, error: Any) -> Exception:
        code, words = int(error.code or 0), str(error.message or "")[:300]
        if code in (401, 403) or (code == 400 and "API key" in words):
            return KiwiError(
                f"Gemini refuses the key: {code} {words}", f"check {KEYS[0]}; it may lack access to the model"
            )
        if code == 404 and self._url is not None and "model" not in words.lower():
            return KiwiError(f"nothing answers like Gemini at '{self._url}' (404): {words}", "check --judge-url")
        if code == 429 and "PerDay" in str(getattr(error, "details", "")):
            return KiwiError(
                f"Gemini's quota of the day is used up: {words}",
                "go on tomorrow, or with another key; answers are kept",
            )
        if code == 404:
            return KiwiError(
                f"Gemini has no model '{self.model}' for this key: {words}", "choose one with --judge-model"
            )
        if code in RETRY_STATUS or code >= 500:
            return Passing(f"status {code}: {words}", retry_after(getattr(error.response, "headers", None)))
        return Rejected(f"status {code}: {words}")
