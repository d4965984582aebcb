"""Which layers err and which are sensitive: the worst by SQNR, each kind over depth, what a pass found out by layer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from openclaw_opt.records import LayerRecord, PassRecord, Report
from openclaw_opt.report import numbers, plot, tables
from openclaw_opt.report.plot import Bar, Figure, Spec
from openclaw_opt.report.tables import Cell, Column, Table

WORST_LAYERS = 14
KINDS = 5
"""Kinds of layer with a line of their own in the picture over depth."""


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
    legend = {"title": None, "orient": "top", "direction": "horizontal", "columnPadding": 30}
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
