"""Painters of backgrounds: an image editor is told to take the foreground away."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from kiwi_cli.data.reference.fetching import folder_of
from kiwi_cli.data.reference.making import Painter
from kiwi_cli.data.reference.recipe import Make
from kiwi_cli.errors import CheckpointError, UsageError
from kiwi_cli.video.partial import scratch_folder

WORDS = "Remove {what} from the picture, and show only the background behind. Leave the background exactly as it is."
PIPELINES = {
    "qwen-image-edit": "QwenImageEditPlusPipeline",
    "flux-kontext": "FluxKontextPipeline",
    "flux2-klein": "Flux2KleinPipeline",
}


def words_for(phrase: str) -> str:
    """The instruction for a foreground's phrase, or for whatever is in front."""
    return WORDS.format(what=phrase or "everything in the foreground")


class LibraryPainter:
    """An image-editing pipeline of diffusers.

    Raises:
        CheckpointError: it cannot be loaded. KiwiError: it cannot be had.
    """

    def __init__(self, make: Make, device: str) -> None:
        import diffusers

        from kiwi_cli.engine.devices import choose_device, choose_dtype

        if not make.model:
            raise UsageError(f"no model for '{make.background}'", "set make.model in the recipe")
        place, folder = choose_device(device), folder_of(make.model, make.revision)
        try:
            self.pipeline: Any = getattr(diffusers, PIPELINES[make.background]).from_pretrained(
                folder, torch_dtype=choose_dtype("auto", place), use_safetensors=True
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise CheckpointError(f"cannot load '{make.model}': {reason}", "name another painter") from None
        self.pipeline.to(place)
        self.pipeline.set_progress_bar_config(disable=True)
        self.steps, self.seed = make.steps, make.seed

    def __call__(self, frame: np.ndarray, foreground: np.ndarray, phrase: str) -> Image.Image:
        import torch

        picture = Image.fromarray(frame)
        made: Image.Image = self.pipeline(
            image=picture,
            prompt=words_for(phrase),
            num_inference_steps=self.steps,
            generator=torch.Generator("cpu").manual_seed(self.seed),
        ).images[0]
        return made.convert("RGB").resize(picture.size, Image.Resampling.LANCZOS)


class KiwiPainter:
    """kiwi's own edit of a picture."""

    def __init__(self, make: Make, device: str) -> None:
        from kiwi_cli.batch.editors import load_editor
        from kiwi_cli.engine.choice import ModelChoice

        self.choice = ModelChoice(model=make.model or "instruct", revision=make.revision or None, device=device)
        self.editor = load_editor(self.choice)
        self.steps, self.seed = make.steps, make.seed

    def __call__(self, frame: np.ndarray, foreground: np.ndarray, phrase: str) -> Image.Image:
        from kiwi_cli.editing.prepare import prepare
        from kiwi_cli.editing.request import EditRequest
        from kiwi_cli.editing.session import Session
        from kiwi_cli.engine.choice import Sampling

        with scratch_folder() as folder:
            source, target = folder / "frame.png", folder / "painted.png"
            Image.fromarray(frame).save(source)
            sampling = Sampling(steps=self.steps, seed=self.seed)
            request = EditRequest(source, words_for(phrase), output=target, choice=self.choice, sampling=sampling)
            Session(self.editor).run(prepare(request))
            with Image.open(target) as opened:
                return opened.convert("RGB")


def make_painter(make: Make, device: str) -> Painter:
    """The painter of a recipe that has a model.

    Raises:
        KiwiError: it cannot be had.
    """
    return KiwiPainter(make, device) if make.background == "kiwi" else LibraryPainter(make, device)
