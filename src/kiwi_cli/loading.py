"""The request's model: found on this machine, loaded, and changed as the request says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi_cli import parallel, ratios, weights
from kiwi_cli.errors import CheckpointError, UsageError
from kiwi_cli.request import EditRequest
from kiwi_cli.weights import embedded, hub, lora, raw
from kiwi_cli.weights.fetch import Access
from kiwi_cli.weights.layout import PICKLES, RELEASED

if TYPE_CHECKING:
    from kiwi_cli.console import Console
    from kiwi_cli.pipeline import KiwiPipeline


def find_model(request: EditRequest) -> tuple[Path | None, int, str | None]:
    """The request's model as it is on this machine: (folder, stored parameters, commit), checked by its headers.

    The folder is None when the model has to be fetched or converted first.

    Raises:
        CheckpointError: no such model, broken files, or missing ones that may not be fetched.
        UsageError: a revision of a folder.
    """
    folder, commit = Path(request.model).expanduser(), None
    own = None if folder.exists() else embedded.named(request.model)
    if own is not None:
        folder = embedded.ensure(own)
        if request.revision is not None:
            raise UsageError(f"--revision is for models on the Hub, not for '{request.model}'", "leave it out")
    elif not folder.exists():
        repo, variant = hub.resolve(request.model)
        revision = request.revision or (variant.revision if variant else "main")
        cached = Access().cached(repo)
        commit, whole = cached.commit(revision), cached.whole(revision, RELEASED)
        if whole is None:
            if not request.download:
                raise hub.missing_error(request.model, repo)
            return None, (variant.bytes or 0) // 2 if variant else 0, commit
        folder = whole
    elif request.revision is not None:
        raise UsageError(f"--revision is for models on the Hub, not for '{request.model}'", "leave it out")
    elif folder.is_file() or (raw.is_raw_folder(folder) and not (folder / "model_index.json").exists()):
        return None, 0, None
    weights.check_layout(folder)
    return folder, weights.parameter_count(folder), commit


def find_loras(request: EditRequest) -> list[lora.LoraSpec]:
    """The request's LoRAs; files that are here are opened, those on the Hub are left for later.

    Raises:
        UsageError: not understood. CheckpointError: not found, or broken.
    """
    specs = [lora.LoraSpec.parse(text) for text in request.loras]
    for spec in specs:
        try:
            path = lora.locate(spec, Access(download=False))
        except CheckpointError:
            if request.download and _on_the_hub(spec.source):
                continue
            raise
        weights.TensorFiles.open_file(path)
    return specs


def _on_the_hub(source: str) -> bool:
    """Whether a LoRA that is not here has the form owner/name or owner/name/FILE.safetensors."""
    file = source.endswith((".safetensors", *PICKLES))
    return source[0] not in "./~" and source.count("/") == (2 if file else 1)


def load(folder: Path, request: EditRequest) -> KiwiPipeline:
    """A checkpoint on the request's device."""
    from kiwi_cli.attention import choose_attention
    from kiwi_cli.devices import choose_device
    from kiwi_cli.pipeline import KiwiPipeline

    device = parallel.join(request.device).device if parallel.team_size() > 1 else request.device
    choose_attention(request.attention, choose_device(device))  # before anything is read
    return KiwiPipeline.from_pretrained(
        str(folder), device, request.dtype, memory=request.memory, max_memory=request.max_memory
    )


def tune(pipe: KiwiPipeline, request: EditRequest, console: Console | None = None) -> None:
    """What is done to a loaded model for memory and speed, in the only order that works: weights, kernels, graphs,
    then the hooks of several processes."""
    from kiwi_cli.attention import APPROXIMATE, choose_attention, set_attention

    if request.gguf is not None:
        from kiwi_cli.gguf_weights import load_gguf

        load_gguf(pipe, request.gguf)
    if request.quantize != "as-stored":
        from kiwi_cli.quantize import quantize

        quantize(pipe, request.quantize)
    kernel = choose_attention(request.attention, pipe.device)
    set_attention(pipe.transformer, kernel)
    if kernel in APPROXIMATE:
        pipe.alterations.append(f"attention {kernel}: NOT exact, computed in 8 bits")
    if console is not None:
        for line in pipe.alterations:
            console.note(line)
    if request.compile:
        from kiwi_cli.compilation import compile_model

        compile_model(pipe)
    if parallel.team_size() > 1:
        parallel.share(pipe.transformer, parallel.join(request.device))


def apply_loras(request: EditRequest, pipe: KiwiPipeline, console: Console | None = None) -> Sequence[lora.Applied]:
    """Merge the request's LoRAs into a loaded model."""
    specs = find_loras(request)
    if not specs:
        return ()
    return lora.apply(pipe.transformer, specs, Access(download=request.download, console=console))


def modes(request: EditRequest, folder: Path | None, steps: int) -> dict[str, Any]:
    """Solver and step cache as a pipeline takes them, where they are not its defaults."""
    if request.solver == "euler" and request.cache == "off" and request.calibrate_cache is None:
        return {}
    from kiwi_cli.caches import StepCache

    if request.calibrate_cache is not None:
        return {"solver": request.solver, "cache": StepCache("mag", 0.0, calibrate=True)}
    values = None
    if request.cache_ratios is not None:
        values = ratios.for_request(request, folder, steps)[0].values  # again: all of the model is here now
    return {"solver": request.solver, "cache": StepCache.of(request.cache, request.cache_threshold, values)}
