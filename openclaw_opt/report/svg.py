"""Inline SVG from small pure functions. Colours are classes of report.css, so that dark mode and print apply.

A drawing is `WIDTH` user units wide and scales with its column; text is 12 units. All text is escaped here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH = 400
ROW = 36
"""Height of one bar with its label above."""


@dataclass(frozen=True)
class Scale:
    """Data to drawing, linear or logarithmic. `low < high`; both positive where logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (
            (math.log(x) for x in (self.low, self.high, max(value, self.low)))
            if self.log
            else (self.low, self.high, value)
        )
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 4) -> list[float]:
        """Round values inside the range, about `count` of them."""
        return _decades(self.low, self.high) if self.log else _round_steps(self.low, self.high, count)


@dataclass(frozen=True)
class Bar:
    """One bar of a panel: label on the left, number on the right. `share` of the panel's largest, None for no bar."""

    label: str
    text: str
    value: float | None
    style: str = "engine"


@dataclass(frozen=True)
class Figure:
    """A picture, what it shows, and a caption that says how to read it."""

    title: str
    svg: str
    caption: str = ""


def padded(values: Iterable[float], share: float = 0.12, least: float = 1e-9) -> tuple[float, float]:
    """A range around the values with room on both sides; never empty."""
    known = list(values)
    low, high = min(known), max(known)
    room = max((high - low) * share, abs(high) * 0.002, least)
    return low - room, high + room


def drawing(height: float, title: str, parts: Iterable[str]) -> str:
    """The whole `<svg>`; `title` is what a screen reader says."""
    body = "".join(parts)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{_attribute(title)}" class="figure">{body}</svg>'
    )


def text(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def box(x: float, y: float, width: float, height: float, style: str, hover: str = "") -> str:
    tip = f"<title>{escape(hover)}</title>" if hover else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" rx="2" class="{style}">{tip}</rect>'


def marker(x: float, y: float, kind: str, hover: str = "") -> str:
    """A shape a kind, so that nothing hangs on colour: hollow circle reference, triangle pass, diamond engine."""
    shapes = {
        "reference": f"M{x - 6:.1f} {y:.1f}a6 6 0 1 0 12 0a6 6 0 1 0 -12 0z",
        "pass": f"M{x:.1f} {y - 6:.1f}l6 11h-12z",
        "engine": f"M{x:.1f} {y - 8:.1f}l8 8l-8 8l-8 -8z",
    }
    return f'<path d="{shapes[kind]}" class="mark {kind}"><title>{escape(hover)}</title></path>'


def polyline(points: Sequence[tuple[float, float]], style: str) -> str:
    return f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" class="curve {style}"/>'


def whisker(low: float, high: float, across: float, *, upright: bool = False, cap: float = 4) -> str:
    """An interval with caps: along x at height `across`, or upright at x `across`."""
    ends = [
        (low, high, across, across),
        (low, low, across - cap, across + cap),
        (high, high, across - cap, across + cap),
    ]
    return "".join(line(c, a, d, b, "whisker") if upright else line(a, c, b, d, "whisker") for a, b, c, d in ends)


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars from zero, all on one scale, each under its label and number."""
    most = max((row.value for row in rows if row.value is not None and math.isfinite(row.value)), default=0.0)
    parts: list[str] = []
    for i, row in enumerate(rows):
        top = i * ROW
        parts += [text(0, top + 13, row.label, "label"), text(WIDTH, top + 13, row.text, "number", "end")]
        parts.append(box(0, top + 19, WIDTH, 9, "track"))
        if row.value is not None and math.isfinite(row.value) and most > 0:
            parts.append(
                box(0, top + 19, max(row.value / most * WIDTH, 1), 9, f"bar {row.style}", f"{row.label}: {row.text}")
            )
    return drawing(max(len(rows) * ROW, 1), title, parts)


def x_axis(scale: Scale, top: float, bottom: float, labels: Sequence[tuple[float, str]]) -> str:
    """Grid lines with labels under them; labels that would touch the one before are left out."""
    parts, free_from = [], -math.inf
    for value, label in labels:
        x, half = scale(value), len(label) * 3.4
        parts.append(line(x, top, x, bottom, "grid"))
        middle = min(max(x, half), WIDTH - half)
        if middle - half > free_from:
            parts.append(text(middle, bottom + 16, label, "tick", "middle"))
            free_from = middle + half + 6
    return "".join(parts)


def y_axis(scale: Scale, left: float, right: float, labels: Sequence[tuple[float, str]]) -> str:
    return "".join(
        line(left, scale(value), right, scale(value), "grid") + text(left - 6, scale(value) + 4, label, "tick", "end")
        for value, label in labels
    )


def tick(value: float, scale: Scale) -> str:
    """As many decimals as the axis needs to tell its ticks apart."""
    decimals = max(0, 1 - math.floor(math.log10(scale.high - scale.low)))
    return f"{value:,.{min(decimals, 8)}f}"


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Positions as near to the wanted as they can be with `gap` between neighbours, in the order given."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = list(wanted)
    for before, here in itertools.pairwise(order):
        placed[here] = max(placed[here], placed[before] + gap)
    return placed


def _round_steps(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    found = [
        m * 10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)
    ]
    return [value for value in found if low <= value <= high]


def _attribute(words: str) -> str:
    return escape(words, {'"': "&quot;"})
