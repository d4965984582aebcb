"""Pictures along the passes: what each did to accuracy, size, latency, time and memory; and bytes on disk and in memory.

Each takes the Report and gives a figure with its numbers, or nothing where it would show nothing.
"""

from __future__ import annotations

import math
from typing import Any

from openclaw_opt.records import PassRecord, Report
from openclaw_opt.report import numbers, plot, tables, views
from openclaw_opt.report.bought import bought_figure
from openclaw_opt.report.plot import Bar, Figure, Spec
from openclaw_opt.report.tables import Cell, Column, Table


def waterfall(report: Report) -> tuple[Figure, ...]:
    """Accuracy along the passes; size, latency, time and memory along the passes."""
    found = [_accuracy(report), bought_figure(report), _costs(report)] if report.passes else []
    return tuple(figure for figure in found if figure is not None)


def _accuracy(report: Report) -> Figure | None:
    """From the reference down: a bar spans what a pass changed, a line its interval, the engine stands last."""
    name, steps = views.accuracy_name(report), views.steps(report)
    final = views.engine_measurement(report, name)
    rows = [_step(step) for step in steps]
    if final is not None:
        known = final.value is not None and math.isfinite(final.value)
        end = {
            "kind": "engine",
            "after": final.value if known else None,
            **_ends(final.low if known else None, final.high if known else None),
        }
        rows.append({"name": "engine", "text": numbers.short(final), **end})
    ends = plot.finite(row.get(key) for row in rows for key in ("before", "after", "low", "high"))
    if not ends or not any(row["kind"] in ("loss", "gain", "engine") for row in rows):
        return None
    names = plot.labels([row["name"] for row in rows])
    for row, label in zip(rows, names, strict=True):
        row["label"] = label
    x = {
        "type": "quantitative",
        "title": name,
        "scale": {"domain": plot.padded(ends, least=1e-4), "nice": False, "zero": False},
        "axis": {"tickCount": 3, "domain": False},
    }
    kinds = {"loss": "bad", "gain": "good", "kept": "reference", "engine": "good", "": "soft"}
    only = {word: {"transform": [{"filter": f"datum.kind === '{word}'"}]} for word in ("kept", "engine")}
    spec: Spec = {
        "width": plot.BODY - 70,
        "height": {"step": 30},
        "data": {"values": rows},
        "encoding": {"y": plot.rows_axis(names)},
        "layer": [
            {
                "transform": [{"filter": "datum.kind === 'loss' || datum.kind === 'gain'"}],
                "mark": {"type": "bar", "height": 13},
                "encoding": {
                    "x": {"field": "before", **x},
                    "x2": {"field": "after"},
                    "color": plot.pick("kind", kinds),
                },
            },
            {
                "mark": {"type": "rule", "color": plot.COLOURS["ink"], "strokeWidth": 1.5},
                "encoding": {"x": {"field": "low", **x}, "x2": {"field": "high"}},
            },
            {
                **only["kept"],
                "mark": {"type": "tick", "size": 15, "thickness": 3, "color": plot.COLOURS["reference"]},
                "encoding": {"x": {"field": "after", **x}},
            },
            {
                **only["engine"],
                "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1, "color": plot.COLOURS["good"]},
                "encoding": {"x": {"field": "after", **x}},
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 8, "fontSize": 11.5},
                "encoding": {"x": {"value": plot.BODY - 70}, "text": {"field": "text"}},
            },
        ],
    }
    caption = (
        "A bar spans what the pass changed, its line is the 95 % interval. A grey tick: an exact pass, whose outputs were compared."
        + (f" The last row was measured on: {final.subject}." if final is not None else "")
    )
    return Figure(
        "accuracy",
        f"{name} after each pass",
        spec,
        tables.waterfall(report).only("Pass", name or "Accuracy", "Verified"),
        caption,
    )


def _step(step: views.Step) -> dict[str, Any]:
    one = step.measurement
    row: dict[str, Any] = {"name": views.pass_label(step.record), "text": _step_text(step), "kind": ""}
    if step.after is None or not math.isfinite(step.after):
        return row
    if one is None:
        return {**row, "kind": "kept", "after": step.after}
    before = step.before if step.before is not None and math.isfinite(step.before) else step.after
    worse = step.after < before if one.better == "higher" else step.after > before
    return {
        **row,
        "kind": "loss" if worse else "gain",
        "before": before,
        "after": step.after,
        **_ends(one.low, one.high),
    }


def _ends(low: float | None, high: float | None) -> dict[str, float]:
    both = plot.finite([low, high])
    return {"low": both[0], "high": both[1]} if len(both) == 2 else {}


def _step_text(step: views.Step) -> str:
    if step.measurement is None:
        return "unchanged" if step.after is not None else numbers.NOT_MEASURED
    return numbers.short(step.measurement)


def _costs(report: Report) -> Figure:
    """Size, time and memory, one under the other."""
    records = report.passes
    panels = [plot.bars(_sizes(report), "Size on disk")]
    panels.append(plot.bars([_bar(one, numbers.seconds(one.seconds), one.seconds) for one in records], "Time"))
    panels.append(
        plot.bars([_bar(one, numbers.size(one.peak_bytes), float(one.peak_bytes)) for one in records], "Peak memory")
    )
    caption = "Weights and graph on disk; time and resident memory of each pass, of the run that made it."
    shown = ("Pass", "Size", "Time", "Peak memory", "Taken from")
    return Figure(
        "costs", "What each pass took and left", {"vconcat": panels}, tables.waterfall(report).only(*shown), caption
    )


def _sizes(report: Report) -> list[Bar]:
    rows = [Bar("checkpoint", numbers.size(report.checkpoint_bytes), float(report.checkpoint_bytes), "reference")]
    rows += [Bar(views.pass_label(one), numbers.size(one.size_bytes), float(one.size_bytes)) for one in report.passes]
    engine = report.engine_bytes
    if engine is not None and engine != report.passes[-1].size_bytes:
        rows.append(Bar("engine", numbers.size(engine), float(engine)))
    return rows


def _bar(record: PassRecord, text: str, value: float) -> Bar:
    return Bar(views.pass_label(record), text, value)


def memory(report: Report) -> Figure | None:
    """Bytes on disk and in memory, side by side."""
    rows = [
        Bar("checkpoint on disk", numbers.size(report.checkpoint_bytes), float(report.checkpoint_bytes), "reference")
    ]
    subject, taken = views.result_size(report)
    if taken is not None:
        rows.append(Bar(f"{subject} on disk", numbers.size(taken), float(taken)))
    scale = {"MiB": 2.0**20, "GiB": 2.0**30, "bytes": 1.0}
    for one in report.measurements:
        if views.first_word(one.name) == "memory" and one.value is not None and one.unit in scale and not one.at:
            value = one.value * scale[one.unit]
            reference = one.subject == views.REFERENCE
            rows.append(
                Bar(
                    f"{one.name}{' of reference' if reference else ''}",
                    numbers.size(value),
                    value,
                    "reference" if reference else "third",
                )
            )
    if len(rows) < 3:
        return None
    table = Table(
        (Column("What"), Column("Bytes", numeric=True)),
        tuple((Cell(row.label), Cell(row.text, row.value)) for row in rows),
    )
    return Figure("memory", "Size and memory", plot.bars(rows), table, "On disk and resident in memory, decimal bytes.")
