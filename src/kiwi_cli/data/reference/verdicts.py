"""Verdicts from figures and thresholds alone: no model, no clip. The page computes the same in the browser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from kiwi_cli.data.reference.recipe import Thresholds


@dataclass(frozen=True)
class Rule:
    """One bound.

    Attributes:
        stage, figure: what it is of. threshold: its name in the recipe.
        at: whether the figure has to be at least the threshold, or at most.
        words: why a row is dropped that breaks it.
    """

    stage: str
    figure: str
    threshold: str
    at: Literal["least", "most"]
    words: str

    def holds(self, value: float, bound: float) -> bool:
        return value >= bound if self.at == "least" else value <= bound


RULES = (
    Rule("read", "changed", "changed", "least", "the target is the source: hardly a pixel changed"),
    Rule("score", "following", "following", "least", "the target does not follow the instruction"),
    Rule("score", "consistency", "consistency", "least", "what should have stayed was changed"),
    Rule("score", "quality", "quality", "least", "the target does not look good"),
    Rule("score", "overall", "overall", "least", "the pair is not good enough"),
    Rule("ground", "agreement", "agreement", "least", "the region that was named is not where the frames differ"),
    Rule("segment", "tracked", "tracked", "least", "the region was lost in too many frames"),
    Rule("segment", "overlap", "overlap", "least", "the region is not what changed"),
    Rule("check", "area", "smallest", "least", "the region is too small"),
    Rule("check", "area", "largest", "most", "the region is too large"),
    Rule("check", "aspect", "aspect", "most", "the reference is too long and thin"),
    Rule("check", "side", "side", "least", "the reference has too few pixels"),
    Rule("check", "similarity", "similarity", "least", "the reference is not like the target"),
    Rule("check", "judged", "judged", "least", "the reference does not show what the target does"),
    Rule("deduplicate", "similarity", "duplicate", "most", "a duplicate"),
)


def verdict(stage: str, figures: dict[str, Any], thresholds: Thresholds) -> str | None:
    """Why a row is dropped at a stage, in words with its figure; None when it passes.

    A figure that a stage does not give (no quality without a judge) is held to nothing.
    """
    if (reason := figures.get("unusable")) is not None:
        return str(reason)
    for rule in RULES:
        value = figures.get(rule.figure) if rule.stage == stage else None
        bound = getattr(thresholds, rule.threshold)
        if value is None or rule.holds(value, bound):
            continue
        if stage == "deduplicate":
            return f"{rule.words} of {figures['nearest']}: {value:g}, at most {bound:g}"
        return f"{rule.words}: {rule.figure} {value:g}, at {rule.at} {bound:g}"
    return None
