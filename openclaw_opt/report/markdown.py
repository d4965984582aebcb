"""Report → Markdown for a CI job summary or a pull-request comment: short, and never over 64 KB."""

from __future__ import annotations

import re

from openclaw_opt.records import Report
from openclaw_opt.report import numbers, tables, views
from openclaw_opt.report.tables import Cell, Column, Table

LIMIT_BYTES = 60_000
"""Of UTF-8; GitHub cuts comments at 65,536 characters."""
ROWS = 60
CELL = 300
"""Characters; longer text is cut, and report.html has the whole."""
SIGNS = {"within budget": "✅", "budget missed": "❌", "undecided": "❔", "no budgets": "➖", "not finished": "⏳"}
MARKS = {"good": "✅ ", "bad": "❌ ", "open": "❔ "}
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~#])")


def markdown(report: Report) -> str:
    """Verdict, budgets, headline, passes, what was not measured, the next step."""
    sections = [
        _head(report),
        _section("Budgets", tables.budgets(report)),
        _section("Headline", _headline(report)),
        _section("Pass by pass", tables.waterfall(report).only(*_waterfall_columns(report))),
        _section("Precision not realised", _unrealised(report)),
        _section("Not measured", tables.gaps(report)),
        _notes(report),
        _foot(report),
    ]
    return _limited([section for section in sections if section])


def _head(report: Report) -> str:
    lines = [
        f"## {SIGNS[report.verdict]} {escape(report.name)}: {report.verdict}",
        "",
        escape(views.verdict_line(report), 2000),
    ]
    if report.next_step:
        lines += ["", f"**Next:** {escape(report.next_step, 1000)}"]
    about = f"{report.model} ({report.family}, {numbers.count(report.parameters)} parameters) → {report.target_title}, {report.backend}"
    return "\n".join([*lines, "", escape(about, 600)])


def _headline(report: Report) -> Table:
    columns = (Column("Number", code=True), Column("Value", numeric=True), Column("Rests on"), Column("Measured on"))
    rows = (*views.headlines(report), *views.cost(report))
    cells = tuple(
        (Cell(one.label), Cell(one.value), Cell(one.detail or tables.NONE), Cell(one.subject or tables.NONE))
        for one in rows
    )
    return Table(columns, cells)


def _waterfall_columns(report: Report) -> tuple[str, ...]:
    accuracy = tables.waterfall(report).columns[2].title
    return ("Pass", accuracy, "Size", "Latency", "Time", "Peak memory", "Verified", "Taken from")


def _unrealised(report: Report) -> Table:
    rows = tables.receipt(report)
    return Table(
        rows.columns,
        tuple(
            row
            for row, one in zip(rows.rows, sorted(report.receipt, key=lambda one: one.ok), strict=True)
            if not one.ok
        ),
    )


def _notes(report: Report) -> str:
    shown = [f"- {escape(note, 600)}" for note in report.notes[:ROWS]]
    more = [f"- {len(report.notes) - ROWS} more in report.html"] if len(report.notes) > ROWS else []
    return "\n".join(["### Notes", "", *shown, *more]) if shown else ""


def _foot(report: Report) -> str:
    took = f"{numbers.seconds(report.seconds)} on {report.machine.title}, peak memory {numbers.size(report.peak_bytes)}"
    return f"Built in {escape(took, 300)}. Layers, latency curves and provenance are in `report.html`."


def _section(title: str, table: Table) -> str:
    if not table.rows:
        return ""
    shown = table.first(ROWS)
    head = "| " + " | ".join(escape(column.title) for column in shown.columns) + " |"
    rule = "|" + "|".join(" ---: " if column.numeric else " --- " for column in shown.columns) + "|"
    rows = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in shown.rows]
    more = ["", f"{shown.left_out:,} more rows in report.html."] if shown.left_out else []
    return "\n".join([f"### {title}", "", head, rule, *rows, *more])


def _cell(cell: Cell) -> str:
    return f"{MARKS.get(cell.mark, '')}{escape(cell.text)}"


def escape(text: str, longest: int = CELL) -> str:
    """One line of plain text: no markup, no mentions, no HTML, cut at `longest` characters."""
    line = " ".join(text.split())
    cut = line if len(line) <= longest else f"{line[:longest]} … (whole in report.html)"
    return _SPECIAL.sub(r"\\\1", cut).replace("@", "@\u200b")


def _limited(sections: list[str]) -> str:
    """The sections that fit; what was left out is named. The first holds the verdict and is short."""
    text = "\n\n".join(sections) + "\n"
    kept = list(sections)
    while len(text.encode()) > LIMIT_BYTES and len(kept) > 1:
        kept.pop()
        text = "\n\n".join([*kept, "More did not fit here: see `report.html`."]) + "\n"
    return text
