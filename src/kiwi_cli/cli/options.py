"""Options that several commands share, so that they read and behave alike everywhere."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from kiwi_cli.errors import UsageError
from kiwi_cli.request import ATTENTIONS, CACHES, SOLVERS, WEIGHTS
from kiwi_cli.tasks import HINTS
from kiwi_cli.variants import complete_names

CLIP, WHERE, WORDS, MODEL = "Which part of the clip", "Where in the picture", "The instruction", "The model"
OUTPUT, RUN = "The output", "The run"

SIZES = ("720p", "480p", "source")
FITS = ("stretch", "crop", "pad")
DEVICES = ("auto", "cuda", "mps", "cpu")
DTYPES = ("auto", "bfloat16", "float16", "float32")
CODECS = ("h264", "hevc", "vp9", "av1", "prores", "ffv1", "h264_nvenc", "hevc_nvenc", "av1_nvenc")
QUALITIES = ("low", "medium", "high", "lossless")
COMPARISONS = ("side", "wipe")


def choices(*names: str) -> Any:
    """Completion of one of a few names."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def parse_time(text: str) -> float:
    """'4', '4.5', '1:02.5', '0:01:02' -> seconds.

    Raises:
        UsageError: anything else.
    """
    if not re.fullmatch(r"\s*-?(\d+:)?(\d{1,2}:)?\d+(\.\d*)?\s*", text):
        raise UsageError(f"not a time: '{text}'", "write seconds, such as 4.5, or minutes and seconds, such as 1:02.5")
    seconds = 0.0
    for part in text.strip().lstrip("-").split(":"):
        seconds = 60 * seconds + float(part)
    return -seconds if text.strip().startswith("-") else seconds


# Typer would write <bool> where other options have their unit.
flag = partial(typer.Option, metavar=" ")

Input = Annotated[
    Path,
    typer.Argument(
        metavar="INPUT",
        help="A video, a picture, or a folder of numbered pictures.",
        show_default=False,
        readable=False,  # checked where it is opened, with words of ours
    ),
]
Instruction = Annotated[
    str, typer.Argument(metavar="INSTRUCTION", help="What to change, in words.", show_default=False)
]

# -- which part of the clip -------------------------------------------------------------------------------------

Start = Annotated[
    Any,
    typer.Option(
        "--start",
        metavar="TIME",
        parser=parse_time,
        help="Edit from here on: seconds, or minutes:seconds.",
        rich_help_panel=CLIP,
    ),
]
Duration = Annotated[
    Any,
    typer.Option(
        "--duration",
        metavar="TIME",
        parser=parse_time,
        help="Edit this much: seconds, or minutes:seconds. Default: as much as --frames allows.",
        rich_help_panel=CLIP,
        show_default=False,
    ),
]
Frames = Annotated[
    int | None,
    typer.Option(
        "--frames",
        metavar="N",
        help="Edit at most this many frames, in one piece. Default: 81, what the models are made for; all, a few at "
        "a time, with a model that says so.",
        rich_help_panel=CLIP,
        show_default=False,
    ),
]
Fps = Annotated[
    float | None,
    typer.Option(
        "--fps",
        metavar="RATE",
        help="Give the model this many frames a second; each stands until the next. Default: all.",
        rich_help_panel=CLIP,
        show_default=False,
    ),
]
KeepRest = Annotated[
    bool,
    flag(
        "--keep-rest",
        help="Write the whole clip: frames outside the edited part as they are.",
        rich_help_panel=CLIP,
    ),
]
AllowTruncated = Annotated[
    bool,
    flag("--allow-truncated", help="Use what can be read of a file that is cut off.", rich_help_panel=CLIP),
]

# -- where in the picture ---------------------------------------------------------------------------------------

MaskSpec = Annotated[
    str | None,
    typer.Option(
        "--mask",
        metavar="MASK",
        help="Edit only where it is white: a picture, a video, a folder, or x,y,width,height in pixels.",
        rich_help_panel=WHERE,
        show_default=False,
    ),
]
Feather = Annotated[
    int,
    typer.Option(
        "--feather", metavar="PIXELS", help="Fade the edit in from the mask's edge, inwards.", rich_help_panel=WHERE
    ),
]
WorkingSize = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="SIZE",
        help="Size the model works at: 720p, 480p, source or WIDTHxHEIGHT. The result has the clip's own. "
        "Default: the clip's, up to 1280x720 pixels, or the model's own.",
        envvar="KIWI_SIZE",
        rich_help_panel=WHERE,
        autocompletion=choices(*SIZES),
        show_default=False,
    ),
]
FitChoice = Annotated[
    str,
    typer.Option(
        "--fit",
        metavar="FIT",
        help="How the clip fills that size: stretch (all of it), crop (its middle) or pad (all of it, between bars).",
        rich_help_panel=WHERE,
        autocompletion=choices(*FITS),
    ),
]

