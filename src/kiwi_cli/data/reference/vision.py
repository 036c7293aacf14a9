"""Models that look, through transformers: an open-vocabulary detector, a segmenter that tracks, features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kiwi_cli.data.reference.fetching import folder_of
from kiwi_cli.data.reference.files import Files
from kiwi_cli.data.reference.standins import keep_region
from kiwi_cli.data.reference.triplets import Triplet
from kiwi_cli.errors import CheckpointError, UsageError

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
DINO_SIDES = 800, 1333  # pixels
BATCH = 8  # frames that are brought to a model's size together
LEAST = 0.05  # a detector's confidence below which it found nothing; the box is checked afterwards anyway


def loaded(maker: Any, model: str, revision: str, device: str, exact: bool = True) -> tuple[Any, Path]:
    """A model in its place, ready to look, and its folder.

    Args:
        maker: a class of transformers, with `from_pretrained`. exact: in float32.

    Raises:
        CheckpointError: not a model of this kind. KiwiError: it cannot be had.
    """
    import torch

    from kiwi_cli.engine.devices import choose_device, choose_dtype

    if not model:
        raise UsageError("a stage's model has to be named", "set it in the recipe")
    place, folder = choose_device(device), folder_of(model, revision)
    dtype = torch.float32 if exact else choose_dtype("auto", place)
    try:
        found, said = maker.from_pretrained(folder, dtype=dtype, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"cannot load '{model}': {reason}", "name another model in the recipe") from None
    if said["missing_keys"]:
        first = sorted(said["missing_keys"])[0]
        raise CheckpointError(f"'{model}' lacks weights, '{first}' first", "name another model in the recipe")
    return found.to(place).eval(), Path(folder)


def to_size(frames: np.ndarray, side: tuple[int, int], mean: Any, std: Any) -> Any:
    """(F, H, W, 3) uint8 -> (F, 3, h, w) float32 of a model's size (h, w), normalised; smoothed where it shrinks."""
    import torch

    parts = []
    for start in range(0, len(frames), BATCH):
        some = torch.from_numpy(np.array(frames[start : start + BATCH])).permute(0, 3, 1, 2).float() / 255
        some = torch.nn.functional.interpolate(some, side, mode="bilinear", antialias=True, align_corners=False)
        parts.append((some - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    return torch.cat(parts)


class Embedder:
    """Features of a picture, padded to a square, by DINOv3, DINOv2, SigLIP 2, SigLIP or CLIP; of length 1."""

    def __init__(self, model: str, revision: str, device: str) -> None:
        from transformers import AutoModel

        self.model, folder = loaded(AutoModel, model, revision, device)
        said = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        self.look = said.get("image_mean") or IMAGENET[0], said.get("image_std") or IMAGENET[1]
        size = said.get("crop_size") or said.get("size") or {}
        side = size.get("height") or size.get("shortest_edge") if isinstance(size, dict) else size
        vision = getattr(self.model.config, "vision_config", self.model.config)
        self.side = int(side or vision.image_size)

    def __call__(self, picture: Image.Image) -> np.ndarray:
        import torch

        side = max(picture.size)
        square = Image.new("RGB", (side, side), "white")
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        pixels = to_size(np.asarray(square)[None], (self.side, self.side), *self.look).to(self.model.device)
        with torch.inference_mode():
            if hasattr(self.model, "get_image_features"):
                found = self.model.get_image_features(pixel_values=pixels)
                found = getattr(found, "pooler_output", found)
            else:
                found = self.model(pixel_values=pixels).pooler_output
        vector = torch.nn.functional.normalize(found[0].float(), dim=0)
        return np.asarray(vector.cpu().numpy(), np.float32)


class Detector:
    """The best box of Grounding DINO or OWLv2 for a phrase."""

    def __init__(self, model: str, revision: str, device: str) -> None:
        import transformers

        self.model, folder = loaded(transformers.AutoModelForZeroShotObjectDetection, model, revision, device)
        kind = self.model.config.model_type
        if kind not in ("grounding-dino", "owlv2"):
            raise CheckpointError(f"'{model}' is a {kind}", "name a Grounding DINO or an OWLv2")
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        self.is_dino = kind == "grounding-dino"

    def __call__(self, picture: Image.Image, phrase: str) -> list[float] | None:
        """Left, top, right and bottom in 0..1; None where nothing is found."""
        import torch

        with torch.inference_mode():
            out = self.model(**(self._for_dino if self.is_dino else self._for_owl)(picture, phrase))
        scores = out.logits[0].float().sigmoid().max(dim=-1).values
        best = int(scores.argmax())
        if float(scores[best]) < LEAST:
            return None
        across, down, wide, high = out.pred_boxes[0, best].float().tolist()
        edges = np.array([across - wide / 2, down - high / 2, across + wide / 2, down + high / 2])
        if not self.is_dino:  # it saw a square, with the picture at its left and top
            edges *= max(picture.size) / np.array([*picture.size, *picture.size])
        left, top, right, bottom = (float(edge) for edge in edges.clip(0, 1))
        return [left, top, right, bottom] if left < right and top < bottom else None

    def _for_dino(self, picture: Image.Image, phrase: str) -> dict[str, Any]:
        """The picture with its shorter side at 800 pixels, the longer at most 1333, as the model was trained."""
        scale = min(DINO_SIDES[0] / min(picture.size), DINO_SIDES[1] / max(picture.size))
        side = round(picture.height * scale), round(picture.width * scale)
        pixels = to_size(np.asarray(picture)[None], side, *IMAGENET)
        words = self.tokenizer(f"{phrase.lower().rstrip('.')}.", return_tensors="pt")
        return {name: value.to(self.model.device) for name, value in {**words, "pixel_values": pixels}.items()}

    def _for_owl(self, picture: Image.Image, phrase: str) -> dict[str, Any]:
        """The picture on a grey square."""
        square = Image.new("RGB", (max(picture.size),) * 2, (128, 128, 128))
        square.paste(picture, (0, 0))
        side = int(self.model.config.vision_config.image_size)
        pixels = to_size(np.asarray(square)[None], (side, side), *CLIP)
        length = int(self.model.config.text_config.max_position_embeddings)
        words = self.tokenizer(phrase, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        given = {"input_ids": words.input_ids, "attention_mask": words.attention_mask, "pixel_values": pixels}
        return {name: value.to(self.model.device) for name, value in given.items()}


class Tracker:
    """`segment`: a box of the target's first frame, made a mask and tracked by SAM 2 or SAM 3 video."""

    name = "segment"

    def __init__(self, by: str, model: str, revision: str, device: str) -> None:
        import transformers

        before = {"sam2": "Sam2Video", "sam3": "Sam3TrackerVideo"}[by]
        self.model, folder = loaded(getattr(transformers, f"{before}Model"), model, revision, device)
        self.session: Any = getattr(transformers, f"{before}InferenceSession")
        said: dict[str, Any] = {}
        for name in ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json"):
            if (folder / name).is_file():
                said = json.loads((folder / name).read_text(encoding="utf-8"))
                said = said.get("video_processor", said)
                break
        self.look = said.get("image_mean") or IMAGENET[0], said.get("image_std") or IMAGENET[1]
        self.side = int(self.model.config.image_size)

    def run(self, row: Triplet, files: Files) -> dict[str, Any]:
        ground, frames = files.figures("ground"), files.target
        region = self.track(frames, ground["box"])
        return keep_region(region if ground["sort"] == "subject" else ~region, files)

    def track(self, frames: np.ndarray, box: list[float]) -> np.ndarray:
        """(F, H, W) bool: what is in the box in the first frame, and where it goes.

        Args:
            box: left, top, right, bottom in 0..1.
        """
        import torch

        high, wide = frames.shape[1:3]
        session = self.session(
            video=to_size(frames, (self.side, self.side), *self.look),
            video_height=high,
            video_width=wide,
            inference_device=self.model.device,
            inference_state_device=self.model.device,
            dtype=self.model.dtype,
        )
        corners = torch.tensor(box, dtype=torch.float32).view(1, 1, 2, 2) * self.side
        points = {"point_coords": corners, "point_labels": torch.tensor([[[2, 3]]], dtype=torch.int32)}
        session.add_point_inputs(session.obj_id_to_idx(1), 0, points)
        session.obj_with_new_inputs = [1]
        region = np.zeros(frames.shape[:3], bool)
        with torch.inference_mode():
            self.model(session, frame_idx=0)
            for out in self.model.propagate_in_video_iterator(session):
                masks = out.pred_masks.float()
                masks = torch.nn.functional.interpolate(masks, (high, wide), mode="bilinear", align_corners=False)
                region[out.frame_idx] = (masks[0, 0] > 0).cpu().numpy()
        return region
