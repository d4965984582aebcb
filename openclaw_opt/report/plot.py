"""A picture is a Vega-Lite specification (data, marks, scales) that vl-convert draws as SVG without a browser.

Colours are placeholders that become CSS variables, so that dark mode, print and forced colours apply; text stays text; every
element carries attributes only, because the page's content policy forbids styles in line. The drawing has role `img`, a
title and a description; its parts are hidden from assistive technology, which gets the figure's table instead.

vl-convert starts an engine of half a second when it draws first, so it is imported here, when something is drawn.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from openclaw_opt.report.tables import Table
from openclaw_opt.store import Store, digest
from openclaw_opt.versions import version_of

Spec = dict[str, Any]
WIDTH = 420
"""User units of a whole drawing at 12-unit text; it scales down with its column."""
BODY = 270
"""Width of a plot's inside where labels stand at its side."""

HEIGHT = 220
"""Of the inside of a plot of two numbers."""
LOG_FROM = 20
"""A ratio of largest to smallest value from which an axis is logarithmic."""

COLOURS = {
    "ink": "#000001",
    "soft": "#000002",
    "line": "#000003",
    "card": "#000004",
    "track": "#000005",
    "good": "#000006",
    "bad": "#000007",
    "open": "#000008",
    "third": "#000009",
    "fourth": "#00000a",
    "reference": "#00000b",
    "good-tint": "#00000c",
}
"""Name of a CSS variable of report.css → the colour that stands for it in a specification."""
_VARIABLES = {placeholder: f"var(--{name})" for name, placeholder in COLOURS.items()}
_PLACEHOLDER = re.compile(r"#00000[0-9a-f]\b")
UNPRINTABLE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""What no SVG may hold; vl-convert ends the process on one, so they never reach it."""
_ASTRAL = re.compile("[\U00010000-\U0010ffff]")
"""Two units of UTF-16: Vega shortens a long text between them, and cannot measure the half it is left with."""
_LABEL = 34
"""Characters of a label at the side; the whole is in the table."""

_CONFIG: Spec = {
    "aria": False,  # the drawing as a whole is named, and titles would become expressions that text can break
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": COLOURS["soft"], "titleColor": COLOURS["soft"], "gridColor": COLOURS["line"], "domainColor": COLOURS["line"],
        "tickColor": COLOURS["line"], "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 210,
        "labelOverlap": "greedy", "labelSeparation": 6,         "titleLimit": 400,
    },
    "title": {"color": COLOURS["ink"], "fontSize": 12, "fontWeight": "bold", "anchor": "start", "offset": 6, "limit": 400},
    "text": {"color": COLOURS["ink"], "fontSize": 12},
    "legend": {"labelColor": COLOURS["ink"], "titleColor": COLOURS["soft"], "labelFontSize": 11, "symbolSize": 90, "labelLimit": 260},
    "concat": {"spacing": 14},
}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A picture as data: what it shows, how to read it, its specification and its numbers.

    `name` makes the ids of its drawing its own on the page. Numbers in `spec` are finite.
    """

    name: str
    title: str
    spec: Spec
    table: Table
    caption: str = ""


def drawings(figures: Sequence[Figure], store: Store | None = None) -> dict[str, str]:
    """Name of each figure → its SVG element; from the store where these very pictures were drawn before."""
    if store is None or not figures:
        return {one.name: _draw(one) for one in figures}
    asked = [[one.name, one.title, one.caption, _whole(one.spec)] for one in figures]
    own = Path(__file__).read_text(encoding="utf-8")
    key = digest({"drawings": asked, "by": version_of("vl-convert-python"), "code": own})
    stored = store.find(key)
    if stored is not None:
        return {name: str(svg) for name, svg in stored["svg"].items()}
    drawn = {one.name: _draw(one) for one in figures}
    with store.making() as folder:
        store.keep(folder, key, {"kind": "drawings", "svg": drawn})
    return drawn


_PADDING = {"left": 4, "top": 4, "bottom": 4, "right": 18}
"""Readers' fonts are wider than the one the drawing is measured with, and texts end at the right."""


def _whole(spec: Spec) -> Spec:
    return {"background": None, "config": _CONFIG, "padding": _PADDING, **_clean(spec)}


def _draw(one: Figure) -> str:
    import vl_convert

    whole = _whole(one.spec)
    json.dumps(whole, allow_nan=False)  # a ValueError here, and not an end of the process there
    described = f"{one.caption} The numbers are in the table below the picture.".strip()
    return _dressed(vl_convert.vegalite_to_svg(whole), one.name, one.title, described)


