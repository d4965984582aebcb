"""Report → plain lines, one fact a line, each with a first word that `grep` finds: what a CI log shows."""

from __future__ import annotations

from collections.abc import Iterator

from openclaw_opt.records import BudgetRecord, Report
from openclaw_opt.report import headline, numbers
from openclaw_opt.report.bought import pass_lines
from openclaw_opt.report.earlier import sentences
from openclaw_opt.report.gaps import gaps
from openclaw_opt.report.terminal import summary_line


def plain_lines(report: Report) -> tuple[str, ...]:
    """`budget`, `number`, `precision`, `gap` and `note` lines, and last the one that says how it went and what to do.

    No line is wrapped or cut, and nothing but its facts changes a line from build to build.
    """
    lines = [*_budgets(report), *_numbers(report), *_precision(report), *_said(report), summary_line(report)]
    return tuple(" ".join("".join(char if char.isprintable() else " " for char in line).split()) for line in lines)


def _budgets(report: Report) -> Iterator[str]:
    for one in report.budgets:
        told = [f"got {numbers.got(one)}", _between(one), one.evidence]
        if one.spent_by:
            told.append(f"spent by {one.spent_by}")
        if one.got is not None:
            told.append(one.why)
        yield f"budget {one.metric} {one.rule}: {one.result}: {', '.join(part for part in told if part)}"


def _between(one: BudgetRecord) -> str:
    between = numbers.interval(one.low, one.high, one.unit)
    return f"{100 * (one.confidence or 0.95):g} % interval {between}" if between else ""


def _numbers(report: Report) -> Iterator[str]:
    for one in (*headline.headlines(report), *headline.cost(report)):
        if one.measured:
            yield f"number {one.label}: {one.value}" + (f", {one.detail}" if one.detail else "")
    yield from (f"number {line}" for line in pass_lines(report))


def _precision(report: Report) -> Iterator[str]:
    for row in report.receipt:
        if not row.ok:
            yield f"precision {row.layer}: asked {row.asked}, realised {row.realised}: {row.why}"


def _said(report: Report) -> Iterator[str]:
    for gap in gaps(report):
        yield f"gap {gap.what}: {gap.why}"
    yield from (f"note {one}" for one in sentences(report))
    for note in report.notes:
        yield f"note {note}"
