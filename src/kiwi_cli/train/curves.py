"""A run's figures: a line of JSON for each, and a picture of their curves, drawn without a plotting library."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kiwi_cli.base.whole import whole_file, write_text
from kiwi_cli.errors import KiwiError

METRICS, CURVES = "metrics.jsonl", "curves.png"
COLOURS = ("#3f7d20", "#1f6feb", "#b35900", "#8a3ffc", "#b3261e", "#00797a", "#6b6b00", "#b0307a")
PALE, GRID, INK = "#c9d9be", "#e4e6e8", "#30343a"
WIDTH, PANEL, LEFT, RIGHT, TOP, BOTTOM = 960, 250, 70, 210, 34, 30


class Metrics:
    """The run's `metrics.jsonl`. Every line has a `step`, counted in optimiser steps.

    Args:
        folder: of the run.
        step: where the run goes on; later lines, of steps that will be done again, are dropped. 0 begins anew.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self.path = folder / METRICS
        kept = [line for line in read_metrics(folder) if line["step"] <= step] if step else []
        folder.mkdir(parents=True, exist_ok=True)
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def add(self, step: int, **figures: Any) -> None:
        """Append a line; what is not finite becomes null, for JSON has no such number."""
        line = {"step": step, **{key: _finite(value) for key, value in figures.items()}}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return value if not isinstance(value, float) or math.isfinite(value) else None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, in order; a last line that a kill cut off is left out.

    Raises:
        KiwiError: a file that is no such thing.
    """
    path = folder / METRICS
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            found.append({**line, "step": int(line["step"])})
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break
            raise KiwiError(f"line {number} of '{path}' is no figure: {text[:60]!r}", "move the file away") from None
    return found


Points = list[tuple[float, float]]


def series(lines: Sequence[Mapping[str, Any]], key: str) -> dict[str, Points]:
    """(step, value) points of one figure; a figure that is a table gives a series for each of its names."""
    found: dict[str, Points] = {}
    for line in lines:
        value = line.get(key)
        table = value if isinstance(value, Mapping) else {"": value}
        for name, number in table.items():
            if isinstance(number, (int, float)):
                found.setdefault(name, []).append((float(line["step"]), float(number)))
    return found


def smooth(points: Points, window: int) -> Points:
    """Running mean over the last `window` points."""
    result, total = [], 0.0
    for number, (step, value) in enumerate(points):
        total += value - (points[number - window][1] if number >= window else 0.0)
        result.append((step, total / min(number + 1, window)))
    return result


def draw_curves(folder: Path) -> Path | None:
    """Draw `curves.png` from the run's metrics: the loss, the held-out losses, the gradient's norm and the rate.

    Returns:
        The picture, or None while there is nothing to draw.
    """
    from PIL import Image, ImageDraw

    lines = read_metrics(folder)
    panels = []
    for key, title in (
        ("loss", "training loss"),
        ("held_out", "held-out loss"),
        ("grad_norm", "norm of the gradient, before clipping"),
        ("lr", "learning rate"),
    ):
        found = series(lines, key)
        if found:
            panels.append((title, found))
    if not panels:
        return None
    image = Image.new("RGB", (WIDTH, PANEL * len(panels)), "white")
    draw = ImageDraw.Draw(image)
    last = max(line["step"] for line in lines)
    for number, (title, found) in enumerate(panels):
        _panel(draw, number * PANEL, title, found, last)
    path = folder / CURVES
    with whole_file(path) as part:
        image.save(part, format="PNG")
    return path


def _panel(draw: Any, y: int, title: str, found: dict[str, Points], last: float) -> None:
    from PIL import ImageFont

    font, small = ImageFont.load_default(14), ImageFont.load_default(11)
    raw = found.get("", []) if set(found) == {""} else []
    window = max(len(raw) // 25, 1)
    # One bad step must not flatten the rest: the scale leaves out the highest hundredth.
    values = sorted(value for points in found.values() for _, value in points)
    low, high = values[0], values[max(int(len(values) * 0.99) - 1, 0)] if len(values) > 100 else values[-1]
    if high <= low:
        low, high = low - abs(low) * 0.1 - 1e-12, high + abs(high) * 0.1 + 1e-12
    box = (LEFT, y + TOP, WIDTH - RIGHT, y + PANEL - BOTTOM)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        along = point[0] / max(last, 1)
        up = min(max((point[1] - low) / (high - low), 0.0), 1.0)
        return box[0] + along * (box[2] - box[0]), box[3] - up * (box[3] - box[1])

    draw.text((LEFT, y + 10), title, fill=INK, font=font)
    for tick in range(5):
        value = low + (high - low) * tick / 4
        height = place((0, value))[1]
        draw.line([(box[0], height), (box[2], height)], fill=GRID)
        draw.text((box[0] - 8, height), f"{value:.4g}", fill=INK, font=small, anchor="rm")
        draw.text((box[0] + (box[2] - box[0]) * tick / 4, box[3] + 8), f"{last * tick / 4:.0f}", fill=INK, font=small)
    for number, (name, points) in enumerate(sorted(found.items())):
        colour = COLOURS[number % len(COLOURS)]
        shown = points
        if raw and window > 1:
            _line(draw, [place(point) for point in points], PALE, 1)
            shown = smooth(points, window)
        _line(draw, [place(point) for point in shown], colour, 2)
        label = f"{name} {points[-1][1]:.4g}".strip() if not raw else f"{shown[-1][1]:.4g}"
        draw.text((box[2] + 12, box[1] + 15 * number), label, fill=colour, font=small)


def _line(draw: Any, points: Sequence[tuple[float, float]], colour: str, width: int) -> None:
    if len(points) == 1:
        x, y = points[0]
        draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=colour)
    else:
        draw.line(list(points), fill=colour, width=width)
