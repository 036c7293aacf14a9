"""The changes of an edit and of its source, frame by frame, with the places where windows meet: SVG text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from kiwi_cli.bench.seams.figures import Figures

WIDTH, HEIGHT, LEFT, TOP = 960, 200, 50, 30
GREY, RED = "#9aa0a6", "#b3261e"


def plot(rows: Sequence[tuple[str, Figures]]) -> str:
    """A panel for each clip: the seam ratio of every frame; where windows meet it is marked."""
    height = (HEIGHT + TOP) * len(rows) + 20
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<style>text{font:12px sans-serif;fill:#333}</style>",
    ]
    for number, (name, found) in enumerate(rows):
        out += _panel(name, found, number * (HEIGHT + TOP) + TOP)
    return "\n".join([*out, "</svg>"]) + "\n"


def _panel(name: str, found: Figures, top: int) -> list[str]:
    frames = max(found.ratios, default=1)
    most = max(2.0, *found.ratios.values()) if found.ratios else 2.0

    def place(frame: int, value: float) -> tuple[float, float]:
        x = LEFT + frame / frames * (WIDTH - LEFT - 20)
        return round(x, 1), round(top + (HEIGHT - 40) * (1 - value / most), 1)

    out = [f'<text x="{LEFT}" y="{top - 10}">{escape(name)}: seam ratio by frame; red: where windows meet</text>']
    for tick in range(int(most) + 1):
        y = place(0, tick)[1]
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - 20}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{tick}</text>')
    line = " ".join("{},{}".format(*place(frame, value)) for frame, value in sorted(found.ratios.items()))
    out.append(f'<polyline points="{line}" fill="none" stroke="{GREY}"/>')
    for frame, value in found.ratios.items():
        x, y = place(frame, value)
        if frame in found.boundaries:
            out.append(
                f'<circle cx="{x}" cy="{y}" r="3" fill="{RED}"><title>frame {frame}: {value:.2f}</title></circle>'
            )
    return out
