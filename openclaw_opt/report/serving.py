"""The engine as it serves: throughput against latency by batch with the knee, and where one request's time goes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from openclaw_opt.artifacts import Measurement
from openclaw_opt.records import Report
from openclaw_opt.report import numbers, plot, tables, views
from openclaw_opt.report.plot import Figure, Spec
from openclaw_opt.report.tables import Cell, Column, Table


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
    spec: Spec = {"width": plot.WIDTH - 80, "height": plot.HEIGHT, "data": {"values": values}, "layer": layers}
    return Figure(
        "batching",
        "Throughput against latency by batch",
        spec,
        _batch_table(pairs, chosen),
        f"Up and left is better. {said}".strip(),
    )


def _reach(rows: Sequence[Measurement]) -> float:
    """How far the axis goes: over all intervals, but no further than half as much again as the largest value."""
    return min(max(views.ends(rows)), 1.5 * max(views.number(one) for one in rows))


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
                tables.with_interval(one.latency),
                tables.with_interval(one.throughput),
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
            (
                Cell(one.name),
                tables.with_interval(one),
                Cell(f"{one.samples:,}" if one.samples else tables.NONE, one.samples),
            )
            for one in rows
        ),
    )
