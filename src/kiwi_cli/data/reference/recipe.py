"""A recipe: which model or stand-in does each stage, and the thresholds, which no stage knows of."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from kiwi_cli.base.toml import build, override, read_toml
from kiwi_cli.errors import UsageError

STAGES = ("read", "score", "ground", "segment", "make", "check", "deduplicate")
"""In their order; what is left after the last is written."""
REVISION = {"read": 1, "score": 1, "ground": 1, "segment": 1, "make": 1, "check": 1, "deduplicate": 1}
"""Raised when a stage's code or prompt gives other figures: it is then done again."""

NEEDS = {
    "read": (),
    "score": ("read",),
    "ground": ("read",),
    "segment": ("read", "ground"),
    "make": ("read", "ground", "segment"),
    "check": ("read", "ground", "segment", "make"),
    "deduplicate": ("read", "ground", "segment", "make"),
}
"""What a stage's figures follow from, besides its own part of the recipe."""

Asked = Literal["local", "endpoint"]
"""Who answers a question about pictures: a model on this machine, or a server that speaks OpenAI's protocol."""
DRAWN = "drawn"
"""The recipe without a model, for rows whose truth is known."""


@dataclass(frozen=True)
class Read:
    """How clips are read.

    Attributes:
        frames: most of a clip. max_pixels: larger frames shrink to that area.
        tolerance: levels of 255 by which a channel differs before a pixel counts as changed.
        reverse: the real clip is the target: source and target change places, `reverse_prompt` is the instruction.
    """

    frames: int = 81
    max_pixels: int = 1280 * 720
    tolerance: int = 24
    reverse: bool = False


@dataclass(frozen=True)
class Score:
    """`questions`: ours, or EditScore's, from its package, for a model that was trained with them."""

    by: Literal["local", "endpoint", "truth"] = "local"
    questions: Literal["kiwi", "editscore"] = "kiwi"
    model: str = ""
    revision: str = ""
    licence: str = ""
    url: str = ""


@dataclass(frozen=True)
class Ground:
    """`phrase`: an open-vocabulary detector finds what `asked` says the instruction is about."""

    by: Literal["local", "endpoint", "phrase", "difference"] = "local"
    model: str = ""
    revision: str = ""
    licence: str = ""
    url: str = ""
    detector: str = ""
    detector_revision: str = ""
    detector_licence: str = ""
    asked: Asked = "local"


@dataclass(frozen=True)
class Segment:
    """`noise`: share of the truth's edge pixels that are turned over, of `truth` alone."""

    by: Literal["sam2", "sam3", "truth", "difference"] = "sam2"
    model: str = ""
    revision: str = ""
    licence: str = ""
    noise: float = 0.0


@dataclass(frozen=True)
class Make:
    """`margin`: white around a cut-out subject, of its longer side. `background`: what paints the foreground away."""

    margin: float = 0.05
    background: Literal["qwen-image-edit", "flux-kontext", "flux2-klein", "kiwi", "fill"] = "qwen-image-edit"
    model: str = ""
    revision: str = ""
    licence: str = ""
    steps: int = 40
    seed: int = 0


@dataclass(frozen=True)
class Check:
    features: Literal["model", "drawn"] = "model"
    model: str = ""
    revision: str = ""
    licence: str = ""
    judge: Literal["local", "endpoint", "none"] = "local"
    judge_model: str = ""
    judge_revision: str = ""
    judge_licence: str = ""
    url: str = ""


@dataclass(frozen=True)
class Deduplicate:
    """`of`: the pictures that have to be alike for two rows to be one."""

    features: Literal["model", "drawn"] = "model"
    model: str = ""
    revision: str = ""
    licence: str = ""
    of: tuple[Literal["reference", "target"], ...] = ("reference",)


@dataclass(frozen=True)
class Thresholds:
    """What a row's figures have to be; see `verdicts.RULES` for what each is of.

    Ours, but for the scores above 8 of 10, which are the published account's.
    """

    changed: float = 0.0005
    following: float = 8.0
    consistency: float = 8.0
    quality: float = 6.0
    overall: float = 8.0
    agreement: float = 0.5
    tracked: float = 0.5
    overlap: float = 0.3
    aspect: float = 3.0
    smallest: float = 0.01
    largest: float = 0.6
    side: float = 128.0
    similarity: float = 0.5
    judged: float = 7.0
    duplicate: float = 0.95


