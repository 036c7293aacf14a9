"""The Kiwi editor: `KiwiPipeline` found on this machine, loaded, changed as the choice says, and called."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from kiwi_cli import weights
from kiwi_cli.base import processes
from kiwi_cli.base.events import SILENT, Events
from kiwi_cli.base.identity import fingerprint, sampled
from kiwi_cli.editors.base import Calibration, Denoising, Edited, Found, Frames, Identity, LongClip, Origin, Progress
from kiwi_cli.engine import parallel
from kiwi_cli.engine.choice import OF_OTHERS, ModelChoice, Sampling
from kiwi_cli.errors import CheckpointError, UsageError
from kiwi_cli.weights import embedded, hub, lora, names, raw_files
from kiwi_cli.weights.fetch import Access
from kiwi_cli.weights.layout import RELEASED
from kiwi_cli.weights.reserved import reserved_tokens
from kiwi_cli.weights.settings import read_settings

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from kiwi_cli.engine.pipeline import KiwiPipeline
    from kiwi_cli.engine.step_cache import StepCache


class KiwiEditor:
    """A loaded pipeline as an editor.

    Args:
        choice: the model, and how it works, as it was loaded.
        folder: its files, if it came from a folder.
        loras: merged into it.
    """

    takes_references = True
    gives_round_trip = True
    joins_windows = True

    def __init__(
        self,
        pipe: KiwiPipeline,
        choice: ModelChoice,
        folder: Path | None = None,
        loras: Sequence[lora.Applied] = (),
    ) -> None:
        self.pipe, self.choice, self.loras = pipe, choice, loras
        self._checkpoint = fingerprint(folder) if folder is not None else None
        self.most_frames = read_settings(folder).frames if folder is not None else None

    @property
    def name(self) -> str:
        return self.choice.model

    @property
    def multiple(self) -> int:
        return self.pipe.size_multiple

    def identity(self) -> Identity:
        dtype = str(self.pipe.compute_dtype).removeprefix("torch.")
        return Identity(self.choice, self._checkpoint, self.loras, str(self.pipe.device), dtype)

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
        pipe = self.pipe
        end = {} if denoising.sigma_min is None else {"sigma_min": denoising.sigma_min}
        latents, source = pipe.edit(
            frames,
            instruction,
            references,
            steps=denoising.steps,
            seed=denoising.seed,
            noise=denoising.noise,
            solver=denoising.solver,
            cache=_cache(denoising),
            output="pair",
            progress=progress,
            notify=notify,
            **end,
        )
        assert pipe.cache_run is not None
        measured = Calibration(tuple(pipe.cache_run.ratios), float(pipe.config.shift))
        decoded = self._decoded(len(frames), latents, source if round_trip else None, progress)
        return replace(
            decoded, approximations=tuple(pipe.approximations), calibration=measured if denoising.calibrate else None
        )

    def restore(
        self,
        frames: np.ndarray,
        instruction: str,
        references: Sequence[Image.Image] = (),
        *,
        latents: np.ndarray,
        source: np.ndarray | None = None,
        progress: Progress | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> Edited:
        import torch

        from kiwi_cli.engine.demand import demand_of
        from kiwi_cli.model.pictures import as_picture

        pipe = self.pipe
        if pipe.residency is not None:
            pictures = [as_picture(reference) for reference in references]
            needed = demand_of(pipe, frames, len(pictures), pipe.inputs(frames, instruction, pictures))
            pipe.residency.choose(needed, notify or (lambda line: None))
        scale = pipe.vae.config.scale_factor_spatial
        length = -(-(len(frames) - 1) // pipe.frames_per_latent) + 1
        shape = (1, pipe.vae.config.z_dim, length, frames.shape[1] // scale, frames.shape[2] // scale)
        if any(each is not None and each.shape != shape for each in (latents, source)):
            raise CheckpointError(
                f"latents of another clip or model: {latents.shape}, not {shape}", "make the edit again"
            )
        again = None if source is None else torch.from_numpy(source)
        return self._decoded(len(frames), torch.from_numpy(latents), again, progress)

    def _decoded(
        self, count: int, latents: torch.Tensor, source: torch.Tensor | None, progress: Progress | None
    ) -> Edited:
        """The frames of latents, and of the source's where a round trip is wanted."""
        pipe = self.pipe
        first = second = progress
        if source is not None and progress is not None:  # one bar for both decodings
            first, second = _half(progress, 0), _half(progress, 1)
        return Edited(
            cast(Frames, pipe.decode(latents, count, second)),
            latents,
            pipe.residency.placement.describe() if pipe.residency is not None else "",
            round_trip=None if source is None else cast(Frames, pipe.decode(source, count, first)),
            source=source,
        )

    def edit_long(
        self,
        clip: LongClip,
        instruction: str,
        references: Sequence[Image.Image] = (),
        *,
        denoising: Denoising,
        round_trip: bool = False,
        progress: Progress | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> Edited:
        from kiwi_cli.engine.long import LongEdit, LongSettings
        from kiwi_cli.engine.long_decode import LongDecode
        from kiwi_cli.engine.part_edit import PartEdit
        from kiwi_cli.model.pictures import as_picture
        from kiwi_cli.model.sampling import SIGMA_MIN

        pipe, made, lines = self.pipe, clip.kept, dict[str, None]()
        settings = LongSettings(
            instruction,
            tuple(as_picture(reference) for reference in references),
            denoising.steps,
            denoising.seed,
            SIGMA_MIN if denoising.sigma_min is None else denoising.sigma_min,
            denoising.solver,
            _cache(denoising),
            clip.window_contexts,
        )
        if made is None:
            edit = LongEdit(pipe, clip.frames_from, clip.size, clip.layout, settings, clip.workspace, progress, notify)
            parallel.meet()  # all have read what an earlier run left before it is written to
            edit.read()
            edit.denoise()
            made = edit.made
            lines |= dict.fromkeys(edit.approximations)
        for part in clip.parts[len(made.patches) :]:
            own = replace(settings, instruction=part.instruction, seed=part.seed)
            space = clip.workspace.for_part()
            anew = PartEdit(pipe, clip.frames_from, clip.size, made, part.rows, own, space, progress, notify)
            anew.read()
            made.patches.append(anew.denoise())
            lines |= dict.fromkeys(anew.approximations)
        if notify is not None:
            for line in lines:
                notify(line)
        decoding = LongDecode(pipe, made, clip.workspace.watched(progress or (lambda stage, done, total: None)))
        return Edited(
            decoding.frames(),
            placement=pipe.residency.placement.describe() if pipe.residency is not None else "",
            approximations=tuple(lines),
            pairs=decoding.pairs() if round_trip else None,
            made=made,
        )

    def close(self) -> None:
        parallel.leave()


def _half(progress: Progress, number: int) -> Progress:
    """Reports of one of two equal pieces of work as if they were one."""
    return lambda stage, done, total: progress(stage, number * total + done, 2 * total)


def _cache(denoising: Denoising) -> StepCache | None:
    from kiwi_cli.engine.step_cache import StepCache

    if denoising.calibrate:
        return StepCache("mag", 0.0, calibrate=True)
    return StepCache.of(denoising.cache, denoising.cache_threshold, denoising.ratios)


# -- before it is loaded ----------------------------------------------------------------------------------------


def claims(choice: ModelChoice) -> bool:
    """Whether no other editor is named."""
    return choice.editor == "kiwi"


def uses(choice: ModelChoice) -> Collection[str]:
    """All choices but those that other editors have."""
    return {each.name for part in (ModelChoice, Sampling) for each in fields(part)} - OF_OTHERS


def find(choice: ModelChoice) -> Found:
    """The model, its LoRAs and its GGUF file as they are on this machine, checked by their headers."""
    folder, parameters, commit = find_model(choice)
    find_loras(choice)
    if choice.gguf is not None and not choice.gguf.is_file():
        raise UsageError(f"GGUF file not found: '{choice.gguf}'", "pass an existing .gguf file")
    if folder is None:
        reserved = reserved_tokens(None)
        return Found(
            None, parameters, commit, gives_round_trip=True, reserved=reserved, missing=True, joins_windows=True
        )
    return _found(folder, parameters, commit)


def _found(folder: Path, parameters: int, commit: str | None) -> Found:
    return Found(
        folder,
        parameters,
        commit,
        read_settings(folder),
        gives_round_trip=True,
        reserved=reserved_tokens(folder),
        joins_windows=True,
    )


def identify(found: Found, choice: ModelChoice) -> str:
    """What tells a checkpoint from all others: samples of every tensor."""
    assert found.folder is not None
    return sampled(found.folder)


def admit(found: Found, choice: ModelChoice) -> None:
    """Refuse an unknown device or precision, and a large model on a CPU that was not asked for."""
    from kiwi_cli.engine.devices import choose_device, choose_dtype, refuse_large_on_cpu

    choose_dtype(choice.dtype, choose_device(choice.device))
    refuse_large_on_cpu(found.parameters, choice.device)


def fetch(choice: ModelChoice, events: Events = SILENT) -> Found:
    """The model after what is missing of it was fetched or converted."""
    folder = hub.ensure(choice.model, download=choice.download, events=events, revision=choice.revision)
    commit = None if Path(choice.model).expanduser().exists() else find_model(choice)[2]
    parameters = weights.parameter_count(folder)
    return _found(folder, parameters, commit)


def find_model(choice: ModelChoice) -> tuple[Path | None, int, str | None]:
    """The chosen model as it is on this machine: (folder, stored parameters, commit), checked by its headers.

    The folder is None when the model has to be fetched or converted first.

    Raises:
        CheckpointError: no such model, broken files, or missing ones that may not be fetched.
        UsageError: a revision of a folder.
    """
    folder, commit = Path(choice.model).expanduser(), None
    own = None if folder.exists() else embedded.named(choice.model)
    if own is not None:
        folder = embedded.ensure(own)
        if choice.revision is not None:
            raise UsageError(f"--revision is for models on the Hub, not for '{choice.model}'", "leave it out")
    elif not folder.exists():
        repo, variant = names.resolve(choice.model)
        revision = choice.revision or (variant.revision if variant else "main")
        cached = Access().cached(repo)
        commit, whole = cached.commit(revision), cached.whole(revision, RELEASED)
        if whole is None:
            if not choice.download:
                raise names.missing_error(choice.model, repo, cached.folder.is_dir())
            return None, (variant.bytes or 0) // 2 if variant else 0, commit
        folder = whole
    elif choice.revision is not None:
        raise UsageError(f"--revision is for models on the Hub, not for '{choice.model}'", "leave it out")
    elif folder.is_file() or (raw_files.is_raw_folder(folder) and not (folder / "model_index.json").exists()):
        return None, 0, None
    weights.check_layout(folder)
    return folder, weights.parameter_count(folder), commit


def find_loras(choice: ModelChoice) -> list[lora.LoraSpec]:
    """The chosen LoRAs; files that are here are opened, those on the Hub are left for later.

    Raises:
        UsageError: not understood. CheckpointError: not found, or broken.
    """
    specs = [lora.LoraSpec.parse(text) for text in choice.loras]
    for spec in specs:
        try:
            path = lora.locate(spec, Access(download=False))
        except CheckpointError:
            if choice.download and lora.is_hub_id(spec.source):
                continue
            raise
        weights.TensorFiles.open_file(path)
    return specs


# -- loaded -----------------------------------------------------------------------------------------------------


def load(found: Found, choice: ModelChoice, events: Events = SILENT) -> KiwiEditor:
    """The model on its device, with what the choice wants done to it."""
    assert found.folder is not None
    try:
        pipe = load_pipeline(found.folder, choice)
        applied = apply_loras(choice, pipe, events)
        tune(pipe, choice, events)
    except BaseException:
        parallel.leave()  # the others are not kept waiting
        raise
    return KiwiEditor(pipe, choice, found.folder, applied)


def load_pipeline(folder: Path, choice: ModelChoice) -> KiwiPipeline:
    """A checkpoint on the chosen device."""
    from kiwi_cli.engine.attention import choose_attention
    from kiwi_cli.engine.devices import choose_device
    from kiwi_cli.engine.pipeline import KiwiPipeline

    device = parallel.join(choice.device).device if processes.team_size() > 1 else choice.device
    choose_attention(choice.attention, choose_device(device))  # before anything is read
    return KiwiPipeline.from_pretrained(
        str(folder), device, choice.dtype, memory=choice.memory, max_memory=choice.max_memory
    )


def tune(pipe: KiwiPipeline, choice: ModelChoice, events: Events = SILENT) -> None:
    """What is done to a loaded model for memory and speed, in the only order that works: weights, kernels, graphs,
    then the hooks of several processes."""
    from kiwi_cli.engine.attention import APPROXIMATE, choose_attention, set_attention

    if choice.gguf is not None:
        from kiwi_cli.engine.gguf import load_gguf

        load_gguf(pipe, choice.gguf)
    if choice.quantize != "as-stored":
        from kiwi_cli.engine.quantize import quantize

        quantize(pipe, choice.quantize)
    kernel = choose_attention(choice.attention, pipe.device)
    set_attention(pipe.transformer, kernel)
    if kernel in APPROXIMATE:
        pipe.alterations.append(f"attention {kernel}: NOT exact, computed in 8 bits")
    for line in pipe.alterations:
        events.note(line)
    if choice.compile:
        from kiwi_cli.engine.compilation import compile_model

        compile_model(pipe)
    if processes.team_size() > 1:
        parallel.share(pipe.transformer, parallel.join(choice.device))


def apply_loras(choice: ModelChoice, pipe: KiwiPipeline, events: Events = SILENT) -> Sequence[lora.Applied]:
    """Merge the chosen LoRAs into a loaded model."""
    specs = find_loras(choice)
    if not specs:
        return ()
    access = Access(download=choice.download, events=events)
    return lora.apply(pipe.transformer, specs, access, pipe.mllm_encoder)
