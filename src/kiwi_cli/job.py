"""One edit as the person asks for it: request -> plan -> file.

`plan` checks everything that can be checked without a model (files, span, size, output, weights) and imports
nothing heavy; `run` loads the model, or is given one, and writes the result.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi_cli import __version__, hub, raw, weights
from kiwi_cli.errors import MediaError, UsageError
from kiwi_cli.fetch import Access
from kiwi_cli.layout import RELEASED
from kiwi_cli.video import (
    Clip,
    Size,
    Span,
    check_output,
    open_writer,
    probe,
    read_frames,
    requested_size,
    select,
    working_size,
)

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from kiwi_cli.console import Console
    from kiwi_cli.pipeline import KiwiPipeline

MAX_FRAMES = 81
"""What the released models are trained and published with; `--frames` goes beyond it."""

MAX_REFERENCE_PIXELS = 64_000_000
STAGES = {
    "load": "load the model",
    "instruction": "read the instruction",
    "encode": "encode the clip",
    "denoise": "denoise",
    "decode": "decode and write",
}


@dataclass(frozen=True)
class EditRequest:
    """What the person asked for; nothing in it is checked yet.

    Attributes:
        input: a video, a picture or a folder of numbered pictures.
        references: pictures.
        output: None is beside the input, `clip-edited.mp4`.
        model: a variant's name, a Hub id or a folder.
        start, duration: seconds. frames: None is up to 81.
        size: working size as `working_size` takes it. fit: how the clip is placed in it.
        fps: frames a second given to the model, or None for all.
        download: whether weights that are missing may be fetched.
    """

    input: Path
    instruction: str
    references: tuple[Path, ...] = ()
    output: Path | None = None
    model: str = ""
    steps: int = 50
    seed: int = 0
    start: float = 0.0
    duration: float | None = None
    frames: int | None = None
    size: str | None = None
    fit: str = "stretch"
    fps: float | None = None
    keep_rest: bool = False
    codec: str | None = None
    quality: str | None = None
    sound: bool = True
    device: str = "auto"
    dtype: str = "auto"
    download: bool = True
    overwrite: bool = False
    allow_truncated: bool = False


@dataclass(frozen=True)
class EditPlan:
    """A request that can be carried out, and what will be done.

    Attributes:
        size: working size. output: the file or folder that will be written.
        model: the checkpoint's folder, or None while it has to be fetched or converted first.
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
    reference_hashes: tuple[str, ...]
    notices: tuple[str, ...]


@dataclass
class EditResult:
    """What was written, and how.

    Attributes:
        seconds: of each stage. settings: what the output carries in its metadata.
    """

    output: Path
    frames: int
    size: Size
    device: str
    dtype: str
    seconds: dict[str, float] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


def plan(request: EditRequest) -> EditPlan:
    """Check a request against the files it names.

    Raises:
        UsageError, MediaError, CheckpointError: the first thing that cannot be, with what to do about it.
    """
    if not request.instruction.strip():
        raise UsageError("the instruction is empty", 'say what to change, for example "make it snowy"')
    if request.steps < 1:
        raise UsageError(f"--steps must be at least 1, not {request.steps}", "50 is the released default")
    if not 0 <= request.seed < 2**64:
        raise UsageError(f"--seed must be from 0 to 2**64 - 1, not {request.seed}", "any such number will do")
    clip = probe(request.input, allow_truncated=request.allow_truncated)
    output = request.output or _default_output(clip)
    if output.absolute() == request.input.absolute():
        raise UsageError(f"the output would replace the input: '{output}'", "pass another --output")
    check_output(output, overwrite=request.overwrite)
    frames = request.frames
    if frames is None:
        frames = MAX_FRAMES
    span = select(clip, start=request.start, duration=request.duration, frames=frames, fps=request.fps)
    size = working_size(*clip.display_size, request.size)
    notices = [*clip.notices, *span.notices]
    asked = requested_size(request.size)
    if asked is not None and asked != size:
        notices.append(f"working at {size}, the nearest multiple of 32 to {asked}")
    if size != clip.size:
        notices.append(f"the clip is {clip.size}; it is edited at {size} and scaled back")
    hashes = tuple(hash_file(path) for path in request.references)
    for path in request.references:
        open_reference(path)
    model, parameters = find_model(request)
    return EditPlan(request, clip, span, size, output, model, parameters, hashes, tuple(notices))


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
        pipe = load(work, console)
        report("load", 1, 1)
    settings = describe(work, pipe)
    seconds = {"load": time.perf_counter() - begin}
    frames = read_clip(work)
    references = [open_reference(path) for path in request.references]
    stream = pipe(
        frames,
        request.instruction,
        references,
        steps=request.steps,
        seed=request.seed,
        output="stream",
        progress=report,
    )
    writer = open_writer(
        work.output,
        work.clip,
        work.span,
        size=work.size,
        fit=request.fit,  # type: ignore[arg-type]
        keep_rest=request.keep_rest,
        codec=request.codec,
        quality=request.quality,
        sound=request.sound,
        metadata={"kiwi": json.dumps(settings, ensure_ascii=False)},
        overwrite=request.overwrite,
    )
    with writer, closing(stream):
        for chunk in stream:
            writer.write(chunk)
    seconds["total"] = time.perf_counter() - begin
    return EditResult(
        work.output,
        writer.frames_written,
        work.clip.size,
        str(pipe.device),
        str(pipe.compute_dtype).removeprefix("torch."),
        seconds,
        [*work.notices, *writer.notices],
        settings,
    )


