"""`quantize: {format: auto}`: how sensitive each layer is to each format, which it got, and the choices that were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openclaw_opt.records import PassRecord, Report
from openclaw_opt.report import numbers, plot
from openclaw_opt.report.plot import Figure, Spec
from openclaw_opt.report.tables import Cell, Column, Table

PROVEN = 1e-9
"""A gap below this is rounding: the choice is the least there is."""
SHOWN = 40
"""Layers in a picture, the most sensitive; the table has all."""
COLOURS = ("good", "bad", "third", "fourth", "open", "reference")
SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down")
FLOAT = "fp16"
"""How details name a layer that stays float."""
_CHOICE = (
    Column("Layer", code=True),
    Column("Format"),
    Column("Bits a weight", numeric=True),
    Column("Bytes", numeric=True),
    Column("Its loss alone", numeric=True),
)


def mixed(report: Report) -> tuple[Figure, ...]:
    """Two pictures a pass that chose formats: the sensitivities, and bits a weight by layer."""
    found: list[Figure] = []
    for record in report.passes:
        facts = record.details.get("mixed")
        if isinstance(facts, Mapping):
            found += [_sensitivity(record, facts), _choice(record, facts)]
    return tuple(found)


def rounds(report: Report) -> Table:
    """The choices that were measured, in order."""
    columns = (
        Column("Round", numeric=True),
        Column("Allowed loss", numeric=True),
        Column("Predicted", numeric=True),
        Column("Bits a weight", numeric=True),
        Column("Held-back calibration data"),
        Column("Kept"),
        Column("Solver gap", numeric=True),
    )
    rows = []
    for record in report.passes:
        for i, one in enumerate(record.details.get("mixed", {}).get("rounds", ())):
            said = "; ".join(reading["text"] for reading in one["readings"])
            word = "taken" if one["taken"] else "yes" if one["holds"] else "no"
            rows.append(
                (
                    Cell(str(i + 1), i + 1),
                    Cell(numbers.significant(one["allowance"]), one["allowance"]),
                    Cell(numbers.significant(one["predicted"]), one["predicted"]),
                    Cell(f"{one['bits_per_weight']:.2f}", one["bits_per_weight"]),
                    Cell(said),
                    Cell(word, mark="good" if one["taken"] else ""),
                    Cell(
                        "none" if one["solver_gap"] < PROVEN else f"{100 * one['solver_gap']:.2g} %", one["solver_gap"]
                    ),
                )
            )
    return Table(columns, tuple(rows))


def choices(report: Report) -> Table:
    """Which layer got what."""
    found = [record.details["mixed"] for record in report.passes if "mixed" in record.details]
    rows = [_row(facts, one) for facts in found for one in facts["choice"]]
    return Table(_CHOICE, tuple(rows))


def _row(facts: Mapping[str, Any], one: Mapping[str, Any]) -> tuple[Cell, ...]:
    return (
        Cell(one["layer"]),
        Cell(_word(facts, one["format"])),
        Cell(f"{one['bits']:.2f}", one["bits"]),
        Cell(numbers.size(one["bytes"]), one["bytes"]),
        Cell(numbers.significant(one["predicted"]), one["predicted"]),
    )


def _word(facts: Mapping[str, Any], label: str) -> str:
    return str(facts["float"]) if label == FLOAT else label


def _colours(facts: Mapping[str, Any]) -> dict[str, str]:
    """Candidate → colour's name; float is the last."""
    names = [*facts["candidates"], facts["float"]]
    return {name: COLOURS[min(i, len(COLOURS) - 1)] for i, name in enumerate(names)}


def _every_label(axis: Spec) -> Spec:
    """Rows stand closer than elsewhere, and each has its name."""
    return {**axis, "axis": {**axis["axis"], "labelOverlap": False, "labelFontSize": 11}}


def _ranked(facts: Mapping[str, Any]) -> list[str]:
    """The most sensitive layers, in the model's order."""
    table = facts["sensitivity"]
    worst = sorted(table, key=lambda name: -max(table[name].values(), default=0.0))[:SHOWN]
    return [name for name in table if name in set(worst)]


