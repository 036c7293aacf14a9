"""What a model is told: the instruction, or of a model that says what it understands a sentence of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiwi_cli.base.plainly import plainly
from kiwi_cli.base.sentences import strength
from kiwi_cli.base.understood import KNOWN, SHOWN, Match, match

if TYPE_CHECKING:
    from kiwi_cli.editing.request import EditRequest
    from kiwi_cli.weights.settings import ModelSettings


def understood(request: EditRequest, settings: ModelSettings) -> Match | None:
    """How the instruction fits what the model says that it understands; None where it says nothing."""
    if not settings.understands or not settings.offers:
        return None
    shown = bool(request.references)
    kinds = [kind for kind in settings.offers if kind.startswith("reference-") == shown] or settings.offers
    words = request.instruction if request.raw else plainly(request.instruction)
    return match(words, settings.understands, kinds, SHOWN if shown else KNOWN)


def told(request: EditRequest, settings: ModelSettings) -> str:
    """The instruction as the model is given it.

    A model that was trained with some thousand sentences does something else when it reads one word of them alone, or a
    hint that helps the released models: it gets the sentence of its own that is meant. To the letter (`raw`) nothing is
    changed.
    """
    if not settings.understands or request.raw:
        return request.prompt
    found = understood(request, settings)
    return found.told if found is not None and found.understood else plainly(request.prompt)


def meant(request: EditRequest, settings: ModelSettings, found: Match) -> str:
    """As which kind of edit an instruction is understood, and what the model is given for it, in words."""
    kind = found.kind.replace("-", " ")
    if request.raw and request.prompt not in settings.understands[found.kind]:
        none = f"'{request.prompt}' is none of the sentences that the model was trained with"
        return f"{none}, though it seems to mean {kind}: another edit may come"
    words = told(request, settings)
    asked = strength(plainly(request.instruction))
    only = ", which it knows in one strength only" if asked not in ("", strength(words)) else ""
    left = ", without what --task adds" if request.task and not request.raw else ""
    given = f', and given to the model as "{words}"{left}' if words != request.prompt else ""
    return f"understood as: {kind}{only}{given}"
