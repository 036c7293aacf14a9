"""EditScore as the scorer of a pair: asked with its own prompts, its answers read by a strict parser of ours.

The prompts are those of its package, which a fine-tuned EditScore model knows. They are read out of its source; nothing
of the package is run: it would give a middle score where an answer cannot be read.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kiwi_cli.data.reference.asking import Asker, answer_in, number_in
from kiwi_cli.data.reference.files import Files, Unusable
from kiwi_cli.data.reference.triplets import Triplet
from kiwi_cli.errors import UsageError

RANGE = 25  # of a score; the models were trained with it in place of the 10 that the prompts say
HINT = "pip install --no-deps editscore==0.2 (its own dependencies are not needed), or set score.questions to kiwi"
PARTS = {
    "pair": ("_context_no_delimit_reasoning_first", "_prompts_0shot_two_image_edit_rule", "_prompts_0shot_tie_rule_SC"),
    "picture": ("_context_no_delimit_reasoning_first", "_prompts_0shot_rule_PQ"),
}
SCALED = ("_prompts_0shot_tie_rule_SC", "_prompts_0shot_rule_PQ")


def prompts() -> dict[str, str]:
    """What is asked about a pair, with '<instruction>' in it, and about the edited picture alone.

    Raises:
        UsageError: the package is not installed, or another version.
    """
    spec = importlib.util.find_spec("editscore")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    places = [place for folder in folders if (place := Path(folder) / "vie_prompts.py").is_file()]
    if not places:
        raise UsageError("EditScore's prompts are not here: its package is not installed", HINT)
    words = _texts(places[0])
    found = {}
    for name, parts in PARTS.items():
        texts = []
        for part in parts:
            text = words.get(part)
            if text is None:
                raise UsageError(f"EditScore's package has no '{part}': it is another version", HINT)
            texts.append(text.replace("10", str(RANGE)) if part in SCALED else text)
        found[name] = "\n".join(texts)
    return found


def _texts(path: Path) -> dict[str, str]:
    """The texts that a file of Python gives names to, without running it."""
    try:
        lines = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"EditScore's prompts cannot be read: {error}", HINT) from None
    found: dict[str, str] = {}
    for line in lines:
        if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str):
            found |= {name.id: line.value.value for name in line.targets if isinstance(name, ast.Name)}
    return found


def scores_in(text: str, count: int) -> list[float]:
    """The scores of an answer, of 10.

    Raises:
        Unusable: it is no JSON object with so many numbers from 0 to 25 as its 'score'.
    """
    found = answer_in(text).get("score")
    if not isinstance(found, list) or len(found) != count:
        raise Unusable(f"the answer has no {count} scores: {str(found)[:60]!r}")
    return [number_in({"score": value}, "score", 0, RANGE) * 10 / RANGE for value in found]


class EditScored:
    """`score` of the first, the middle and the last frame, averaged: the model is one for pictures.

    Of each: following and consistency of the pair, quality, the lower of its two scores of the edited picture, and
    overall, the root of quality x the lower of the other two.
    """

    name = "score"

    def __init__(self, asker: Asker) -> None:
        self.asker, self.prompts = asker, prompts()

    def run(self, row: Triplet, files: Files) -> dict[str, Any]:
        last = len(files.source) - 1
        numbers = sorted({0, last // 2, last})
        each = [self._frame(row.prompt, files.source[number], files.target[number]) for number in numbers]
        names = ("following", "consistency", "quality", "overall")
        return {name: round(float(np.mean(values)), 4) for name, values in zip(names, np.transpose(each), strict=True)}

    def _frame(self, prompt: str, source: np.ndarray, target: np.ndarray) -> Sequence[float]:
        before, after = Image.fromarray(source), Image.fromarray(target)
        asked = self.prompts["pair"].replace("<instruction>", prompt)
        following, consistency = scores_in(self.asker.ask([before, after], asked), 2)
        quality = min(scores_in(self.asker.ask([after], self.prompts["picture"]), 2))
        return following, consistency, quality, (min(following, consistency) * quality) ** 0.5
