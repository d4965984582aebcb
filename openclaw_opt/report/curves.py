"""Every latency sample as a distribution, with the percentiles that were stated."""

from __future__ import annotations

from collections.abc import Sequence

from openclaw_opt.records import Report
from openclaw_opt.report import plot, tables, views
from openclaw_opt.report.plot import Figure, Spec
from openclaw_opt.report.tables import Cell, Column, Table

CURVE_POINTS = 120
"""Points of one ECDF; finer than the drawing's resolution at that width."""


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
    log = low > 0 and high / low >= plot.LOG_FROM
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
    legend = (
        {"title": None, "orient": "top", "columnPadding": 30, "symbolType": "stroke", "symbolStrokeWidth": 3}
        if first
        else None
    )
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
            cells = (Cell(one.label, one.share), tables.with_interval(one.row))
            rows.append(
                (
                    Cell(stage),
                    Cell(one.row.subject),
                    Cell(f"{count.get(one.row.subject, 0):,}", count.get(one.row.subject, 0)),
                    *cells,
                )
            )
    return Table(columns, tuple(rows))
