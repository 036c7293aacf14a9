"""What is known of a model and what of it is on this machine, for a list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kiwi_cli.base.text import count
from kiwi_cli.weights.catalog import QWEN_REPO, WAN_REPO, Score, Variant

if TYPE_CHECKING:
    from kiwi_cli.weights.fetch import Access


def describe(variant: Variant, access: Access) -> dict[str, Any]:
    """A model for `--json`; its keys are documented in docs/json.md."""
    from kiwi_cli.weights import embedded
    from kiwi_cli.weights.settings import ModelSettings, read_settings

    own = variant.kind == "embedded"
    here = embedded.find(variant) if own else None
    settings = read_settings(here) if here is not None else ModelSettings()
    return {
        "name": variant.name,
        "repo": variant.repo or None,
        "kind": variant.kind,
        "tasks": list(variant.tasks),
        "bytes": variant.bytes,
        "cached": state(variant, access),
        "cached_bytes": embedded.size(variant) if own else access.cached(variant.repo).size(),
        "scores": [describe_score(score) for score in variant.scores],
        "size": None if own else list(variant.size),
        "frames": settings.frames if own else variant.frames,
        "pixels": settings.pixels,
        "steps": settings.steps,
        "offers": list(settings.offers),
        "licence": variant.licence,
        "summary": variant.summary,
    }


def state(variant: Variant, access: Access) -> str:
    """'yes', 'partly' or 'no'."""
    from kiwi_cli.weights import embedded
    from kiwi_cli.weights.hub import peek

    if variant.kind == "embedded":
        return "yes" if embedded.find(variant) else "no"
    if peek(variant.repo, variant.revision, access):
        return "yes"
    return "partly" if access.cached(variant.repo).size() else "no"


def details(variant: Variant, row: dict[str, Any]) -> list[str]:
    """The lines of `--list -v` and `kiwi show MODEL`; `row` as `describe` makes it."""
    width, height = variant.size
    lines = [variant.summary]
    if variant.kind == "embedded":
        if row["cached"] != "yes":
            return [*lines, "not in this installation", variant.licence]
        if row["pixels"]:
            length = f", {count(row['frames'], 'frame')} at a time" if row["frames"] else ""
            lines.append(f"works at about {row['pixels']:,} pixels{length}, whatever the clip's size and length")
        lines.append(f"good for: {', '.join(row['offers']) or 'it does not say'}")
        return [*lines, variant.licence]
    lines += [f"https://huggingface.co/{variant.repo}", f"up to {count(variant.frames, 'frame')}, {width}x{height}"]
    if variant.kind == "raw":
        lines.append(f"trained parameters only: converted once, with {QWEN_REPO} and {WAN_REPO}")
    for score in variant.scores:
        columns = ", ".join(f"{name} {value:.2f}" for name, value in score.columns)
        lines.append(
            f"{score.benchmark} ({score.judge}): {score.overall:.2f}, {score.average}; {columns}; {score.source}"
        )
    return [*lines, variant.licence]


def describe_score(score: Score) -> dict[str, Any]:
    """A score for `--json`."""
    return {
        "benchmark": score.benchmark,
        "judge": score.judge,
        "overall": score.overall,
        "average": score.average,
        "columns": dict(score.columns),
        "source": score.source,
    }
