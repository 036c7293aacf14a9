"""VEFX-Reward on this machine as the judge: a Qwen3-VL with a head that gives three scores from 1 to 4.

arXiv 2604.16272; weights Apache-2.0. It was trained with one text of its authors, which is read from their file as
data. Its scores are of another scale and of other questions than all other judges', and have a protocol of their own.
"""

from __future__ import annotations

import ast
import hashlib
import threading
from pathlib import Path
from typing import Any

from kiwi_cli.bench.judges.base import Answer, Rejected, Request
from kiwi_cli.bench.judges.rubrics import MOST_BYTES, Rubric
from kiwi_cli.bench.media import PICTURES, clip_frames
from kiwi_cli.errors import CheckpointError, MediaError, UsageError
from kiwi_cli.video import probe

MODEL = "xiangbog/VEFX-Reward-4B"
TOKENS = {
    "Instructional Following": "<|IF_reward|>",
    "Render Quality": "<|RQ_reward|>",
    "Edit Exclusivity": "<|EE_reward|>",
}
"""Score -> the token of the text at which the model gives it."""
PLACE = "{text_prompt}"
SOURCE = "vefx_reward/prompt_template.py of Visko-Platform/VEFX-Bench"
PER_SECOND, FEWEST, MOST = 4.0, 4, 768  # frames a second, frames of a clip
STEP, LEAST_PIXELS, MOST_PIXELS = 28, 128 * 28 * 28, 399_360  # of a frame, as the authors' code sizes them first
VIDEO_TYPE = 2  # of `mm_token_type_ids`


def authors_text(path: Path | None) -> Rubric:
    """The authors' text, from their file: its string constant that has all three tokens and the instruction's place.

    Raises:
        UsageError: no file, or none with such a text.
    """
    hint = f"pass {SOURCE} with --rubrics"
    if path is None:
        raise UsageError("protocol 'vefx' needs its authors' text", hint)
    try:
        data = path.read_bytes()
        if len(data) > MOST_BYTES:
            raise ValueError("it is too large")
        tree = ast.parse(data)  # read, never run
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"cannot read the text in '{path}': {error}", hint) from None
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    found = [text for text in texts if PLACE in text and all(text.count(token) == 1 for token in TOKENS.values())]
    if not found:
        raise UsageError(f"no text with {PLACE} and {', '.join(TOKENS.values())} in '{path}'", hint)
    text, version = found[0], f"file-{hashlib.sha256(data).hexdigest()[:12]}"
    names = tuple(sorted(TOKENS, key=lambda name: text.index(TOKENS[name])))
    return Rubric(version, lambda category, words: text.replace(PLACE, words), lambda category: names)


class VefxJudge:
    """See `Judge`. One question at a time.

    Args:
        model: a Hub id or a folder. device, dtype: as `kiwi edit` takes them.

    Raises:
        CheckpointError: not a model of this kind, or it cannot be fetched.
        DeviceError: a device that is not there.
    """

    backend = "vefx"

    def __init__(self, model: str = MODEL, device: str = "auto", dtype: str = "auto") -> None:
        from transformers import AutoTokenizer

        from kiwi_cli.engine.devices import choose_device, choose_dtype

        self.model = model
        self.settings: dict[str, Any] = {"media": "video", "per_second": PER_SECOND, "most_pixels": MOST_PIXELS}
        self._lock = threading.Lock()
        place = choose_device(device)
        hint = f"name a VEFX-Reward, such as {MODEL}"
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
            self._model, lacking = _load(model, choose_dtype(dtype, place))
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"cannot load the judge '{model}': {reason}", hint) from None
        if lacking:
            raise CheckpointError(f"'{model}' has no {sorted(lacking)[0]}", hint)
        known = self._tokenizer.get_vocab()
        if missing := [token for token in TOKENS.values() if token not in known]:
            raise CheckpointError(f"'{model}' does not know the token {missing[0]}", hint)
        self._model.to(place).eval()
        commit = getattr(self._model.config, "_commit_hash", None)
        self.version = f"{model}@{commit[:12]}" if commit else model

    def prepare(self, request: Request, note: Any) -> list[tuple[list[Any], list[float]]]:
        """Each clip's frames and their times in seconds."""
        shown = []
        try:
            for path in request.media:
                if path.suffix.lower() in PICTURES:
                    raise Rejected("VEFX-Reward looks at clips, not at pictures")
                clip = probe(path)
                count = frame_count(clip.frame_count, float(clip.fps))
                frames = list(clip_frames(path, count))
                last = clip.frame_count - 1
                times = [round(k * last / max(len(frames) - 1, 1)) / float(clip.fps) for k in range(len(frames))]
                shown.append((frames, times))
        except MediaError as error:
            raise Rejected(error.message) from None
        return shown

    def ask(self, request: Request, prepared: list[tuple[list[Any], list[float]]]) -> Answer:
        import torch

        merge = self._model.config.vision_config.spatial_merge_size
        pixels, grids, parts = [], [], []
        for frames, times in prepared:
            values, grid = patches(frames, self._model.config.vision_config)
            pixels.append(values)
            grids.append(grid)
            pairs = [*times, *times[-1:]][: 2 * grid[0]]
            seen = "<|video_pad|>" * (grid[1] * grid[2] // merge**2)
            for k in range(grid[0]):
                when = (pairs[2 * k] + pairs[2 * k + 1]) / 2
                parts.append(f"<{when:.1f} seconds><|vision_start|>{seen}<|vision_end|>")
        text = f"<|im_start|>user\n{''.join(parts)}{request.rubric}<|im_end|>\n<|im_start|>assistant\n"
        ids = self._tokenizer(text, return_tensors="pt").input_ids
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == self._model.config.video_token_id).int() * VIDEO_TYPE,
            "pixel_values_videos": torch.cat(pixels),
            "video_grid_thw": torch.tensor(grids),
        }
        with self._lock, torch.inference_mode():
            device = next(self._model.parameters()).device
            hidden = self._model.model(**{name: value.to(device) for name, value in inputs.items()}).last_hidden_state
            logits = self._model.rm_head(hidden)[0].float().cpu()
        lines = []
        for name in request.names:
            at = (ids[0] == self._tokenizer.convert_tokens_to_ids(TOKENS[name])).nonzero().flatten()
            if len(at) != 1:
                raise Rejected(f"the text has {TOKENS[name]} {len(at)} times: the instruction may hold it")
            lines.append(f"{name}: {expected_score(logits[at[0]]):.3f}")
        return Answer("\n".join(lines), self.version, ids.shape[1], 0, "stop")

    def release(self, prepared: Any, note: Any) -> None:
        pass

    def discard(self, name: str) -> bool:
        return True


