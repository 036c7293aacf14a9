"""`kiwi prompts`: what a model is good for, with sentences that work."""

from __future__ import annotations

from typing import Annotated

import typer

from kiwi_cli.base.text import aligned
from kiwi_cli.cli import options
from kiwi_cli.cli.console import Console
from kiwi_cli.cli.root import app
from kiwi_cli.errors import UsageError
from kiwi_cli.weights.catalog import complete_names, find_variant

SENTENCES = 3  # of a kind
LABEL = 22  # columns
FREE = {
    "style": ("turn it into a watercolour painting", "make it look like a film of the seventies", "make it snowy"),
    "background": ("replace the background with a beach at sunset", "put the dancer on a stage"),
    "change": ("make the car red", "give her a leather jacket"),
    "remove": ("remove the man on the left", "remove the logo on the shirt"),
    "add": ("add a hat to the woman", "add a small dog beside the boy"),
    "with --ref PICTURE": ("put the hat on the woman", "replace the background with the one in the reference image"),
}
"""For the released models, which take any words: of the kinds that they were trained on and are measured in."""


@app.command()
def prompts(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="A model's name or folder.",
            autocompletion=complete_names,
            envvar="KIWI_MODEL",
        ),
    ] = "instruct-reference",
    every: Annotated[bool, options.flag("--all", help="Every sentence that the model was trained with.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """List what a model is good for, with sentences that work.

    Examples:

      kiwi prompts

      kiwi prompts --model tiny --all
    """
    from kiwi_cli.editors.registry import kind_of
    from kiwi_cli.engine.choice import ModelChoice

    choice = ModelChoice(model=model, download=False)
    console = Console(as_json=as_json)
    variant = find_variant(model)
    if variant is not None and variant.kind != "embedded":
        console.note(f"'{model}' takes any words; these are of the kinds that it was trained on")
        kinds = {kind: list(texts) for kind, texts in FREE.items()}
    else:
        settings = kind_of(choice).find(choice).settings
        if not settings.offers or not settings.understands:
            raise UsageError(f"'{model}' does not say what it was trained with", "kiwi prompts --model tiny does")
        texts = {kind: settings.understands.get(kind, ()) for kind in settings.offers}
        kinds = {kind: list(found if every else _some(found)) for kind, found in texts.items()}
    rows = [(kind if number == 0 else "", text) for kind, found in kinds.items() for number, text in enumerate(found)]
    console.result(aligned(rows, LABEL), {"model": model, "kinds": kinds})


def _some(texts: tuple[str, ...]) -> list[str]:
    """A few of the sentences, spread over all of them: the phrases follow each other."""
    step = max(1, len(texts) // SENTENCES)
    return list(texts[::step][:SENTENCES])
