"""Figures from CLIP and DINOv2: instruction, consistency, structure, likeness to a reference.

The models come from the Hub when they are first used: CLIP ViT-L/14 (1.7 GB) and DINOv2 base (0.35 GB). Pictures are
prepared here as both were trained (their own preprocessors want torchvision): the short side to the model's input,
bicubic, the middle, their mean and deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kiwi_cli.errors import CheckpointError

CLIP = "openai/clip-vit-large-patch14"
DINO = "facebook/dinov2-base"
CLIP_COLOUR = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
DINO_COLOUR = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DINO_SIDE = 224  # pixels: its usual input, not the 518 of its position table


class ModelMetrics:
    """Both models on a device.

    Args:
        clip, dino: Hub ids or folders.

    Raises:
        CheckpointError: one cannot be loaded.
    """

    def __init__(self, device: str = "auto", clip: str = CLIP, dino: str = DINO) -> None:
        from transformers import AutoTokenizer, CLIPModel, Dinov2Model

        from kiwi_cli.engine.devices import choose_device

        place = choose_device(device)
        try:
            self._clip: Any = CLIPModel.from_pretrained(clip, use_safetensors=True)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(clip)
            self._dino: Any = Dinov2Model.from_pretrained(dino, use_safetensors=True)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"cannot load CLIP or DINO: {reason}", "run with the network once, or leave out --metrics"
            ) from None
        self._clip.to(place).eval()
        self._dino.to(place).eval()
        self._device = place

    def measure(
        self, source: np.ndarray, edit: np.ndarray, instruction: str, reference: np.ndarray | None = None
    ) -> dict[str, float]:
        """Figures of one item.

        Args:
            source, edit: (F, H, W, 3) uint8, the same moments.
            reference: (H, W, 3) uint8.
        """
        words, nothing = self._texts([instruction, ""])
        source_clip, edit_clip = self._clip_images(source), self._clip_images(edit)
        source_dino, edit_dino = self._dino_tokens(source), self._dino_tokens(edit)
        values = {
            "clip_text_frame": _mean_cosine(edit_clip, words[None]),
            # Towards what the words say, away from what is said by none.
            "clip_direction": _mean_cosine(edit_clip - source_clip, (words - nothing)[None]),
            "clip_source_similarity": _mean_cosine(edit_clip, source_clip),
            "dino_source_similarity": _mean_cosine(edit_dino[:, 0], source_dino[:, 0]),
            "dino_structure_distance": float(
                np.mean((self_similarity(edit_dino[:, 1:]) - self_similarity(source_dino[:, 1:])) ** 2)
            ),
        }
        if len(edit) > 1:
            values["clip_frame_consistency"] = _mean_cosine(edit_clip[1:], edit_clip[:-1])
            values["dino_frame_consistency"] = _mean_cosine(edit_dino[1:, 0], edit_dino[:-1, 0])
        if reference is not None:
            values["clip_reference_similarity"] = _mean_cosine(edit_clip, self._clip_images(reference[None]))
            values["dino_reference_similarity"] = _mean_cosine(
                edit_dino[:, 0], self._dino_tokens(reference[None])[:, 0]
            )
        return values

    def _texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D): projected text features. CLIP reads 77 tokens; what is longer is cut."""
        import torch

        length = self._clip.config.text_config.max_position_embeddings
        inputs = self._tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        with torch.inference_mode():
            out = self._clip.get_text_features(
                inputs.input_ids.to(self._device), inputs.attention_mask.to(self._device)
            )
        return _array(out)

    def _clip_images(self, frames: np.ndarray) -> np.ndarray:
        """(F, D): projected image features."""
        import torch

        pixels = _prepare(frames, self._clip.config.vision_config.image_size, *CLIP_COLOUR).to(self._device)
        with torch.inference_mode():
            return _array(self._clip.get_image_features(pixels))

    def _dino_tokens(self, frames: np.ndarray) -> np.ndarray:
        """(F, 1 + N, D): the class token, then the patches."""
        import torch

        side = min(DINO_SIDE, self._dino.config.image_size)
        with torch.inference_mode():
            return _array(self._dino(_prepare(frames, side, *DINO_COLOUR).to(self._device)).last_hidden_state)


def self_similarity(tokens: np.ndarray) -> np.ndarray:
    """(F, N, D) -> (F, N, N): cosine of every patch with every other, which says the layout and not the look."""
    unit = tokens / np.maximum(np.linalg.norm(tokens, axis=-1, keepdims=True), 1e-8)
    return unit @ unit.swapaxes(-1, -2)


def _mean_cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Mean over rows; a row of zeros (nothing changed) counts 0."""
    scale = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return float(np.mean((first * second).sum(axis=-1) / np.maximum(scale, 1e-8)))


def _array(out: Any) -> np.ndarray:
    tensor = getattr(out, "pooler_output", out)  # the library wraps features in some versions
    return tensor.float().cpu().numpy()


def _prepare(frames: np.ndarray, side: int, mean: Sequence[float], deviation: Sequence[float]) -> Any:
    """(F, H, W, 3) uint8 -> (F, 3, side, side) float32."""
    import torch
    from PIL import Image

    ready = []
    for frame in frames:
        picture = Image.fromarray(frame)
        scale = side / min(picture.size)
        width, height = (max(side, round(length * scale)) for length in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - side) // 2, (height - side) // 2
        ready.append(np.asarray(picture.crop((left, top, left + side, top + side)), dtype=np.float32) / 255)
    pixels = (np.stack(ready) - np.asarray(mean, np.float32)) / np.asarray(deviation, np.float32)
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
