"""Questions about pictures and their answers: a vision-language model here or at a server, and a strict parser."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, Protocol

from PIL import Image

from kiwi_cli.batch.jobs import Unable
from kiwi_cli.data.reference.fetching import folder_of
from kiwi_cli.data.reference.files import Unusable
from kiwi_cli.errors import CheckpointError, KiwiError, UsageError

NEW_TOKENS = 512
SIDE = 896  # pixels: larger pictures are shrunk before they are asked about
KEYS = ("KIWI_ENDPOINT_KEY", "OPENAI_API_KEY")
TIMEOUT = 300.0  # seconds
LONGEST = 1 << 22  # bytes of an answer
_FENCED = re.compile(r"\s*```(?:json)?\s*(\{.*\})\s*```\s*", re.DOTALL)


class Asker(Protocol):
    """Answers questions about pictures."""

    def ask(self, pictures: Sequence[Image.Image], words: str) -> str:
        """The answer in its own words.

        Raises:
            KiwiError: there is none, which says nothing about the row: it can be asked again.
        """


def answer_in(text: str) -> dict[str, Any]:
    """The one JSON object that an answer is, bare or fenced.

    Raises:
        Unusable: it is anything else.
    """
    fenced = _FENCED.fullmatch(text)
    try:
        found = json.loads(fenced[1] if fenced else text, parse_constant=_refused)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Unusable(f"the answer cannot be read: {' '.join(text.split())[:120]!r}")
    return found


def _refused(word: str) -> None:
    raise ValueError(word)


def number_in(answer: dict[str, Any], name: str, least: float, most: float) -> float:
    """A number of an answer. A missing one, words, or one out of range is no number: the row is dropped.

    Raises:
        Unusable.
    """
    value = answer.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise Unusable(f"the answer has no '{name}' from {least:g} to {most:g}: {str(value)[:40]!r}")
    return float(value)


def shown(picture: Image.Image) -> Image.Image:
    """A picture as it is asked about."""
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return small


class EndpointAsker:
    """A server that speaks OpenAI's chat completions. The key comes from the environment and is never kept.

    Args:
        url: up to the version: 'http://localhost:8000/v1'.

    Raises:
        UsageError: no address.
    """

    def __init__(self, model: str, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"not an address: '{url}'", "set the stage's url, such as http://localhost:8000/v1")
        self.model, self.url = model, url.rstrip("/") + "/chat/completions"

    def ask(self, pictures: Sequence[Image.Image], words: str) -> str:
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": _data_url(shown(picture))}} for picture in pictures
        ]
        message = {"role": "user", "content": [*parts, {"type": "text", "text": words}]}
        body = {"model": self.model, "messages": [message], "temperature": 0, "max_tokens": NEW_TOKENS}
        headers = {"Content-Type": "application/json"}
        if key := next((os.environ[name] for name in KEYS if os.environ.get(name)), None):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
                answer = json.loads(reply.read(LONGEST))
            return str(answer["choices"][0]["message"]["content"])
        except urllib.error.HTTPError as error:
            refused = error.code in (401, 403, 404)
            problem = KiwiError(
                f"'{self.url}' answered {error.code} {error.reason}",
                f"check url, model and {KEYS[0]}" if refused else "run it again with --retry-failed",
            )
            raise (Unable(problem) if refused else problem) from None
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            reason = getattr(error, "reason", None) or error
            raise KiwiError(f"no answer from '{self.url}': {reason}", "run it again with --retry-failed") from None


def _data_url(picture: Image.Image) -> str:
    held = io.BytesIO()
    picture.save(held, format="JPEG", quality=92)
    return f"data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}"


class LocalAsker:
    """A Qwen2.5-VL or Qwen3-VL on this machine. Greedy, so that the same question has the same answer.

    The prompt is put together here: the library's own processor wants torchvision for its video half.

    Raises:
        CheckpointError: not a model of this kind. KiwiError: it cannot be had.
    """

    def __init__(self, model: str, revision: str, device: str) -> None:
        from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil

        from kiwi_cli.engine.devices import choose_device, choose_dtype

        place, folder = choose_device(device), folder_of(model, revision)
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self.pictures: Any = Qwen2VLImageProcessorPil.from_pretrained(folder)
            self.model: Any = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=choose_dtype("auto", place), use_safetensors=True
            )
            token = self.tokenizer.convert_ids_to_tokens(self.model.config.image_token_id)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise CheckpointError(f"cannot ask '{model}': {reason}", "name a Qwen2.5-VL or Qwen3-VL") from None
        self.model.to(place).eval()
        self.seen = f"<|vision_start|>{token}<|vision_end|>", token

    def ask(self, pictures: Sequence[Image.Image], words: str) -> str:
        import torch

        pixels = self.pictures(images=[shown(picture) for picture in pictures], return_tensors="pt")
        counts = pixels["image_grid_thw"].prod(dim=-1) // self.pictures.merge_size**2
        whole, token = self.seen
        looks = "".join(whole.replace(token, token * count) for count in counts.tolist())
        text = f"<|im_start|>user\n{looks}{words}<|im_end|>\n<|im_start|>assistant\n"
        ids = self.tokenizer(text, return_tensors="pt").input_ids
        kinds = (ids == self.model.config.image_token_id).int()
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds, **pixels}
        device, dtype = self.model.device, self.model.dtype
        placed = {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in given.items()}
        with torch.inference_mode():
            out = self.model.generate(**placed, do_sample=False, max_new_tokens=NEW_TOKENS)
        return str(self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def make_asker(by: str, model: str, revision: str, url: str, device: str) -> Asker:
    """Who answers: 'local' or 'endpoint'.

    Raises:
        UsageError: no model is named. KiwiError: it cannot be had.
    """
    if not model:
        raise UsageError(f"a model that answers ({by}) has to be named", "set the stage's model in the recipe")
    return EndpointAsker(model, url) if by == "endpoint" else LocalAsker(model, revision, device)
