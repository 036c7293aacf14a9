"""`--editor lucy-edit` and `vace`: other editing models, through the pipelines that diffusers has of them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi_cli.base.events import Events
from kiwi_cli.base.identity import fingerprint, sampled
from kiwi_cli.editors.base import Denoising, Edited, Found, Frames, Identity, Named, Origin, Progress
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.errors import CheckpointError, KiwiError, UsageError
from kiwi_cli.weights import names
from kiwi_cli.weights.fetch import Access, fetch, plan
from kiwi_cli.weights.layout import STEM, Layout
from kiwi_cli.weights.settings import ModelSettings

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

LAYOUT = Layout(
    required=(
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "transformer/config.json",
        "vae/config.json",
    ),
    optional=("tokenizer/special_tokens_map.json", "README.md", "LICENSE.md", "LICENSE"),
    weights=(("text_encoder", "model"), ("transformer", STEM), ("vae", STEM)),
)
GUIDANCE = 5.0  # of both models' cards
HEADROOM = 1.3  # of the weights: what a card needs beside them
CHUNK = 8  # frames handed on at a time


@dataclass(frozen=True)
class Family:
    """One kind of model.

    Attributes:
        pipeline: diffusers' class. model: that is taken when none is named. licence: of the released weights.
        multiple: pixels that both sides are multiples of, in the released models.
        takes_references: whether it takes pictures. frames: its models were trained with.
        inputs: (frames, references) -> what the pipeline is given of them.
    """

    name: str
    pipeline: str
    model: str
    licence: str
    multiple: int
    takes_references: bool
    inputs: Callable[[list[Image.Image], Sequence[Image.Image]], dict[str, Any]]
    frames: int = 81


def _lucy_inputs(frames: list[Image.Image], references: Sequence[Image.Image]) -> dict[str, Any]:
    return {"video": frames}


def _vace_inputs(frames: list[Image.Image], references: Sequence[Image.Image]) -> dict[str, Any]:
    """The clip is the control video, and the mask says that all of it is to be made anew."""
    from PIL import Image

    white = Image.new("RGB", frames[0].size, "white")
    return {"video": frames, "mask": [white] * len(frames), "reference_images": list(references) or None}


LUCY = Family(
    "lucy-edit",
    "LucyEditPipeline",
    "decart-ai/Lucy-Edit-Dev",
    "Lucy Edit's own, NON-COMMERCIAL: read its card before you use a result in trade",
    32,
    False,
    _lucy_inputs,
)
VACE = Family("vace", "WanVACEPipeline", "Wan-AI/Wan2.1-VACE-1.3B-diffusers", "Apache-2.0", 16, True, _vace_inputs)


class PipelineEditor:
    """A loaded pipeline of diffusers as an editor.

    Args:
        folder: its files.
    """

    gives_round_trip = False

    def __init__(self, family: Family, pipe: Any, choice: ModelChoice, folder: Path, device: str) -> None:
        self.family, self.pipe, self.choice, self._device = family, pipe, choice, device
        self.takes_references, self.most_frames = family.takes_references, family.frames
        self._checkpoint = fingerprint(folder)
        self.multiple = _multiple(folder, family)

    @property
    def name(self) -> str:
        return self.choice.name

    def identity(self) -> Identity:
        dtype = str(self.pipe.transformer.dtype).removeprefix("torch.")
        return Identity(self.choice, self._checkpoint, (), self._device, dtype)

    def edit(
        self,
        frames: np.ndarray,
        instruction: str,
        references: Sequence[Image.Image] = (),
        *,
        denoising: Denoising,
        origin: Origin | None = None,
        round_trip: bool = False,
        progress: Progress | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> Edited:
        import torch
        from PIL import Image

        from kiwi_cli.video import padded_frame_count

        count = padded_frame_count(len(frames))
        shown = [Image.fromarray(frame) for frame in frames]
        shown += [shown[-1]] * (count - len(frames))

        def step(pipe: Any, number: int, timestep: Any, held: dict[str, Any]) -> dict[str, Any]:
            if progress is not None:
                progress("denoise", number + 1, denoising.steps)
            return held

        made = self.pipe(
            prompt=instruction,
            **self.family.inputs(shown, references),
            height=frames.shape[1],
            width=frames.shape[2],
            num_frames=count,
            num_inference_steps=denoising.steps,
            guidance_scale=GUIDANCE,
            generator=torch.Generator("cpu").manual_seed(denoising.seed),
            output_type="np",
            callback_on_step_end=step,
        ).frames[0]
        if made.shape[1:] != frames.shape[1:] or len(made) < len(frames):
            raise KiwiError(f"'{self.name}' made {made.shape} of a clip of {frames.shape}", "pass another --size")
        return Edited(_stream(made[: len(frames)]))

    def close(self) -> None:
        """The memory goes with the pipeline."""
        self.pipe = None


def _stream(made: np.ndarray) -> Frames:
    """(F, H, W, 3) floats from 0 to 1 as uint8, in chunks."""
    import numpy as np

    if not np.isfinite(made).all():
        raise KiwiError("the model made values that are not finite", "try --dtype float32")
    for start in range(0, len(made), CHUNK):
        yield (made[start : start + CHUNK] * 255).round().clip(0, 255).astype(np.uint8)


class Library(Named):
    """A kind of editor: models of a family.

    Args:
        family: which.
    """

    def __init__(self, family: Family) -> None:
        super().__init__(family.name)
        self.family = family

    def uses(self, choice: ModelChoice) -> Collection[str]:
        return {"model", "revision", "download", "device", "dtype", "steps", "seed"}

    def find(self, choice: ModelChoice) -> Found:
        """The model in its folder, or in the Hub's cache; missing when it has to be fetched."""
        name = choice.model or self.family.model
        folder = Path(name).expanduser()
        if folder.exists():
            if choice.revision is not None:
                raise UsageError(f"--revision is for models on the Hub, not for '{name}'", "leave it out")
            return self._found(folder, None)
        repo, _ = names.resolve(name)
        cached, revision = Access().cached(repo), choice.revision or "main"
        whole = cached.whole(revision, LAYOUT)
        if whole is not None:
            return self._found(whole, cached.commit(revision))
        if not choice.download:
            raise names.missing_error(name, repo, cached.folder.is_dir())
        return Found(
            None,
            commit=cached.commit(revision),
            settings=ModelSettings(multiple=self.family.multiple),
            takes_references=self.family.takes_references,
            missing=True,
        )

    def _found(self, folder: Path, commit: str | None) -> Found:
        lacking = LAYOUT.missing(folder)
        if lacking:
            raise CheckpointError(f"'{folder}' has no {lacking[0]}", f"pass a folder that {self._from} can read")
        made_for = _config(folder / "model_index.json").get("_class_name")
        if made_for != self.family.pipeline:
            raise CheckpointError(
                f"'{folder}' is a {made_for}, and --editor {self.name} takes a {self.family.pipeline}",
                f"leave --model out, or pass another than '{folder}'",
            )
        settings = ModelSettings(multiple=_multiple(folder, self.family))
        size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        return Found(folder, size // 2, commit, settings=settings, takes_references=self.family.takes_references)

    @property
    def _from(self) -> str:
        return f"diffusers' {self.family.pipeline}"

    def identify(self, found: Found, choice: ModelChoice) -> str:
        """Samples of every tensor, and the pipeline that they are for."""
        assert found.folder is not None
        return sampled(found.folder)

    def admit(self, found: Found, choice: ModelChoice) -> None:
        from kiwi_cli.engine.devices import choose_device, choose_dtype, refuse_large_on_cpu

        if importlib.util.find_spec("ftfy") is None:
            raise UsageError(f"--editor {self.name} needs ftfy", "pip install 'kiwi-cli[editors]'")
        choose_dtype(choice.dtype, choose_device(choice.device))
        refuse_large_on_cpu(found.parameters, choice.device)

    def fetch(self, choice: ModelChoice, events: Events) -> Found:
        name = choice.model or self.family.model
        repo, _ = names.resolve(name)
        licence = self.family.licence if name == self.family.model else f"see the card of '{repo}'"
        events.note(f"'{repo}': licence {licence}")
        access = Access(download=choice.download, events=events)
        chosen = plan(repo, choice.revision or "main", access, LAYOUT)
        return self._found(fetch(chosen, access), chosen.commit)

    def load(self, found: Found, choice: ModelChoice, events: Events) -> PipelineEditor:
        import diffusers
        import torch

        from kiwi_cli.engine.devices import choose_device, choose_dtype

        assert found.folder is not None
        device = choose_device(choice.device)
        dtype = choose_dtype(choice.dtype, device)
        try:
            # The autoencoder in float32, as both models' cards have it.
            vae = diffusers.AutoencoderKLWan.from_pretrained(
                found.folder, subfolder="vae", torch_dtype=torch.float32, use_safetensors=True
            )
            pipeline = getattr(diffusers, self.family.pipeline)
            pipe = pipeline.from_pretrained(str(found.folder), vae=vae, torch_dtype=dtype, use_safetensors=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"cannot load '{found.folder}': {reason}", "fetch it again") from None
        pipe.set_progress_bar_config(disable=True)
        if device.type == "cuda" and HEADROOM * _bytes(pipe) > torch.cuda.mem_get_info(device)[0]:
            events.note("one part on the device at a time")
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.to(device)
        return PipelineEditor(self.family, pipe, choice, found.folder, str(device))


def _bytes(pipe: Any) -> int:
    modules = (part for part in pipe.components.values() if hasattr(part, "parameters"))
    return sum(each.numel() * each.element_size() for part in modules for each in part.parameters())


def _multiple(folder: Path, family: Family) -> int:
    """Pixels that both sides are multiples of, by the configs."""
    spatial = _config(folder / "vae" / "config.json").get("scale_factor_spatial", 8)
    patch = _config(folder / "transformer" / "config.json").get("patch_size", (1, 2, 2))
    try:
        return int(spatial) * int(patch[1])
    except (TypeError, ValueError, IndexError):
        return family.multiple


def _config(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        data = None
    if not isinstance(data, dict):
        raise CheckpointError(f"cannot read '{path}'", "fetch the model again")
    return data


KINDS = {family.name: Library(family) for family in (LUCY, VACE)}
