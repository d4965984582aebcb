"""Pictures of the engine: accuracy against latency, every latency sample, batches and their knee, where a request's time goes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from openclaw_opt.artifacts import Measurement
from openclaw_opt.records import Report
from openclaw_opt.report import numbers, plot, tables, views
from openclaw_opt.report.plot import Figure, Spec
from openclaw_opt.report.tables import Cell, Column, Table

CURVE_POINTS = 120
"""Points of one ECDF; finer than the drawing's resolution at that width."""
LOG_FROM = 20
"""A ratio of largest to smallest latency from which the axis is logarithmic."""
STYLES = {
    "engine": ("good", "circle"),
    "pass": ("third", "diamond"),
    "baseline": ("open", "triangle-up"),
    "other": ("fourth", "cross"),
    "missed": ("bad", "cross"),
    "reference": ("reference", "square"),
}
"""Kind of a point to colour and shape."""
HEIGHT = 220


def tradeoff(report: Report) -> Figure | None:
    """Accuracy against latency: reference, passes, baseline, engine, each with its 95 % interval; the bound; the front."""
    points = views.points(report)
    if not points:
        return None
    bound = views.bound_of(report, points[-1].latency.name)
    caption = (
        f"Accuracy measured on: {points[-1].accuracy.subject}. Latency measured on: {points[-1].latency.subject}. "
    )
    return scatter("tradeoff", points, bound, caption)


def scatter(name: str, points: Sequence[views.Point], bound: Measurement | None, caption: str) -> Figure:
    """Points with intervals and names, the Pareto front as a line, and the bound as an upright line."""
    cost, score = points[-1].latency, points[-1].accuracy
    front = views.front(points)
    ends = _ends([one.latency for one in points])
    reach = [*ends, *plot.finite([bound.value if bound else None])]
    log = min(reach) > 0 and max(reach) / min(reach) >= LOG_FROM
    domain = [min(reach) / 1.4, max(reach) * 1.4] if log else [min(0.0, *ends), max(reach) * 1.15 or 1.0]
    heights = plot.padded(_ends([one.accuracy for one in points]), 0.2, 1e-4)
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
    spec: Spec = {"width": plot.WIDTH - 70, "height": HEIGHT, "data": {"values": values}, "layer": layers}
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
    tops = _spread([views.number(one.accuracy) for one in points], (heights[1] - heights[0]) * 15 / HEIGHT)
    for one, label_y in zip(points, tops, strict=True):
        across = views.number(one.latency)
        low, high, at = (math.log(v) if log else v for v in (domain[0], domain[1], across))
        values.append(
            {
                "x": across,
                "y": views.number(one.accuracy),
                "kind": one.kind,
                "label": one.short or plot.labels([one.label])[0],
                "label_y": label_y,
                "side": "right" if (at - low) / (high - low) > 0.6 else "left",
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
            _with_interval(one.accuracy),
            _with_interval(one.latency),
            Cell("on it" if i in front else tables.NONE),
        )
        for i, one in enumerate(points)
    ]
    if bound is not None and bound.value is not None:
        text = f"bound {numbers.short(bound)}"
        rows.append((Cell(bound.name), Cell(tables.NONE), Cell(text, bound.value), Cell(tables.NONE)))
    return Table(columns, tuple(rows))


def _with_interval(one: Measurement) -> Cell:
    between = numbers.interval(one.low, one.high, one.unit)
    return Cell(numbers.measured(one) + (f" ({between})" if between else ""), one.value)


def _ends(rows: Sequence[Measurement]) -> list[float]:
    return plot.finite(end for one in rows for end in (one.value, one.low, one.high))


