"""`kiwi download`: what models there are, what is here, and bringing the rest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kiwi_cli.cli import app
from kiwi_cli.console import Console, format_bytes
from kiwi_cli.errors import CheckpointError, UsageError
from kiwi_cli.variants import DEFAULT_EDIT, QWEN_REPO, VARIANTS, WAN_REPO, Score, Variant, complete_names

if TYPE_CHECKING:
    from kiwi_cli.weights.fetch import Access

WHAT, WHERE = "What to do", "Where"


@app.command()
def download(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL]",
            help="A model's name or a Hub id.",
            envvar="KIWI_MODEL",
            autocompletion=complete_names,
        ),
    ] = DEFAULT_EDIT,
    list_: Annotated[
        bool, typer.Option("--list", help="List the models, and which are here.", rich_help_panel=WHAT)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be fetched, and fetch nothing.", rich_help_panel=WHAT)
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every file that is here, offline.", rich_help_panel=WHAT)
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="With --verify: fetch the bad files again.", rich_help_panel=WHAT)
    ] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Delete the model from the cache.", rich_help_panel=WHAT)
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision", help="A branch, tag or commit. Default: main.", rich_help_panel=WHERE, show_default=False
        ),
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option("--cache-dir", help="Instead of the Hub's own cache.", rich_help_panel=WHERE, show_default=False),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            "--token", help="Instead of HF_TOKEN or `hf auth login`.", rich_help_panel=WHERE, show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only warnings and errors on stderr.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="With --list: every score and licence.")] = False,
) -> None:
    """Fetch a model into the Hub's cache; jobs then need no network.

    Complete files are never fetched twice: after an interruption, run the same command again.

    Examples:

      kiwi download

      kiwi download reference-only --dry-run

      kiwi download --list -v

      kiwi download instruct-reference --verify --repair
    """
    chosen = [name for name, given in (("--dry-run", dry_run), ("--verify", verify), ("--remove", remove)) if given]
    if len(chosen) > 1 or (list_ and chosen):
        raise UsageError(f"{' and '.join([*(['--list'] if list_ else []), *chosen])} exclude each other", "pass one")
    if repair and not verify:
        raise UsageError("--repair needs --verify", "pass both: kiwi download MODEL --verify --repair")
    console = Console(quiet=quiet, as_json=as_json, verbose=verbose)
    from kiwi_cli.weights import embedded
    from kiwi_cli.weights.fetch import Access

    access = Access(cache_dir, token, True, console) if cache_dir else Access(token=token, console=console)
    own = None if list_ else embedded.named(model)
    if list_:
        list_models(access, console)
    elif own is not None:
        if remove or revision is not None:
            what = "removed" if remove else "had in another revision"
            raise UsageError(f"'{model}' is part of kiwi itself and cannot be {what}", "leave it as it is")
        folder = embedded.ensure(own)
        if verify:
            verify_embedded(own, folder, console)
        else:
            console.note(f"'{model}' is part of kiwi itself: nothing to fetch")
            console.result(str(folder), {"model": model, "path": str(folder)})
    elif remove:
        remove_model(model, access, console)
    elif verify:
        verify_model(model, revision, repair, access, console)
    elif dry_run:
        show_plan(model, revision, access, console)
    else:
        from kiwi_cli.weights.hub import ensure

        folder = ensure(model, console=console, revision=revision, cache_dir=cache_dir, token=token)
        console.result(str(folder), {"model": model, "path": str(folder)})


def list_models(access: Access, console: Console) -> None:
    """Every variant with its state in the cache."""
    rows = [describe(variant, access) for variant in VARIANTS]
    lines = [f"{'model':<19}{'here':<10}{'size':>9}  {'for':<16}{'best published score'}"]
    for variant, row in zip(VARIANTS, rows, strict=True):
        score = f"{variant.scores[0].overall:.2f} {variant.scores[0].benchmark}" if variant.scores else "-"
        if row["offers"]:
            score = ", ".join(row["offers"])
        held = row["cached_bytes"] or variant.bytes
        size = format_bytes(held) if held else "?"
        lines.append(f"{variant.name:<19}{row['cached']:<10}{size:>9}  {', '.join(variant.tasks):<16}{score}")
        if console.verbose:
            lines += [f"    {text}" for text in details(variant, row)]
    if console.verbose:
        lines.append(f"cache: {access.root}")
    console.result("\n".join(lines), {"cache": str(access.root), "models": rows})


def describe(variant: Variant, access: Access) -> dict[str, Any]:
    """A model for `--json`; its keys are documented in docs/json.md."""
    from kiwi_cli.weights import embedded
    from kiwi_cli.weights.settings import ModelSettings, read_settings

    own = variant.kind == "embedded"
    here = embedded.find(variant) if own else None
    settings = read_settings(here) if here is not None else ModelSettings()
    return {
        "name": variant.name,
        "repo": variant.repo or None,
        "kind": variant.kind,
        "tasks": list(variant.tasks),
        "bytes": variant.bytes,
        "cached": state(variant, access),
        "cached_bytes": embedded.size(variant) if own else access.cached(variant.repo).size(),
        "scores": [describe_score(score) for score in variant.scores],
        "size": None if own else list(variant.size),
        "frames": settings.frames if own else variant.frames,
        "pixels": settings.pixels,
        "steps": settings.steps,
        "offers": list(settings.offers),
        "licence": variant.licence,
        "summary": variant.summary,
    }


def state(variant: Variant, access: Access) -> str:
    """'yes', 'partly' or 'no'."""
    from kiwi_cli.weights import embedded
    from kiwi_cli.weights.hub import peek

    if variant.kind == "embedded":
        return "yes" if embedded.find(variant) else "no"
    if peek(variant.repo, variant.revision, access):
        return "yes"
    return "partly" if access.cached(variant.repo).size() else "no"


def details(variant: Variant, row: dict[str, Any]) -> list[str]:
    """The lines of `--list -v` and `kiwi show MODEL`; `row` as `describe` makes it."""
    width, height = variant.size
    lines = [variant.summary]
    if variant.kind == "embedded":
        if row["cached"] != "yes":
            return [*lines, "not in this installation", variant.licence]
        if row["pixels"]:
            length = f", {row['frames']} frames at a time" if row["frames"] else ""
            lines.append(f"works at about {row['pixels']:,} pixels{length}, whatever the clip's size and length")
        lines.append(f"good for: {', '.join(row['offers']) or 'it does not say'}")
        return [*lines, variant.licence]
    lines += [f"https://huggingface.co/{variant.repo}", f"up to {variant.frames} frames, {width}x{height}"]
    if variant.kind == "raw":
        lines.append(f"trained parameters only: converted once, with {QWEN_REPO} and {WAN_REPO}")
    for score in variant.scores:
        columns = ", ".join(f"{name} {value:.2f}" for name, value in score.columns)
        lines.append(
            f"{score.benchmark} ({score.judge}): {score.overall:.2f}, {score.average}; {columns}; {score.source}"
        )
    return [*lines, variant.licence]


def describe_score(score: Score) -> dict[str, Any]:
    """A score for `--json`."""
    return {
        "benchmark": score.benchmark,
        "judge": score.judge,
        "overall": score.overall,
        "average": score.average,
        "columns": dict(score.columns),
        "source": score.source,
    }


def show_plan(model: str, revision: str | None, access: Access, console: Console) -> None:
    """What would be fetched, how large it is, and whether it would fit."""
    from kiwi_cli.weights.cache import free_bytes
    from kiwi_cli.weights.fetch import check_room, plan
    from kiwi_cli.weights.hub import resolve
    from kiwi_cli.weights.layout import RELEASED
    from kiwi_cli.weights.raw import plan_bases

    repo, variant = resolve(model)
    wanted = revision or (variant.revision if variant else "main")
    plans = [plan(repo, wanted, access, RELEASED if variant and variant.kind == "released" else None)]
    if not any(file.path == "model_index.json" for file in plans[0].files):
        plans += plan_bases(access)
    lines, rows = [], []
    for part in plans:
        missing = set(part.missing)
        lines.append(f"{part.cached.repo} at {part.commit[:12]}")
        for file in part.files:
            lines.append(f"  {format_bytes(file.size):>9}  {'fetch ' if file in missing else 'here  '}  {file.path}")
            rows.append({"repo": part.cached.repo, "path": file.path, "bytes": file.size, "fetch": file in missing})
    total = sum(part.missing_bytes for part in plans)
    free = free_bytes(access.root)
    lines.append(f"to fetch: {format_bytes(total)}; free in '{access.root}': {format_bytes(free)}")
    room = total
    if not any(file.path == "model_index.json" for file in plans[0].files):
        room += sum(part.bytes for part in plans)
        lines.append(f"it is a raw checkpoint; converting it needs {format_bytes(room)} in all, and the transformer")
        lines.append(f"of {WAN_REPO} too, unless it holds all of it")
    data = {"model": model, "bytes": total, "free_bytes": free, "cache": str(access.root), "files": rows}
    console.result("\n".join(lines), data)
    check_room(room, access.root, f"'{model}'")


def verify_model(model: str, revision: str | None, repair: bool, access: Access, console: Console) -> None:
    """Sizes and hashes of what is here, against what the Hub said."""
    from kiwi_cli.weights import hub

    repo, variant = hub.resolve(model)
    wanted = revision or (variant.revision if variant else "main")
    count, bad = hub.verify(repo, wanted, access)
    for path, problem in bad:
        console.warn(f"'{path}': {problem}")
    if bad and not repair:
        names = ", ".join(f"'{path}'" for path, _ in bad)
        raise CheckpointError(
            f"{len(bad)} of {count} files of '{model}' are bad: {names}",
            f"kiwi download {model} --verify --repair fetches them again",
        )
    if bad:
        hub.repair(repo, wanted, [path for path, _ in bad], access)
    text = f"{count} files checked, {len(bad)} repaired" if bad else f"{count} files checked, all good"
    console.result(text, {"model": model, "checked": count, "repaired": [path for path, _ in bad]})


def verify_embedded(variant: Variant, folder: Path, console: Console) -> None:
    """Every header of a model in the package."""
    from kiwi_cli.weights import open_all

    count = len(open_all(folder))
    console.result(f"{count} files checked, all good", {"model": variant.name, "checked": count, "repaired": []})


def remove_model(model: str, access: Access, console: Console) -> None:
    """Delete a model from the cache."""
    from kiwi_cli.weights.hub import resolve

    repo, _ = resolve(model)
    freed = access.cached(repo).remove()
    if not freed:
        raise CheckpointError(f"nothing of '{model}' is in '{access.root}'", "kiwi download --list shows what is")
    console.result(f"freed {format_bytes(freed)}", {"model": model, "freed_bytes": freed})