def _load(model: str, dtype: Any) -> tuple[Any, set[str]]:
    """The network with its head, and the names of weights that it lacks."""
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    class Reward(Qwen3VLForConditionalGeneration):
        """With a head of one number for each step from a score to the next."""

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.rm_head = torch.nn.Linear(config.text_config.hidden_size, 3, bias=False)
            self.post_init()

    found, report = Reward.from_pretrained(model, dtype=dtype, use_safetensors=True, output_loading_info=True)
    return found, {name for name in report["missing_keys"] if name != "lm_head.weight"}


def expected_score(logits: Any) -> float:
    """The expected score of (3,) logits: each is of being above a score, given that it is at least that one."""
    above = logits.sigmoid().cumprod(dim=0)  # P(more than 1), P(more than 2), P(more than 3)
    return 1.0 + float(above.sum())


def frame_count(total: int, rate: float) -> int:
    """How many of a clip's frames are shown: four a second, an even number, at least four where there are so many.

    Raises:
        MediaError: a clip of one frame.
    """
    if total < 2:
        raise MediaError("VEFX-Reward looks at clips of two frames and more")
    most = min(MOST, total) // 2 * 2
    wanted = min(max(total / rate * PER_SECOND, FEWEST), most)
    return min(round(wanted / 2) * 2, total)


def first_size(height: int, width: int) -> tuple[int, int]:
    """The size at which the authors' code hands a frame on: multiples of 28 within their numbers of pixels."""
    sides = [max(STEP, round(side / STEP) * STEP) for side in (height, width)]
    area = sides[0] * sides[1]
    if area > MOST_PIXELS:
        factor = (height * width / MOST_PIXELS) ** 0.5
        sides = [int(side / factor / STEP) * STEP for side in (height, width)]
    elif area < LEAST_PIXELS:
        factor = (LEAST_PIXELS / (height * width)) ** 0.5
        sides = [-int(-side * factor // STEP) * STEP for side in (height, width)]
    return max(sides[0], STEP), max(sides[1], STEP)


def patches(frames: list[Any], vision: Any) -> tuple[Any, tuple[int, int, int]]:
    """(patches, values) of (H, W, 3) uint8 frames as the network's vision part takes them, and their grid (t, h, w)."""
    import numpy as np
    import torch
    from PIL import Image

    patch, merge, pair = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    step = patch * merge
    height, width = first_size(*frames[0].shape[:2])
    last = tuple(max(step, round(side / step) * step) for side in (width, height))
    sized = []
    for frame in frames:
        picture = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
        sized.append(np.asarray(picture.resize(last, Image.Resampling.BICUBIC)))
    sized += sized[-1:] * (-len(sized) % pair)
    clip = torch.from_numpy(np.stack(sized)).permute(0, 3, 1, 2).float() / 127.5 - 1  # (F, 3, H, W)
    grid = (len(sized) // pair, last[1] // patch, last[0] // patch)
    cut = clip.reshape(
        grid[0], pair, 3, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch
    )  # t, pair, c, h, merge, patch, w, merge, patch
    cut = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return cut.reshape(grid[0] * grid[1] * grid[2], 3 * pair * patch * patch), grid
