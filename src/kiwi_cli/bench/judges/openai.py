"""Any OpenAI-compatible endpoint (vLLM, SGLang, hosted services): frames sampled here, or the clip as a `video_url`."""

from __future__ import annotations

import base64
import os
from typing import Any, Literal

from kiwi_cli.bench.judges.base import (
    RETRY_STATUS,
    Answer,
    Passing,
    Rejected,
    Request,
    mime_of,
    retry_after,
    tokens,
    written,
)
from kiwi_cli.bench.media import PICTURES, clip_frames, jpeg, sampled_count
from kiwi_cli.errors import KiwiError, MediaError, UsageError

NO_CREDIT = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance"}
"""What services call it when the account is empty, under a status that else means 'too many requests'."""

KEYS = ("KIWI_JUDGE_KEY", "OPENAI_API_KEY")


class OpenAIJudge:
    """See `Judge`.

    Args:
        url: the endpoint, such as 'http://127.0.0.1:8000/v1'; None is OpenAI's.
        media: 'frames' sends JPEGs, 'video' sends whole clips.
        per_second, most, max_side: how frames are sampled: so many a second, at most so many of a clip, pixels.

    Raises:
        UsageError: the client is not installed, or no key is set.
    """

    backend = "openai"

    def __init__(
        self,
        model: str,
        url: str | None = None,
        timeout: float = 300.0,
        media: Literal["frames", "video"] = "frames",
        per_second: float = 2.0,
        most: int = 16,
        max_side: int = 768,
    ) -> None:
        try:
            import openai
        except ImportError:
            raise UsageError("the openai client is not installed", "pip install 'kiwi-cli[judge-openai]'") from None
        key = next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
        if key is None and url is None:
            raise UsageError("no API key for the judge", f"set {KEYS[0]}, or name your own server with --judge-url")
        self.model = model
        self.settings: dict[str, Any] = {"media": media}
        if media == "frames":
            self.settings |= {"per_second": per_second, "most": most, "max_side": max_side}
        # Servers of one's own mostly want no key; the client insists on some text.
        self._client: Any = openai.OpenAI(api_key=key or "none", base_url=url, timeout=timeout, max_retries=0)

    def prepare(self, request: Request, note: Any) -> list[dict[str, Any]]:
        contents: list[dict[str, Any]] = []
        if request.place == "first":
            contents.append({"type": "text", "text": request.rubric})
        for path, label in zip(request.media, request.labels, strict=True):
            picture = path.suffix.lower() in PICTURES
            if self.settings["media"] == "video" and not picture:
                contents.append({"type": "text", "text": f"{label}:"})
                contents.append(
                    {"type": "video_url", "video_url": {"url": _data_url(mime_of(path), path.read_bytes())}}
                )
                continue
            try:
                count = (
                    1
                    if picture
                    else sampled_count(path, self.settings.get("per_second", 1), self.settings.get("most", 1))
                )
                frames = [jpeg(frame) for frame in clip_frames(path, count, self.settings.get("max_side"))]
            except MediaError as error:
                raise Rejected(error.message) from None
            how = "" if picture else f", {len(frames)} frames in order"
            contents.append({"type": "text", "text": f"{label}{how}:"})
            contents += [
                {"type": "image_url", "image_url": {"url": _data_url("image/jpeg", frame)}} for frame in frames
            ]
        return contents

    def ask(self, request: Request, prepared: list[dict[str, Any]]) -> Answer:
        import openai

        messages: list[Any] = [{"role": "user", "content": prepared}]
        if request.place == "system":
            messages.insert(0, {"role": "system", "content": request.rubric})
        sampling = {} if request.temperature is None else {"temperature": request.temperature}
        try:
            reply = self._client.chat.completions.create(model=self.model, messages=messages, **sampling)
        except openai.APITimeoutError:
            raise Passing("no answer in time", sent=True) from None
        except openai.APIStatusError as error:
            raise self._explain(error) from None
        except openai.APIConnectionError as error:
            raise Passing(f"no connection: {error.__cause__ or error}"[:300], sent=True) from None
        except (openai.OpenAIError, ValueError) as error:
            raise Passing(f"the answer cannot be read: {error}"[:300], sent=True) from None
        choices = getattr(reply, "choices", None)
        if not choices:
            raise Passing("an answer without choices", sent=True)
        # The client checks nothing of what a server sends, and this is paid for: whatever is missing is left empty.
        usage = getattr(reply, "usage", None)
        return Answer(
            written(getattr(getattr(choices[0], "message", None), "content", None)),
            written(getattr(reply, "model", None)),
            tokens(getattr(usage, "prompt_tokens", None)),
            tokens(getattr(usage, "completion_tokens", None)),
            written(getattr(choices[0], "finish_reason", None)),
        )

    def _explain(self, error: Any) -> Exception:
        code, words = error.status_code, str(error.message)[:300]
        kinds = {str(getattr(error, name, None) or "") for name in ("code", "type")}
        if code == 402 or kinds & NO_CREDIT:
            return KiwiError(f"the judge's account has no credit left: {words}", "top it up; what was answered is kept")
        if code in (401, 403):
            return KiwiError(f"the judge refuses the key: {words}", f"check {KEYS[0]}")
        if code == 404 and ("model_not_found" in kinds or "model" in words.lower()):
            return KiwiError(f"the judge has no model '{self.model}': {words}", "choose one with --judge-model")
        if code == 404:
            return KiwiError(
                f"nothing answers at '{self._client.base_url}chat/completions' (404): {words}",
                "check --judge-url: most servers' ends in /v1",
            )
        if code in RETRY_STATUS or code >= 500:
            return Passing(f"status {code}: {words}", retry_after(error.response.headers))
        return Rejected(f"status {code}: {words}")

    def release(self, prepared: Any, note: Any) -> None:
        pass

    def discard(self, name: str) -> bool:
        return True


def _data_url(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
