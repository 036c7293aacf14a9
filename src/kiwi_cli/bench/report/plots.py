"""Bars and radars as SVG text: no library, no script, the same text for the same figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

LOWEST, HIGHEST = 1.0, 5.0  # of every score
COLOURS = ("#3f7d20", "#1f6feb", "#b35900", "#8a3ffc", "#b3261e", "#00797a")
OTHERS = "#9aa0a6"


class Bar(NamedTuple):
    """One bar; `low` and `high` draw a whisker, `own` a colour."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    own: bool = False
    note: str = ""


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars from 1 to 5, in the order given."""
    left, right, top, line = 400, 60, 34, 26
    width, height = 860, top + line * len(rows) + 30
    scale = (width - left - right) / (HIGHEST - LOWEST)

    def x(value: float) -> float:
        return left + (min(max(value, LOWEST), HIGHEST) - LOWEST) * scale

    out = [_open(width, height, title), f'<text x="0" y="18" class="t">{escape(title)}</text>']
    for tick in range(1, 6):
        out.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{height - 24}" class="g"/>')
        out.append(f'<text x="{x(tick):.1f}" y="{height - 8}" text-anchor="middle" class="s">{tick}</text>')
    for number, bar in enumerate(rows):
        y = top + line * number
        colour = COLOURS[0] if bar.own else OTHERS
        out.append(f"<g><title>{escape(f'{bar.label}: {bar.value:.2f} {bar.note}'.strip())}</title>")
        out.append(f'<text x="{left - 8}" y="{y + 17}" text-anchor="end">{escape(_short(bar.label, 60))}</text>')
        length = max(x(bar.value) - left, 1.0)
        out.append(f'<rect x="{left}" y="{y + 5}" width="{length:.1f}" height="16" rx="2" fill="{colour}"/>')
        end = x(bar.value)
        if bar.low is not None and bar.high is not None:
            out.append(f'<path d="M{x(bar.low):.1f} {y + 13}H{x(bar.high):.1f}" class="w"/>')
            out += [f'<path d="M{x(v):.1f} {y + 9}v8" class="w"/>' for v in (bar.low, bar.high)]
            end = max(end, x(bar.high))
        out.append(f'<text x="{end + 6:.1f}" y="{y + 17}" class="b">{bar.value:.2f}</text></g>')
    return "".join([*out, "</svg>"])


def radar(title: str, axes: Sequence[str], rows: Sequence[tuple[str, Sequence[float | None]]]) -> str:
    """One closed line for each row, an axis for each name from 1 in the middle to 5; '' below three axes."""
    if len(axes) < 3 or not rows:
        return ""
    width, centre_x, centre_y, radius = 960, 300, 220, 150
    height = max(420, 60 + 24 * len(rows))

    def point(axis: int, value: float) -> tuple[float, float]:
        angle = 2 * math.pi * axis / len(axes) - math.pi / 2
        reach = radius * (min(max(value, LOWEST), HIGHEST) - LOWEST) / (HIGHEST - LOWEST)
        return centre_x + reach * math.cos(angle), centre_y + reach * math.sin(angle)

    out = [_open(width, height, title), f'<text x="0" y="18" class="t">{escape(title)}</text>']
    for tick in range(2, 6):
        corners = " ".join(f"{a:.1f},{b:.1f}" for a, b in (point(k, tick) for k in range(len(axes))))
        out.append(f'<polygon points="{corners}" class="g" fill="none"/>')
        a, b = point(0, tick)
        out.append(f'<text x="{a + 4:.1f}" y="{b + 12:.1f}" class="s">{tick}</text>')
    for k, name in enumerate(axes):
        a, b = point(k, HIGHEST)
        out.append(f'<line x1="{centre_x}" y1="{centre_y}" x2="{a:.1f}" y2="{b:.1f}" class="g"/>')
        away_x, away_y = a + (a - centre_x) * 0.09, b + (b - centre_y) * 0.09 + 4
        side = "middle" if abs(a - centre_x) < 12 else "start" if a > centre_x else "end"
        out.append(f'<text x="{away_x:.1f}" y="{away_y:.1f}" text-anchor="{side}">{escape(name)}</text>')
    for number, (label, values) in enumerate(rows):
        colour = COLOURS[number % len(COLOURS)]
        dash = ' stroke-dasharray="6 4"' if number >= len(COLOURS) else ""
        places = [None if value is None else point(k, value) for k, value in enumerate(values)]
        known = [place for place in places if place is not None]
        # Only neighbours are joined: a line across an axis without a value would show one that nobody gave.
        sides = zip(places, [*places[1:], *places[:1]], strict=True)
        path = "".join(f"M{a[0]:.1f} {a[1]:.1f}L{b[0]:.1f} {b[1]:.1f}" for a, b in sides if a and b)
        area = " ".join(f"{a:.1f},{b:.1f}" for a, b in known) if len(known) == len(axes) else ""
        words = ", ".join(f"{n} {v:.2f}" for n, v in zip(axes, values, strict=True) if v is not None)
        out.append(f"<g><title>{escape(f'{label}: {words}')}</title>")
        out.append(f'<polygon points="{area}" fill="{colour}" fill-opacity=".07"/>')
        out.append(f'<path d="{path}" fill="none" stroke="{colour}"{dash} class="l"/>')
        out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in known]
        y = 60 + 24 * number
        out.append(f'<rect x="560" y="{y - 10}" width="14" height="12" fill="{colour}"/>')
        out.append(f'<text x="582" y="{y}">{escape(_short(label, 46))}</text></g>')
    return "".join([*out, "</svg>"])


def _open(width: int, height: int, title: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title, quote=True)}" class="plot">'


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
