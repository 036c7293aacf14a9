"""One edit as the person asks for it: request -> plan -> file.

`plan` checks everything that can be checked without a model (files, span, size, output, weights) and imports
nothing heavy; `run` loads the model, or is given one, and writes the result.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi_cli import parallel, record, weights
from kiwi_cli.errors import CheckpointError, UsageError
from kiwi_cli.request import MAX_FRAMES, EditRequest
from kiwi_cli.sources import open_reference
from kiwi_cli.video import (
    Clip,
    FrameWriter,
    Mask,
    Size,
    Span,
    check_output,
    load_mask,
    open_writer,
    padded_frame_count,
    probe,
    read_frames,
    requested_size,
    select,
    working_size,
    write_sheet,
)
from kiwi_cli.weights import hub, lora, raw
from kiwi_cli.weights.fetch import Access
from kiwi_cli.weights.layout import PICKLES, RELEASED

if TYPE_CHECKING:
    import numpy as np

    from kiwi_cli.console import Console
    from kiwi_cli.pipeline import KiwiPipeline

STAGES = {
    "read": "read the clip",
    "load": "load the model",
    "instruction": "read the instruction",
    "encode": "encode the clip",
    "denoise": "denoise",
    "decode": "decode and write",
}


@dataclass(frozen=True)
class EditPlan:
    """A request that can be carried out, and what will be done.

    Attributes:
        size: working size. output: the file or folder that will be written.
        extras: what is written beside it, by kind: 'comparison', 'sheet', 'sidecar'.
        model: the checkpoint's folder, or None while it has to be fetched or converted first.
        commit: of a model from the Hub, when known.
        parameters: of the model, stored; 0 when not known yet.
        notices: what is not as the clip was or as was asked for, in words.
    """

    request: EditRequest
    clip: Clip
    span: Span
    size: Size
    output: Path
    model: Path | None
    parameters: int
    notices: tuple[str, ...] = ()
    mask: Mask | None = None
    extras: dict[str, Path] = field(default_factory=dict)
    commit: str | None = None


@dataclass
class EditResult:
    """What was written, and how.

    Attributes:
        seconds: of each stage. settings: what the output carries in its metadata.
        memory: peaks in bytes: 'resident' of the process, 'allocated' and 'reserved' on a CUDA device.
        approximations: why it is not the released model's exact result; empty when it is.
    """

    output: Path
    frames: int
    size: Size
    device: str
    dtype: str
    seconds: dict[str, float] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    approximations: list[str] = field(default_factory=list)


def plan(request: EditRequest) -> EditPlan:
    """Check a request against the files it names.

    Raises:
        UsageError, MediaError, CheckpointError: the first thing that cannot be, with what to do about it.
    """
    request.check()
    clip = probe(request.input, allow_truncated=request.allow_truncated)
    output = request.output or default_output(clip)
    if output.absolute() == request.input.absolute():
        raise UsageError(f"the output would replace the input: '{output}'", "pass another --output")
    extras = _extras(request, output)
    for path in (output, *(path for kind, path in extras.items() if kind != "sidecar")):
        check_output(path, overwrite=request.overwrite)
    if "sidecar" in extras and extras["sidecar"].exists() and not request.overwrite:
        raise UsageError(f"output exists: '{extras['sidecar']}'", "pass --overwrite, or another --output")
    span = select(
        clip,
        start=request.start,
        duration=request.duration,
        frames=MAX_FRAMES if request.frames is None else request.frames,
        fps=request.fps,
    )
    size = working_size(*clip.display_size, request.size)
    mask = load_mask(request.mask, clip, feather=request.feather) if request.mask is not None else None
    for path in request.references:
        open_reference(path)
    model, parameters, commit = find_model(request)
    find_loras(request)
    if request.gguf is not None and not request.gguf.is_file():
        raise UsageError(f"GGUF file not found: '{request.gguf}'", "pass an existing .gguf file")
    work = EditPlan(request, clip, span, size, output, model, parameters, (), mask, extras, commit)
    notices = [*clip.notices, *span.notices, *changes(work)]
    notices += (_open_writer(work, output)).notices
    if "comparison" in extras:
        notices += [note for note in _open_comparison(work).notices if note not in notices]
    return replace(work, notices=tuple(notices))


def run(
    work: EditPlan,
    progress: Callable[[str, int, int], None] | None = None,
    pipe: KiwiPipeline | None = None,
    console: Console | None = None,
) -> EditResult:
    """Carry out a plan. The output appears whole or not at all.

    Args:
        progress: called with (stage, done, total); the stages are the keys of `STAGES`.
        pipe: a loaded model to use; None loads the plan's.
        console: told of downloads.

    Raises:
        KiwiError: whatever went wrong, in words.
    """
    request = work.request
    report = progress or (lambda stage, done, total: None)
    begin = time.perf_counter()
    if pipe is None:
        work = prepare(work, console)
    report("read", 0, 1)
    frames = read_clip(work)
    references = [open_reference(path) for path in request.references]
    report("read", 1, 1)
    loading = time.perf_counter()
    applied: Sequence[lora.Applied] = ()
    if pipe is None:
        report("load", 0, 1)
        pipe = load(work)
        applied = apply_loras(work, pipe, console)
        tune(pipe, request, console)
        report("load", 1, 1)
    seconds = {"load": time.perf_counter() - loading}
    dtype = str(pipe.compute_dtype).removeprefix("torch.")
    settings = record.describe(work, work.model, len(frames), dtype, str(pipe.device), applied)
    text = {"kiwi": json.dumps(settings, ensure_ascii=False)}
    writers = [_open_writer(work, work.output, text)]
    if "comparison" in work.extras:
        writers.append(_open_comparison(work, text))
    report("instruction", 0, 1)
    call: dict[str, Any] = {"steps": request.steps, "seed": request.seed, "progress": report}
    if request.solver != "euler" or request.cache != "off":
        from kiwi_cli.caches import StepCache

        call |= {"solver": request.solver, "cache": StepCache.of(request.cache, request.cache_threshold)}
    if not parallel.is_first():
        pipe(frames, request.prompt, references, output="latents", **call)
        parallel.leave()
        raise SystemExit(0)  # this process has done its share; the first one decodes and writes
    notify = console.note if console else None
    stream = pipe(frames, request.prompt, references, output="stream", notify=notify, **call)
    with ExitStack() as stack:
        stack.enter_context(closing(stream))
        for writer in reversed(writers):  # the output itself is finished first
            stack.enter_context(writer)
        for chunk in stream:
            for writer in writers:
                writer.write(chunk)
    _write_beside(work, settings)
    parallel.leave()
    seconds["total"] = time.perf_counter() - begin
    told = [*work.notices]
    told += [note for writer in writers for note in writer.notices if note not in told]
    return EditResult(
        work.output,
        writers[0].frames_written,
        work.clip.size,
        str(pipe.device),
        dtype,
        seconds,
        told,
        settings,
        peak_memory(str(pipe.device)),
        list(getattr(pipe, "approximations", ())),
    )


# -- the model --------------------------------------------------------------------------------------------------


def find_model(request: EditRequest) -> tuple[Path | None, int, str | None]:
    """The request's model as it is on this machine: (folder, stored parameters, commit), checked by its headers.

    The folder is None when the model has to be fetched or converted first.

    Raises:
        CheckpointError: no such model, broken files, or missing ones that may not be fetched.
        UsageError: a revision of a folder.
    """
    folder, commit = Path(request.model).expanduser(), None
    if not folder.exists():
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


def prepare(work: EditPlan, console: Console | None = None) -> EditPlan:
    """The plan with its model on this machine: fetched or converted if need be.

    A large model on a CPU that was not asked for is refused before it is fetched.

    Raises:
        CheckpointError, DeviceError, UsageError.
    """
    from kiwi_cli.devices import choose_device, choose_dtype, refuse_large_on_cpu

    request = work.request
    choose_dtype(request.dtype, choose_device(request.device))
    refuse_large_on_cpu(work.parameters, request.device)
    if work.model is not None:
        return work
    folder = hub.ensure(request.model, download=request.download, console=console, revision=request.revision)
    parameters = weights.parameter_count(folder)
    refuse_large_on_cpu(parameters, request.device)
    commit = None if Path(request.model).expanduser().exists() else find_model(request)[2]
    return replace(work, model=folder, parameters=parameters, commit=commit)


def load(work: EditPlan) -> KiwiPipeline:
    """The plan's model on its device."""
    from kiwi_cli.attention import choose_attention
    from kiwi_cli.devices import choose_device
    from kiwi_cli.pipeline import KiwiPipeline

    request = work.request
    assert work.model is not None
    device = parallel.join(request.device).device if parallel.team_size() > 1 else request.device
    choose_attention(request.attention, choose_device(device))  # before anything is read
    return KiwiPipeline.from_pretrained(
        str(work.model), device, request.dtype, memory=request.memory, max_memory=request.max_memory
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

        compile_model(pipe.transformer)
    if parallel.team_size() > 1:
        parallel.share(pipe.transformer, parallel.join(request.device))


def apply_loras(work: EditPlan, pipe: KiwiPipeline, console: Console | None = None) -> Sequence[lora.Applied]:
    """Merge the request's LoRAs into a loaded model."""
    specs = find_loras(work.request)
    if not specs:
        return ()
    return lora.apply(pipe.transformer, specs, Access(download=work.request.download, console=console))


# -- the clip and what is written -------------------------------------------------------------------------------


def read_clip(work: EditPlan) -> np.ndarray:
    """The frames of the span at the working size, (F, H, W, 3) uint8, in one allocation."""
    import numpy as np

    shape = (work.span.frame_count, work.size.height, work.size.width, 3)
    frames = np.empty(shape, dtype=np.uint8)
    count = 0
    for frame in read_frames(work.clip, work.span, size=work.size, fit=work.request.fit):  # type: ignore[arg-type]
        if count == len(frames):  # the count was an estimate
            frames = np.concatenate([frames, np.empty_like(frames[: max(1, count // 4)])])
        frames[count] = frame.rgb
        count += 1
    return frames[:count]


def default_output(clip: Clip) -> Path:
    """Beside the input, of the same kind."""
    suffix = clip.path.suffix.lower()
    if clip.kind == "sequence":
        return clip.path.with_name(clip.path.name + "-edited")
    known: Sequence[str] = (".mp4", ".mov", ".mkv", ".webm", ".gif", ".png", ".jpg", ".jpeg", ".webp")
    if suffix not in known:
        suffix = ".png" if clip.kind == "image" else ".mp4"
    return clip.path.with_name(f"{clip.path.stem}-edited{suffix}")


def peak_memory(device: str) -> dict[str, int]:
    """Peaks in bytes since the process began, of a loaded torch's device too."""
    try:
        import resource
    except ImportError:  # Windows has none
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.startswith("cuda"):
        import torch

        peaks["allocated"] = torch.cuda.max_memory_allocated(device)
        peaks["reserved"] = torch.cuda.max_memory_reserved(device)
    return peaks


def _extras(request: EditRequest, output: Path) -> dict[str, Path]:
    """What is written beside the output."""
    extras = {}
    if request.compare is not None:
        extras["comparison"] = output.with_name(f"{output.stem}-compare{output.suffix}")
    if request.sheet:
        extras["sheet"] = output.with_name(f"{output.stem}-sheet.png")
    if request.sidecar:
        extras["sidecar"] = record.sidecar_of(output)
    return extras


def changes(work: EditPlan) -> list[str]:
    """What happens to the picture on its way to the model and back."""
    notices = []
    asked = requested_size(work.request.size)
    if asked is not None and asked != work.size:
        notices.append(f"working at {work.size}, the nearest multiple of 32 to {asked}")
    if work.size != work.clip.size:
        notices.append(f"the clip is {work.clip.size}; it is edited at {work.size} and scaled back")
    frames = work.span.frame_count
    if work.span.exact and (more := padded_frame_count(frames) - frames):
        times = "once" if more == 1 else f"{more} times"
        notices.append(f"the model works on {frames + more} frames: it sees the last one {times} more")
    return notices


def _open_writer(
    work: EditPlan, path: Path, text: dict[str, str] | None = None, compare: str | None = None
) -> FrameWriter:
    request = work.request
    return open_writer(
        path,
        work.clip,
        work.span,
        size=work.size,
        fit=request.fit,  # type: ignore[arg-type]
        keep_rest=request.keep_rest,
        mask=work.mask,
        compare=compare,  # type: ignore[arg-type]
        codec=request.codec,
        quality=request.quality,
        sound=request.sound,
        metadata=text,
        overwrite=request.overwrite,
    )


def _open_comparison(work: EditPlan, text: dict[str, str] | None = None) -> FrameWriter:
    return _open_writer(work, work.extras["comparison"], text, work.request.compare)


def _write_beside(work: EditPlan, settings: dict[str, Any]) -> None:
    """The sheet and the sidecar, when they are wanted."""
    if "sheet" in work.extras:
        write_sheet(
            work.extras["sheet"],
            work.clip,
            work.span,
            work.output,
            keep_rest=work.request.keep_rest,
            overwrite=work.request.overwrite,
        )
    if "sidecar" in work.extras:
        record.write_sidecar(work.extras["sidecar"], settings)
