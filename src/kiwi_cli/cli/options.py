"""Options that several commands share, so that they read and behave alike everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kiwi_cli.variants import VARIANTS

CLIP, MODEL, OUTPUT, RUN = "The clip", "The model", "The output", "The run"
FITS = ("stretch", "crop", "pad")
DEVICES = ("auto", "cuda", "mps", "cpu")
DTYPES = ("auto", "bfloat16", "float16", "float32")


def _complete(choices: tuple[str, ...]) -> list[str]:
    return list(choices)


Input = Annotated[
    Path,
    typer.Argument(metavar="INPUT", help="A video, a picture, or a folder of numbered pictures.", show_default=False),
]
Instruction = Annotated[
    str, typer.Argument(metavar="INSTRUCTION", help="What to change, in words.", show_default=False)
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        help="Where to write; the extension chooses the format. Default: beside the input, 'clip-edited.mp4'.",
        rich_help_panel=OUTPUT,
        show_default=False,
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing output.", rich_help_panel=OUTPUT, show_default=False)
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="A model's name, a Hub id, or a checkpoint folder.",
        envvar="KIWI_MODEL",
        rich_help_panel=MODEL,
        autocompletion=lambda: _complete(tuple(v.name for v in VARIANTS)),
    ),
]
Steps = Annotated[
    int,
    typer.Option(
        "--steps", help="Denoising steps; fewer is faster and rougher.", envvar="KIWI_STEPS", rich_help_panel=RUN
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Another seed gives another edit.", rich_help_panel=RUN)]
Frames = Annotated[
    int | None,
    typer.Option(
        "--frames", help="Edit at most this many frames. Default: 81.", rich_help_panel=CLIP, show_default=False
    ),
]
WorkingSize = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="SIZE",
        help="Size the model works at: 720p, 480p, source or WxH. The result has the clip's own size. "
        "Default: the clip's, at most 1280x720 pixels.",
        envvar="KIWI_SIZE",
        rich_help_panel=CLIP,
        show_default=False,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        help="auto, cuda, cuda:N, mps or cpu.",
        envvar="KIWI_DEVICE",
        rich_help_panel=MODEL,
        autocompletion=lambda: _complete(DEVICES),
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="auto (bfloat16 on a GPU, float32 on the CPU), bfloat16, float16 or float32.",
        envvar="KIWI_DTYPE",
        rich_help_panel=MODEL,
        autocompletion=lambda: _complete(DTYPES),
    ),
]
Download = Annotated[
    bool,
    typer.Option(
        "--download/--no-download",
        help="Whether missing weights may be fetched.",
        envvar="KIWI_DOWNLOAD",
        rich_help_panel=MODEL,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=OUTPUT, show_default=False),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "-q", "--quiet", help="Only warnings and errors on stderr.", rich_help_panel=OUTPUT, show_default=False
    ),
]
