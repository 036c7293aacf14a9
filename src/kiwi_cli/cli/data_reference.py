"""`kiwi data reference`: edits without a reference picture to rows with one, stage by stage."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kiwi_cli.base.option import RUN
from kiwi_cli.base.text import count, format_bytes, format_seconds
from kiwi_cli.cli import sharing
from kiwi_cli.cli.console import Console
from kiwi_cli.cli.options import AsJson, DryRun, Quiet, choices
from kiwi_cli.cli.root import data
from kiwi_cli.engine.choice import DEVICES
from kiwi_cli.errors import EXIT_INTERRUPTED, KiwiError, UsageError

if TYPE_CHECKING:
    from kiwi_cli.data.reference.recipe import Recipe
    from kiwi_cli.data.reference.running import Going, Standing
    from kiwi_cli.data.reference.triplets import BadTriplet, Triplet

STAGES = ("read", "score", "ground", "segment", "make", "check", "deduplicate", "write")
DATA = "The rows"
LISTED = 10


@data.command()
def reference(
    rows: Annotated[
        Path,
        typer.Argument(
            metavar="ROWS",
            help="CSV, JSON, JSONL or parquet with source, target and instruction of each edit.",
            show_default=False,
            readable=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Folder of the run; made, or gone on with.", show_default=False),
    ],
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            metavar="FILE|drawn",
            help="Models and thresholds (recipes/reference-data.toml); drawn: no model, for rows of `kiwi data synth`.",
            show_default=False,
        ),
    ],
    changes: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a value of the recipe: thresholds.similarity=0.6.",
            show_default=False,
        ),
    ] = [],  # noqa: B006 (Typer wants a list; it is not changed)
    base: Annotated[Path | None, sharing.base(DATA)] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", metavar="N", help="Only the first N rows, to try a recipe.", rich_help_panel=DATA, min=1
        ),
    ] = None,
    stages: Annotated[
        list[str],
        typer.Option(
            "--stage",
            metavar="NAME",
            help=f"Run only this stage, and use what others left: {', '.join(STAGES)}. May be repeated.",
            autocompletion=choices(*STAGES),
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = [],  # noqa: B006
    device: Annotated[
        str,
        typer.Option("--device", help="auto, cuda, cuda:N, mps or cpu.", autocompletion=choices(*DEVICES)),
    ] = "auto",
    workers: sharing.Workers = None,
    gpus: sharing.Gpus = None,
    ray: Annotated[
        str | None,
        sharing.ray("Actors on a Ray cluster at this address, as in `kiwi batch`; needs the extra 'ray'.", "ADDRESS"),
    ] = None,
    shard: Annotated[
        str | None, sharing.shard("Only the i-th of n parts, without the last two steps, which need all rows.")
    ] = None,
    lease: sharing.Lease = 60.0,
    retry_failed: sharing.RetryFailed = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Give edits the reference picture that shows what they brought: training data for reference editing.

    Every stage keeps its figures, so a threshold can be changed without running a model again, and what is done is
    never done twice.

    Examples:

      kiwi data reference pairs.csv --out refs --recipe recipes/reference-data.toml --dry-run

      kiwi data reference pairs.csv --out refs --recipe recipes/reference-data.toml --gpus all

      kiwi data reference pairs.csv --out refs --recipe my.toml --stage write --set thresholds.similarity=0.7
    """
    console = Console(quiet=quiet, as_json=as_json)
    for stage in stages:
        if stage not in STAGES:
            raise UsageError(f"there is no stage '{stage}'", f"the stages are {', '.join(STAGES)}")
    sharing.check_base(base)
    from kiwi_cli.batch.crew import Crew
    from kiwi_cli.batch.shard import parse_shard
    from kiwi_cli.data.reference.recipe import load
    from kiwi_cli.data.reference.running import Going

    crew = Crew(workers, gpus, ray)
    crew.check()
    part = parse_shard(shard) if shard else None
    if part is not None and "write" in stages:
        raise UsageError(
            "a part of the rows cannot be written alone", "leave out --shard: --stage write needs all rows"
        )
    chosen = load(recipe, changes)
    found = _rows(rows, base, chosen, limit)
    if dry_run:
        _say_plan(console, out, found, chosen)
        return
    say_models(console, chosen, sizes=False)
    going = Going(crew, tuple(stages or STAGES), part, lease, retry_failed, device)
    standing = _go(console, out, found, chosen, going)
    _conclude(console, out, found, chosen, going, standing)


def _rows(table: Path, base: Path | None, recipe: Recipe, limit: int | None) -> list[Triplet | BadTriplet]:
    from kiwi_cli.data.reference.triplets import BadTriplet, read_triplets
    from kiwi_cli.data.rows import TableError

    found = list(itertools.islice(read_triplets(table, base, recipe.read.reverse), limit))
    if not found:
        raise TableError(f"'{table}' has no rows", "give each edit a row")
    if all(isinstance(row, BadTriplet) for row in found):
        first = found[0]
        assert isinstance(first, BadTriplet)
        raise TableError(
            f"none of the {count(len(found), 'row')} of '{table}' can be used; {first.label}: {first.reason}",
            "mend them, or pass the folder that the paths are relative to with --base",
        )
    return found


