"""Which editor makes a run's clips: what tells it from others, what it costs, and what it says it did to each clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kiwi_cli.base.events import Events
from kiwi_cli.bench.run import Run, name_of, safe_name
from kiwi_cli.bench.suites.items import Benchmark, Item
from kiwi_cli.editors.base import Found, Kind, Origin
from kiwi_cli.editors.folder import find_clip, folder_of
from kiwi_cli.editors.registry import default_model, kind_of
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.errors import KiwiError
from kiwi_cli.video import probe

SAMPLE = 12  # clips measured for an estimate
LONGEST_NAME = 60  # characters of a run's folder


def chosen(choice: ModelChoice, benchmark: Benchmark) -> ModelChoice:
    """The choice with its model named: of Kiwi's own, the best published for the task; of others, their default."""
    default = benchmark.model if choice.editor == "kiwi" else default_model(choice.editor)
    return replace(choice, model=choice.model or default)


def short_name(choice: ModelChoice) -> str:
    """An editor's name for a folder."""
    if choice.editor == "kiwi":
        return name_of(choice.model)
    parts = [choice.editor if not choice.editor.startswith("command:") else "command", choice.model]
    return safe_name("-".join(part for part in parts if part))[:LONGEST_NAME].strip("-")


def found_here(choice: ModelChoice, events: Events) -> tuple[Kind, Found]:
    """The kind of editor, and its model on this machine, fetched if need be."""
    kind = kind_of(choice)
    found = kind.find(choice)
    if found.missing:
        kind.admit(found, choice)
        found = kind.fetch(choice, events)
    return kind, found


def describe(choice: ModelChoice, events: Events | None) -> dict[str, Any]:
    """What a run remembers of its editor; without `events` nothing is looked at, and there is no fingerprint."""
    said = {"name": choice.name, "fingerprint": ""}
    if choice.editor != "kiwi":
        said["editor"] = choice.editor.partition(":")[0]
    if events is not None:
        alone = replace(choice, loras=(), gguf=None)  # the settings have these, with what they hold
        kind, found = found_here(alone, events)
        said["fingerprint"] = kind.identify(found, choice)
    return said


def by_folder(choice: ModelChoice, events: Events) -> ModelChoice:
    """The choice with its model by its folder: nothing has to be looked up, fetched or converted for each item."""
    found = found_here(choice, events)[1]
    return choice if found.folder is None else replace(choice, model=str(found.folder), revision=None)


def price_of(choice: ModelChoice, run: Run, items: Sequence[Item], frames: int) -> str | None:
    """What editing items will cost, in words, from the lengths of a few of their clips; None when it costs nothing."""
    price = kind_of(choice).find(choice).price
    if price is None or not items:
        return None
    some = items[:: max(1, len(items) // SAMPLE)][:SAMPLE]
    prices = []
    for item in some:
        clip = probe(run.source(item))
        prices.append(price(min(frames, clip.frame_count), clip.fps))
    known = [each for each in prices if each is not None]
    if len(known) < len(prices):
        return "its price is not known here; --editor-price DOLLARS, a second of the clip, says it"
    return f"about {sum(known) / len(known) * len(items):.2f} dollars at list price"


def check_source_name(choice: ModelChoice, run: Run, item: Item) -> None:
    """Refuse a clip of `folder:DIR` that is found by its source's name, which items share: it would be that of each.

    Raises:
        KiwiError: it is, or there is no such clip.
    """
    if choice.editor.partition(":")[0] != "folder":
        return
    folder, source, output = folder_of(choice), run.source(item), run.edited(item)
    path, by_id = find_clip(folder, Origin(source, output, probe(source).fps))
    if by_id:
        return
    named = Counter((each.category if path.parent != folder else "", Path(each.source).stem) for each in run.items)
    if named[(item.category if path.parent != folder else "", source.stem)] > 1:
        raise KiwiError(
            f"'{path}' could be the clip of several items with the source '{source.name}'",
            f"name each by its item's id, such as '{item.id}.mp4'",
        )
