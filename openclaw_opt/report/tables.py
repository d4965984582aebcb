"""The report's tables as text cells, one function a table: every form of the report shows the same numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from openclaw_opt.artifacts import Measurement
from openclaw_opt.records import BudgetRecord, CostRecord, LayerRecord, PassRecord, Report
from openclaw_opt.report import numbers, views
from openclaw_opt.report.gaps import gaps as gaps_of

NONE = "–"
"""For a cell that does not apply; a number that is missing says `not measured`."""


@dataclass(frozen=True)
class Cell:
    """What is shown, what it sorts by if that is a number, and how it is marked: `good`, `bad`, `open`, `quiet` or none."""

    text: str
    sort: float | None = None
    mark: str = ""


@dataclass(frozen=True)
class Column:
    title: str
    numeric: bool = False
    code: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns; `left_out` is how many rows were cut off, worst first."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left_out: int = 0

    def only(self, *titles: str) -> Table:
        """The columns of these titles, in this order."""
        where = [next(i for i, column in enumerate(self.columns) if column.title == title) for title in titles]
        return Table(
            tuple(self.columns[i] for i in where),
            tuple(tuple(row[i] for i in where) for row in self.rows),
            self.left_out,
        )

    def marked(self, mark: str) -> Table:
        """The rows that hold a cell with this mark."""
        return Table(
            self.columns, tuple(row for row in self.rows if any(cell.mark == mark for cell in row)), self.left_out
        )

    def first(self, count: int) -> Table:
        return Table(self.columns, self.rows[:count], self.left_out + max(0, len(self.rows) - count))


VERDICT_MARKS = {
    "within budget": "good",
    "budget missed": "bad",
    "undecided": "open",
    "no budgets": "quiet",
    "not finished": "open",
}
RESULT_MARKS = {"met": "good", "missed": "bad", "undecided": "open"}


def budgets(report: Report) -> Table:
    """Result, what was wanted and got with its interval, the evidence, and which pass and layers spent it."""
    columns = (
        Column("Budget", code=True), Column("Result"), Column("Wanted"), Column("Got", numeric=True), Column("Interval", numeric=True),
        Column("Evidence"), Column("Spent by"),
    )  # fmt: skip
    order = {"missed": 0, "undecided": 1, "met": 2}
    return Table(columns, tuple(_budget_row(one) for one in sorted(report.budgets, key=lambda one: order[one.result])))


def _budget_row(one: BudgetRecord) -> tuple[Cell, ...]:
    return (
        Cell(one.metric),
        Cell(one.result, mark=RESULT_MARKS[one.result]),
        Cell(wanted(one)),
        Cell(numbers.got(one) if one.got is not None else numbers.NOT_MEASURED, one.got),
        Cell(_budget_interval(one), one.low),
        Cell("; ".join(part for part in (one.evidence, one.why) if part) or NONE),
        Cell(spent(one) or NONE),
    )


def wanted(one: BudgetRecord) -> str:
    """`>= 0.99`, and what that came to where it is relative to something: `>= 99 % of the checkpoint: 0.981`."""
    rule = numbers.with_unit(one.rule, one.unit) if numbers.rule_number(one.rule) is not None else one.rule
    if one.against == "nothing":
        return rule
    of = {"checkpoint": "the checkpoint", "baseline": "the baseline"}[one.against]
    said = rule if one.against in one.rule else f"{rule}, against {of}"
    return said if one.bound is None else f"{said}: {numbers.with_unit(numbers.significant(one.bound, 6), one.unit)}"


def spent(one: BudgetRecord) -> str:
    """The pass, and its layers with the largest error."""
    layers = ", ".join(f"`{name}`" for name in one.spent_by_layers)
    return f"{one.spent_by}: {layers}" if one.spent_by and layers else one.spent_by or layers


def _budget_interval(one: BudgetRecord) -> str:
    between = numbers.interval(one.low, one.high, one.unit)
    sure = f" at {one.confidence * 100:g} %" if one.confidence is not None else ""
    return f"{between}{sure}" if between else NONE


def waterfall(report: Report) -> Table:
    """Pass by pass: what it did to accuracy and size, what it took, and how it was checked.

    Latency is a column where some pass was timed; where none was, the gaps say why.
    """
    columns = (
        Column("Pass"), Column("What it changed"), Column(views.accuracy_name(report) or "Accuracy", numeric=True), Column("Size", numeric=True),
        Column("Latency", numeric=True), Column("Time", numeric=True), Column("Peak memory", numeric=True), Column("Verified"),
        Column("Taken from"),
    )  # fmt: skip
    table = Table(
        columns, tuple(_step_row(step, views.pass_latency(report, step.record)) for step in views.steps(report))
    )
    return (
        table if views.passes_timed(report) else table.only(*(one.title for one in columns if one.title != "Latency"))
    )


def _step_row(step: views.Step, latency: Measurement | None) -> tuple[Cell, ...]:
    record = step.record
    return (
        Cell(record.word, float(record.index)),
        Cell(record.changed),
        _accuracy_cell(step),
        Cell(numbers.size(record.size_bytes), float(record.size_bytes)),
        _latency_cell(latency),
        Cell(numbers.seconds(record.seconds), record.seconds),
        Cell(numbers.size(record.peak_bytes), float(record.peak_bytes)),
        verification_cell(record),
        Cell("cache" if record.cached else f"run: {record.redone_why}" if record.redone_why else "run"),
    )


def _accuracy_cell(step: views.Step) -> Cell:
    one = step.measurement
    if one is not None:
        between = numbers.interval(one.low, one.high, one.unit)
        return Cell(
            numbers.measured(one) + (f" ({between})" if between else ""),
            one.value,
            "" if one.value is not None else "quiet",
        )
    if step.record.kind == "exact":
        return Cell(
            "unchanged" if step.record.verification and step.record.verification.ok else NONE, step.after, "quiet"
        )
    return Cell(numbers.missing("no accuracy metric ran after this pass"), None, "quiet")


def _latency_cell(one: Measurement | None) -> Cell:
    if one is None:
        return Cell(numbers.NOT_MEASURED, None, "quiet")
    return Cell(numbers.measured(one), one.value, "" if one.value is not None else "quiet")


def verification_cell(record: PassRecord) -> Cell:
    """`exact: 3.1e-06 ≤ 0.001`, or `lossy: loss measured`."""
    proof = record.verification
    if proof is None:
        known = any(one.value is not None for one in record.accuracy)
        text = "not compared here" if record.kind == "exact" else "loss measured" if known else "loss not measured"
        return Cell(f"{record.kind}: {text}", None, "" if text == "loss measured" else "open")
    mark = "good" if proof.ok else "bad"
    if proof.value is None or proof.tolerance is None:
        return Cell(f"{record.kind}: {'passed' if proof.ok else 'failed'}", None, mark)
    sign = "≤" if proof.value <= proof.tolerance else ">"
    return Cell(f"{record.kind}: {proof.value:.2g} {sign} {proof.tolerance:.2g}", proof.value, mark)


def measurements(rows: Sequence[Measurement]) -> Table:
    """Every measurement with its interval, its subject and its note."""
    columns = (
        Column("Measurement", code=True), Column("Value", numeric=True), Column("95 % interval", numeric=True),
        Column("Samples", numeric=True), Column("Better"), Column("Measured on"), Column("Note"),
    )  # fmt: skip
    return Table(columns, tuple(_measurement_row(one) for one in rows))


def _measurement_row(one: Measurement) -> tuple[Cell, ...]:
    return (
        Cell(under(one)),
        Cell(numbers.measured(one), one.value, "" if one.value is not None else "quiet"),
        Cell(numbers.interval(one.low, one.high, one.unit) or NONE, one.low),
        Cell(f"{one.samples:,}" if one.samples is not None else NONE, one.samples),
        Cell(one.better if one.better != "neither" else NONE),
        Cell(one.subject),
        Cell(one.note or NONE),
    )


def with_interval(one: Measurement) -> Cell:
    """The value, and its interval in parentheses."""
    between = numbers.interval(one.low, one.high, one.unit)
    return Cell(numbers.measured(one) + (f" ({between})" if between else ""), one.value)


def under(one: Measurement) -> str:
    """The name, with the conditions of this row."""
    return ", ".join([one.name, *(f"{key} {value}" for key, value in one.at.items())])


def costs(report: Report) -> Table:
    """What a million tokens cost on each target, the price used, and whether it is measured or a bound."""
    columns = (
        Column("Target"), Column("$ per million", numeric=True), Column("Of"), Column("$ an hour", numeric=True), Column("Price from"),
        Column("Basis"),
    )  # fmt: skip
    return Table(columns, tuple(_cost_row(one) for one in report.costs))


def _cost_row(one: CostRecord) -> tuple[Cell, ...]:
    known = one.per_million_usd is not None
    hourly = one.hourly_usd
    return (
        Cell(one.title),
        Cell(numbers.dollars(one) if known else numbers.NOT_MEASURED, one.per_million_usd, "" if known else "quiet"),
        Cell(one.unit),
        Cell(f"${hourly:,.2f}" if hourly is not None else "no price", hourly, "" if hourly is not None else "quiet"),
        Cell(one.price_source or NONE),
        Cell(one.basis if known else one.not_measured, mark="" if known else "quiet"),
    )


def layer_error(layer: LayerRecord) -> float | None:
    """The output's SQNR where there is one, else the weight's: what ranks the layers."""
    return layer.output_sqnr_db if layer.output_sqnr_db is not None else layer.weight_sqnr_db


def worst_layers(report: Report) -> list[tuple[str, LayerRecord]]:
    """Pass and layer, largest error (lowest SQNR) first; layers without a number last."""
    every = [(record.word, layer) for record in report.passes for layer in record.layers]
    return sorted(every, key=lambda one: _rank(layer_error(one[1])))


def _rank(error: float | None) -> float:
    return math.inf if error is None or math.isnan(error) else error


def layers(report: Report) -> Table:
    """Every layer that a pass changed, worst first."""
    return layer_rows(worst_layers(report))


def layer_rows(chosen: Sequence[tuple[str, LayerRecord]]) -> Table:
    columns = (
        Column("Layer", code=True), Column("Pass"), Column("Format"), Column("Parameters", numeric=True),
        Column("Weight SQNR", numeric=True), Column("Output SQNR", numeric=True), Column("Note"),
    )  # fmt: skip
    rows = tuple(
        (
            Cell(layer.name),
            Cell(word),
            Cell(layer.format),
            Cell(numbers.count(layer.parameters), float(layer.parameters)),
            _decibel(layer.weight_sqnr_db),
            _decibel(layer.output_sqnr_db),
            Cell(layer.note or NONE),
        )
        for word, layer in chosen
    )
    return Table(columns, rows)


def _decibel(value: float | None) -> Cell:
    return (
        Cell(f"{value:.1f} dB", value)
        if value is not None and math.isfinite(value)
        else Cell(
            numbers.NOT_MEASURED if value is None else f"{numbers.significant(value)} dB",
            None if value is None else value,
            "quiet" if value is None else "",
        )
    )


def receipt(report: Report) -> Table:
    """What was asked and what the engine does; what was not realised comes first."""
    columns = (
        Column("Layer", code=True),
        Column("Profile"),
        Column("Asked"),
        Column("Realised"),
        Column("Result"),
        Column("Evidence, or why not"),
    )
    rows = sorted(report.receipt, key=lambda one: one.ok)
    return Table(
        columns,
        tuple(
            (
                Cell(one.layer),
                Cell(one.profile or NONE),
                Cell(one.asked),
                Cell(one.realised),
                Cell("as asked" if one.ok else "not realised", mark="good" if one.ok else "bad"),
                Cell(one.why or NONE),
            )
            for one in rows
        ),
    )


def kernels(report: Report) -> Table:
    columns = (
        Column("Profile"), Column("Kernels", numeric=True), Column("Per layer", numeric=True), Column("Activations", numeric=True),
        Column("Weights", numeric=True), Column("By type"),
    )  # fmt: skip
    rows = tuple(
        (
            Cell(one.profile),
            Cell(f"{one.kernels:,}", float(one.kernels)),
            Cell(numbers.significant(one.per_layer, 3) if one.per_layer is not None else NONE, one.per_layer),
            _bytes(one.activation_bytes),
            _bytes(one.weight_bytes),
            Cell(
                ", ".join(
                    f"{count} {kind}" for kind, count in sorted(one.by_type.items(), key=lambda item: -item[1])[:12]
                )
                or NONE
            ),
        )
        for one in report.kernels
    )
    return Table(columns, rows)


def _bytes(value: int | None) -> Cell:
    return Cell(numbers.size(value), float(value)) if value is not None else Cell("not in the log", None, "quiet")


def gaps(report: Report) -> Table:
    return Table((Column("What"), Column("Why")), tuple((Cell(gap.what), Cell(gap.why)) for gap in gaps_of(report)))


def pairs(title: str, facts: dict[str, str]) -> Table:
    """Two columns: a name and a value."""
    return Table(
        (Column(title), Column("Value", code=True)), tuple((Cell(name), Cell(value)) for name, value in facts.items())
    )
