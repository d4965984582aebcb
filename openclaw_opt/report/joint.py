"""The joint report's files: JSON, Markdown and the page of several builds, all made from one `Joint`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from openclaw_opt.records import Report
from openclaw_opt.report import finite, numbers, write_whole
from openclaw_opt.report.joined import SIZE, Joint, JointGroup, JointRow, joined, points, row_labels
from openclaw_opt.report.tables import NONE, VERDICT_MARKS, Cell, Column, Table

if TYPE_CHECKING:
    from rich.console import Console

    from openclaw_opt.report.plot import Figure


def write_joint(reports: Sequence[tuple[str, Report]], folder: Path, title: str) -> tuple[str, ...]:
    """Write report.html, report.md and report.json of several reports into an existing folder; gives their names.

    Each report comes with the name it is known by. All files are written beside their place first, then renamed.
    """
    joint = joined(reports, title)
    texts = {"report.json": joint_json(joint), "report.md": joint_markdown(joint), "report.html": joint_html(joint)}
    write_whole(texts, folder)
    return tuple(texts)


def joint_json(joint: Joint) -> str:
    """The joint report as JSON; infinite and undefined numbers are words, as in report.json."""
    return json.dumps(finite(joint.model_dump(mode="python")), indent=1, ensure_ascii=False) + "\n"


def joint_table(group: JointGroup) -> Table:
    """A row a build: verdict, accuracy, latency, size, cost, front, target; what no build has is a note, not a column."""
    columns = (
        Column("Build"), Column("Verdict"), Column(_title(group, "accuracy"), numeric=True), Column(_title(group, "latency"), numeric=True),
        Column("Size", numeric=True), Column("$ per million", numeric=True), Column("Pareto front"), Column("Target"),
    )  # fmt: skip
    rows = [_cells(name, row) for name, row in zip(row_labels(group), group.rows, strict=True)]
    empty = {columns[i].title for i in (3, 5) if all(row[i].sort is None for row in rows)}
    if len({row.target_title for row in group.rows}) == 1:
        empty.add("Target")
    return Table(columns, tuple(rows)).only(*(one.title for one in columns if one.title not in empty))


def _title(group: JointGroup, what: str) -> str:
    found = (row.accuracy if what == "accuracy" else row.latency for row in group.rows)
    return next((one.name for one in found if one is not None), what.capitalize())


def _cells(name: str, row: JointRow) -> tuple[Cell, ...]:
    size = row.size_bytes
    return (
        Cell(name),
        Cell(row.verdict, mark=VERDICT_MARKS[row.verdict]),
        _number(row, "accuracy"),
        _number(row, "latency"),
        Cell(numbers.size(size), float(size)) if size is not None else Cell(numbers.NOT_MEASURED, mark="quiet"),
        _cost(row),
        Cell("on it" if row.on_front else NONE),
        Cell(row.target_title),
    )


def _number(row: JointRow, what: str) -> Cell:
    one = row.accuracy if what == "accuracy" else row.latency
    if one is None or one.value is None:
        return Cell(numbers.NOT_MEASURED, mark="quiet")
    between = numbers.interval(one.low, one.high, one.unit)
    return Cell(numbers.quantity(one.value, one.unit) + (f" ({between})" if between else ""), one.value)


def _cost(row: JointRow) -> Cell:
    if row.cost is None or row.cost.per_million_usd is None:
        return Cell(numbers.NOT_MEASURED, mark="quiet")
    return Cell(numbers.dollars(row.cost), row.cost.per_million_usd)


def group_notes(group: JointGroup) -> tuple[str, ...]:
    """What must be known before the rows are compared, as sentences."""
    found = [f"Not comparable with the first table: {group.why_apart}."] if group.why_apart else []
    names = row_labels(group)
    targets = {row.target_title for row in group.rows}
    if len(targets) == 1:
        found.append(f"Built for {targets.pop()}.")
    if all(row.latency is None for row in group.rows):
        found.append("Latency: not measured for any of these builds.")
    if all(row.cost is None or row.cost.per_million_usd is None for row in group.rows):
        found.append(f"Cost: not measured. {_why_no_cost(group)}".strip())
    others = [
        name for name, row in zip(names, group.rows, strict=True) if row.latency is not None and not row.timed_alike
    ]
    if others:
        found.append(
            f"Latency of {', '.join(others)} was measured elsewhere or for another target: only those of {group.timed_on} are compared."
        )
    front = "size" if group.front_of == SIZE else group.front_of
    if len(group.rows) > 1:
        found.append(f"The Pareto front weighs accuracy against {front}.")
    return tuple(found)


def _why_no_cost(group: JointGroup) -> str:
    whys = list(dict.fromkeys(row.cost.not_measured for row in group.rows if row.cost is not None))
    return f"Reason: {'; '.join(whys)}." if whys else ""


def joint_markdown(joint: Joint) -> str:
    """The table of each group, and why a group stands apart; cut to what a job summary holds."""
    from openclaw_opt.report.markdown import escape, limited, section

    parts = [f"## {escape(joint.title)}"]
    for group in joint.groups:
        notes = "\n".join(f"- {escape(note, 600)}" for note in group_notes(group))
        parts += [section(f"{group.model}", joint_table(group)), notes]
    return limited([part for part in parts if part])


def joint_figures(joint: Joint) -> list[list[Figure]]:
    """For each group accuracy against latency and against size, where two builds have both numbers."""
    from openclaw_opt.report.scatter import scatter

    found = []
    for i, group in enumerate(joint.groups):
        drawn = []
        for against in dict.fromkeys((group.front_of, SIZE)):
            rows = [point for _, point in points(group, against)]
            how = "Weights and graph on disk." if against == SIZE else f"Timed on {group.timed_on}."
            name = f"group-{i}-{'size' if against == SIZE else 'latency'}"
            if len(rows) > 1:
                drawn.append(scatter(name, rows, None, f"{how} ● within budget, ✕ missed or open."))
        found.append(drawn)
    return found


def joint_html(joint: Joint) -> str:
    """The page."""
    from openclaw_opt.report.html import render
    from openclaw_opt.report.plot import drawings

    figures = joint_figures(joint)
    facts = {
        "joint": joint,
        "tables": [joint_table(group) for group in joint.groups],
        "notes": [group_notes(group) for group in joint.groups],
        "figures": figures,
        "drawn": drawings([one for found in figures for one in found]),
        "count": sum(len(group.rows) for group in joint.groups),
        "best": [row.name for group in joint.groups[:1] for row in group.rows if row.on_front],
    }
    return render("joint.html.j2", facts)


def print_joint(joint: Joint, console: Console) -> None:
    """The tables in a terminal, with what must be known before they are compared."""
    from openclaw_opt.report.terminal import print_lines, print_table

    for group in joint.groups:
        print_table(console, group.model, joint_table(group))
        print_lines(console, "Notes", list(group_notes(group)))
