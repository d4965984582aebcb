"""Report → Markdown for a CI job summary: verdict, budgets and headline first, the rest folded; never over 1 MB."""

from __future__ import annotations

import re

from openclaw_opt.records import Report
from openclaw_opt.report import headline, mixed_figures, numbers, tables, views
from openclaw_opt.report.again import measured_again
from openclaw_opt.report.bought import bought
from openclaw_opt.report.earlier import earlier_table, sentences
from openclaw_opt.report.tables import Cell, Column, Table

LIMIT_BYTES = 1_000_000
"""Of UTF-8; GitHub refuses a step's job summary above 1 MiB."""
ROWS = 200
EARLIER = 11
"""This build and the ten newest before it."""
RECIPE = 20_000
"""Characters of the recipe that are shown."""
CELL = 300
"""Characters; longer text is cut, and report.html has the whole."""
SIGNS = {"within budget": "✅", "budget missed": "❌", "undecided": "❔", "no budgets": "➖", "not finished": "⏳"}
MARKS = {"good": "✅ ", "bad": "❌ ", "open": "❔ "}
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~#])")


def markdown(report: Report) -> str:
    """Verdict, budgets, headline, passes, what was not measured; folded: measurements, layers, receipt, cost, provenance."""
    bounds, latencies = views.bounds(report), views.latencies(report)
    others = [one for one in report.measurements if one not in latencies and one not in bounds]
    sections = [
        _head(report),
        section("Budgets", tables.budgets(report)),
        section("Headline", _headline(report)),
        section("What each pass bought", bought(report)),
        section("Earlier builds", earlier_table(report).first(EARLIER)),
        "\n".join(f"- {escape(one, 1000)}" for one in sentences(report)),
        section("Pass by pass", _passes(report)),
        section("Precision not realised", tables.receipt(report).marked("bad")),
        section("Not measured", tables.gaps(report)),
        _notes(report),
        folded("Accuracy, memory, size, batches", tables.measurements(others)),
        folded("Latency and throughput", tables.measurements(latencies)),
        folded("Measured again after the build", measured_again(report)),
        folded("Cost of a million on each target", tables.costs(report)),
        folded("Roofline bounds, not measurements", tables.measurements(bounds)),
        section("Mixed precision: choices measured", mixed_figures.rounds(report)),
        folded("Format of each layer", mixed_figures.choices(report)),
        folded("Layers by error, worst first", tables.layers(report)),
        folded("Precision receipt", tables.receipt(report).marked("good")),
        folded("Kernels by profile", tables.kernels(report)),
        folded("Versions", tables.pairs("Package", dict(report.versions))),
        folded("Checkpoint", tables.pairs("Weight file (sha256)", dict(report.checkpoint_files))),
        _recipe(report),
        _foot(report),
    ]
    return limited([one for one in sections if one])


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
    columns = (Column("Number"), Column("Value", numeric=True), Column("Rests on"), Column("Measured on"))
    rows = (*headline.headlines(report), *headline.cost(report))
    cells = tuple(
        (Cell(one.label), Cell(one.value), Cell(one.detail or tables.NONE), Cell(one.subject or tables.NONE))
        for one in rows
    )
    return Table(columns, cells)


def _passes(report: Report) -> Table:
    """The waterfall without the sentence of what changed: that is in report.html."""
    table = tables.waterfall(report)
    left_out = {"What it changed", "Latency"} if bought(report).rows else {"What it changed"}
    return table.only(*(column.title for column in table.columns if column.title not in left_out))


def _notes(report: Report) -> str:
    shown = [f"- {escape(note, 600)}" for note in report.notes[:ROWS]]
    more = [f"- {len(report.notes) - ROWS} more in report.html"] if len(report.notes) > ROWS else []
    return "\n".join(["### Notes", "", *shown, *more]) if shown else ""


def _foot(report: Report) -> str:
    took = f"{numbers.seconds(report.seconds)} on {report.machine.title}, peak memory {numbers.size(report.peak_bytes)}"
    return f"Built in {escape(took, 300)}. The pictures are in `report.html`, every number in `report.json`."


def _recipe(report: Report) -> str:
    """The recipe in a code block whose fence is longer than any run of backticks in it."""
    if not report.recipe:
        return ""
    text = report.recipe[:RECIPE]
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    cut = "\n# … the whole is in report.json" if len(report.recipe) > RECIPE else ""
    return _fold("Recipe, with every default", f"{fence}yaml\n{text.rstrip()}{cut}\n{fence}")


def folded(title: str, table: Table) -> str:
    """A section that opens when it is asked for."""
    return _fold(f"{title} ({len(table.rows) + table.left_out:,})", table_text(table)) if table.rows else ""


def _fold(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def section(title: str, table: Table) -> str:
    """A table under its title; empty where it has no rows."""
    return f"### {title}\n\n{table_text(table)}" if table.rows else ""


def table_text(table: Table) -> str:
    """The table in GitHub's Markdown, at most ROWS rows of it."""
    shown = table.first(ROWS)
    head = "| " + " | ".join(escape(column.title) for column in shown.columns) + " |"
    rule = "|" + "|".join(" ---: " if column.numeric else " --- " for column in shown.columns) + "|"
    rows = ["| " + " | ".join(map(_cell, row, shown.columns)) + " |" for row in shown.rows]
    more = ["", f"{shown.left_out:,} more rows in report.html."] if shown.left_out else []
    return "\n".join([head, rule, *rows, *more])


def _cell(cell: Cell, column: Column) -> str:
    as_code = column.code and cell.text != tables.NONE and "`" not in cell.text
    return MARKS.get(cell.mark, "") + escape(f"`{cell.text}`" if as_code else cell.text)


def escape(text: str, longest: int = CELL) -> str:
    """One line of text: no markup but code between paired backticks, no mentions, no HTML, cut at `longest` characters."""
    line = " ".join(text.split())
    cut = line if len(line) <= longest else f"{line[:longest]} … (whole in report.html)"
    parts = cut.split("`")
    if len(parts) % 2 == 0:  # an unpaired backtick is a character like any other
        return _plain(cut)
    return "".join(_code(part) if i % 2 else _plain(part) for i, part in enumerate(parts))


def _plain(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text).replace("@", "@\u200b")


def _code(text: str) -> str:
    """A code span; a table ends its cell at an unescaped bar even there."""
    return "`" + text.replace("|", "\\|") + "`" if text.strip() else ""


def limited(sections: list[str]) -> str:
    """The sections that fit; what was left out is named. The first holds the verdict and is short."""
    text = "\n\n".join(sections) + "\n"
    kept = list(sections)
    while len(text.encode()) > LIMIT_BYTES and len(kept) > 1:
        kept.pop()
        text = "\n\n".join([*kept, "More did not fit here: see `report.html`."]) + "\n"
    return text
