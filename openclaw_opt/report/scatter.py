"""Accuracy against latency or size: points with intervals, the Pareto front, the bound. For one build and for several."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from openclaw_opt.artifacts import Measurement
from openclaw_opt.records import Report
from openclaw_opt.report import numbers, plot, tables, views
from openclaw_opt.report.plot import Figure, Spec
from openclaw_opt.report.tables import Cell, Column, Table

STYLES = {
    "engine": ("good", "circle"),
    "pass": ("third", "diamond"),
    "baseline": ("open", "triangle-up"),
    "earlier": ("fourth", "circle"),
    "other": ("fourth", "cross"),
    "missed": ("bad", "cross"),
    "reference": ("reference", "square"),
}
"""Kind of a point to colour and shape."""


ENDS, CROWDED = 0.6, 0.25
"""Parts of the picture's width: from where a name has no room to the right, and how wide it is."""
INSIDE = "inside"
"""Where the number of an earlier build stands: in its point."""


def tradeoff(report: Report) -> Figure | None:
    """Accuracy against latency: reference, passes, baseline, engine, each with its 95 % interval; the bound; the front."""
    points = views.points(report)
    if not points:
        return None
    bound = views.bound_of(report, points[-1].latency.name)
    caption = (
        f"Accuracy measured on: {points[-1].accuracy.subject}. Latency measured on: {points[-1].latency.subject}. "
    )
    if any(one.kind == views.EARLIER for one in points):
        caption += "Numbers in points: earlier builds, see their table. "
    return scatter("tradeoff", points, bound, caption)


def scatter(name: str, points: Sequence[views.Point], bound: Measurement | None, caption: str) -> Figure:
    """Points with intervals and names, the Pareto front as a line, and the bound as an upright line."""
    cost, score = points[-1].latency, points[-1].accuracy
    front = views.front(points)
    ends = views.ends([one.latency for one in points])
    reach = [*ends, *plot.finite([bound.value if bound else None])]
    log = min(reach) > 0 and max(reach) / min(reach) >= plot.LOG_FROM
    domain = [min(reach) / 1.4, max(reach) * 1.4] if log else [min(0.0, *ends), max(reach) * 1.15 or 1.0]
    heights = plot.padded(views.ends([one.accuracy for one in points]), 0.2, 1e-4)
    unit = "" if cost.unit == "bytes" else f" in {cost.unit}"
    x: Spec = {
        "type": "quantitative",
        "title": f"{cost.name}{unit}, less is better",
        "axis": {"tickCount": 4, "grid": False, **_format(cost.unit)},
        "scale": {"domain": domain, "nice": False, "zero": False, "type": "log" if log else "linear"},
    }
    y: Spec = {
        "type": "quantitative",
        "title": None,
        "axis": {"tickCount": 5, "domain": False, "ticks": False},
        "scale": {"domain": heights, "nice": False, "zero": False},
    }
    values = _point_values(points, domain, heights, log)
    line = sorted(
        ({"x": views.number(points[i].latency), "y": views.number(points[i].accuracy)} for i in front),
        key=lambda one: one["x"],
    )
    colours = {kind: colour for kind, (colour, _) in STYLES.items()}
    shapes = {"domain": list(STYLES), "range": [shape for _, shape in STYLES.values()]}
    label = {"type": "text", "fontSize": 12, "stroke": plot.COLOURS["card"], "strokeWidth": 3, "strokeJoin": "round"}
    layers: list[Spec] = [
        {
            "data": {"values": line},
            "mark": {
                "type": "line",
                "interpolate": "step-after",
                "color": plot.COLOURS["good"],
                "strokeDash": [2, 3],
                "strokeWidth": 1.5,
            },
            "encoding": {"x": {"field": "x", **x}, "y": {"field": "y", **y}},
        },
        {
            "mark": {"type": "rule", "color": plot.COLOURS["soft"], "strokeWidth": 1.4},
            "encoding": {"x": {"field": "x_low", **x}, "x2": {"field": "x_high"}, "y": {"field": "y", **y}},
        },
        {
            "mark": {"type": "rule", "color": plot.COLOURS["soft"], "strokeWidth": 1.4},
            "encoding": {"x": {"field": "x", **x}, "y": {"field": "y_low", **y}, "y2": {"field": "y_high"}},
        },
        {
            "mark": {
                "type": "point",
                "filled": True,
                "size": 120,
                "opacity": 1,
                "stroke": plot.COLOURS["card"],
                "strokeWidth": 1.2,
            },
            "encoding": {
                "x": {"field": "x", **x},
                "y": {"field": "y", **y},
                "color": plot.pick("kind", colours),
                "shape": {"field": "kind", "type": "nominal", "legend": None, "scale": shapes},
            },
        },
    ]
    for side, dx in (("left", 11), ("right", -11)):
        for mark in (label, {"type": "text", "fontSize": 12}):
            layers.append(
                {
                    "transform": [{"filter": f"datum.side === '{side}'"}],
                    "mark": {**mark, "align": side, "dx": dx},
                    "encoding": {"x": {"field": "x", **x}, "y": {"field": "label_y", **y}, "text": {"field": "label"}},
                }
            )
    inside = {"type": "text", "fontSize": 9, "fontWeight": "bold", "color": plot.COLOURS["card"]}
    at_point = {"x": {"field": "x", **x}, "y": {"field": "y", **y}, "text": {"field": "label"}}
    layers.append({"transform": [{"filter": f"datum.side === '{INSIDE}'"}], "mark": inside, "encoding": at_point})
    if bound is not None and bound.value is not None and domain[0] <= bound.value <= domain[1]:
        at = {"data": {"values": [{"x": bound.value, "text": f"bound {numbers.short(bound)}"}]}}
        layers[:0] = [
            {
                **at,
                "mark": {"type": "rule", "color": plot.COLOURS["open"], "strokeDash": [7, 3], "strokeWidth": 2},
                "encoding": {"x": {"field": "x", **x}},
            },
            {
                **at,
                "mark": {
                    "type": "text",
                    "align": "left",
                    "dx": 5,
                    "baseline": "top",
                    "fontSize": 11,
                    "color": plot.COLOURS["open"],
                },
                "encoding": {"x": {"field": "x", **x}, "y": {"value": 2}, "text": {"field": "text"}},
            },
        ]
        caption += f"Dashed upright line: {bound.name}, what the target's figures allow, not a measurement. "
    spec: Spec = {"width": plot.WIDTH - 70, "height": plot.HEIGHT, "data": {"values": values}, "layer": layers}
    said = f"Upright: {score.name}, {score.better} is better. Bars are 95 % intervals. Dotted line: the Pareto front. "
    return Figure(
        name,
        f"Accuracy against {'size' if cost.unit == 'bytes' else 'latency'}",
        spec,
        points_table(points, bound),
        (said + caption).strip(),
    )


