"""Report → JUnit XML: a case for each budget, each verification, each layer that is not what was asked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

from openclaw_opt.artifacts import ReceiptRow
from openclaw_opt.records import BudgetRecord, PassRecord, Report
from openclaw_opt.report import views
from openclaw_opt.report.tables import verification_cell

Outcome = Literal["passed", "failure", "skipped"]
BUDGET_EXIT = 4
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Case:
    """One test case. `text` is the message of a failure or a skip."""

    group: str
    name: str
    outcome: Outcome
    text: str = ""
    seconds: float = 0.0


def junit(report: Report) -> str:
    """The whole file. An undecided budget is a failure where it is one of the build (exit code 4), else it is skipped."""
    return junit_of(report.name, report.started, report.seconds, list(_cases(report)))


def junit_of(name: str, started: str, seconds: float, cases: list[Case]) -> str:
    """One suite of cases as a file."""
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(case.outcome == "failure" for case in cases)),
        "errors": "0",
        "skipped": str(sum(case.outcome == "skipped" for case in cases)),
        "time": f"{seconds:.3f}",
    }
    root = ElementTree.Element("testsuites", {"name": "openclaw-opt", **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": _clean(name), **counts, "timestamp": _clean(started)})
    for case in cases:
        _add(suite, case)
    ElementTree.indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _cases(report: Report) -> Iterator[Case]:
    for budget in report.budgets:
        yield _budget(budget, report)
    if not report.finished:
        outcome: Outcome = "skipped" if report.exit_code == 0 else "failure"
        yield Case(
            "build",
            "engine is finished",
            outcome,
            views.verdict_line(report) if not report.budgets else report.unfinished_why,
        )
    for record in report.passes:
        yield from _verification(record)
    for row in report.receipt:
        if not row.ok:
            yield _receipt(row, report)


def _budget(budget: BudgetRecord, report: Report) -> Case:
    fails = _undecided_fails(report) if not budget.if_undecided else budget.if_undecided == "fail"
    undecided: Outcome = "failure" if fails and report.exit_code == BUDGET_EXIT else "skipped"
    outcome: Outcome = {"met": "passed", "missed": "failure", "undecided": undecided}[budget.result]  # type: ignore[assignment]
    return Case("budget", f"{budget.metric} {budget.rule}", outcome, f"{budget.result}: {views.budget_line(budget)}")


def _undecided_fails(report: Report) -> bool:
    """A build may end with a missed budget though its recipe lets the undecided ones pass."""
    return report.exit_code == BUDGET_EXIT and not re.search(r"^undecided: *['\"]?pass\b", report.recipe, re.MULTILINE)


def _verification(record: PassRecord) -> Iterator[Case]:
    if record.kind == "lossy" and record.verification is None:
        return
    name = f"{record.index + 1} {record.word}"
    if record.verification is None:
        yield Case("verification", name, "skipped", "the outputs were not compared on this machine", record.seconds)
        return
    proof = record.verification
    text = f"{proof.what}: {verification_cell(record).text}"
    yield Case("verification", name, "passed" if proof.ok else "failure", text, record.seconds)


def _receipt(row: ReceiptRow, report: Report) -> Case:
    """A layer in another precision; where the build ended well the recipe allowed it."""
    where = f"{row.layer} ({row.profile})" if row.profile else row.layer
    text = f"asked {row.asked}, realised {row.realised}: {row.why}"
    allowed = report.exit_code == 0
    return Case(
        "precision", where, "skipped" if allowed else "failure", f"{text} (the recipe allows it)" if allowed else text
    )


def _add(suite: ElementTree.Element, case: Case) -> None:
    name = {"classname": f"openclaw-opt.{case.group}", "name": _clean(case.name), "time": f"{case.seconds:.3f}"}
    element = ElementTree.SubElement(suite, "testcase", name)
    if case.outcome == "passed":
        if case.text:
            ElementTree.SubElement(element, "system-out").text = _clean(case.text)
        return
    kind = {"type": case.group} if case.outcome == "failure" else {}
    reason = ElementTree.SubElement(element, case.outcome, {"message": _clean(" ".join(case.text.split())), **kind})
    if case.outcome == "failure":
        reason.text = _clean(case.text)


def _clean(text: str) -> str:
    """Characters that XML 1.0 cannot hold, not even escaped, are shown as `\\x01`."""
    return _NOT_XML.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
