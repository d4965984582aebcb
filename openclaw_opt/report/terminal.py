"""Report → terminal: tables that read well in a terminal of 80 columns, in a CI log and in a file alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openclaw_opt.records import Report
from openclaw_opt.report import numbers, report_json, tables, views
from openclaw_opt.report.tables import Cell, Column, Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

__all__ = ["print_report", "report_json", "summary_line"]

PADDING = 2
MOST_GAPS = 12
STYLES = {"good": "green", "bad": "bold red", "open": "yellow", "quiet": "dim"}


def print_report(report: Report, console: Console) -> None:
    """Budgets, headline, passes, what was not measured, the verdict. Nothing is cut to fit: columns wrap or are left out."""
    for title, table in (
        ("Budgets", tables.budgets(report).only("Budget", "Wanted", "Got", "Result", "Spent by")),
        ("Headline", _headline(report)),
        ("Pass by pass", _passes(report)),
        ("Precision not realised", _unrealised(report)),
    ):
        _print_table(console, title, table)
    gaps = [f"{gap.what}: {gap.why}" for gap in views.gaps(report)]
    _print_lines(console, "Not measured", gaps[:MOST_GAPS] + _more(len(gaps) - MOST_GAPS))
    _print_lines(console, "Notes", list(report.notes[:MOST_GAPS]) + _more(len(report.notes) - MOST_GAPS))


def summary_line(report: Report) -> str:
    """One line that says how it went and what to do next."""
    step = report.next_step or (f"run {report.finish_command}" if report.finish_command else "")
    line = f"{report.name}: {report.verdict}: {views.verdict_line(report)}" + (f". Next: {step}" if step else "")
    return " ".join(line.split())


def _headline(report: Report) -> Table:
    columns = (Column("Number"), Column("Value", numeric=True), Column("Rests on"))
    rows = [one for one in (*views.headlines(report), *views.cost(report)) if one.measured]
    return Table(columns, tuple((Cell(one.label), Cell(one.value), Cell(_basis(one))) for one in rows))


def _basis(one: views.Headline) -> str:
    return "; ".join(
        part for part in (one.detail, f"on {one.subject}" if one.subject not in ("", "engine") else "") if part
    )


def _passes(report: Report) -> Table:
    """The waterfall without its sentences; the accuracy's interval is in the other forms."""
    rows = []
    for step, row in zip(views.steps(report), tables.waterfall(report).rows, strict=True):
        one = step.measurement
        if one is None:
            accuracy = Cell("=" if row[2].text == "unchanged" else "not measured", mark="quiet")
        else:
            accuracy = Cell(numbers.quantity(one.value, one.unit) if one.value is not None else numbers.NOT_MEASURED)
        rows.append((row[0], accuracy, row[3], row[5], row[6], row[7], Cell("cached" if step.record.cached else "run")))
    name = views.accuracy_name(report).rsplit(".", 1)[-1].replace("_", " ") or "accuracy"
    titles = ("Pass", name, "Size", "Time", "Memory", "Verified", "Taken")
    return Table(
        tuple(Column(title, numeric=title not in ("Pass", "Verified", "Taken")) for title in titles), tuple(rows)
    )


def _unrealised(report: Report) -> Table:
    bad = Table(
        tables.receipt(report).columns, tuple(row for row in tables.receipt(report).rows if row[4].mark == "bad")
    )
    return bad.first(MOST_GAPS).only("Layer", "Asked", "Realised", "Evidence, or why not") if bad.rows else bad


def _more(count: int) -> list[str]:
    return [f"{count} more in report.html"] if count > 0 else []


def _print_lines(console: Console, title: str, lines: list[str]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    if lines:
        console.print(Text(title, "bold"))
        for line in lines:
            console.print(Padding(Text(f"- {_plain(line)}", overflow="fold"), (0, 0, 0, PADDING), expand=False))
        console.print()


def _print_table(console: Console, title: str, table: Table) -> None:
    from rich.text import Text

    if not table.rows:
        return
    console.print(Text(title, "bold"))
    console.print(_rich(_fitting(table, console.width)))
    if table.left_out:
        console.print(Text(f"  {table.left_out:,} more in report.html"))
    console.print()


def _rich(table: Table) -> RichTable:
    from rich.table import Table as RichTable
    from rich.text import Text

    rich = RichTable(box=None, pad_edge=False, padding=(0, PADDING, 0, 0), header_style="underline", show_edge=False)
    for column in table.columns:
        rich.add_column(
            Text(_plain(column.title)),
            justify="right" if column.numeric else "left",
            overflow="fold",
            no_wrap=column.numeric,
        )
    for row in table.rows:
        rich.add_row(*(Text(_plain(cell.text), STYLES.get(cell.mark, "")) for cell in row))
    return rich


def _fitting(table: Table, width: int) -> Table:
    """The leading columns whose longest words fit side by side; what is left out is in the other forms."""
    widths = [_least(table, i) + PADDING for i in range(len(table.columns))]
    kept = max((n for n in range(2, len(widths) + 1) if sum(widths[:n]) - PADDING <= width), default=2)
    return table.only(*(column.title for column in table.columns[:kept]))


def _least(table: Table, index: int) -> int:
    """Width below which a column would break a number or a word."""
    column = table.columns[index]
    texts = [column.title, *(row[index].text for row in table.rows)]
    return max(len(part) for text in texts for part in ([text] if column.numeric else text.split() or [""]))


def _plain(text: str) -> str:
    """No control characters: a name must not move the cursor or colour the log."""
    return "".join(char if char.isprintable() else " " for char in text)