def _sensitivity(record: PassRecord, facts: Mapping[str, Any]) -> Figure:
    table, taken = facts["sensitivity"], {one["layer"]: one["format"] for one in facts["choice"]}
    names = _ranked(facts)
    labels = dict(zip(names, plot.labels(names), strict=True))
    positive = plot.finite(value for row in table.values() for value in row.values() if value > 0)
    floor = min(positive, default=1e-12)
    values = [
        {"label": labels[name], "candidate": label, "value": max(value, floor), "taken": taken.get(name) == label}
        for name in names
        for label, value in table[name].items()
    ]
    colours = {name: colour for name, colour in _colours(facts).items() if name in facts["candidates"]}
    legend = {"title": None, "orient": "top", "columns": 2, "columnPadding": 24}
    axis = plot.rows_axis(list(labels.values()))
    shape = {
        "field": "candidate",
        "type": "nominal",
        "legend": legend,
        "scale": {"domain": list(colours), "range": [SHAPES[i % len(SHAPES)] for i in range(len(colours))]},
    }
    encoding = {
        "x": {
            "field": "value",
            "type": "quantitative",
            "title": f"{facts['loss']}, this layer alone (log scale)",
            "scale": {"type": "log", "nice": True},
            "axis": {"tickCount": 4, "format": ".0e", "domain": False},
        },
        "color": {**plot.pick("candidate", colours), "legend": legend},
        "shape": shape,
    }
    spec: Spec = {
        "width": plot.BODY,
        "height": {"step": 17},
        "data": {"values": values},
        "encoding": {"y": _every_label(axis), **encoding},
        "layer": [
            {"mark": {"type": "point", "size": 45, "opacity": 1, "strokeWidth": 1.5}},
            {
                "transform": [{"filter": "datum.taken"}],
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
            },
        ],
    }
    columns = (
        Column("Layer", code=True),
        *(Column(label, numeric=True) for label in facts["candidates"]),
        Column("Got"),
    )
    rows = [
        (
            Cell(name),
            *(
                Cell(numbers.significant(row[label]), row[label]) if label in row else Cell("–")
                for label in facts["candidates"]
            ),
            Cell(_word(facts, taken[name])),
        )
        for name, row in table.items()
    ]
    caption = (
        "What quantizing this layer alone costs on calibration data, a mark a candidate; a filled mark is what it got."
        + ("" if len(names) == len(table) else f" The {len(names)} most sensitive of {len(table):,} layers.")
    )
    return Figure(
        f"sensitivity-{record.index}", "Sensitivity of each layer", spec, Table(columns, tuple(rows)), caption
    )


def _choice(record: PassRecord, facts: Mapping[str, Any]) -> Figure:
    shown: Sequence[Mapping[str, Any]] = [one for one in facts["choice"] if one["layer"] in set(_ranked(facts))]
    names = plot.labels([one["layer"] for one in shown])
    words = [_word(facts, one["format"]) for one in shown]
    values = [
        {"label": label, "candidate": word, "value": one["bits"], "text": f"{one['bits']:.3g}"}
        for label, word, one in zip(names, words, shown, strict=True)
    ]
    colours = {name: colour for name, colour in _colours(facts).items() if name in words}
    spec: Spec = {
        "width": plot.BODY - 40,
        "height": {"step": 17},
        "data": {"values": values},
        "encoding": {
            "y": _every_label(plot.rows_axis(names)),
            "x": {"field": "value", "type": "quantitative", "axis": None, "scale": {"zero": True, "nice": False}},
        },
        "layer": [
            {
                "mark": {"type": "bar", "height": 10},
                "encoding": {
                    "color": {
                        **plot.pick("candidate", colours),
                        "legend": {"title": None, "orient": "top", "columns": 2, "columnPadding": 24},
                    }
                },
            },
            {"mark": {"type": "text", "align": "left", "dx": 5}, "encoding": {"text": {"field": "text"}}},
        ],
    }
    return Figure(
        f"choice-{record.index}",
        f"Bits a weight by layer: {facts['bits_per_weight']:.2f} on the whole",
        spec,
        Table(_CHOICE, tuple(_row(facts, one) for one in facts["choice"])),
        _told(facts),
    )


def _told(facts: Mapping[str, Any]) -> str:
    gap = facts["solver_gap"]
    proof = "proven least" if gap < PROVEN else f"within {100 * gap:.2g} % of the least, as proven"
    return (
        f"Scales and zero points counted. Loss ({facts['loss']}): {numbers.significant(facts['predicted'])} predicted, "
        f"{numbers.significant(facts['measured'])} measured on {facts['held_back']} samples held back; "
        f"the {facts['minimise']} is {proof} for the allowance; {len(facts['rounds'])} choices were measured."
    )