def _format(unit: str) -> Spec:
    return {"format": "~s", "labelExpr": "datum.label + 'B'"} if unit == "bytes" else {"format": "~r"}


def _point_values(
    points: Sequence[views.Point], domain: Sequence[float], heights: Sequence[float], log: bool
) -> list[Spec]:
    values = []
    named = [i for i, one in enumerate(points) if one.kind != views.EARLIER]
    apart = (heights[1] - heights[0]) * 15 / plot.HEIGHT
    tops = dict(zip(named, _spread([views.number(points[i].accuracy) for i in named], apart), strict=True))
    for i, one in enumerate(points):
        across = views.number(one.latency)
        low, high, at = (math.log(v) if log else v for v in (domain[0], domain[1], across))
        others = (views.number(point.latency) for point in points if point.kind == views.EARLIER)
        beside = [((math.log(v) if log else v) - at) / (high - low) for v in others]
        values.append(
            {
                "x": across,
                "y": views.number(one.accuracy),
                "kind": one.kind,
                "label": one.short or plot.labels([one.label])[0],
                "label_y": tops.get(i, views.number(one.accuracy)),
                "side": INSIDE if one.kind == views.EARLIER else _side((at - low) / (high - low), beside),
                "x_low": one.latency.low,
                "x_high": one.latency.high,
                "y_low": one.accuracy.low,
                "y_high": one.accuracy.high,
            }
        )
    return [
        {key: item for key, item in value.items() if not isinstance(item, float) or math.isfinite(item)}
        for value in values
    ]


def _side(at: float, beside: Sequence[float]) -> str:
    """The side of a point its name begins at: the emptier one, seen from where it is (0 to 1) and how far earlier builds are."""
    after, before = (sum(0 < sign * far < CROWDED for far in beside) for sign in (1, -1))
    if at > ENDS or (at > 1 - ENDS - 0.1 and after > before):
        return "right"
    return "left"


def _spread(values: Sequence[float], least: float) -> list[float]:
    """Values moved up just enough to stand `least` apart, in the order of the input."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    placed = list(values)
    for before, i in itertools.pairwise(order):
        placed[i] = max(placed[i], placed[before] + least)
    shift = sum(placed) / len(placed) - sum(values) / len(values)
    return [value - shift for value in placed]


def points_table(points: Sequence[views.Point], bound: Measurement | None = None) -> Table:
    """The points in numbers; a bound has a latency and no accuracy, and is on no front."""
    columns = (
        Column("Point"),
        Column(points[-1].accuracy.name, numeric=True),
        Column(points[-1].latency.name, numeric=True),
        Column("Pareto front"),
    )
    front = views.front(points)
    rows = [
        (
            Cell(one.label),
            tables.with_interval(one.accuracy),
            tables.with_interval(one.latency),
            Cell("on it" if i in front else tables.NONE),
        )
        for i, one in enumerate(points)
    ]
    if bound is not None and bound.value is not None:
        text = f"bound {numbers.short(bound)}"
        rows.append((Cell(bound.name), Cell(tables.NONE), Cell(text, bound.value), Cell(tables.NONE)))
    return Table(columns, tuple(rows))