def find_model(request: EditRequest) -> tuple[Path | None, int]:
    """The request's model as it is on this machine: (folder, stored parameters), checked by its headers.

    The folder is None when the model has to be fetched or converted first.

    Raises:
        CheckpointError: no such model, broken files, or missing ones that may not be fetched.
    """
    folder = Path(request.model).expanduser()
    if not folder.exists():
        repo, variant = hub.resolve(request.model)
        cached = Access().cached(repo).whole(variant.revision if variant else "main", RELEASED)
        if cached is None:
            if not request.download:
                raise hub.missing_error(request.model, repo)
            return None, (variant.bytes or 0) // 2 if variant else 0
        folder = cached
    elif folder.is_file() or (raw.is_raw_folder(folder) and not (folder / "model_index.json").exists()):
        return None, 0
    weights.check_layout(folder)
    return folder, weights.parameter_count(folder)


def load(work: EditPlan, console: Console | None = None) -> KiwiPipeline:
    """The plan's model on its device. A large one on a CPU that was not asked for is refused before it is fetched.

    Raises:
        CheckpointError, DeviceError, UsageError.
    """
    from kiwi_cli.devices import choose_device, choose_dtype, refuse_large_on_cpu

    request = work.request
    choose_dtype(request.dtype, choose_device(request.device))
    refuse_large_on_cpu(work.parameters, request.device)
    folder = work.model or hub.ensure(request.model, download=request.download, console=console)
    if not work.parameters:
        refuse_large_on_cpu(weights.parameter_count(folder), request.device)

    from kiwi_cli.pipeline import KiwiPipeline

    return KiwiPipeline.from_pretrained(str(folder), device=request.device, dtype=request.dtype)


def describe(work: EditPlan, pipe: KiwiPipeline) -> dict[str, Any]:
    """How the output is made: what its metadata carries."""
    request = work.request
    return {
        "kiwi": __version__,
        "model": request.model,
        "instruction": request.instruction,
        "input": request.input.name,
        "references": [
            {"name": path.name, "sha256": digest}
            for path, digest in zip(request.references, work.reference_hashes, strict=True)
        ],
        "seed": request.seed,
        "steps": request.steps,
        "size": str(work.size),
        "fit": request.fit,
        "start": request.start,
        "frames": work.span.frame_count,
        "dtype": str(pipe.compute_dtype).removeprefix("torch."),
    }


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


def open_reference(path: Path) -> Image.Image:
    """A reference picture, upright, transparent parts white.

    Raises:
        UsageError: not found. MediaError: not a picture that can be read.
    """
    from PIL import Image, ImageOps

    from kiwi_cli.pictures import flatten_alpha

    if not path.is_file():
        raise UsageError(f"reference image not found: '{path}'", "pass an existing image with --ref PATH")
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_REFERENCE_PIXELS:
                raise MediaError(f"reference image is too large: '{path}' ({image.width}x{image.height})", "shrink it")
            return flatten_alpha(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(f"cannot read the reference image '{path}': {error}", "pass a PNG, JPEG or WebP") from error


def hash_file(path: Path) -> str:
    """sha256 of a file, for `kiwi show` and `kiwi rerun`.

    Raises:
        UsageError: not found, or not readable.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    except OSError as error:
        raise UsageError(
            f"reference image not found: '{path}'"
            if isinstance(error, FileNotFoundError)
            else f"cannot read the reference image '{path}': {error.strerror}",
            "pass an existing image with --ref PATH",
        ) from None


def _default_output(clip: Clip) -> Path:
    """Beside the input, of the same kind."""
    suffix = clip.path.suffix.lower()
    if clip.kind == "sequence":
        return clip.path.with_name(clip.path.name + "-edited")
    known: Sequence[str] = (".mp4", ".mov", ".mkv", ".webm", ".gif", ".png", ".jpg", ".jpeg", ".webp")
    if suffix not in known:
        suffix = ".png" if clip.kind == "image" else ".mp4"
    return clip.path.with_name(f"{clip.path.stem}-edited{suffix}")