def latency_curves(report: Report) -> Figure | None:
    """The share of samples at or under each latency: a panel a stage, a line a subject, the stated percentiles marked."""
    stages: dict[str, list[views.Series]] = {}
    for one in views.series(report):
        stages.setdefault(one.stage, []).append(one)
    if not stages:
        return None
    subjects = list(dict.fromkeys(one.subject for rows in stages.values() for one in rows))
    styles = dict(zip(subjects, _line_colours(subjects), strict=True))
    panels = [
        _ecdf(stage, rows, styles, views.percentiles(report, stage), i == 0)
        for i, (stage, rows) in enumerate(stages.items())
    ]
    spec = {"vconcat": panels, "resolve": {"scale": {"color": "shared", "strokeDash": "shared"}}}
    caption = "Share of samples at or under a latency: further left is faster, steeper is steadier. Dots: percentiles with enough samples to be stated."
    return Figure("ecdf", "Every latency sample", spec, _percentile_table(report, stages), caption)


def _line_colours(subjects: Sequence[str]) -> list[str]:
    fixed = {"engine": "good", views.REFERENCE: "reference"}
    others = iter(("third", "fourth", "open", "bad") * len(subjects))
    return [fixed[one] if one in fixed else next(others) for one in subjects]


def _ecdf(
    stage: str, rows: Sequence[views.Series], styles: dict[str, str], stated: Sequence[views.Percentile], first: bool
) -> Spec:
    low, high = min(min(one.samples) for one in rows), max(max(one.samples) for one in rows)
    log = low > 0 and high / low >= LOG_FROM
    domain = [low / 1.1, high * 1.1] if log else plot.padded([low, high], 0.04)
    values = [{"x": x, "y": y, "subject": one.subject} for one in rows for x, y in _curve(one)]
    marks = [
        {"x": views.number(one.row), "y": one.share, "subject": one.row.subject, "text": one.label}
        for one in stated
        if plot.finite([one.row.value])
    ]
    x: Spec = {
        "field": "x",
        "type": "quantitative",
        "title": f"{stage} in ms{', logarithmic' if log else ''}",
        "axis": {"tickCount": 4, "format": "~r", "grid": False},
        "scale": {"domain": domain, "nice": False, "zero": False, "type": "log" if log else "linear"},
    }
    y: Spec = {
        "field": "y",
        "type": "quantitative",
        "title": None,
        "axis": {"values": [0, 0.5, 0.9], "format": ".0%", "domain": False, "ticks": False},
        "scale": {"domain": [0, 1]},
    }
    dashes = {"domain": list(styles), "range": [[1, 0] if one == "engine" else [6, 4] for one in styles]}
    legend = {"title": None, "orient": "top", "symbolType": "stroke", "symbolStrokeWidth": 3} if first else None
    colour = {**plot.pick("subject", styles), "legend": legend}
    return {
        "width": plot.WIDTH - 70,
        "height": 150,
        "encoding": {"x": x, "y": y, "color": colour},
        "layer": [
            {
                "data": {"values": values},
                "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 2, "clip": True},
                "encoding": {"strokeDash": {"field": "subject", "type": "nominal", "legend": None, "scale": dashes}},
            },
            {"data": {"values": marks}, "mark": {"type": "point", "filled": True, "size": 55, "opacity": 1}},
            {
                "data": {"values": [one for one in marks if one["subject"] == "engine"]},
                "mark": {"type": "text", "align": "left", "dx": 7, "dy": 5, "baseline": "top", "fontSize": 11},
                "encoding": {"text": {"field": "text"}},
            },
        ],
    }


