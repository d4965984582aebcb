"""The joint report's files: JSON, Markdown and the page of several builds, all made from one `Joint`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from openclaw_opt.records import Report
from openclaw_opt.report import finite, numbers, write_whole
from openclaw_opt.report.joined import Joint, JointGroup, JointRow, joined
from openclaw_opt.report.markdown import escape, section
from openclaw_opt.report.tables import NONE, Cell, Column, Table

MARKS = {
    "within budget": "good",
    "budget missed": "bad",
    "undecided": "open",
    "no budgets": "quiet",
    "not finished": "open",
}


def write_joint(reports: Sequence[tuple[str, Report]], folder: Path, title: str) -> tuple[str, ...]:
    """Write report.html, report.md and report.json of several reports into an existing folder; gives their names.

    Each report comes with the name it is known by. All files are written beside their place first, then renamed.
    """
    joint = joined(reports, title)
    texts = {"report.json": joint_json(joint), "report.md": joint_markdown(joint), "report.html": joint_html(joint)}
    write_whole(texts, folder)
    return tuple(texts)


def joint_json(joint: Joint) -> str:
    return json.dumps(finite(joint.model_dump(mode="python")), indent=1, ensure_ascii=False) + "\n"


def joint_table(group: JointGroup) -> Table:
    """A row a build: verdict, accuracy, latency, size, cost, and whether it is on the Pareto front."""
    columns = (
        Column("Build"), Column("Target"), Column("Verdict"), Column(_title(group, "accuracy"), numeric=True),
        Column(_title(group, "latency"), numeric=True), Column("Size", numeric=True),
        Column("$ per million", numeric=True), Column("Pareto front"),
    )  # fmt: skip
    return Table(columns, tuple(_cells(row) for row in group.rows))


def _title(group: JointGroup, what: str) -> str:
    found = (row.accuracy if what == "accuracy" else row.latency for row in group.rows)
    return next((one.name for one in found if one is not None), what.capitalize())


def _cells(row: JointRow) -> tuple[Cell, ...]:
    return (
        Cell(row.name if row.name in row.source else f"{row.name} ({row.source})"),
        Cell(row.target_title),
        Cell(row.verdict, mark=MARKS[row.verdict]),
        numbers_cell(row, "accuracy"),
        numbers_cell(row, "latency"),
        Cell(numbers.size(row.size_bytes), float(row.size_bytes))
        if row.size_bytes is not None
        else Cell(numbers.NOT_MEASURED, mark="quiet"),
        _cost(row),
        Cell("on it" if row.on_front else NONE),
    )


def numbers_cell(row: JointRow, what: str) -> Cell:
    one = row.accuracy if what == "accuracy" else row.latency
    if one is None or one.value is None:
        return Cell(numbers.NOT_MEASURED, mark="quiet")
    between = numbers.interval(one.low, one.high, one.unit)
    return Cell(numbers.quantity(one.value, one.unit) + (f" ({between})" if between else ""), one.value)


def _cost(row: JointRow) -> Cell:
    if row.cost is None or row.cost.per_million_usd is None:
        return Cell(numbers.NOT_MEASURED, mark="quiet")
    return Cell(numbers.dollars(row.cost), row.cost.per_million_usd)


def joint_markdown(joint: Joint) -> str:
    """The table of each group, and why a group stands apart."""
    parts = [f"## {escape(joint.title)}"]
    for group in joint.groups:
        why = [f"**Not comparable with the first table**: {escape(group.why_apart, 600)}."] if group.why_apart else []
        parts += [*why, section(f"{group.model}", joint_table(group))]
    return "\n\n".join(parts) + "\n"


def joint_html(joint: Joint) -> str:
    from openclaw_opt.report.html import render

    return render("joint.html.j2", {"joint": joint, "tables": [joint_table(group) for group in joint.groups]})
