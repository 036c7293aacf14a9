"""Stages that ask: scores of a pair, the region an instruction is about, and whether a reference shows the target.

The prompts are ours: the published account has none.
"""

from __future__ import annotations

from typing import Any

from PIL import Image

from kiwi_cli.data.reference.asking import Asker, answer_in, number_in
from kiwi_cli.data.reference.files import Files, Unusable
from kiwi_cli.data.reference.making import Judge
from kiwi_cli.data.reference.recipe import Recipe
from kiwi_cli.data.reference.regions import changed
from kiwi_cli.data.reference.standins import SORTS, agreement
from kiwi_cli.data.reference.triplets import Triplet

SCORE = """The first {n} pictures are frames of a video (first, middle, last), the next {n} show them after an edit.
The instruction of the edit: {prompt}
Judge the edit. Answer with one JSON object and nothing else:
{{"following": 0 to 10, how far the instruction was carried out,
"consistency": 0 to 10, how far everything that it does not name stayed as it was,
"quality": 0 to 10, how natural and free of faults the frames after the edit are}}"""
GROUND = """The first picture is the first frame of a video, the second the same frame after an edit.
The instruction of the edit: {prompt}
Which edit is it, and where? Answer with one JSON object and nothing else:
{{"edit": "subject" if a thing or person was added, replaced or changed, "background" if what is behind the main things
was replaced, "other" for anything else,
"phrase": a few words that name the edited thing as it looks in the second picture, or the main things in front of the
background,
"box": [left, top, right, bottom] around what the phrase names in the second picture, each from 0 to 1000 of its
width or height}}"""
CHECK = """The first picture is to be a reference for an edit, the second the first frame of the edited video.
The instruction of the edit: {prompt}
The reference is to show {what}. Answer with one JSON object and nothing else:
{{"judged": 0 to 10, how far the reference shows that, complete, clean and with nothing else in it}}"""
WHAT = {
    "subject": "the thing that the edit brought, as the second picture has it, alone on a clean ground",
    "background": "the background of the second picture, without the things in front of it",
}
GRID = 1000.0  # of a box in an answer, as the Qwen3-VL models give it


class AskedScore:
    """`score`: what the model says, of 10; `overall` is the root of quality x the lower of the other two."""

    name = "score"

    def __init__(self, asker: Asker) -> None:
        self.asker = asker

    def run(self, row: Triplet, files: Files) -> dict[str, Any]:
        last = len(files.source) - 1
        numbers = sorted({0, last // 2, last})
        frames = [Image.fromarray(clip[number]) for clip in (files.source, files.target) for number in numbers]
        answer = answer_in(self.asker.ask(frames, SCORE.format(n=len(numbers), prompt=row.prompt)))
        found = {name: number_in(answer, name, 0, 10) for name in ("following", "consistency", "quality")}
        overall = (min(found["following"], found["consistency"]) * found["quality"]) ** 0.5
        return {**found, "overall": round(overall, 4)}


class AskedGround:
    """`ground`: the box that the model gives."""

    name = "ground"

    def __init__(self, recipe: Recipe, asker: Asker) -> None:
        self.tolerance, self.asker = recipe.read.tolerance, asker

    def box(self, answer: dict[str, Any], frame: Image.Image) -> list[float]:
        """Left, top, right and bottom in 0..1.

        Raises:
            Unusable: there is none.
        """
        box = answer.get("box")
        if not isinstance(box, list) or len(box) != 4:
            raise Unusable(f"the answer has no box of four numbers: {str(box)[:60]!r}")
        values = {str(place): value for place, value in enumerate(box)}
        edges = [number_in(values, str(place), 0, GRID) / GRID for place in range(4)]
        if not (edges[0] < edges[2] and edges[1] < edges[3]):
            raise Unusable(f"the answer's box is empty: {box}")
        return edges

    def run(self, row: Triplet, files: Files) -> dict[str, Any]:
        frames = [Image.fromarray(clip[0]) for clip in (files.source, files.target)]
        answer = answer_in(self.asker.ask(frames, GROUND.format(prompt=row.prompt)))
        sort, phrase = answer.get("edit"), answer.get("phrase")
        if sort == "other":
            raise Unusable("no picture can show what the edit brings, says the model")
        if sort not in SORTS or not isinstance(phrase, str) or not phrase.strip():
            raise Unusable(f"the answer names no edit and phrase: {str(answer)[:120]}")
        box = self.box({**answer, "phrase": phrase.strip()}, frames[1])
        apart = changed(files.source[0], files.target[0], self.tolerance)
        return {"sort": sort, "box": box, "phrase": phrase.strip()[:200], **agreement(str(sort), box, apart)}


class PhraseGround(AskedGround):
    """`ground`: the best box of an open-vocabulary detector for the model's phrase; its own box is not looked at.

    Args:
        detector: (picture, phrase) -> (box, confidence), or None.
    """

    def __init__(self, recipe: Recipe, asker: Asker, detector: Any) -> None:
        super().__init__(recipe, asker)
        self.detector = detector

    def box(self, answer: dict[str, Any], frame: Image.Image) -> list[float]:
        found: list[float] | None = self.detector(frame, answer["phrase"])
        if found is None:
            raise Unusable(f"the detector finds no '{answer['phrase'][:60]}'")
        return found


def make_judge(asker: Asker) -> Judge:
    """A judge of references that asks."""

    def judge(reference: Image.Image, frame: Image.Image, prompt: str, sort: str) -> dict[str, float]:
        words = CHECK.format(prompt=prompt, what=WHAT[sort])
        return {"judged": number_in(answer_in(asker.ask([reference, frame], words)), "judged", 0, 10)}

    return judge
