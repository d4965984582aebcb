"""What has no number, and why: one list, so that nothing that is missing hides among what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from openclaw_opt.artifacts import Measurement
from openclaw_opt.records import PassRecord, Report
from openclaw_opt.report import numbers
from openclaw_opt.report.headline import cost, headlines
from openclaw_opt.report.views import BOUND


@dataclass(frozen=True)
class Gap:
    """Something that has no number, and why."""

    what: str
    why: str


def gaps(report: Report) -> tuple[Gap, ...]:
    """Everything without a number, and why, once each."""
    found = [Gap("the engine itself", _unfinished(report))] if not report.finished else []
    found += [Gap(_named(one), one.not_measured) for one in report.measurements if one.value is None]
    found += [
        Gap(budget.metric, numbers.reason(budget.why)) for budget in report.budgets if budget.got is None and budget.why
    ]
    found += [gap for record in report.passes for gap in _pass_gaps(record, report.measurements)]
    if report.passes and not any(record.latency for record in report.passes[:-1]):
        found.append(Gap("latency and cost after each pass", _untimed(report)))
    elif any(one.subject == BOUND for record in report.passes for one in record.latency):
        found.append(Gap("latency and cost after each pass", f"{_why_untimed(report)}; bounds stand in their place"))
    found += [Gap(one.label, one.detail) for one in (*headlines(report), *cost(report)) if not one.measured]
    return _merged(found)


def _why_untimed(report: Report) -> str:
    whys = (one.not_measured for one in report.measurements if one.name.startswith("latency.") and one.not_measured)
    return next(whys, "the engine does not run here")


def _untimed(report: Report) -> str:
    if any(one.name.startswith("latency.") for one in report.measurements):
        return "only the engine was timed"
    return "no latency metric ran on this build"


def _pass_gaps(record: PassRecord, final: Sequence[Measurement]) -> Iterator[Gap]:
    for one in (*record.accuracy, *record.latency):
        if one.value is None and one not in final:
            yield Gap(f"{_named(one)} after {record.word}", one.not_measured)
    if record.kind == "exact" and record.verification is None:
        yield Gap(f"outputs after {record.word}", "they were not compared on this machine")
    if record.kind == "lossy" and not record.accuracy:
        yield Gap(f"accuracy after {record.word}", "no accuracy metric ran after this pass")


def _merged(found: Iterable[Gap]) -> tuple[Gap, ...]:
    """One line a reason: what is missing for the same reason is listed together, in order."""
    by_why: dict[str, dict[str, None]] = {}
    for gap in found:
        by_why.setdefault(gap.why, {})[gap.what] = None
    return tuple(Gap(", ".join(whats), why) for why, whats in by_why.items())


def _named(one: Measurement) -> str:
    return one.name if one.subject == "engine" else f"{one.name} of {one.subject}"


def _unfinished(report: Report) -> str:
    finish = f"; finish it with `{report.finish_command}`" if report.finish_command else ""
    return f"{report.unfinished_why or 'it is not built yet'}{finish}"
