"""The tables of gpu.py: results by section -> Markdown."""

from __future__ import annotations

from typing import Any

REHEARSAL = "REHEARSAL with a tiny model: no figure of a GPU"

TARGETS = {  # docs/performance.md: seconds to reach at the full shape
    "50 steps, bf16, nothing skipped": ("compile", "denoise", 22.0),
    "decode, bf16": ("compiled-decode", "decode", 2.2),
    "whole edit, warm, without files": ("edit", "edit", 26.0),
}

Record = dict[str, Any]


def tables(results: dict[str, Record], rehearse: bool = False) -> str:
    """Markdown: where and with what, each section's figures, the targets; errors where a section has none."""
    lines = [f"**{REHEARSAL}**", ""] if rehearse else []
    smoke = results.get("smoke", {})
    if "device" in smoke:
        versions = ", ".join(f"{name} {number}" for name, number in smoke["versions"].items())
        lines += [f"{smoke['device']}, driver {smoke.get('driver') or 'none'}, {smoke['date'][:10]}; {versions}", ""]
    lines += ["| target | s | measured, s |", "|---|---|---|"]
    for label, (section, figure, target) in TARGETS.items():
        value = results.get(section, {}).get(figure)
        lines.append(f"| {label} | {target:g} | {'not measured' if value is None else f'{value:.2f}'} |")
    for name, record in results.items():
        lines += ["", f"### {name}, {record.get('seconds', 0):.0f} s", ""]
        if "error" in record:
            lines.append(f"error: {record['error']}")
        lines += [f"- {line}" for key in record if key not in SKIPPED for line in shown(key, record[key])]
    if rehearse:
        lines = [line if not line or line.startswith(("#", "|--", "**")) else f"{line} (rehearsal)" for line in lines]
    return "\n".join(lines) + "\n"


SKIPPED = ("section", "seconds", "error", "rehearsal", "versions", "date", "device", "driver")


def shown(key: str, value: Any) -> list[str]:
    """Lines for one figure: kernels and rows of a table one each, everything else on one line."""
    if key.startswith("kernels"):
        return [f"{key}: {seconds * 1e3:.1f} ms in {count}: `{name}`" for name, seconds, count in value]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [f"{key}: {words(row)}" for row in value]
    if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
        return [f"{key}, {name}: {words(inner)}" for name, inner in value.items()]
    return [f"{key}: {words(value)}"]


def words(value: Any) -> str:
    """A figure as text: four digits, bytes as they are counted in GB."""
    if isinstance(value, dict):
        return "; ".join(
            f"{name} {words(inner) if name != 'peak' else gigabytes(inner)}" for name, inner in value.items()
        )
    if isinstance(value, list):
        return ", ".join(map(words, value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return gigabytes(value) if value >= 10**9 else f"{value:.4g}"


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
