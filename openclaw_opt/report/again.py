"""What `openclaw-opt measure` took of the artifact after its build, on this machine or another, beside the build's own number."""

from __future__ import annotations

from openclaw_opt.artifacts import Measurement
from openclaw_opt.records import MeasuredRecord, Report
from openclaw_opt.report import numbers
from openclaw_opt.report.provenance import machine_line
from openclaw_opt.report.tables import NONE, Cell, Column, Table, under

_COLUMNS = (
    Column("Measurement", code=True), Column("Value", numeric=True), Column("95 % interval", numeric=True),
    Column("At the build", numeric=True), Column("Measured on"), Column("Machine"), Column("When, UTC"),
)  # fmt: skip


def measured_again(report: Report) -> Table:
    """A row for every number of every time, the latest first."""
    before = {(one.name, one.subject, under(one)): one for one in report.measurements}
    rows = [
        _row(one, before.get((one.name, one.subject, under(one))), record)
        for record in reversed(report.remeasured)
        for one in record.measurements
    ]
    return Table(_COLUMNS, tuple(rows))


def _row(one: Measurement, before: Measurement | None, record: MeasuredRecord) -> tuple[Cell, ...]:
    return (
        Cell(under(one)),
        Cell(numbers.measured(one), one.value, "" if one.value is not None else "quiet"),
        Cell(numbers.interval(one.low, one.high, one.unit) or NONE, one.low),
        Cell(NONE) if before is None else Cell(numbers.measured(before), before.value),
        Cell(one.subject),
        Cell(machine_line(record.machine)),
        Cell(record.started.removesuffix("+00:00").replace("T", " ")),
    )
