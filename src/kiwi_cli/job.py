"""One edit as the person asks for it: request -> plan -> file.

`plan` checks everything that can be checked without a model (files, span, size, output, weights) and imports
nothing heavy; `run` loads the model, or is given one, and writes the result.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from kiwi_cli import parallel, ratios, record, weights
from kiwi_cli.editplan import EditPlan, changes, default_output, extras_of, size_for
from kiwi_cli.errors import UsageError
from kiwi_cli.loading import apply_loras, find_loras, find_model, load, modes, tune
from kiwi_cli.request import MAX_FRAMES, STEPS, EditRequest
from kiwi_cli.sources import open_reference
from kiwi_cli.video import (
    FrameWriter,
    Size,
    SourceFrame,
    check_output,
    load_mask,
    open_writer,
    probe,
    read_frames,
    select,
    write_sheet,
)
from kiwi_cli.weights import hub, lora
from kiwi_cli.weights.settings import ModelSettings, read_settings
from kiwi_cli.windows import Windows, edited

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


def plan(request: EditRequest, found: tuple[Path | None, int, str | None] | None = None) -> EditPlan:
    """Check a request against the files it names.

    Args:
        found: the model as `find_model` gives it, when it is known already.

    Raises:
        UsageError, MediaError, CheckpointError: the first thing that cannot be, with what to do about it.
    """
    request.check()
    clip = probe(request.input, allow_truncated=request.allow_truncated)
    output = request.output or default_output(clip)
    if output.absolute() == request.input.absolute():
        raise UsageError(f"the output would replace the input: '{output}'", "pass another --output")
    extras = extras_of(request, output)
    for path in (output, *(path for kind, path in extras.items() if kind not in ("sidecar", "ratios"))):
        check_output(path, overwrite=request.overwrite)
    if request.calibrate_cache is not None:
        ratios.check_new(request.calibrate_cache, request.overwrite, record.sidecar_of(output))
    if "sidecar" in extras and extras["sidecar"].exists() and not request.overwrite:
        raise UsageError(f"output exists: '{extras['sidecar']}'", "pass --overwrite, or another --output")
    mask = load_mask(request.mask, clip, feather=request.feather) if request.mask is not None else None
    for path in request.references:
        open_reference(path)
    model, parameters, commit = found or find_model(request)
    settings = read_settings(model) if model is not None else ModelSettings()
    span = select(
        clip,
        start=request.start,
        duration=request.duration,
        frames=(MAX_FRAMES if settings.frames is None else None) if request.frames is None else request.frames,
        fps=request.fps,
    )
    windows = Windows.of(span.frame_count, settings.frames, span.exact) if request.frames is None else None
    size = size_for(clip, request, settings)
    find_loras(request)
    if request.gguf is not None and not request.gguf.is_file():
        raise UsageError(f"GGUF file not found: '{request.gguf}'", "pass an existing .gguf file")
    steps = request.steps or settings.steps or STEPS
    work = EditPlan(
        request, clip, span, size, output, model, parameters, (), mask, extras, commit, steps, settings, windows
    )
    notices = [*clip.notices, *span.notices, *changes(work)]
    if request.cache_ratios is not None:
        notices += ratios.for_request(request, model, steps)[1]
    if settings.offers:
        notices.append(f"the model is good for: {', '.join(settings.offers)}")
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
    whole = read_clip(work) if work.windows is None else None  # windows are read as they are edited
    count = work.span.frame_count if whole is None else len(whole)
    references = [open_reference(path) for path in request.references]
    report("read", 1, 1)
    loading = time.perf_counter()
    applied: Sequence[lora.Applied] = ()
    if pipe is None:
        report("load", 0, 1)
        assert work.model is not None
        pipe = load(work.model, request)
        applied = apply_loras(request, pipe, console)
        tune(pipe, request, console)
        report("load", 1, 1)
    seconds = {"load": time.perf_counter() - loading}
    dtype = str(pipe.compute_dtype).removeprefix("torch.")
    settings = record.describe(work, work.model, count, dtype, str(pipe.device), applied)
    text = {"kiwi": json.dumps(settings, ensure_ascii=False)}
    writers = [_open_writer(work, work.output, text)]
    if "comparison" in work.extras:
        writers.append(_open_comparison(work, text))
    call: dict[str, Any] = {"steps": work.steps, "seed": request.seed, **modes(request, work.model, work.steps)}
    first = parallel.is_first()
    told_once = iter([console.note] if console else [])
    measured: list[list[float]] = []  # of each window

    def edit(frames: np.ndarray, progress: Callable[[str, int, int], None]) -> Iterator[np.ndarray]:
        if not first:
            pipe(frames, request.prompt, references, output="latents", progress=progress, **call)
            return iter(())
        notify = next(told_once, None)  # the first window speaks for all
        chunks = pipe(frames, request.prompt, references, output="stream", progress=progress, notify=notify, **call)
        if request.calibrate_cache is not None:
            measured.append(pipe.cache_run.ratios)  # type: ignore[union-attr]
        return chunks

    if whole is None:
        assert work.windows is not None
        stream = edited((frame.rgb for frame in _frames(work)), work.windows, edit, report)
    else:
        report("instruction", 0, 1)
        stream = edit(whole, report)
    if not first:
        for _ in stream:
            pass
        parallel.leave()
        raise SystemExit(0)  # this process has done its share; the first one decodes and writes
    with ExitStack() as stack:
        stack.enter_context(closing(stream))  # type: ignore[type-var]
        for writer in reversed(writers):  # the output itself is finished first
            stack.enter_context(writer)
        for chunk in stream:
            for writer in writers:
                writer.write(chunk)
    _write_beside(work, settings)
    if request.calibrate_cache is not None:
        assert work.model is not None
        values = [fmean(step) for step in zip(*measured, strict=True)]
        shift = {"shift": float(pipe.config.shift)}
        ratios.write(request.calibrate_cache, values, request, work.model, settings | shift)
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


def prepare(work: EditPlan, console: Console | None = None) -> EditPlan:
    """The plan with its model on this machine: fetched or converted if need be, and made again for one that turns out
    to have a size, a length or steps of its own.

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
    if read_settings(folder) != work.settings:
        return plan(request, (folder, parameters, commit))
    return replace(work, model=folder, parameters=parameters, commit=commit)


# -- the clip and what is written -------------------------------------------------------------------------------


def read_clip(work: EditPlan) -> np.ndarray:
    """The frames of the span at the working size, (F, H, W, 3) uint8, in one allocation."""
    import numpy as np

    shape = (work.span.frame_count, work.size.height, work.size.width, 3)
    frames = np.empty(shape, dtype=np.uint8)
    count = 0
    for frame in _frames(work):
        if count == len(frames):  # the count was an estimate
            frames = np.concatenate([frames, np.empty_like(frames[: max(1, count // 4)])])
        frames[count] = frame.rgb
        count += 1
    return frames[:count]


def _frames(work: EditPlan) -> Iterator[SourceFrame]:
    """The span's frames at the working size, one at a time."""
    return read_frames(work.clip, work.span, size=work.size, fit=work.request.fit)  # type: ignore[arg-type]


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
