"""A comparison as a table, Markdown, JSON and JUnit. Pure, but for writing them into a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from openclaw_opt.comparison.records import Compared, Comparison
from openclaw_opt.errors import MachineError
from openclaw_opt.report import numbers
from openclaw_opt.report.junit import Case, Outcome, junit_of
from openclaw_opt.report.tables import Cell, Column, Table

if TYPE_CHECKING:
    from rich.console import Console

MARKS = {"better": "good", "worse": "bad", "undecided": "open", "equivalent": ""}
ICONS = {"better": "🟢", "worse": "❌", "undecided": "❔", "equivalent": "✅"}
MOST = 12
"""Differences that are shown in the terminal."""


def comparison_json(one: Comparison) -> str:
    """The record."""
    return json.dumps(one.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def table(one: Comparison) -> Table:
    """A row a number."""
    columns = (
        Column("Number", code=True),
        Column("Result"),
        Column("Change", numeric=True),
        Column("A", numeric=True),
        Column("B", numeric=True),
        Column("Margin", numeric=True),
    )
    return Table(columns, tuple(_cells(row) for row in one.rows))


def _cells(row: Compared) -> tuple[Cell, ...]:
    return (
        Cell(row.name),
        Cell(row.result, mark=MARKS[row.result]),
        Cell(_signed(row.change, row.relative) if row.change is not None else "–", row.change),
        Cell(_value(row.before, row.unit), row.before),
        Cell(_value(row.after, row.unit), row.after),
        Cell(f"±{row.margin}" if row.margin else "–"),
    )


def _value(value: float | None, unit: str) -> str:
    return numbers.NOT_MEASURED if value is None else numbers.quantity(value, unit)


def _signed(value: float, relative: bool) -> str:
    scaled = value * 100 if relative else value
    text = numbers.significant(scaled, 3)
    return f"{'+' if scaled > 0 else ''}{text}{' %' if relative else ''}"


def sentences(one: Comparison) -> list[str]:
    """What each result rests on, what is worse first: `latency.decode: +8.1 % to +9.3 % at 0.975: medians of …`."""
    order = {"worse": 0, "undecided": 1, "better": 2, "equivalent": 3}
    return [f"{row.name}: {_sentence(row)}" for row in sorted(one.rows, key=lambda row: order[row.result])]


def _sentence(row: Compared) -> str:
    interval = ""
    if row.low is not None and row.high is not None:
        interval = f"{_signed(row.low, row.relative)} to {_signed(row.high, row.relative)}"
        interval += f" at {row.confidence:.3g}" if row.confidence is not None else ""
    return "; ".join(part for part in (interval, row.evidence, row.why) if part)


def summary(one: Comparison) -> str:
    """One line: what CI's log ends with."""
    counts = {word: [row.name for row in one.rows if row.result == word] for word in MARKS}
    told = [f"{len(names)} {word} ({', '.join(names)})" for word, names in counts.items() if names]
    outcome = {"worse": "B is worse than A", "better": "B is better than A", "equivalent": "B is as good as A"}
    head = outcome.get(one.result, "nothing is shown to be worse")
    return f"compare {one.a.name} with {one.b.name}: {head}: {'; '.join(told) or 'nothing to compare'}"


def print_comparison(one: Comparison, console: Console) -> None:
    """The table, what it rests on, what else differs."""
    from openclaw_opt.report.terminal import print_lines, print_table

    console.print(f"A  {one.a.path} ({one.a.name}, {one.a.started})", markup=False, highlight=False)
    console.print(f"B  {one.b.path} ({one.b.name}, {one.b.started})\n", markup=False, highlight=False)
    print_table(console, "B against A", table(one))
    print_lines(console, "Rests on", sentences(one))
    extra = len(one.differences) - MOST
    more = [f"{extra} more with --json"] if extra > 0 else []
    print_lines(console, "What else differs", [*one.differences[:MOST], *more])
    print_lines(console, "Notes", list(one.notes))


def comparison_markdown(one: Comparison) -> str:
    """For a job's summary or a comment on a pull request."""
    shown = table(one)
    lines = [
        f"## {ICONS[one.result]} {_escaped(summary(one))}",
        "",
        f"A is `{one.a.path}` ({_escaped(one.a.started)}), B is `{one.b.path}` ({_escaped(one.b.started)}).",
        "",
        _line(column.title for column in shown.columns),
        _line("---:" if column.numeric else "---" for column in shown.columns),
        *(_line(_escaped(cell.text) for cell in row) for row in shown.rows),
        "",
        *(f"- {_escaped(text)}" for text in sentences(one)),
    ]
    if one.differences:
        lines += ["", "<details><summary>What else differs</summary>", ""]
        lines += [*(f"- {_escaped(text)}" for text in one.differences), "", "</details>"]
    return "\n".join([*lines, ""])


def comparison_junit(one: Comparison) -> str:
    """A case a number."""
    return junit_of(f"{one.a.name} and {one.b.name}", one.started, one.seconds, [_case(row, one) for row in one.rows])


def _case(row: Compared, one: Comparison) -> Case:
    undecided: Outcome = "failure" if one.undecided == "fail" else "skipped"
    outcome: Outcome = {"worse": "failure", "undecided": undecided}.get(row.result, "passed")  # type: ignore[assignment]
    change = f"{_signed(row.change, row.relative)}, " if row.change is not None else ""
    return Case("compare", f"{row.name} is no worse", outcome, f"{row.result}: {change}{_sentence(row)}")


def write_comparison(one: Comparison, folder: Path) -> tuple[str, ...]:
    """comparison.json, comparison.md and junit.xml; each whole or the one before."""
    texts = {
        "comparison.json": comparison_json(one),
        "comparison.md": comparison_markdown(one),
        "junit.xml": comparison_junit(one),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            part = folder / f".{name}.{os.getpid()}"
            part.write_text(text, encoding="utf-8")
            part.replace(folder / name)
    except OSError as error:
        raise MachineError(
            f"the comparison cannot be written: {error.strerror}", where=str(folder), fix="--output FOLDER"
        ) from error
    return tuple(texts)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    plain = "".join(char if char.isprintable() else " " for char in text)
    return "".join(f"\\{char}" if char in "|`<>*_[]\\" else char for char in plain)
