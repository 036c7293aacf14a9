"""What the multimodal LLM is fed: pixels in patches, token ids, and positions in time, height and width.

Everything here is plain arithmetic on frames and text, written out instead of taken from the library's
processor: that one needs torchvision, reads its pixel bounds from configs that the released model does not
follow, and its position rule has changed between versions. The numbers below are constants of the released
code (showlab/Kiwi-Edit at 223572d), checked against what it computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from kiwi_cli.errors import UsageError
from kiwi_cli.model.pictures import flatten_alpha
from kiwi_cli.model.transfer import send
from kiwi_cli.model.vision_sizes import IMAGE_MAX_AREA, IMAGE_MULTIPLE, PixelBounds, frame_sizes, smart_size
from kiwi_cli.weights.reserved import check_reserved

Mode = Literal["video", "image", "reference"]
"""Which queries are asked: several frames, one frame, or any number with a reference picture."""

SYSTEM_PROMPT = (
    "You will be given an image and instruction. Please describe the content of the image in detail "
    "based on instruction in your own words."
)
REFERENCE_SUFFIX = " Use the reference input from last frame."
QUERY_TOKEN = "<|object_ref_start|>"
VIDEO_TOKEN, IMAGE_TOKEN = "<|video_pad|>", "<|image_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"

# CLIP's colour statistics, which Qwen2.5-VL uses; overridden by the checkpoint's preprocessor config.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class VisionGeometry:
    """Patch sizes of the vision tower (Qwen's `vision_config`) and the colour statistics of its input."""

    patch: int = 14
    temporal_patch: int = 2
    merge: int = 2
    tokens_per_second: float = 2.0
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD


@dataclass
class MLLMInputs:
    """One prompt, ready for the model.

    Attributes:
        mode: which queries and connectors apply.
        input_ids: (1, L) int64.
        position_ids: (3, 1, L) int64: time, height, width.
        pixel_values_videos, video_grid_thw: (patches, 3*2*14*14) fp32 and (1, 3) int64, or None in image mode.
        pixel_values, image_grid_thw: the same of the source image or the reference picture, or None.
    """

    mode: Mode
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    pixel_values_videos: torch.Tensor | None = None
    video_grid_thw: torch.Tensor | None = None
    pixel_values: torch.Tensor | None = None
    image_grid_thw: torch.Tensor | None = None

    def to(self, device: torch.device | str | None) -> MLLMInputs:
        """The prompt with pixels and positions on a device. Ids and grids stay on the host, where they are counted.

        As with tensors, None is where they are: the library's hooks say so.
        """
        if device is None:
            return self
        device = torch.device(device)

        def there(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else send(tensor, device)

        return replace(
            self,
            position_ids=send(self.position_ids, device),
            pixel_values_videos=there(self.pixel_values_videos),
            pixel_values=there(self.pixel_values),
        )


@dataclass
class InputBuilder:
    """Builds `MLLMInputs` from frames, an instruction and reference pictures.

    Args:
        tokenizer: the checkpoint's, with its chat template.
        queries: number of learnable queries for each mode.
        geometry, bounds: of the checkpoint.
    """

    tokenizer: Any
    queries: dict[Mode, int]
    geometry: VisionGeometry = field(default_factory=VisionGeometry)
    bounds: PixelBounds = field(default_factory=PixelBounds)

    def __call__(self, frames: np.ndarray, instruction: str, references: Sequence[Image.Image] = ()) -> MLLMInputs:
        """frames (F, H, W, 3) uint8; only the first reference reaches the language model.

        Raises:
            UsageError: an empty instruction, or one that holds a reserved token of the model.
        """
        check_instruction(instruction, self.tokenizer)
        mode: Mode = "reference" if references else "image" if len(frames) == 1 else "video"
        inputs: dict[str, Any] = {}
        content: list[dict[str, str]] = []
        if mode == "image":
            pixels = self._picture(Image.fromarray(frames[0]), IMAGE_MAX_AREA)
            inputs["pixel_values"], inputs["image_grid_thw"] = to_patches(pixels, self.geometry)
            content.append({"type": "image"})
        else:
            video = video_pixels(frames, self.bounds)
            inputs["pixel_values_videos"], inputs["video_grid_thw"] = to_patches(video, self.geometry)
            content.append({"type": "video"})
        text = instruction + REFERENCE_SUFFIX if mode == "reference" else instruction
        content.append({"type": "text", "text": text})
        if mode == "reference":
            area = self.bounds.max_reference_tokens * IMAGE_MULTIPLE**2
            pixels = self._picture(flatten_alpha(references[0]), area)
            inputs["pixel_values"], inputs["image_grid_thw"] = to_patches(pixels, self.geometry)
            content.append({"type": "image"})
        content.append({"type": "text", "text": QUERY_TOKEN * self.queries[mode]})

        ids = self._tokenize(content, inputs.get("video_grid_thw"), inputs.get("image_grid_thw"))
        positions = mrope_positions(
            ids,
            {
                self.token_id(VIDEO_TOKEN): inputs.get("video_grid_thw"),
                self.token_id(IMAGE_TOKEN): inputs.get("image_grid_thw"),
            },
            self.geometry,
            still=self.token_id(IMAGE_TOKEN),
        )
        return MLLMInputs(mode, torch.tensor([ids]), positions, **inputs)

    def token_id(self, token: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(token))

    def _picture(self, image: Image.Image, max_area: int) -> torch.Tensor:
        width, height = smart_size(*image.size, IMAGE_MULTIPLE, self.bounds.min_picture_area, max_area)
        return as_tensor(image.resize((width, height), Image.Resampling.BICUBIC))[None]

    def _tokenize(
        self, content: list[dict[str, str]], video_grid: torch.Tensor | None, image_grid: torch.Tensor | None
    ) -> list[int]:
        messages = [
            {"role": "system", "content": [{"type": "text", "text": SYSTEM_PROMPT}]},
            {"role": "user", "content": content},
        ]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
        for token, grid in ((VIDEO_TOKEN, video_grid), (IMAGE_TOKEN, image_grid)):
            if grid is not None:
                count = int(grid.prod()) // self.geometry.merge**2
                text = text.replace(token, token * count)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def check_instruction(instruction: str, tokenizer: Any) -> None:
    """Refuse text that would be read as part of the prompt's structure, or is empty.

    Raises:
        UsageError: with the offending token.
    """
    if not instruction.strip():
        raise UsageError("the instruction is empty", 'say what to change, for example "make it snowy"')
    check_reserved(instruction, tokenizer.get_added_vocab())


def video_pixels(frames: np.ndarray, bounds: PixelBounds) -> torch.Tensor:
    """The frames the language model sees: (F, H, W, 3) uint8 -> (f, 3, h, w) uint8, f at most 16.

    Two resizes, as the released code does them: each frame by PIL, then, where that left too few pixels, the
    stack by torch's antialiased bicubic. A model with a minimum of its own (`min_visual_tokens`) needs the first
    alone.
    """
    count = len(frames)
    if count > bounds.max_frames:
        picks = np.linspace(0, count - 1, bounds.max_frames).round().astype(int)
        frames = frames[picks]
    height, width = frames.shape[1:3]
    size, enlarged = frame_sizes(width, height, bounds)
    resized = [Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC) for frame in frames]
    stack = torch.stack([as_tensor(image) for image in resized])
    if enlarged != size:
        width, height = enlarged
        # In fp32 and rounded; torch's own kernel for bytes differs in one value of five.
        floats = torch.nn.functional.interpolate(
            stack.to(torch.float32), (height, width), mode="bicubic", antialias=True
        )
        stack = floats.round().clamp(0, 255).to(torch.uint8)
    return stack


def as_tensor(image: Image.Image) -> torch.Tensor:
    """RGB picture -> (3, H, W) uint8."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def to_patches(pixels: torch.Tensor, geometry: VisionGeometry) -> tuple[torch.Tensor, torch.Tensor]:
    """Qwen's patch order: merge windows first, two frames to a patch.

    Args:
        pixels: (F, 3, H, W) uint8, H and W multiples of patch * merge; an odd F repeats its last frame.

    Returns:
        (patches, 3 * 2 * 14 * 14) fp32, normalised, and the grid (1, 3) int64 of (time, height, width) patches.
    """
    step, merge, patch = geometry.temporal_patch, geometry.merge, geometry.patch
    if missing := -len(pixels) % step:
        pixels = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
    # Rescaling to [0, 1] is folded into the statistics, as the library does: the last bit depends on it.
    mean = torch.tensor(geometry.mean).view(1, -1, 1, 1) * 255.0
    std = torch.tensor(geometry.std).view(1, -1, 1, 1) * 255.0
    values = (pixels.to(torch.float32) - mean) / std
    frames, channels, height, width = values.shape
    grid = (frames // step, height // patch, width // patch)
    values = values.reshape(grid[0], step, channels, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch)
    values = values.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return values.reshape(math.prod(grid), -1), torch.tensor([grid])


def mrope_positions(
    ids: Sequence[int],
    grids: dict[int, torch.Tensor | None],
    geometry: VisionGeometry,
    still: int,
) -> torch.Tensor:
    """Positions in time, height and width, as the released weights were trained with.

    Text counts up on all three axes. A vision block starts at the next position; time advances by
    `tokens_per_second` a temporal patch (`second_per_grid_ts` is 1.0) and stands still for a picture; text
    after it goes on at the block's largest position + 1.

    Args:
        ids: L token ids.
        grids: pad token id -> (n, 3) patch grids of its blocks in order, or None.
        still: the pad token of pictures.

    Returns:
        (3, 1, L) int64.
    """
    positions: list[torch.Tensor] = []
    queues = {token: list(grid.tolist()) for token, grid in grids.items() if grid is not None}
    start = index = 0
    while index < len(ids):
        token = ids[index]
        if token not in queues:
            positions.append(torch.full((3, 1), start))
            start, index = start + 1, index + 1
            continue
        time, height, width = queues[token].pop(0)
        height, width = height // geometry.merge, width // geometry.merge
        seconds = 0.0 if token == still else 1.0
        ticks = (torch.arange(time) * seconds * geometry.tokens_per_second).long()
        block = torch.stack(torch.meshgrid(ticks, torch.arange(height), torch.arange(width), indexing="ij")).reshape(
            3, -1
        )
        positions.append(block + start)
        start = int(positions[-1].max()) + 1
        index += block.shape[1]
    return torch.cat(positions, dim=1)[:, None, :]
