"""`kiwi convert`: a raw training checkpoint to the released layout; a released one to other shards or precision."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from kiwi_cli.base.text import count, format_bytes
from kiwi_cli.cli.console import Console
from kiwi_cli.cli.root import app
from kiwi_cli.errors import CheckpointError, UsageError
from kiwi_cli.weights.catalog import QWEN_REPO, WAN_REPO, complete_names

BASE = "Base models of a raw checkpoint"
CONVERT_DTYPES = ("auto", "bfloat16", "float16", "float32")


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RAW",
            help="A raw checkpoint (file or folder), a released one (folder), or a model on the Hub.",
            autocompletion=complete_names,
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that is not there yet.", show_default=False)],
    qwen: Annotated[
        str | None,
        typer.Option(
            "--qwen",
            metavar="ID|DIR",
            help=f"Qwen2.5-VL. Default: base/qwen beside RAW, else {QWEN_REPO}.",
            envvar="KIWI_QWEN",
            rich_help_panel=BASE,
            show_default=False,
        ),
    ] = None,
    wan: Annotated[
        str | None,
        typer.Option(
            "--wan",
            metavar="ID|DIR",
            help=f"Wan 2.2 in the library's format. Default: base/wan beside RAW, else {WAN_REPO}.",
            envvar="KIWI_WAN",
            rich_help_panel=BASE,
            show_default=False,
        ),
    ] = None,
    reference_first: Annotated[
        bool,
        typer.Option(
            "--reference-first",
            help="It was trained with the reference tokens before the video's.",
            rich_help_panel=BASE,
        ),
    ] = False,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            help="auto (each tensor as it is stored), bfloat16, float16 or float32.",
            autocompletion=lambda: list(CONVERT_DTYPES),
        ),
    ] = "auto",
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", metavar="SIZE", help="Largest file, such as 2GB or 500MB.")
    ] = "5GB",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only warnings and errors on stderr.")] = False,
) -> None:
    """Convert a raw training checkpoint to the released layout, or cut a released one into other shards.

    It works tensor by tensor, in little memory. The same inputs give the same bytes.

    Examples:

      kiwi convert step-20000.safetensors my-model

      kiwi convert step-20000.safetensors my-model --qwen ~/Qwen2.5-VL-3B-Instruct --dtype bfloat16

      kiwi convert ~/kiwi-edit-5b my-mirror --max-shard-size 2GB
    """
    limit = parse_size(max_shard_size)
    if dtype not in CONVERT_DTYPES:
        raise UsageError(f"unknown precision '{dtype}'", f"use one of {', '.join(CONVERT_DTYPES)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"'{out}' exists already", "choose another folder, or delete it first")
    console = Console(quiet=quiet, as_json=as_json)
    notes = _convert(source, out, qwen, wan, reference_first, dtype, limit, console)
    for note in notes:
        console.warn(note)
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    console.note(f"{format_bytes(written)} in {count(sum(path.is_file() for path in out.rglob('*')), 'file')}")
    console.result(str(out), {"output": str(out), "bytes": written, "notes": notes})


def _convert(
    source: str,
    out: Path,
    qwen: str | None,
    wan: str | None,
    reference_first: bool,
    dtype: str,
    limit: int,
    console: Console,
) -> list[str]:
    from kiwi_cli.weights import raw, raw_files
    from kiwi_cli.weights.fetch import Access
    from kiwi_cli.weights.layout import PICKLE_HINT, PICKLES

    access = Access(events=console)
    path = Path(source).expanduser()
    first = reference_first
    if path.is_dir() and not (path / "model_index.json").is_file() and raw_files.is_raw_folder(path):
        path = raw_files.find_raw(path)
    elif not path.exists():
        path, known_first = raw.fetch_source(source, access)
        first = first or known_first
    if path.is_dir():
        from kiwi_cli.weights import assemble

        if qwen or wan or first:
            raise UsageError(f"'{source}' is complete and takes no base models", "leave out --qwen, --wan and the like")
        result = assemble.plan_reshard(path, None if dtype == "auto" else dtype)
        assemble.write(result, out, limit, console)
        return result.notes
    if path.suffix in PICKLES:
        raise CheckpointError(f"'{source}' is a pickle", PICKLE_HINT)
    return raw.convert_to(
        path,
        out,
        access,
        qwen=qwen,
        wan=wan,
        dtype=dtype,
        references_first=first,
        max_shard_bytes=limit,
    )


def parse_size(text: str) -> int:
    """'2GB', '500 MB', '750kB', '1000' -> bytes, decimal as disks count.

    Raises:
        UsageError: anything else, or nothing.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(B|kB|MB|GB)?", text.strip(), re.IGNORECASE)
    factor = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
    size = int(float(match[1]) * factor[(match[2] or "B").lower()]) if match else 0
    if size < 1:
        raise UsageError(f"not a size: '{text}'", "write it as 2GB or 500MB")
    return size
