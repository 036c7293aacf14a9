"""From a run's ledger to one set of scores for each judge that gave any."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kiwi_cli.batch.journal import read_lines
from kiwi_cli.bench.judges.base import hash_media
from kiwi_cli.bench.judges.ledger import STEM
from kiwi_cli.bench.run import Run
from kiwi_cli.bench.suites.items import Item

UNSAID = "not said"


@dataclass(frozen=True, order=True)
class JudgeKey:
    """Scores are only ever averaged within one of these.

    Attributes:
        answered_by: the model version that gave them, by its own word.
        asked: the model that was asked for.
        shown: how clips were shown to it.
    """

    protocol: str
    rubric: str
    answered_by: str
    asked: str
    backend: str
    shown: str = ""

    @property
    def label(self) -> str:
        """The judge by the name of who answered, never of who was asked."""
        if self.answered_by == UNSAID:
            return f"{self.backend}, version not said (asked: {self.asked})"
        other = "" if same_model(self.asked, self.answered_by) else f" (asked: {self.asked})"
        return self.answered_by + other


@dataclass
class Judged:
    """What one judge said of a run.

    Attributes:
        scores: item id -> numbers in the rubric's order. names: category -> their names.
        words: item id -> the raw answer. failed: item id -> why its answers could not be read.
        stale: items whose scores are of a result that has since been replaced.
    """

    key: JudgeKey
    scores: dict[str, list[float]] = field(default_factory=dict)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    stale: set[str] = field(default_factory=set)
    first_time: float = 0.0
    last_time: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0


def same_model(asked: str, answered: str) -> bool:
    """'gemini-2.5-pro' is answered by 'gemini-2.5-pro' or a dated version of it, 'models/' before it or not."""
    asked, answered = (name.removeprefix("models/").lower() for name in (asked, answered))
    rest = answered.removeprefix(asked)
    return answered.startswith(asked) and (not rest or (rest[0] in "-@" and rest[1:2].isdigit()))


def collect(run: Run) -> list[Judged]:
    """Every judge's scores, in the order of their keys."""
    found: dict[JudgeKey, Judged] = {}
    by_id = {item.id: item for item in run.items}
    for record in _answers(run):
        item = by_id.get(str(record["item"]))
        if item is None:
            continue
        settings = record.get("settings") or {}
        key = JudgeKey(
            record["protocol"],
            record["rubric"],
            record.get("answered_by") or UNSAID,
            record["asked"],
            record["backend"],
            ", ".join(f"{name} {value}" for name, value in sorted(settings.items())),
        )
        judged = found.setdefault(key, Judged(key))
        judged.input_tokens += record.get("input_tokens") or 0
        judged.output_tokens += record.get("output_tokens") or 0
        when = float(record.get("time") or 0.0)
        judged.first_time = min(judged.first_time or when, when)
        judged.last_time = max(judged.last_time, when)
        _take(judged, run, item, record)
    return [found[key] for key in sorted(found)]


def _answers(run: Run) -> Iterator[dict[str, Any]]:
    needed = ("request", "item", "protocol", "rubric", "asked", "backend")
    for record in read_lines(run.folder, STEM):
        if record.get("kind") == "answer" and all(name in record for name in needed):
            yield record


def _take(judged: Judged, run: Run, item: Item, record: dict[str, Any]) -> None:
    name, path = item.id, run.edited(item)
    if record.get("edited") and path.is_file() and hash_media(path) != record["edited"]:
        judged.stale.add(name)
        return
    judged.stale.discard(name)
    scores = record.get("scores")
    if isinstance(scores, dict) and scores:
        judged.scores[name] = [int(value) if float(value).is_integer() else float(value) for value in scores.values()]
        judged.names[item.category] = tuple(scores)
        judged.words[name] = str(record.get("text") or "")
        judged.failed.pop(name, None)
    elif name not in judged.scores:
        judged.failed[name] = str(record.get("problem") or "")
        judged.words[name] = str(record.get("text") or "")