def _curve(one: views.Series) -> list[tuple[float, float]]:
    """A staircase of at most CURVE_POINTS steps, the slowest samples kept: [(latency, share at or under it)]."""
    ordered = sorted(one.samples)
    total = len(ordered)
    ranks = (
        range(total)
        if total <= CURVE_POINTS
        else sorted({*(i * (total - 1) // (CURVE_POINTS - 1) for i in range(CURVE_POINTS)), *range(total - 6, total)})
    )
    return [(ordered[0], 0.0), *((float(f"{ordered[rank]:.5g}"), round((rank + 1) / total, 4)) for rank in ranks)]


def _percentile_table(report: Report, stages: dict[str, list[views.Series]]) -> Table:
    columns = (
        Column("Stage", code=True),
        Column("Measured on"),
        Column("Samples", numeric=True),
        Column("Percentile"),
        Column("Latency", numeric=True),
    )
    rows = []
    for stage, series in stages.items():
        count = {one.subject: len(one.samples) for one in series}
        for one in views.percentiles(report, stage):
            cells = (Cell(one.label, one.share), _with_interval(one.row))
            rows.append(
                (
                    Cell(stage),
                    Cell(one.row.subject),
                    Cell(f"{count.get(one.row.subject, 0):,}", count.get(one.row.subject, 0)),
                    *cells,
                )
            )
    return Table(columns, tuple(rows))


def batching(report: Report) -> Figure | None:
    """Throughput against latency, a point a batch; the knee is where a line from the origin is steepest."""
    pairs = views.batches(report)
    if len(pairs) < 2:
        return None
    knee = views.engine_measurement(report, "batching.knee")
    chosen = int(knee.value) if knee is not None and knee.value is not None and math.isfinite(knee.value) else None
    values: list[Spec] = [
        {
            "batch": one.batch,
            "x": views.number(one.latency),
            "y": views.number(one.throughput),
            "label": f"batch {one.batch}" + (" · knee" if one.batch == chosen else ""),
            "x_low": one.latency.low,
            "x_high": one.latency.high,
            "y_low": one.throughput.low,
            "y_high": one.throughput.high,
            "knee": one.batch == chosen,
        }
        for one in pairs
    ]
    name, rate = pairs[0].latency.name, pairs[0].throughput
    top = _reach([one.throughput for one in pairs]) * 1.18
    right = _reach([one.latency for one in pairs]) * 1.12
    x: Spec = {
        "type": "quantitative",
        "title": f"{name.split('.')[-1].replace('_ms', '')}: ms a step, p50",
        "axis": {"tickCount": 5, "grid": False, "format": "~r"},
        "scale": {"domain": [0, right], "nice": False},
    }
    y: Spec = {
        "type": "quantitative",
        "title": rate.unit,
        "axis": {"tickCount": 5, "domain": False, "ticks": False, "format": "~s"},
        "scale": {"domain": [0, top], "nice": False},
    }
    across, up = {"field": "x", **x}, {"field": "y", **y}
    layers: list[Spec] = [
        {
            "mark": {"type": "line", "color": plot.COLOURS["good"], "strokeWidth": 2},
            "encoding": {"x": across, "y": up, "order": {"field": "batch"}},
        },
        {
            "mark": {"type": "rule", "clip": True, "color": plot.COLOURS["soft"], "strokeWidth": 1.4},
            "encoding": {"x": {"field": "x_low", **x}, "x2": {"field": "x_high"}, "y": up},
        },
        {
            "mark": {"type": "rule", "clip": True, "color": plot.COLOURS["soft"], "strokeWidth": 1.4},
            "encoding": {"x": across, "y": {"field": "y_low", **y}, "y2": {"field": "y_high"}},
        },
        {
            "mark": {"type": "point", "filled": True, "opacity": 1},
            "encoding": {
                "x": across,
                "y": up,
                "color": {
                    "condition": {"test": "datum.knee", "value": plot.COLOURS["bad"]},
                    "value": plot.COLOURS["good"],
                },
                "shape": {"condition": {"test": "datum.knee", "value": "diamond"}, "value": "circle"},
                "size": {"condition": {"test": "datum.knee", "value": 190}, "value": 70},
            },
        },
        {
            "mark": {"type": "text", "align": "right", "dx": -10, "dy": -9},
            "encoding": {"x": across, "y": up, "text": {"field": "label"}},
        },
    ]
    at_knee = next((v for v in values if v["knee"]), None)
    if at_knee is not None:
        slope = min(right / at_knee["x"], top / at_knee["y"])
        ray = [{"x": 0, "y": 0}, {"x": at_knee["x"] * slope, "y": at_knee["y"] * slope}]
        layers.insert(
            0,
            {
                "data": {"values": ray},
                "mark": {"type": "line", "color": plot.COLOURS["bad"], "strokeDash": [3, 3], "strokeWidth": 1.3},
                "encoding": {"x": across, "y": up},
            },
        )
    said = (
        "◆ The knee: no line from the origin through another batch is steeper, so beyond it throughput grows slower than latency."
        if at_knee is not None
        else f"No knee is stated: {knee.not_measured}."
        if knee is not None and knee.not_measured
        else ""
    )
    spec: Spec = {"width": plot.WIDTH - 80, "height": HEIGHT, "data": {"values": values}, "layer": layers}
    return Figure(
        "batching",
        "Throughput against latency by batch",
        spec,
        _batch_table(pairs, chosen),
        f"Up and left is better. {said}".strip(),
    )


def _reach(rows: Sequence[Measurement]) -> float:
    """How far the axis goes: over all intervals, but no further than half as much again as the largest value."""
    return min(max(_ends(rows)), 1.5 * max(views.number(one) for one in rows))


def _batch_table(pairs: Sequence[views.BatchPoint], knee: int | None) -> Table:
    columns = (
        Column("Batch", numeric=True),
        Column(pairs[0].latency.name, numeric=True),
        Column(pairs[0].throughput.name, numeric=True),
        Column("Knee"),
    )
    return Table(
        columns,
        tuple(
            (
                Cell(str(one.batch), one.batch),
                _with_interval(one.latency),
                _with_interval(one.throughput),
                Cell("knee" if one.batch == knee else tables.NONE),
            )
            for one in pairs
        ),
    )


def anatomy(report: Report) -> Figure | None:
    """The parts of one request end to end, and the load before it."""
    rows = [
        one
        for one in report.measurements
        if views.first_word(one.name) == "anatomy" and plot.finite([one.value]) and not one.at
    ]
    request = [one for one in rows if not one.name.endswith("load_ms")]
    if not request:
        return None
    total = sum(views.number(one) for one in request)
    values: list[Spec] = []
    began = 0.0
    for one in rows:
        load = one.name.endswith("load_ms")
        start = 0.0 if load else began
        share = "" if load else f" · {numbers.percent_short(views.number(one) / total)}" if total else ""
        part = one.name.split(".")[-1].removesuffix("_ms")
        values.append(
            {
                "label": f"{part} (once)" if load else part,
                "from": start,
                "to": start + views.number(one),
                "kind": "once" if load else "request",
                "text": numbers.short(one) + share,
            }
        )
        began += 0.0 if load else views.number(one)
    domain = [0, max(v["to"] for v in values) * 1.01 or 1.0]
    x: Spec = {
        "type": "quantitative",
        "axis": {"tickCount": 4, "format": "~r", "domain": False},
        "title": "ms",
        "scale": {"domain": domain, "nice": False},
    }
    spec: Spec = {
        "width": plot.BODY - 60,
        "height": {"step": 26},
        "data": {"values": values},
        "encoding": {"y": plot.rows_axis([v["label"] for v in values])},
        "layer": [
            {
                "mark": {
                    "type": "bar",
                    "height": 14,
                    "stroke": plot.COLOURS["ink"],
                    "strokeWidth": 0.5,
                    "minBandSize": 1,
                },
                "encoding": {
                    "x": {"field": "from", **x},
                    "x2": {"field": "to"},
                    "color": plot.pick("kind", {"once": "reference", "request": "good"}),
                },
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 6, "fontSize": 11.5},
                "encoding": {"x": {"value": plot.BODY - 60}, "text": {"field": "text"}},
            },
        ],
    }
    caption = f"One request end to end takes {numbers.milliseconds(total)}, the sum of the medians of its parts; loading comes once before it."
    return Figure("anatomy", "Where a request's time goes", spec, _anatomy_table(rows), caption)


def _anatomy_table(rows: Sequence[Measurement]) -> Table:
    columns = (Column("Part", code=True), Column("Median", numeric=True), Column("Samples", numeric=True))
    return Table(
        columns,
        tuple(
            (Cell(one.name), _with_interval(one), Cell(f"{one.samples:,}" if one.samples else tables.NONE, one.samples))
            for one in rows
        ),
    )