def _dressed(svg: str, name: str, title: str, description: str) -> str:
    """Without what only repeats defaults, with variables for colours, and with a name."""
    width, height = re.findall(r' (?:width|height)="([-+.\de]+)"', svg[: svg.index(">")])
    body = svg[svg.index(">") + 1 :]
    body = re.sub(r'<path (?:aria-label="[^"]*" )?class="(?:background|foreground)"[^>]*/>', "", body)
    body = re.sub(r' (?:aria-[a-z]+|role|pointer-events|class|font-family)="[^"]*"', "", body)
    body = re.sub(r' (?:opacity="1"|stroke-miterlimit="10")', "", body)
    body = re.sub(r'(id="|url\(#)(clip\d+)', rf"\g<1>{name}-\2", body)
    body = _PLACEHOLDER.sub(lambda found: _VARIABLES.get(found[0], found[0]), body)
    ids = f'aria-labelledby="{name}-title" aria-describedby="{name}-text"'
    head = f'<svg class="figure" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" {ids}>'
    said = f'<title id="{name}-title">{escape(clean(title))}</title><desc id="{name}-text">{escape(clean(description))}</desc>'
    return f"{head}{said}{body}"


def clean(text: str) -> str:
    """One line of text that any SVG can hold."""
    return UNPRINTABLE.sub("\ufffd", " ".join(text.split()))


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _ASTRAL.sub("\ufffd", clean(value))
    if isinstance(value, Mapping):
        return {key: _clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    return value


def finite(values: Iterable[float | None]) -> list[float]:
    """Those that can be drawn."""
    return [value for value in values if value is not None and math.isfinite(value)]


def padded(values: Sequence[float], share: float = 0.12, least: float = 0.0) -> list[float]:
    """A range a little wider than the values; `least` is the narrowest it may be."""
    low, high = min(values), max(values)
    room = max((high - low) * share, (least - (high - low)) / 2, abs(high) * 1e-9, 1e-300)
    return [low - room, high + room]


def labels(texts: Sequence[str]) -> list[str]:
    """Short and told apart: what is long loses its middle, what comes twice gets a number."""
    found: list[str] = []
    for text in texts:
        short = text if len(text) <= _LABEL else f"{text[: _LABEL // 2 - 1]}…{text[-_LABEL // 2 :]}"
        count = 2
        label = short
        while label in found:
            label, count = f"{short} ({count})", count + 1
        found.append(label)
    return found


def rows_axis(names: Sequence[str]) -> Spec:
    """The axis of rows that are labelled at their left, in the order given."""
    return {
        "field": "label",
        "type": "nominal",
        "scale": {"domain": list(names)},
        "title": None,
        "axis": {"domain": False, "ticks": False, "labelPadding": 8, "labelFontSize": 12, "labelColor": COLOURS["ink"]},
    }


def pick(field: str, choices: Mapping[str, str]) -> Spec:
    """An encoding that maps a field's words to colours by name."""
    return {
        "field": field,
        "type": "nominal",
        "legend": None,
        "scale": {"domain": list(choices), "range": [COLOURS[name] for name in choices.values()]},
    }


@dataclass(frozen=True)
class Bar:
    """A row of a bar panel: its label, its number as text, its length (None for no bar), its colour's name, its interval."""

    label: str
    text: str
    value: float | None
    colour: str = "good"
    low: float | None = None
    high: float | None = None


def bars(rows: Sequence[Bar], title: str | None = None) -> Spec:
    """Horizontal bars with their numbers beside them, from zero."""
    known = finite(end for row in rows for end in (row.value, row.high))
    names = labels([row.label for row in rows])
    values = [
        {
            "label": label,
            "text": row.text,
            "value": max([0.0, *finite([row.value])]),
            "colour": row.colour,
            **_whisker(row),
        }
        for label, row in zip(names, rows, strict=True)
    ]
    domain = [0, max([*known, 0.0]) or 1.0]
    x = {"field": "value", "type": "quantitative", "axis": None, "scale": {"domain": domain, "nice": False}}
    colour = pick("colour", {name: name for name in dict.fromkeys(row.colour for row in rows)})
    spec: Spec = {
        "width": BODY - 60,
        "height": {"step": 24},
        "data": {"values": values},
        "encoding": {"y": rows_axis(names), "x": x},
        "layer": [
            {"mark": {"type": "bar", "height": 13}, "encoding": {"color": colour}},
            {
                "mark": {"type": "text", "align": "left", "dx": 6},
                "encoding": {"text": {"field": "text"}, "x": {**x, "field": "end"}},
            },
        ],
    }
    if any("low" in value for value in values):
        line = {"type": "rule", "color": COLOURS["ink"], "strokeWidth": 1.5}
        spec["layer"].insert(1, {"mark": line, "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}}})
    return {**spec, "title": title} if title else spec


def _whisker(row: Bar) -> Spec:
    """The interval that can be drawn, and where the text begins: after the bar and the interval."""
    ends = finite([row.low, row.high])
    end = max([0.0, *finite([row.value]), *ends])
    return {"end": end, "low": max(0.0, ends[0]), "high": ends[1]} if len(ends) == 2 else {"end": end}
