"""`kiwi download`: what models there are, what is here, and bringing the rest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kiwi_cli.base.text import count, format_bytes
from kiwi_cli.cli.console import Console
from kiwi_cli.cli.endings import keeping
from kiwi_cli.cli.root import app
from kiwi_cli.errors import CheckpointError, UsageError
from kiwi_cli.weights.catalog import DEFAULT_EDIT, VARIANTS, WAN_REPO, Variant, complete_names
from kiwi_cli.weights.inventory import describe, details

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
    update: Annotated[
        bool,
        typer.Option(
            "--update", help="Ask the Hub for a newer version of what is here, and fetch it.", rich_help_panel=WHAT
        ),
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
    chosen = [
        name
        for name, given in (("--dry-run", dry_run), ("--verify", verify), ("--update", update), ("--remove", remove))
        if given
    ]
    if len(chosen) > 1 or (list_ and chosen):
        raise UsageError(f"{' and '.join([*(['--list'] if list_ else []), *chosen])} exclude each other", "pass one")
    if repair and not verify:
        raise UsageError("--repair needs --verify", "pass both: kiwi download MODEL --verify --repair")
    console = Console(quiet=quiet, as_json=as_json, verbose=verbose)
    from kiwi_cli.weights import embedded
    from kiwi_cli.weights.fetch import Access

    access = Access(cache_dir, token, True, console) if cache_dir else Access(token=token, events=console)
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

        if not update:
            say_age(model, revision, access, console)
        with keeping("files that are complete are kept"):
            folder = ensure(model, events=console, revision=revision, cache_dir=cache_dir, token=token, update=update)
        console.result(str(folder), {"model": model, "path": str(folder)})


def say_age(model: str, revision: str | None, access: Access, console: Console) -> None:
    """Say how old a model is that is here, since no request is made for it."""
    import time

    from kiwi_cli.weights import hub
    from kiwi_cli.weights.names import resolve

    if Path(model).expanduser().exists():
        return
    repo, variant = resolve(model)
    wanted = revision or (variant.revision if variant else "main")
    cached = access.cached(repo)
    when = cached.fetched(wanted)
    if when is None or hub.peek(repo, wanted, access) is None:
        return
    days = max(0, int((time.time() - when) / 86400))
    age = "today" if days == 0 else f"{count(days, 'day')} ago"
    commit = cached.commit(wanted) or ""
    console.note(f"'{repo}' is here at {commit[:12]}, fetched {age}; --update asks the Hub for a newer version")


def list_models(access: Access, console: Console) -> None:
    """Every variant with its state in the cache."""
    rows = [describe(variant, access) for variant in VARIANTS]
    lines = [f"{'model':<19}{'here':<10}{'size':>9}  {'for':<16}{'best published score'}"]
    for variant, row in zip(VARIANTS, rows, strict=True):
        score = f"{variant.scores[0].overall:.2f} {variant.scores[0].benchmark}" if variant.scores else "-"
        if row["offers"]:
            score = "its kinds: see -v"
        held = row["cached_bytes"] or variant.bytes
        size = format_bytes(held) if held else "?"
        lines.append(f"{variant.name:<19}{row['cached']:<10}{size:>9}  {', '.join(variant.tasks):<16}{score}")
        if console.verbose:
            lines += [f"    {text}" for text in details(variant, row)]
    if console.verbose:
        lines.append(f"cache: {access.root}")
    console.result("\n".join(lines), {"cache": str(access.root), "models": rows})


def show_plan(model: str, revision: str | None, access: Access, console: Console) -> None:
    """What would be fetched, how large it is, and whether it would fit."""
    from kiwi_cli.weights.cache import free_bytes
    from kiwi_cli.weights.fetch import check_room, plan
    from kiwi_cli.weights.layout import RELEASED
    from kiwi_cli.weights.names import resolve
    from kiwi_cli.weights.raw import plan_bases

    repo, variant = resolve(model)
    wanted = revision or (variant.revision if variant else "main")
    try:
        plans = [plan(repo, wanted, access, RELEASED if variant and variant.kind == "released" else None)]
    except CheckpointError:
        if variant is not None and variant.bytes:
            console.note(
                f"'{repo}' has about {format_bytes(variant.bytes)}; which files it has is not known without the Hub"
            )
        raise
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
    from kiwi_cli.weights.names import resolve

    repo, variant = resolve(model)
    wanted = revision or (variant.revision if variant else "main")
    found = hub.verify(repo, wanted, access)
    checked, bad = found.checked, found.bad
    for path, problem in bad:
        console.warn(f"'{path}': {problem}")
    for path in found.unchecked:
        console.warn(f"'{path}' cannot be checked: nothing here says its hash")
    if not checked:
        raise CheckpointError(
            f"none of the {len(found.unchecked)} files of '{model}' can be checked: nothing here says their hashes",
            f"kiwi download {model} --update asks the Hub for them",
        )
    if bad and not repair:
        names = ", ".join(f"'{path}'" for path, _ in bad)
        raise CheckpointError(
            f"{len(bad)} of {checked} files of '{model}' are bad: {names}",
            f"kiwi download {model} --verify --repair fetches them again",
        )
    if bad:
        hub.repair(repo, wanted, [path for path, _ in bad], access)
    what = f"{count(checked, 'file')} checked"
    text = f"{what}, {len(bad)} repaired" if bad else f"{what}, all good"
    if found.unchecked:
        text = f"{text}; {len(found.unchecked)} could not be checked: {', '.join(found.unchecked)}"
    told = {"model": model, "checked": checked, "repaired": [path for path, _ in bad], "unchecked": found.unchecked}
    console.result(text, told)


def verify_embedded(variant: Variant, folder: Path, console: Console) -> None:
    """Every header of a model in the package; nothing says the hashes of its contents."""
    from kiwi_cli.weights import open_all

    names = [f"{part}/{files.label.name}" for (part, _), files in open_all(folder).items()]
    text = f"the headers of {count(len(names), 'file')} are right"
    text += "; their contents could not be checked, nothing says their hashes"
    console.result(text, {"model": variant.name, "checked": 0, "repaired": [], "unchecked": names})


def remove_model(model: str, access: Access, console: Console) -> None:
    """Delete a model from the cache."""
    from kiwi_cli.weights.names import resolve

    repo, _ = resolve(model)
    freed = access.cached(repo).remove()
    if not freed:
        raise CheckpointError(f"nothing of '{model}' is in '{access.root}'", "kiwi download --list shows what is")
    console.result(f"freed {format_bytes(freed)}", {"model": model, "freed_bytes": freed})
