"""Budgets as bullets: what each allows, its bound, what was got with its interval."""

from __future__ import annotations

from typing import Any

from openclaw_opt.records import BudgetRecord, Report
from openclaw_opt.report import numbers, plot, tables
from openclaw_opt.report.plot import Figure, Spec

MOST_BUDGETS = 16


def budget_bullets(report: Report) -> Figure | None:
    """A row a budget on a scale of its own: the shaded side is allowed, the upright line is the bound, the mark what was got."""
    rows = [one for one in report.budgets if _bound(one) is not None and plot.finite([one.got])][:MOST_BUDGETS]
    if not rows:
        return None
    names = plot.labels([one.metric for one in rows])
    values = [_bullet(label, one) for label, one in zip(names, rows, strict=True)]
    marks = {"met": "good", "missed": "bad", "undecided": "open"}
    shapes = {"domain": list(marks), "range": ["circle", "cross", "diamond"]}
    position = {"type": "quantitative", "axis": None, "scale": {"domain": [0, 1], "nice": False}}
    spec: Spec = {
        "width": plot.BODY,
        "height": {"step": 40},
        "data": {"values": values},
        "encoding": {"y": plot.rows_axis(names)},
        "layer": [
            {
                "mark": {"type": "bar", "height": 14, "color": plot.COLOURS["track"]},
                "encoding": {"x": {"datum": 0, **position}, "x2": {"datum": 1}},
            },
            {
                "mark": {
                    "type": "bar",
                    "height": 14,
                    "color": plot.COLOURS["good-tint"],
                    "stroke": plot.COLOURS["good"],
                    "strokeWidth": 0.6,
                },
                "encoding": {"x": {"field": "from", **position}, "x2": {"field": "to"}},
            },
            {
                "mark": {"type": "tick", "size": 24, "thickness": 2.5, "color": plot.COLOURS["ink"]},
                "encoding": {"x": {"field": "bound", **position}},
            },
            {
                "mark": {"type": "rule", "strokeWidth": 2, "color": plot.COLOURS["ink"]},
                "encoding": {"x": {"field": "low", **position}, "x2": {"field": "high"}},
            },
            {
                "mark": {
                    "type": "point",
                    "filled": True,
                    "size": 110,
                    "opacity": 1,
                    "angle": 45,
                    "stroke": plot.COLOURS["card"],
                    "strokeWidth": 1,
                },
                "encoding": {
                    "x": {"field": "got", **position},
                    "color": plot.pick("result", marks),
                    "shape": {"field": "result", "type": "nominal", "legend": None, "scale": shapes},
                },
            },
            {
                "mark": {"type": "text", "dy": -18, "fontSize": 11, "color": plot.COLOURS["soft"]},
                "encoding": {"x": {"field": "bound", **position}, "text": {"field": "rule"}},
            },
        ],
    }
    caption = (
        "Each row has its own scale. Shaded: what the budget allows, upright line: its bound. "
        "● met, ✕ missed, ◆ undecided, with the interval."
    )
    return Figure(
        "bullets", "How much of each budget is left", spec, tables.budgets(report).first(MOST_BUDGETS), caption
    )


def _bound(one: BudgetRecord) -> float | None:
    return one.bound if one.bound is not None else numbers.rule_number(one.rule)


def _bullet(label: str, one: BudgetRecord) -> dict[str, Any]:
    """The row's numbers on its own scale from 0 to 1; the bound stands well inside."""
    bound, got = _bound(one), one.got
    assert bound is not None
    assert got is not None
    ends = plot.finite([bound, got, one.low, one.high])
    low, high = plot.padded(ends, 0.35, least=abs(bound) * 1e-3)

    def at(value: float | None) -> float | None:
        return (value - low) / (high - low) if plot.finite([value]) and value is not None else None

    below = one.rule.lstrip().startswith("<")
    sides = {"from": 0.0, "to": at(bound)} if below else {"from": at(bound), "to": 1.0}
    interval = {"low": at(one.low), "high": at(one.high)} if one.low is not None and one.high is not None else {}
    rule = numbers.with_unit(one.rule, one.unit)
    return {
        "label": label,
        "result": one.result,
        "rule": f"{rule} · got {numbers.got(one)}",
        "bound": at(bound),
        "got": at(got),
        **sides,
        **interval,
    }
