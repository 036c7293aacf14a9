"""A Qwen2.5-VL or Qwen3-VL on this machine as the judge, through transformers: nothing leaves it, nothing is paid.

Frames go in as pictures. The prompt is put together here, because the library's own processor for these models wants
torchvision for its video half.
"""

from __future__ import annotations

import threading
from typing import Any

from kiwi_cli.bench.judges.base import Answer, Rejected, Request
from kiwi_cli.bench.media import PICTURES, clip_frames, sampled_count
from kiwi_cli.errors import CheckpointError, MediaError

PER_SECOND, MOST_FRAMES, MAX_SIDE = 2.0, 8, 448  # frames a second, frames of a clip, pixels
NEW_TOKENS = 256
IMAGE_TYPE = 1  # of `mm_token_type_ids`: 0 is text


class LocalJudge:
    """See `Judge`. One question at a time.

    Args:
        model: a Hub id or a folder. device, dtype: as `kiwi edit` takes them.

    Raises:
        CheckpointError: not a model of this kind, or it cannot be fetched.
        DeviceError: a device that is not there.
    """

    backend = "local"

    def __init__(self, model: str, device: str = "auto", dtype: str = "auto") -> None:
        from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil

        from kiwi_cli.engine.devices import choose_device, choose_dtype

        self.model = model
        self.settings: dict[str, Any] = {
            "media": "frames",
            "per_second": PER_SECOND,
            "most": MOST_FRAMES,
            "max_side": MAX_SIDE,
            "new_tokens": NEW_TOKENS,
        }
        self._lock = threading.Lock()
        place = choose_device(device)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
            self._pictures: Any = Qwen2VLImageProcessorPil.from_pretrained(model)
            self._model: Any = AutoModelForImageTextToText.from_pretrained(
                model, dtype=choose_dtype(dtype, place), use_safetensors=True
            )
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(
                f"cannot load the judge '{model}': {reason}", "name a Qwen2.5-VL or Qwen3-VL"
            ) from None
        config = self._model.config
        if not hasattr(config, "image_token_id") or not hasattr(config, "vision_config"):
            raise CheckpointError(f"'{model}' does not look at pictures", "name a Qwen2.5-VL or Qwen3-VL")
        self._model.to(place).eval()
        commit = getattr(config, "_commit_hash", None)
        self.version = f"{model}@{commit[:12]}" if commit else model
        self._image_token = self._tokenizer.convert_ids_to_tokens(config.image_token_id)

    def prepare(self, request: Request, note: Any) -> list[tuple[str, list[Any]]]:
        shown = []
        try:
            for path, label in zip(request.media, request.labels, strict=True):
                picture = path.suffix.lower() in PICTURES
                count = 1 if picture else sampled_count(path, PER_SECOND, MOST_FRAMES)
                shown.append((label, list(clip_frames(path, count, MAX_SIDE))))
        except MediaError as error:
            raise Rejected(error.message) from None
        return shown

    def ask(self, request: Request, prepared: list[tuple[str, list[Any]]]) -> Answer:
        import torch

        frames = [frame for _, some in prepared for frame in some]
        pixels = self._pictures(images=frames, return_tensors="pt")
        per_token = self._pictures.merge_size**2
        counts = iter((pixels["image_grid_thw"].prod(dim=-1) // per_token).tolist())
        parts = [request.rubric] if request.place == "first" else []
        for label, some in prepared:
            seen = "".join(f"<|vision_start|>{self._image_token * next(counts)}<|vision_end|>" for _ in some)
            parts.append(f"{label}: {seen}")
        system = request.rubric if request.place == "system" else "You are a helpful assistant."
        text = (
            f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n" + "\n".join(parts) + "<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        ids = self._tokenizer(text, return_tensors="pt").input_ids
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == self._model.config.image_token_id).int() * IMAGE_TYPE,
            **pixels,
        }
        sampling: dict[str, Any] = {"do_sample": bool(request.temperature)}
        if request.temperature:
            sampling["temperature"] = request.temperature
        with self._lock, torch.inference_mode():
            device = next(self._model.parameters()).device
            out = self._model.generate(
                **{name: value.to(device) for name, value in inputs.items()}, max_new_tokens=NEW_TOKENS, **sampling
            )
        new = out[0, ids.shape[1] :]
        finish = "length" if len(new) >= NEW_TOKENS else "stop"
        return Answer(
            self._tokenizer.decode(new, skip_special_tokens=True), self.version, ids.shape[1], len(new), finish
        )

    def release(self, prepared: Any, note: Any) -> None:
        pass

    def discard(self, name: str) -> bool:
        return True