# -- the instruction --------------------------------------------------------------------------------------------

Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="KIND",
        help=f"Add a sentence that helps this kind of edit: {', '.join(HINTS)}. The final instruction is shown.",
        rich_help_panel=WORDS,
        autocompletion=choices(*HINTS),
        show_default=False,
    ),
]
Raw = Annotated[
    bool,
    flag("--raw", help="Pass the instruction on to the letter, spaces included.", rich_help_panel=WORDS),
]
References = Annotated[
    list[Path],
    typer.Option(
        "--ref",
        metavar="IMAGE",
        help="A reference picture; repeat for several.",
        readable=False,
        rich_help_panel=WORDS,
        show_default=False,
    ),
]
Replace = Annotated[
    str,
    typer.Option(
        "--replace",
        metavar="WHAT",
        help="What the reference replaces when there is no instruction: subject or background.",
        rich_help_panel=WORDS,
        autocompletion=choices("subject", "background"),
    ),
]

# -- the model --------------------------------------------------------------------------------------------------

Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="A model's name (kiwi download --list), a Hub id, or a checkpoint folder.",
        envvar="KIWI_MODEL",
        rich_help_panel=MODEL,
        autocompletion=complete_names,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        "--revision",
        metavar="REV",
        help="Branch, tag or commit of a model on the Hub. Default: main.",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
Lora = Annotated[
    list[str],
    typer.Option(
        "--lora",
        metavar="LORA",
        help="Merge a LoRA into the model: a file or a Hub id, with its weight if that is not 1, "
        "as in style.safetensors:0.8. Repeat for several.",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
Download = Annotated[
    bool,
    flag(
        "--download/--no-download",
        help="Whether missing weights may be fetched.",
        envvar="KIWI_DOWNLOAD",
        rich_help_panel=MODEL,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="auto, cuda, cuda:N, mps or cpu.",
        envvar="KIWI_DEVICE",
        rich_help_panel=MODEL,
        autocompletion=choices(*DEVICES),
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="TYPE",
        help="auto (bfloat16 on a GPU, float32 on the CPU), bfloat16, float16 or float32.",
        envvar="KIWI_DTYPE",
        rich_help_panel=MODEL,
        autocompletion=choices(*DTYPES),
    ),
]

# -- the output -------------------------------------------------------------------------------------------------

Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="PATH",
        help="Where to write: .mp4, .mov, .mkv, .webm, .gif, .png, .jpg, .webp, or a folder of PNG. "
        "Default: beside the input, 'clip-edited.mp4'.",
        rich_help_panel=OUTPUT,
        show_default=False,
    ),
]
Overwrite = Annotated[bool, flag("--overwrite", help="Replace what is there.", rich_help_panel=OUTPUT)]
Codec = Annotated[
    str | None,
    typer.Option(
        "--codec",
        metavar="CODEC",
        help="h264, hevc, vp9, av1, prores, ffv1, or a hardware encoder such as h264_nvenc. "
        "Default: h264; vp9 in .webm.",
        rich_help_panel=OUTPUT,
        autocompletion=choices(*CODECS),
        show_default=False,
    ),
]
Quality = Annotated[
    str | None,
    typer.Option(
        "--quality",
        metavar="LEVEL",
        help="low, medium, high, lossless, or a constant rate factor. Default: high.",
        rich_help_panel=OUTPUT,
        autocompletion=choices(*QUALITIES),
        show_default=False,
    ),
]
KeepSound = Annotated[
    bool,
    flag(" /--no-sound", help="Leave the clip's sound out.", rich_help_panel=OUTPUT, show_default=False),
]
Compare = Annotated[
    str | None,
    typer.Option(
        "--compare",
        metavar="[side|wipe]",
        help="Also write 'NAME-compare': the source left of the result, or a divider moving over the two.",
        rich_help_panel=OUTPUT,
        autocompletion=choices(*COMPARISONS),
        show_default=False,
    ),
]
Sheet = Annotated[
    bool,
    flag("--sheet", help="Also write 'NAME-sheet.png': six frames above the edited ones.", rich_help_panel=OUTPUT),
]
Sidecar = Annotated[
    bool,
    flag("--sidecar", help="Also write 'OUTPUT.json': the settings that the output carries.", rich_help_panel=OUTPUT),
]

