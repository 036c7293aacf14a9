"""The stages of a recipe, each with what it needs: models are loaded here, and nowhere before."""

from __future__ import annotations

from typing import Any

from kiwi_cli.batch.editors import ending_the_worker
from kiwi_cli.data.reference.asking import make_asker
from kiwi_cli.data.reference.editscore import EditScored
from kiwi_cli.data.reference.files import Stage
from kiwi_cli.data.reference.making import Checking, Features, Featuring, Judge, Making, Painter, filling
from kiwi_cli.data.reference.painting import make_painter
from kiwi_cli.data.reference.questions import AskedGround, AskedScore, PhraseGround, make_judge
from kiwi_cli.data.reference.recipe import Check, Deduplicate, Recipe
from kiwi_cli.data.reference.standins import (
    DifferenceGround,
    DifferenceSegment,
    DrawnFeatures,
    Reading,
    TruthScore,
    TruthSegment,
)
from kiwi_cli.data.reference.vision import Detector, Embedder, Tracker


def make_stage(name: str, recipe: Recipe, device: str) -> Stage:
    """A stage that is ready to run.

    Args:
        device: as `kiwi edit` takes it.

    Raises:
        KiwiError: its model cannot be had.
    """
    made: Stage = MAKERS[name](recipe, device)
    return made


def _score(recipe: Recipe, device: str) -> Stage:
    part = recipe.score
    if part.by == "truth":
        return TruthScore(recipe)
    scorer = EditScored if part.questions == "editscore" else AskedScore
    return scorer(make_asker(part.by, part.model, part.revision, part.url, device))


def _ground(recipe: Recipe, device: str) -> Stage:
    part = recipe.ground
    if part.by == "difference":
        return DifferenceGround(recipe)
    by = part.asked if part.by == "phrase" else part.by
    asker = make_asker(by, part.model, part.revision, part.url, device)
    if part.by == "phrase":
        return PhraseGround(recipe, asker, Detector(part.detector, part.detector_revision, device))
    return AskedGround(recipe, asker)


def _segment(recipe: Recipe, device: str) -> Stage:
    part = recipe.segment
    if part.by in ("truth", "difference"):
        return TruthSegment(recipe) if part.by == "truth" else DifferenceSegment(recipe)
    return Tracker(part.by, part.model, part.revision, device)


def _painter(recipe: Recipe, device: str) -> Painter:
    """Subjects need none: its model is loaded for the first background."""
    if recipe.make.background == "fill":
        return filling
    held: list[Painter] = []

    def paint(frame: Any, foreground: Any, phrase: str) -> Any:
        if not held:
            with ending_the_worker():
                held.append(make_painter(recipe.make, device))
        return held[0](frame, foreground, phrase)

    return paint


def _features(part: Check | Deduplicate, device: str) -> Features:
    return DrawnFeatures() if part.features == "drawn" else Embedder(part.model, part.revision, device)


def _judge(recipe: Recipe, device: str) -> Judge | None:
    part = recipe.check
    if part.judge == "none":
        return None
    return make_judge(make_asker(part.judge, part.judge_model, part.judge_revision, part.url, device))


MAKERS = {
    "read": lambda recipe, device: Reading(recipe),
    "score": _score,
    "ground": _ground,
    "segment": _segment,
    "make": lambda recipe, device: Making(recipe, _painter(recipe, device)),
    "check": lambda recipe, device: Checking(recipe, _features(recipe.check, device), _judge(recipe, device)),
    "deduplicate": lambda recipe, device: Featuring(recipe, _features(recipe.deduplicate, device)),
}
