"""What of a request can be refused by its words alone: names, text and tools, before a file is opened."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from kiwi_cli.base.choices import check_device_name, check_dtype_name
from kiwi_cli.base.text import count
from kiwi_cli.editing.wording import understood
from kiwi_cli.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from kiwi_cli.editing.plan import EditPlan
    from kiwi_cli.editing.request import EditRequest
    from kiwi_cli.weights.settings import ModelSettings

CPU_COMPILERS = ("g++", "clang++", "c++", "icpx", "cl")
GPU_COMPILERS = ("gcc", "clang", "cc", "cl")


def check_words(request: EditRequest) -> None:
    """Refuse devices, precisions, text and tools that there are not.

    Raises:
        UsageError: an unknown device or precision, an address, text or a name that is not UTF-8.
        DeviceError: no compiler for `--compile`.
    """
    check_addresses(request)
    check_instruction(request)
    check_device_name(request.choice.device)
    check_dtype_name(request.choice.dtype)
    check_text(request.instruction, "the instruction")
    for path in (request.input, request.output, *request.references, request.mask):
        if path is not None:
            check_text(str(path), "a file's name")
    if request.choice.compile:
        check_compiler(request.choice.device)


def check_understood(plan: EditPlan) -> list[str]:
    """What a person must know before an edit is begun that was asked for with `--force`: what will be made is another.

    Raises:
        UsageError: the instruction is none of those that the model was trained for.
    """
    settings, request = plan.settings, plan.request
    found = understood(request, settings)
    if found is None or found.understood:
        return []
    name = request.choice.name
    unknown = f"'{name}' does not know '{request.instruction}'"
    if request.force:
        return [f"{unknown} and will make some other edit; it was trained for {settings.good_for}"]
    _check_reference(request, settings, found.other)
    lists = f"`kiwi prompts --model {name}` lists "
    if found.steps:
        first, *later = (f'"{text}"' for text in found.steps)
        hint = f"say {first}, and of its result {', and '.join(later)}; --force edits all the same"
    elif found.nearest:
        nearest = " or ".join(f'"{text}"' for text in found.nearest)
        hint = f"say {nearest}; {lists}more, and --force edits all the same"
    else:
        others = "a released model does other edits (`kiwi download --list`)"
        hint = f"{lists}what it knows; {others}, and --force edits all the same"
    raise UsageError(f"{unknown}; it was trained for no more than {settings.good_for}", hint)


def _check_reference(request: EditRequest, settings: ModelSettings, other: str) -> None:
    """That there is a reference where the instruction is about one, and none where it is about none."""
    if other not in settings.offers:
        return
    clip, said, model = str(request.input), request.instruction, request.choice.name
    if request.references:
        command = shlex.join(["kiwi", "edit", clip, said, "--model", model])
        raise UsageError(f"'{said}' is an edit without a reference, and a picture is given", f"say `{command}`")
    command = shlex.join(["kiwi", "ref-edit", clip, said, "--model", model, "--ref", "PICTURE"])
    raise UsageError(f"the reference picture of '{said}' is not given", f"give it: `{command}`")


def length_warnings(request: EditRequest, settings: ModelSettings, frames: int | None, exact: bool = True) -> list[str]:
    """What a person must know before an edit that gives the model more frames at once than it was made for.

    Args:
        frames: of the clip that are edited; None: not known yet. exact: else they are an estimate.
    """
    most = settings.frames
    known = request.frames if frames is None else frames
    if request.windowing.windows != "off" or most is None or (known is not None and known <= most):
        return []
    given = "all frames of a clip" if frames is None else f"{'' if exact else 'about '}{frames}"
    return [
        f"'{request.choice.name}' was made for {count(most, 'frame')} at a time, and --windows off gives it {given} at "
        "once: smears and blobs are likely; leave --windows off out"
    ]


def check_addresses(request: EditRequest) -> None:
    """Refuse addresses of the web where files are read and written, as they were typed.

    Raises:
        UsageError: one of them.
    """
    for path in (request.input, request.output, *request.references, request.mask):
        # A path has one slash where an address has two.
        found = re.match(r"(https?|s3|gs|ftp|rtsp|file|data):/{1,3}", str(path), re.IGNORECASE) if path else None
        if found is not None:
            address = f"{found[1]}://{str(path)[found.end() :]}"
            raise UsageError(f"not a file, but an address: '{address}'", "download it first, and pass the file's path")


def check_instruction(request: EditRequest) -> None:
    """Refuse a file's name where the instruction belongs.

    Raises:
        UsageError: with how several inputs are edited.
    """
    with contextlib.suppress(OSError, ValueError):  # too long for a name
        if Path(request.instruction).is_file():
            raise UsageError(
                f"not an instruction, but a file: '{request.instruction}'",
                'say in words what to change: kiwi edit clip.mp4 "make it snowy"',
            )


def check_text(text: str, what: str) -> None:
    """Refuse text with bytes that are no letters: neither a model's tokenizer nor a file's metadata take it.

    Raises:
        UsageError: with the bytes as escapes.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        rename = "" if what == "the instruction" else ", or rename the file"
        raise UsageError(f"{what} is not UTF-8: '{shown}'", f"type it in a UTF-8 terminal{rename}") from None


def check_compiler(device: str) -> None:
    """That what `--compile` compiles with is here: by its name, as torch and Triton look for it.

    Raises:
        DeviceError: it is not.
    """
    gpu = device.startswith("cuda") or (device == "auto" and Path("/dev/nvidia0").exists())
    variable, names, what = ("CC", GPU_COMPILERS, "C") if gpu else ("CXX", CPU_COMPILERS, "C++")
    if not os.environ.get(variable) and not any(shutil.which(name) for name in names):
        raise DeviceError(
            f"--compile needs a {what} compiler, and none of {', '.join(names)} is here",
            "install g++ (on Debian: apt install g++), or leave --compile out",
        )