# -- the run ----------------------------------------------------------------------------------------------------

Steps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        metavar="N",
        help="Denoising steps; fewer is faster and rougher. Default: 50, or the model's own number.",
        envvar="KIWI_STEPS",
        rich_help_panel=RUN,
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Another seed gives another edit.", rich_help_panel=RUN)]
DryRun = Annotated[bool, flag("--dry-run", help="Say what would be done; load and write nothing.", rich_help_panel=RUN)]
AsJson = Annotated[bool, flag("--json", help="Print one JSON object on stdout.", rich_help_panel=RUN)]
Quiet = Annotated[bool, flag("-q", "--quiet", help="Only warnings and errors on stderr.", rich_help_panel=RUN)]
Verbose = Annotated[
    bool, flag("-v", "--verbose", help="Also each stage's time and the peak memory.", rich_help_panel=RUN)
]


def expand(arguments: list[str]) -> list[str]:
    """Give `--compare` of the edits without a value its value, 'side'; Typer has no options whose value may be left
    out. Another command's option of that name is left alone."""
    if not arguments or arguments[0] not in ("edit", "ref-edit", "rerun"):
        return arguments
    expanded: list[str] = []
    for position, argument in enumerate(arguments):
        if argument == "--":
            return expanded + arguments[position:]
        expanded.append(argument)
        if argument == "--compare" and (arguments[position + 1 :] or [""])[0] not in COMPARISONS:
            expanded.append("side")
    return expanded


Memory = Annotated[
    str,
    typer.Option(
        "--memory",
        metavar="LEVEL",
        help="What stays on the device: auto, resident, release, swap, stream; or tiled, which is not exact.",
        envvar="KIWI_MEMORY",
        rich_help_panel=MODEL,
        autocompletion=choices("auto", "resident", "release", "swap", "stream", "tiled"),
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        help="Plan with at most this much of the device's memory, such as 12GB.",
        envvar="KIWI_MAX_MEMORY",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
Attention = Annotated[
    str,
    typer.Option(
        "--attention",
        metavar="KERNEL",
        help="Attention kernel: auto, sdpa, cudnn, flash, flash3; or sage, which is not exact.",
        envvar="KIWI_ATTENTION",
        rich_help_panel=MODEL,
        autocompletion=choices(*ATTENTIONS),
    ),
]
Compile = Annotated[
    bool,
    flag(
        "--compile",
        help="Compile the transformer's blocks and the VAE's decoder: minutes once, then faster steps.",
        envvar="KIWI_COMPILE",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
Solver = Annotated[
    str,
    typer.Option(
        "--solver",
        help="euler as released; or unipc, which needs fewer steps and is not exact.",
        envvar="KIWI_SOLVER",
        rich_help_panel=RUN,
        autocompletion=choices(*SOLVERS),
    ),
]
Cache = Annotated[
    str,
    typer.Option(
        "--cache",
        help="Skip steps that would change little: off, first-block, easy, mag or sea. Not exact.",
        envvar="KIWI_CACHE",
        rich_help_panel=RUN,
        autocompletion=choices(*CACHES),
    ),
]
CacheThreshold = Annotated[
    float | None,
    typer.Option(
        "--cache-threshold",
        help="How much the step cache may skip; its own default, 0 skips nothing.",
        rich_help_panel=RUN,
        show_default=False,
    ),
]
CacheRatios = Annotated[
    Path | None,
    typer.Option(
        "--cache-ratios",
        metavar="FILE",
        help="What --cache mag goes by: ratios that --calibrate-cache measured on this model.",
        readable=False,
        rich_help_panel=RUN,
        show_default=False,
    ),
]
CalibrateCache = Annotated[
    Path | None,
    typer.Option(
        "--calibrate-cache",
        metavar="FILE",
        help="Measure the ratios for --cache mag in this edit, which stays exact, and write them to a .json file.",
        readable=False,
        rich_help_panel=RUN,
        show_default=False,
    ),
]
Quantize = Annotated[
    str,
    typer.Option(
        "--quantize",
        help="Weights in 8 bits, which is not exact: int8, fp8 (both need the extra 'quantize') or fp8-storage.",
        envvar="KIWI_QUANTIZE",
        rich_help_panel=MODEL,
        autocompletion=choices(*WEIGHTS),
    ),
]
Gguf = Annotated[
    Path | None,
    typer.Option(
        "--gguf",
        metavar="FILE",
        help="Take the transformer's weights from a GGUF file, which is not exact; needs the extra 'gguf'.",
        readable=False,
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