def _go(console: Console, out: Path, rows: Sequence[Triplet | BadTriplet], recipe: Recipe, going: Going) -> Standing:
    from kiwi_cli.cli.batch_view import view
    from kiwi_cli.data.reference.running import go_through

    try:
        with view(console, "rows") as told:
            standing, troubles = go_through(out, rows, recipe, going, told)
    except KeyboardInterrupt:
        raise KiwiError(
            f"interrupted; what is done is kept in '{out}'", "the same command goes on from there", EXIT_INTERRUPTED
        ) from None
    for trouble in troubles:
        console.warn(f"a worker ended early, {trouble}")
    return standing


def _conclude(
    console: Console,
    out: Path,
    rows: Sequence[Triplet | BadTriplet],
    recipe: Recipe,
    going: Going,
    standing: Standing,
) -> None:
    """Write what is whole, and say what became of the rows."""
    from kiwi_cli.data.reference import writing

    dropped = writing.dropped_by(standing)
    for stage, number in dropped.items():
        ran = standing.ran.get(stage, 0)
        if ran or number:
            console.note(f"{stage}: {count(ran, 'row')} now, {number} dropped" if ran else f"{stage}: {number} dropped")
    written = None
    if going.shard is None:
        writing.write_verdicts(out, rows, recipe, standing)
    if "write" in going.stages and going.shard is None and not standing.waiting:
        written = writing.write(out, rows, recipe, standing)
    for label, reason in itertools.islice(standing.failed.items(), LISTED):
        console.warn(f"failed: {label}: {reason}")
    data: dict[str, Any] = {
        "output": str(written) if written else None,
        "rows": len(rows),
        "kept": len(standing.rows),
        "dropped": dropped,
        "waiting": standing.waiting,
        "failed": standing.failed,
        "ran": standing.ran,
    }
    waiting = ", ".join(f"{number} for {stage}" for stage, number in standing.waiting.items())
    whole = "kept" if written else "passed so far"
    console.note(
        f"{len(standing.rows)} of {count(len(rows), 'row')} {whole}" + (f"; waiting: {waiting}" if waiting else "")
    )
    console.result(str(written or out), data)
    if standing.failed:
        raise KiwiError(
            f"{count(len(standing.failed), 'row')} failed, which is no verdict on them",
            "run it again with --retry-failed",
        )
    if waiting and set(going.stages) == set(STAGES):
        raise KiwiError(f"rows are left, waiting: {waiting}", "run it again")


def _say_plan(console: Console, out: Path, rows: Sequence[Triplet | BadTriplet], recipe: Recipe) -> None:
    from kiwi_cli.data.reference.plan import plan
    from kiwi_cli.data.reference.triplets import Triplet

    plans, missing = plan(out, rows, recipe), say_models(console, recipe)
    usable = sum(isinstance(row, Triplet) for row in rows)
    console.note(f"{count(len(rows), 'row')}, {len(rows) - usable} cannot be used")
    for each in plans:
        if each.left is None:
            long = "not measured here yet: --limit 20 without --dry-run does it"
        else:
            long = f"at most {format_seconds(each.left)} for one worker"
        console.note(f"{each.name}: {each.done} done, at most {each.open} to do; {long}")
    total = None if any(each.left is None for each in plans) else sum(each.left or 0.0 for each in plans)
    data = {
        "dry_run": True,
        "rows": len(rows),
        "usable": usable,
        "stages": [{**vars(each), "left": each.left} for each in plans],
        "seconds": total,
        "models": missing,
    }
    console.result(f"{usable} of {count(len(rows), 'row')} can go in", data)


def say_models(console: Console, recipe: Recipe, sizes: bool = True) -> list[dict[str, Any]]:
    """Say which models a recipe takes, under which licence and, with `sizes`, what has to be fetched."""
    from kiwi_cli.data.reference.fetching import models, size_of

    found = []
    for model in models(recipe):
        entry: dict[str, Any] = {**vars(model), "bytes": None, "to_fetch": None}
        words = f"{model.stage}: '{model.name}', licence {model.licence or 'not stated in the recipe'}"
        if sizes and not model.is_folder:
            try:
                size = size_of(model)
            except KiwiError as error:
                words += f"; its size is not known: {error.message}"
            else:
                entry |= {"bytes": size.total, "to_fetch": size.missing}
                words += f"; {format_bytes(size.missing)} of {format_bytes(size.total)} to fetch"
                if size.licence and size.licence != model.licence:
                    words += f"; the Hub says {size.licence}"
                words += "; its terms have to be accepted on the Hub first" if size.gated else ""
        console.note(words)
        found.append(entry)
    return found
