"""Report → terminal: tables that read well in a terminal of 80 columns, in a CI log and in a file alike."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from openclaw_opt.records import Report
from openclaw_opt.report import headline, numbers, report_json, tables, views
from openclaw_opt.report.bought import bought
from openclaw_opt.report.earlier import sentences
from openclaw_opt.report.gaps import gaps as gaps_of
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
        ("What each pass bought", _bought(report)),
        ("Pass by pass", _passes(report)),
        ("Precision not realised", _unrealised(report)),
    ):
        print_table(console, title, table)
    gaps = [f"{gap.what}: {gap.why}" for gap in gaps_of(report)]
    print_lines(console, "Not measured", gaps[:MOST_GAPS] + _more(len(gaps) - MOST_GAPS))
    print_lines(console, "Earlier builds", list(sentences(report)))
    print_lines(console, "Notes", list(report.notes[:MOST_GAPS]) + _more(len(report.notes) - MOST_GAPS))


def summary_line(report: Report) -> str:
    """One line that says how it went and what to do next."""
    step = report.next_step or (f"run {report.finish_command}" if report.finish_command else "")
    line = f"{report.name}: {report.verdict}: {views.verdict_line(report)}" + (f". Next: {step}" if step else "")
    return " ".join(_plain(line).split())


def _headline(report: Report) -> Table:
    columns = (Column("Number"), Column("Value", numeric=True), Column("Rests on"))
    rows = [one for one in (*headline.headlines(report), *headline.cost(report)) if one.measured]
    return Table(columns, tuple((Cell(one.label), Cell(one.value), Cell(_basis(one))) for one in rows))


def _basis(one: headline.Headline) -> str:
    return "; ".join(part for part in (one.detail, _where(one.subject)) if part)


def _where(subject: str) -> str:
    if subject in ("", "engine"):
        return ""
    return subject if subject.startswith("after ") else f"on {subject}"


def _bought(report: Report) -> Table:
    """Times, ratios and cost without intervals, which are in the other forms."""
    table = bought(report)
    titles = [column.title for column in table.columns]
    rows = tuple(
        (row[0], *(replace(cell, text=cell.text.split(" (")[0].replace(" of this machine", "")) for cell in row[3:]))
        for row in table.rows
    )
    return Table((Column("After"), *(Column(title, numeric=True) for title in titles[3:])), rows)


def _passes(report: Report) -> Table:
    """The waterfall without its sentences; the accuracy's interval is in the other forms."""
    table = tables.waterfall(report)
    where = [column.title for column in table.columns].index("Size")
    rows = tuple(
        (
            row[0],
            _accuracy(step),
            row[where],
            *row[-4:-2],
            _verified(row[-2]),
            Cell("cache" if step.record.cached else "run"),
        )
        for step, row in zip(views.steps(report), table.rows, strict=True)
    )
    name = views.accuracy_name(report).rsplit(".", 1)[-1].replace("_", " ") or "accuracy"
    titles = ("Pass", name, "Size", "Time", "Memory", "Verified", "From")
    return Table(tuple(Column(title, numeric=i in (1, 2, 3, 4)) for i, title in enumerate(titles)), rows)


def _accuracy(step: views.Step) -> Cell:
    one = step.measurement
    if one is None or one.value is None:
        return Cell("unchanged" if one is None and step.after is not None else numbers.NOT_MEASURED, mark="quiet")
    return Cell(numbers.quantity(one.value, one.unit))


def _verified(cell: Cell) -> Cell:
    """Without the pass's kind, and the error to one digit: the columns are narrow."""
    text = cell.text.split(": ", 1)[-1]
    sign, bound = text.split()[1:] if cell.sort is not None else ("", "")
    return Cell(f"{cell.sort:.1g} {sign} {bound}" if cell.sort is not None else text, mark=cell.mark)


def _unrealised(report: Report) -> Table:
    bad = tables.receipt(report).marked("bad")
    return bad.first(MOST_GAPS).only("Layer", "Asked", "Realised", "Evidence, or why not") if bad.rows else bad


def _more(count: int) -> list[str]:
    return [f"{count} more in report.html"] if count > 0 else []


def print_lines(console: Console, title: str, lines: list[str]) -> None:
    """Sentences under a title, each with a bullet; nothing where there are none."""
    from rich.table import Table as RichTable
    from rich.text import Text

    if not lines:
        return
    console.print(Text(title, "bold"))
    bullets = RichTable.grid(padding=(0, 1, 0, 0))
    bullets.add_column(width=1)
    bullets.add_column(overflow="fold")
    for line in lines:
        bullets.add_row("-", Text(_plain(line)))
    console.print(bullets)
    console.print()


def print_table(console: Console, title: str, table: Table) -> None:
    """A table as wide as the terminal; nothing where it has no rows."""
    from rich.text import Text

    if not table.rows:
        return
    console.print(Text(title, "bold"))
    fitting = _fitting(table, console.width)
    console.print(_rich(fitting, _widths(fitting, console.width)))
    if table.left_out:
        console.print(Text(f"  {table.left_out:,} more in report.html"))
    console.print()


def _rich(table: Table, widths: list[int]) -> RichTable:
    from rich.table import Table as RichTable
    from rich.text import Text

    rich = RichTable(box=None, pad_edge=False, padding=(0, PADDING, 0, 0), header_style="underline", show_edge=False)
    for column, width in zip(table.columns, widths, strict=True):
        justify: Literal["left", "right"] = "right" if column.numeric else "left"
        rich.add_column(Text(_plain(column.title)), justify=justify, overflow="fold", width=width)
    for row in table.rows:
        rich.add_row(*(Text(_plain(cell.text), STYLES.get(cell.mark, "")) for cell in row))
    return rich


def _fitting(table: Table, width: int) -> Table:
    """The leading columns whose longest words fit side by side; what is left out is in the other forms."""
    widths = [_least(table, i) + PADDING for i in range(len(table.columns))]
    kept = max((n for n in range(2, len(widths) + 1) if sum(widths[:n]) - PADDING <= width), default=2)
    return table.only(*(column.title for column in table.columns[:kept]))


def _widths(table: Table, width: int) -> list[int]:
    """Each column as wide as its text, and where that is too much no narrower than its longest word or number.

    A word longer than the terminal is folded: nothing is cut.
    """
    columns = range(len(table.columns))
    widths = [max(len(text) for text in _texts(table, i)) for i in columns]
    over = sum(widths) + PADDING * (len(widths) - 1) - width
    for i in sorted(columns, key=lambda i: -widths[i]):
        cut = min(max(over, 0), widths[i] - _least(table, i))
        widths[i], over = widths[i] - cut, over - cut
    for i in sorted(columns, key=lambda i: -widths[i]):
        cut = min(max(over, 0), widths[i] - min(widths[i], 8))
        widths[i], over = widths[i] - cut, over - cut
    return widths


def _texts(table: Table, index: int) -> list[str]:
    return [_plain(text) for text in (table.columns[index].title, *(row[index].text for row in table.rows))]


def _least(table: Table, index: int) -> int:
    """Width below which a column would break a number or a word."""
    whole = table.columns[index].numeric
    return max(len(part) for text in _texts(table, index) for part in ([text] if whole else text.split() or [""]))


def _plain(text: str) -> str:
    """No control characters: a name must not move the cursor or colour the log."""
    return "".join(char if char.isprintable() else " " for char in text)
