"""What each pass bought in time and money: the table and the picture. All rows were timed in turns, or all are bounds.

`×` is the time with what the pass before it of its kind gave / the time with what it gave: above 1 it made the engine faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from openclaw_opt.artifacts import Measurement
from openclaw_opt.records import PassRecord, Report
from openclaw_opt.report import numbers, plot, tables, views
from openclaw_opt.report.plot import Bar, Figure
from openclaw_opt.report.tables import NONE, Cell, Column, Table

TIMES = (
    ("Prompt", ("latency.ttft.p50_ms", "roofline.ttft_ms"), "speedup.pass.prefill"),
    ("Token", ("latency.decode.p50_ms", "roofline.decode_ms"), "speedup.pass"),
    ("Batch", ("latency.infer.p50_ms", "roofline.infer_ms"), "speedup.pass"),
)
"""Title, measurement or bound, and the ratio that belongs to it."""
RATES = ("throughput.decode_tokens_per_s", "throughput.samples_per_s")


def bought(report: Report) -> Table:
    """Pass by pass: accuracy, size, time and how much faster than before, cost of a million. No rows where nothing was asked."""
    records = [record for record in report.passes if record.timed]
    if not records:
        return Table((), ())
    shown = [one for one in TIMES if any(_row(record, one[1]) is not None for record in records)]
    before = tables.waterfall(report)
    where = [column.title for column in before.columns]
    accuracy = views.accuracy_name(report) or "Accuracy"
    columns = [Column("After"), Column(accuracy, numeric=True), Column("Size", numeric=True)]
    for title, _, _ in shown:
        columns += [Column(title, numeric=True), Column(f"{title} ×", numeric=True)]
    columns.append(Column(_money(report), numeric=True))
    rows = []
    for record, row in zip(report.passes, before.rows, strict=True):
        if record.timed:
            cells = [row[0], row[where.index(accuracy)], row[where.index("Size")]]
            for _, names, ratio in shown:
                cells += [_time(_row(record, names)), _faster(record, ratio)]
            rows.append((*cells, _cost(record)))
    return Table(tuple(columns), tuple(rows))


def _money(report: Report) -> str:
    unit = next((record.cost.unit for record in report.passes if record.cost is not None), "output tokens")
    return f"A million {unit}"


def _row(record: PassRecord, names: Sequence[str]) -> Measurement | None:
    return next((one for one in record.latency if one.name in names), None)


def _time(one: Measurement | None) -> Cell:
    if one is None:
        return Cell(NONE)
    if one.subject == views.BOUND and one.value is not None:
        return Cell(f"at least {numbers.quantity(one.value, one.unit)}", one.value, "open")
    cell = tables.with_interval(one)
    return cell if one.value is not None else Cell(cell.text, None, "quiet")


def _faster(record: PassRecord, name: str) -> Cell:
    one = next((row for row in record.speedups if row.name == name), None)
    if one is None or one.value is None:
        return Cell(NONE)
    between = (
        ""
        if one.low is None or one.high is None
        else f" ({numbers.significant(one.low, 3)} to {numbers.significant(one.high, 3)})"
    )
    bound = "bound " if one.subject == views.BOUND else ""
    return Cell(f"{bound}{numbers.times(one.value)}{between}", one.value, _mark(one))


def _mark(one: Measurement) -> str:
    """Faster or slower beyond the interval; what has none is a bound."""
    if one.low is None or one.high is None:
        return "open"
    return "good" if one.low > 1 else "bad" if one.high < 1 else ""


def _cost(record: PassRecord) -> Cell:
    """Dollars; where the machine has no price, the hours a price would be multiplied with."""
    one = record.cost
    if one is None:
        return Cell(NONE)
    if one.per_million_usd is not None:
        return Cell(numbers.dollars(one), one.per_million_usd, "open" if numbers.is_bound(one) else "")
    hours = hours_per_million(record)
    return Cell(NONE) if hours is None else Cell(f"{numbers.significant(hours, 3)} h of this machine", hours)


def hours_per_million(record: PassRecord) -> float | None:
    """Hours the engine takes for a million, from its measured throughput."""
    rate = next((one.value for one in record.latency if one.name in RATES and one.value), None)
    return None if rate is None else 1e6 / rate / 3600


def bought_figure(report: Report) -> Figure | None:
    """Time and cost after each pass, one under the other; nothing unless two passes have a number."""
    if not views.passes_timed(report):
        return None
    panels = []
    for _, names, ratio in TIMES:
        rows = [(record, _row(record, names)) for record in report.passes]
        name = next((one.name for _, one in reversed(rows) if one is not None), "")
        if name:
            panels.append(plot.bars([_bar(record, one, ratio) for record, one in rows], f"{name} after each pass"))
    costs = [(record, _cost(record)) for record in report.passes]
    if sum(cell.sort is not None for _, cell in costs) > 1:
        bars = [
            Bar(
                views.pass_label(record),
                cell.text if cell.sort is not None else numbers.NOT_MEASURED,
                cell.sort,
                _colour(record),
            )
            for record, cell in costs
        ]
        panels.append(plot.bars(bars, _money(report)))
    table = bought(report)
    if not table.rows:
        table = tables.waterfall(report).only("Pass", "Latency")
    return Figure("bought", "What each pass bought in time and cost", {"vconcat": panels}, table, caption(report))


def caption(report: Report) -> str:
    """How to read the rows."""
    if any(one.subject == views.BOUND for record in report.passes for one in record.latency):
        return (
            "A bound, not a measurement: what the target's figures allow for the graph of what each pass gave. "
            "Nothing runs faster or cheaper."
        )
    machine = f" on {report.machine.title}" if report.finished else ""
    return (
        f"An engine was made from what each pass gave and all were timed in turns{machine}; the line is the 95 % interval. "
        "Blue: the engine of this build. Grey: a model before later passes, or a graph without `fuse`. Unclear: the interval of the ratio holds 1."
    )


def _colour(record: PassRecord) -> str:
    if any(one.subject == views.BOUND for one in record.latency):
        return "open"
    return "good" if record.timed in ("", views.THE_ENGINE) else "reference"


def _bar(record: PassRecord, one: Measurement | None, ratio: str) -> Bar:
    if one is None or one.value is None:
        return Bar(views.pass_label(record), numbers.NOT_MEASURED, None)
    faster = next((row for row in record.speedups if row.name == ratio and row.value is not None), None)
    told = f"{'bound ' if one.subject == views.BOUND else ''}{numbers.short(one)}"
    told += _compared(faster) if faster is not None else ""
    return Bar(views.pass_label(record), told, one.value, _colour(record), one.low, one.high)


def _compared(one: Measurement) -> str:
    """What the interval shows: faster, slower, or neither."""
    value = views.number(one)
    if one.low is not None and one.high is not None and one.low <= 1 <= one.high:
        return ", unclear"
    return f", {numbers.times(value)} faster" if value >= 1 else f", {numbers.times(1 / value)} slower"


def pass_lines(report: Report) -> Iterator[str]:
    """A line a pass with what was measured of it."""
    for record in report.passes:
        told = []
        for title, names, ratio in TIMES:
            one = _row(record, names)
            if one is not None and one.value is not None:
                faster = _faster(record, ratio).text
                told.append(
                    f"{title.lower()} {_time(one).text}"
                    + (f", {faster} over {record.speedup_over}" if faster != NONE else "")
                )
        if told and record.timed:
            cost = _cost(record).text
            yield f"after {record.word}: {'; '.join([*told, *([f'{_money(report).lower()} {cost}'] if cost != NONE else [])])}"
