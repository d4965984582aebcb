"""Pictures along the passes and layers: what each pass did to accuracy, size and time, which layers err, what budgets have left.

Each takes the Report and gives a figure with its numbers, or nothing where it would show nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from openclaw_opt.records import BudgetRecord, LayerRecord, PassRecord, Report
from openclaw_opt.report import numbers, plot, tables, views
from openclaw_opt.report.plot import Bar, Figure, Spec
from openclaw_opt.report.tables import Cell, Column, Table

WORST_LAYERS = 14
MOST_BUDGETS = 16
KINDS = 5
"""Kinds of layer with a line of their own in the picture over depth."""


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


def waterfall(report: Report) -> tuple[Figure, ...]:
    """Accuracy along the passes; size, latency, time and memory along the passes."""
    found = [_accuracy(report), _costs(report)] if report.passes else []
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
        "axis": {"tickCount": 4, "domain": False},
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
    """Size, latency where more than the engine was timed, time and memory, one under the other."""
    records = report.passes
    panels = [plot.bars(_sizes(report), "Size on disk")]
    if views.passes_timed(report):
        timed = [(record, views.pass_latency(report, record)) for record in records]
        name = next(one.name for _, one in reversed(timed) if one is not None)
        rows = [
            Bar(
                views.pass_label(record),
                numbers.short(one) if one is not None else numbers.NOT_MEASURED,
                one.value if one is not None else None,
            )
            for record, one in timed
        ]
        panels.append(plot.bars(rows, f"{name} after each pass"))
    panels.append(plot.bars([_bar(one, numbers.seconds(one.seconds), one.seconds) for one in records], "Time"))
    panels.append(
        plot.bars([_bar(one, numbers.size(one.peak_bytes), float(one.peak_bytes)) for one in records], "Peak memory")
    )
    caption = "Weights and graph on disk; time and resident memory of each pass, of the run that made it."
    titles = [column.title for column in tables.waterfall(report).columns]
    shown = [title for title in ("Pass", "Size", "Latency", "Time", "Peak memory", "Taken from") if title in titles]
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


def layers(report: Report) -> tuple[Figure, ...]:
    """The worst layers by SQNR, and the SQNR of each kind of layer over depth."""
    ranked = [(word, layer) for word, layer in tables.worst_layers(report) if plot.finite([tables.layer_error(layer)])]
    if not ranked:
        return ()
    found = [_worst(ranked)]
    depth = _depth(ranked)
    return (*found, depth) if depth is not None else tuple(found)


def _worst(ranked: Sequence[tuple[str, LayerRecord]]) -> Figure:
    shown = [layer for _, layer in ranked[:WORST_LAYERS]]
    values, names = [], plot.labels([layer.name for layer in shown])
    for label, layer in zip(names, shown, strict=True):
        for kind, value in (("output", layer.output_sqnr_db), ("weight", layer.weight_sqnr_db)):
            if plot.finite([value]):
                values.append({"label": label, "kind": kind, "value": value})
    x = {
        "field": "value",
        "type": "quantitative",
        "title": "SQNR in dB: further left is worse",
        "scale": {"zero": False, "nice": True},
        "axis": {"tickCount": 5, "domain": False},
    }
    legend = {"title": None, "orient": "top", "direction": "horizontal"}
    spec: Spec = {
        "width": plot.BODY,
        "height": {"step": 22},
        "data": {"values": values},
        "encoding": {"y": plot.rows_axis(names), "x": x},
        "layer": [
            {
                "mark": {"type": "line", "color": plot.COLOURS["line"], "strokeWidth": 2},
                "encoding": {"detail": {"field": "label"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 85, "opacity": 1},
                "encoding": {
                    "color": {**plot.pick("kind", {"output": "bad", "weight": "reference"}), "legend": legend},
                    "shape": {
                        "field": "kind",
                        "type": "nominal",
                        "legend": legend,
                        "scale": {"domain": ["output", "weight"], "range": ["circle", "square"]},
                    },
                },
            },
        ],
    }
    caption = "Signal to quantization noise of a layer's weight, and of its output on calibration data."
    return Figure(
        "worst",
        f"Worst {len(shown)} of {len(ranked):,} layers",
        spec,
        tables.layer_rows(ranked[:WORST_LAYERS]),
        caption,
    )


def _depth(ranked: Sequence[tuple[str, LayerRecord]]) -> Figure | None:
    """A line a kind of layer over the index in its name; nothing for fewer than three blocks."""
    found: dict[str, dict[int, tuple[int, float, LayerRecord, str]]] = {}
    for word, layer in ranked:  # the worst first: of a layer that two passes changed, the larger error is shown
        index = re.search(r"\d+", layer.name)
        error = tables.layer_error(layer)
        if index and error is not None:
            row = (int(index[0]), error, layer, word)
            found.setdefault(re.sub(r"\d+", "*", layer.name), {}).setdefault(row[0], row)
    kinds = {kind: sorted(rows.values(), key=lambda one: one[0]) for kind, rows in found.items() if len(rows) > 2}
    chosen = sorted(kinds, key=lambda kind: min(one[1] for one in kinds[kind]))[:KINDS]
    if not chosen:
        return None
    names = dict(zip(chosen, plot.labels(chosen), strict=True))
    colours = dict(zip(names.values(), ("bad", "good", "third", "fourth", "open"), strict=False))
    values = [
        {"kind": names[kind], "index": index, "value": error} for kind in chosen for index, error, _, _ in kinds[kind]
    ]
    dashes = {
        "field": "kind",
        "type": "nominal",
        "legend": None,
        "scale": {"domain": list(colours), "range": [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 4]][: len(colours)]},
    }
    legend = {"title": None, "orient": "top", "columns": 2, "columnPadding": 30, "symbolType": "circle"}
    spec: Spec = {
        "width": plot.WIDTH - 70,
        "height": 190,
        "data": {"values": values},
        "mark": {"type": "line", "point": {"size": 40, "opacity": 1}, "strokeWidth": 2},
        "encoding": {
            "x": {
                "field": "index",
                "type": "quantitative",
                "title": "block",
                "axis": {"tickMinStep": 1, "grid": False},
                "scale": {"nice": False, "padding": 8, "zero": False},
            },
            "y": {
                "field": "value",
                "type": "quantitative",
                "title": "SQNR in dB",
                "scale": {"zero": False},
                "axis": {"tickCount": 5},
            },
            "color": {**plot.pick("kind", colours), "legend": legend},
            "strokeDash": dashes,
        },
    }
    rows = [(word, layer) for kind in chosen for _, _, layer, word in kinds[kind]]
    caption = f"Output SQNR where it was measured, else the weight's; lower is worse.{' The worst kinds are shown.' if len(kinds) > KINDS else ''}"
    return Figure("depth", "Error over depth", spec, tables.layer_rows(rows), caption)


def sensitivity(report: Report) -> tuple[Figure, ...]:
    """What each pass found out about single layers, where it says so in its details."""
    found = []
    for record in report.passes:
        rows = sensitivity_rows(record.details.get("sensitivity"))
        if rows:
            found.append(_sensitivity(record, rows))
    return tuple(found)


def sensitivity_rows(details: Any) -> list[tuple[str, str, float]]:
    """Layer, what was tried and the number, most sensitive first: from `{layer: number}`, `{layer: {format: number}}`
    or rows with `layer` (or `name`), perhaps `format`, and a number."""
    rows: list[tuple[str, str, float]] = []
    if isinstance(details, Mapping):
        for layer, value in details.items():
            tried = value.items() if isinstance(value, Mapping) else [("", value)]
            rows += [(str(layer), str(what), float(one)) for what, one in tried if _number(one)]
    elif isinstance(details, (list, tuple)):
        for row in details:
            if isinstance(row, Mapping):
                layer, what = row.get("layer", row.get("name")), row.get("format", "")
                number = next((float(one) for one in row.values() if _number(one)), None)
                if layer is not None and number is not None:
                    rows.append((str(layer), str(what), number))
    return sorted(rows, key=lambda one: -one[2])


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _sensitivity(record: PassRecord, rows: Sequence[tuple[str, str, float]]) -> Figure:
    shown = rows[:WORST_LAYERS]
    named = [f"{layer} as {what}" if what else layer for layer, what, _ in shown]
    spec = plot.bars(
        [
            Bar(label, numbers.significant(value), value, "bad")
            for label, (_, _, value) in zip(named, shown, strict=True)
        ]
    )
    table = Table(
        (Column("Layer", code=True), Column("Format"), Column("Sensitivity", numeric=True)),
        tuple(
            (Cell(layer), Cell(what or tables.NONE), Cell(numbers.significant(value), value))
            for layer, what, value in rows
        ),
    )
    caption = f"What quantizing this layer alone costs, as `{record.word}` measured it on calibration data; longer is more sensitive."
    return Figure(
        f"sensitivity-{record.index}", f"Sensitivity: worst {len(shown)} of {len(rows):,}", spec, table, caption
    )


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
