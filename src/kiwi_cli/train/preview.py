"""Sample edits while training: held-out rows edited by the real sampler, beside their source and their truth.

The source and the truth are what the autoencoder makes of their latents: the best that an edit could look like.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from kiwi_cli.errors import KiwiError

if TYPE_CHECKING:
    from kiwi_cli.engine.pipeline import KiwiPipeline
    from kiwi_cli.train.batch import Sample

PREVIEWS = "previews"
COLUMNS = ("source", "edit", "truth")
CELL, LABEL, MARGIN, FPS = 256, 34, 6, 8
SEED = 0
"""Of the first edit's noise, then one more for each: always the same, so that sheets can be compared."""


@dataclass(frozen=True)
class Edit:
    """One row of a sheet: source, edit and truth, (F, H, W, 3) uint8 of the same F, and the instruction."""

    clips: tuple[np.ndarray, np.ndarray, np.ndarray]
    instruction: str


class Preview:
    """Edits the same rows each time it is called, and writes `previews/step-N.png` and, of clips, `.mp4`.

    Args:
        pipe: around the modules that are trained, and the autoencoder.
        context: sample -> context tokens (1, N, D) of its prompt, from the modules that are trained.
        rows: (instruction, sample) of held-out rows.
        steps: of the sampler.
        out: the run's folder.
    """

    def __init__(
        self,
        pipe: KiwiPipeline,
        context: Callable[[Sample], torch.Tensor],
        rows: Sequence[tuple[str, Sample]],
        steps: int,
        out: Path,
    ) -> None:
        self.pipe, self.context, self.rows, self.steps, self.out = pipe, context, list(rows), steps, out
        self._still: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, model: torch.nn.Module, step: int) -> None:
        """Write the sheet and the clip of a step.

        Args:
            model: whose modules the pipeline holds; it is in evaluation mode meanwhile.

        Raises:
            KiwiError: they cannot be written.
        """
        training = model.training
        model.eval()
        edits = [self._edit(number) for number in range(len(self.rows))]
        model.train(training)
        folder = self.out / PREVIEWS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            contact_sheet(edits).save(folder / f"step-{step:08d}.png")
            if max(len(edit.clips[0]) for edit in edits) > 1:
                write_clip(edits, folder / f"step-{step:08d}.mp4")
        except OSError as error:
            raise KiwiError(
                f"cannot write a preview to '{folder}': {error}", "make room, or set preview_every=0"
            ) from error

    @torch.no_grad()
    def _edit(self, number: int) -> Edit:
        instruction, sample = self.rows[number]
        target = sample.target[None].to(torch.float32)
        source = torch.zeros_like(target) if sample.source is None else sample.source[None].to(torch.float32)
        references = None if sample.references is None else sample.references[None].to(torch.float32)
        if number not in self._still:
            self._still[number] = (self._decode(source), self._decode(target))
        noise = self.pipe.make_noise(target.shape, SEED + number)
        latents = self.pipe.denoise(noise, self.context(sample), source, references, self.steps)
        before, truth = self._still[number]
        return Edit((before, self._decode(latents), truth), instruction)

    def _decode(self, latents: torch.Tensor) -> np.ndarray:
        return np.concatenate(list(self.pipe.decode(latents)))


def contact_sheet(edits: Sequence[Edit]) -> Image.Image:
    """A row for each edit: the middle frame of source, edit and truth, and the instruction below."""
    return _page(edits, [len(edit.clips[0]) // 2 for edit in edits])


def _page(edits: Sequence[Edit], frames: Sequence[int]) -> Image.Image:
    font, small = ImageFont.load_default(13), ImageFont.load_default(12)
    sizes = [_size(edit) for edit in edits]
    width = len(COLUMNS) * (CELL + MARGIN) + MARGIN
    height = sum(cell[1] + LABEL + MARGIN for cell in sizes) + 24
    # H.264 in 4:2:0 takes even sizes only.
    page = Image.new("RGB", (width + width % 2, height + height % 2), "white")
    draw = ImageDraw.Draw(page)
    for column, name in enumerate(COLUMNS):
        draw.text((MARGIN + column * (CELL + MARGIN), 5), name, fill="#30343a", font=font)
    y = 24
    for edit, cell, frame in zip(edits, sizes, frames, strict=True):
        for column, clip in enumerate(edit.clips):
            picture = Image.fromarray(clip[min(frame, len(clip) - 1)]).resize(cell, Image.Resampling.BICUBIC)
            page.paste(picture, (MARGIN + column * (CELL + MARGIN) + (CELL - cell[0]) // 2, y))
        words = "\n".join(textwrap.wrap(edit.instruction, 110)[:2])
        draw.multiline_text((MARGIN, y + cell[1] + 3), words, fill="#30343a", font=small, spacing=2)
        y += cell[1] + LABEL + MARGIN
    return page


def _size(edit: Edit) -> tuple[int, int]:
    """Width and height of a frame on the page, in its shape and at most `CELL` wide and high."""
    height, width = edit.clips[0].shape[1:3]
    scale = CELL / max(height, width)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def write_clip(edits: Sequence[Edit], path: Path) -> None:
    """The same page as a short MP4, every edit played once; shorter ones stand still on their last frame."""
    import av

    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("libx264", rate=Fraction(FPS), options={"crf": "18"})
        pages = [_page(edits, [number] * len(edits)) for number in range(max(len(edit.clips[0]) for edit in edits))]
        stream.width, stream.height, stream.pix_fmt = pages[0].width, pages[0].height, "yuv420p"
        for page in pages:
            output.mux(stream.encode(av.VideoFrame.from_image(page)))
        output.mux(stream.encode(None))