@dataclass(frozen=True)
class Recipe:
    read: Read = field(default_factory=Read)
    score: Score = field(default_factory=Score)
    ground: Ground = field(default_factory=Ground)
    segment: Segment = field(default_factory=Segment)
    make: Make = field(default_factory=Make)
    check: Check = field(default_factory=Check)
    deduplicate: Deduplicate = field(default_factory=Deduplicate)
    thresholds: Thresholds = field(default_factory=Thresholds)

    def as_plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_plain(cls, values: Any) -> Recipe:
        """Raises UsageError of an unknown key, or a value of another type."""
        recipe: Recipe = build(cls, values)
        return recipe.checked()

    def checked(self) -> Recipe:
        """Raises UsageError where a number makes no sense."""
        for name, value, least, most in (
            ("read.frames", self.read.frames, 1, 10_000),
            ("read.max_pixels", self.read.max_pixels, 32 * 32, 1 << 26),
            ("read.tolerance", self.read.tolerance, 0, 254),
            ("segment.noise", self.segment.noise, 0, 1),
            ("make.margin", self.make.margin, 0, 1),
            ("make.steps", self.make.steps, 1, 1000),
        ):
            if not least <= value <= most:
                raise UsageError(f"'{name}' is {value:g}", f"it is from {least} to {most}")
        self._check_used()
        if not self.deduplicate.of or len(set(self.deduplicate.of)) < len(self.deduplicate.of):
            raise UsageError(f"'deduplicate.of' is {list(self.deduplicate.of)}", "name reference, target or both")
        return self

    def _check_used(self) -> None:
        """Raises UsageError of a value that would do nothing."""
        ground, check = self.ground, self.check
        asked = ground.asked if ground.by == "phrase" else ground.by
        for name, value, is_used in (
            ("score.model", self.score.model, self.score.by != "truth"),
            ("score.questions", self.score.questions.removeprefix("kiwi"), self.score.by != "truth"),
            ("score.url", self.score.url, self.score.by == "endpoint"),
            ("ground.model", ground.model, ground.by != "difference"),
            ("ground.url", ground.url, asked == "endpoint"),
            ("ground.detector", ground.detector, ground.by == "phrase"),
            ("segment.model", self.segment.model, self.segment.by in ("sam2", "sam3")),
            ("segment.noise", self.segment.noise, self.segment.by == "truth"),
            ("make.model", self.make.model, self.make.background != "fill"),
            ("check.model", check.model, check.features == "model"),
            ("check.judge_model", check.judge_model, check.judge != "none"),
            ("check.url", check.url, check.judge == "endpoint"),
            ("deduplicate.model", self.deduplicate.model, self.deduplicate.features == "model"),
        ):
            if value and not is_used:
                raise UsageError(f"'{name}' (= {value!r}) is used by nothing in this recipe", "leave it out")

    def identity(self, stage: str) -> list[Any]:
        """What decides a stage's figures: its own part of the recipe, and those of the stages whose files it reads."""
        parts: list[Any] = []
        for name in (*NEEDS[stage], stage):
            section = {key: value for key, value in asdict(getattr(self, name)).items() if key not in _SAID}
            parts.append([name, REVISION[name], section])
        return parts


_SAID = {"licence", "detector_licence", "judge_licence"}  # these change no figure


def drawn() -> Recipe:
    """The recipe of exact stand-ins for rows of `kiwi data synth`."""
    return Recipe(
        read=Read(tolerance=8),
        score=Score(by="truth"),
        ground=Ground(by="difference"),
        segment=Segment(by="truth", noise=0.3),
        make=Make(background="fill"),
        check=Check(features="drawn", judge="none"),
        deduplicate=Deduplicate(features="drawn", of=("reference", "target")),
        thresholds=Thresholds(following=6.0, smallest=0.008, side=8.0, duplicate=0.995),
    )


def load(name: str, changes: list[str]) -> Recipe:
    """A recipe from its file, or 'drawn', with KEY=VALUE changes.

    Raises:
        UsageError.
    """
    tree = drawn().as_plain() if name == DRAWN else read_toml(Path(name), [DRAWN])
    for change in changes:
        override(tree, change)
    return Recipe.from_plain(tree)
