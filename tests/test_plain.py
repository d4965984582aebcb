"""What a CI log shows: plain lines, one fact a line, stable from build to build."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from openclaw_opt.records import Report
from openclaw_opt.report import write_report
from openclaw_opt.report.plain import plain_lines
from tests.test_cli import invoke
from tests.test_report import bare, hostile, large, missed, report, undecided, unfinished

WORDS = ("budget ", "number ", "precision ", "gap ", "note ")


@pytest.mark.parametrize(
    "make", [report, missed, unfinished, bare, hostile, large, lambda: undecided(4), lambda: undecided(0)]
)
def test_each_line_is_one_fact_with_its_word_first(make: Callable[[], Report]) -> None:
    lines = plain_lines(make())
    assert all(line.startswith(WORDS) for line in lines[:-1])
    assert all(line.isprintable() and line == line.strip() for line in lines)
    assert lines[-1].startswith(" ".join(make().name.split())[:8])


def test_a_missed_budget_says_all_on_its_line() -> None:
    one = missed()
    line = next(line for line in plain_lines(one) if ": missed: " in line)
    budget = next(budget for budget in one.budgets if budget.result == "missed")
    assert line.startswith(f"budget {budget.metric} {budget.rule}: missed: got ")
    assert f"spent by {budget.spent_by}" in line


def test_only_facts_change_between_two_builds() -> None:
    """A second build of the same recipe prints the same lines: no times of day, no durations, no order of a set."""
    again = report().model_copy(update={"started": "2030-01-01T00:00:00+00:00", "seconds": 1.0, "peak_bytes": 1})
    assert plain_lines(again) == plain_lines(report())


def test_a_pipe_gets_lines_and_no_table(tmp_path: Path) -> None:
    write_report(report(), tmp_path)
    printed = invoke("report", str(tmp_path))
    assert printed.splitlines() == list(plain_lines(report()))
    assert not re.search("[─━│]", printed)
