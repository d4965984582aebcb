"""How a training went: the loss on what it trained on and on what was held back, over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openclaw_opt.records import PassRecord, Report
from openclaw_opt.report import numbers, plot
from openclaw_opt.report.plot import Figure, Spec
from openclaw_opt.report.tables import NONE, Cell, Column, Table

LINES = {"held back": "good", "trained on": "reference"}


def training(report: Report) -> tuple[Figure, ...]:
    """A figure for each pass whose details hold a `curve` of more than one row."""
    found = []
    for record in report.passes:
        rows = record.details.get("curve")
        if isinstance(rows, list) and len(rows) > 1:
            found.append(_training(record, rows))
    return tuple(found)


def _training(record: PassRecord, rows: Sequence[Mapping[str, Any]]) -> Figure:
    values = [
        {"step": row["step"], "loss": row[key], "kind": kind}
        for kind, key in (("held back", "held_back"), ("trained on", "train"))
        for row in rows
        if plot.finite([row[key]])
    ]
    best = [one for one in values if one["kind"] == "held back" and one["step"] == record.details.get("best_step")]
    log = _is_wide([one["loss"] for one in values])
    legend = {"title": None, "orient": "top", "columnPadding": 30, "symbolType": "stroke", "symbolStrokeWidth": 3}
    spec: Spec = {
        "width": plot.WIDTH - 70,
        "height": 190,
        "encoding": {
            "x": {
                "field": "step",
                "type": "quantitative",
                "title": "step",
                "axis": {"tickMinStep": 1, "tickCount": 6, "grid": False},
                "scale": {"nice": False},
            },
            "y": {
                "field": "loss",
                "type": "quantitative",
                "title": f"loss in {record.details.get('loss', 'nats')}" + (", logarithmic" if log else ""),
                "scale": {"type": "log"} if log else {"zero": False},
                "axis": {"tickCount": 5, "format": "~r"},
            },
            "color": {**plot.pick("kind", LINES), "legend": legend},
        },
        "layer": [
            {
                "data": {"values": values},
                "mark": {"type": "line", "point": {"size": 30, "opacity": 1}, "strokeWidth": 2},
                "encoding": {
                    "strokeDash": {
                        "field": "kind",
                        "type": "nominal",
                        "legend": None,
                        "scale": {"domain": list(LINES), "range": [[1, 0], [6, 4]]},
                    }
                },
            },
            {"data": {"values": best}, "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1}},
        ],
    }
    caption = (
        "The loss of distillation: on held-back calibration data at each look, and the mean over the training steps since the "
        f"look before. The large dot is the result, step {record.details.get('best_step')}."
    )
    return Figure(f"training-{record.index}", f"Training of `{record.word}`", spec, _table(rows), caption)


def _is_wide(losses: Sequence[float]) -> bool:
    return min(losses, default=0) > 0 and max(losses) / min(losses) >= plot.LOG_FROM


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = tuple(Column(title, numeric=True) for title in ("Step", "Trained on", "Held back", "Learning rate"))
    return Table(
        columns,
        tuple(
            (
                Cell(f"{row['step']:,}", row["step"]),
                *(_loss(row[key]) for key in ("train", "held_back")),
                Cell(f"{row['learning_rate']:.3g}", row["learning_rate"]),
            )
            for row in rows
        ),
    )


def _loss(value: float | None) -> Cell:
    return Cell(NONE) if value is None else Cell(numbers.significant(value), value)
