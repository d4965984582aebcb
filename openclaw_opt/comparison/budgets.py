"""A budget and what was measured → met, missed or undecided, and by what evidence. Pure.

The interval at the budget's confidence decides: met if all of it keeps the rule, missed if none of it does, else undecided.
A margin is met by two one-sided tests (a 1 − 2α interval inside it), missed if that interval lies outside it. A percentile of
latency must besides be shown by the count of samples over the limit (`numerics.stats.percentile_within`), which needs
enough of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from openclaw_opt.artifacts import Measurement
from openclaw_opt.comparison.comparable import Provenance, provenance_of_baseline, why_not
from openclaw_opt.comparison.evidence import Evidence, alone, change, change_from_checkpoint
from openclaw_opt.comparison.rows import own_row, reference_row, samples_of
from openclaw_opt.comparison.spending import layers_of, spender
from openclaw_opt.numerics.paired import is_equivalent
from openclaw_opt.numerics.stats import CONFIDENCE as OF_PERCENTILES
from openclaw_opt.numerics.stats import COVERAGE, minimum_samples, percentile_beyond, percentile_within
from openclaw_opt.recipe_grammar import Budget, Undecided, holds
from openclaw_opt.records import BaselineRecord, BudgetRecord, BudgetResult, PassRecord

NO_BASELINE = "no baseline was given: build --baseline FOLDER"


@dataclass(frozen=True)
class Case:
    """Everything that budgets are judged by."""

    measurements: Sequence[Measurement]
    records: Sequence[PassRecord] = ()
    baseline: BaselineRecord | None = None
    ours: Provenance | None = None
    """Of this build; needed where there is a baseline."""
    undecided: Undecided = "fail"
    """The recipe's word for budgets that say nothing themselves."""


@dataclass(frozen=True)
class Finding:
    """The number in its own unit, what it is held to, and the result."""

    evidence: Evidence
    bound: float | None
    result: BudgetResult
    why: str = ""


def judge_budget(budget: Budget, case: Case) -> BudgetRecord:
    """One budget's record."""
    confidence = budget.confidence or (OF_PERCENTILES if samples_of(case.measurements, budget.metric) else COVERAGE)
    found = _finding(budget, case, confidence)
    row = own_row(case.measurements, budget.metric)
    spent = spender(budget.metric, case.records, case.measurements) if found.result == "missed" else ""
    got = row.value if row is not None else None
    return BudgetRecord(
        metric=budget.metric,
        rule=str(budget),
        got=got,
        unit=row.unit if row is not None and got is not None else "",
        result=found.result,
        why=found.why,
        spent_by=spent,
        spent_by_layers=layers_of(spent, case.records) if spent else (),
        against=budget.against,
        bound=found.bound,
        low=found.evidence.low,
        high=found.evidence.high,
        confidence=None if found.evidence.low is None else confidence,
        evidence=found.evidence.how,
        if_undecided=budget.undecided or case.undecided,
    )


def _finding(budget: Budget, case: Case, confidence: float) -> Finding:
    row = own_row(case.measurements, budget.metric)
    if row is None or row.value is None:
        return _undecided(alone(case.measurements, budget.metric, confidence))
    if budget.against == "nothing":
        return _held(budget, case, alone(case.measurements, budget.metric, confidence), None, confidence)
    refused = _refused(budget, case)
    if refused:
        return _undecided(Evidence(row.value, why=refused))
    base = _base(budget, case)
    if base is None or base.value is None:
        whose = "the checkpoint's" if budget.against == "checkpoint" else "the baseline's"
        return _undecided(Evidence(row.value, why=f"{whose}: {base.not_measured if base else 'not measured'}"))
    sure = 2 * confidence - 1 if budget.margin else confidence
    found = _change(budget, case, sure)
    scale = abs(base.value) if _relative(budget) else 1.0
    return _held(budget, case, found.shifted(base.value, scale), base.value, confidence)


def _relative(budget: Budget) -> bool:
    """Is the change counted as a share of what it is from? The interval is then that of a ratio."""
    return budget.percent or (budget.tolerance is not None and budget.tolerance.percent)


def _refused(budget: Budget, case: Case) -> str:
    if budget.against != "baseline":
        return ""
    if case.baseline is None or case.ours is None:
        return NO_BASELINE
    why = why_not(budget.metric, case.ours, provenance_of_baseline(case.baseline))
    return f"not comparable with the baseline: {why}" if why else ""


def _base(budget: Budget, case: Case) -> Measurement | None:
    if budget.against == "checkpoint":
        return reference_row(case.measurements, budget.metric)
    assert case.baseline is not None
    return own_row(case.baseline.measurements, budget.metric)


def _change(budget: Budget, case: Case, confidence: float) -> Evidence:
    relative = _relative(budget)
    if budget.against == "checkpoint":
        return change_from_checkpoint(case.measurements, budget.metric, confidence, relative=relative)
    assert case.baseline is not None
    return change(case.baseline.measurements, case.measurements, budget.metric, confidence, relative=relative)


def _held(budget: Budget, case: Case, evidence: Evidence, base: float | None, confidence: float) -> Finding:
    if evidence.value is None or evidence.why:
        return replace(_undecided(evidence), bound=None if budget.margin else budget.limit(base))
    if budget.margin is not None:
        assert base is not None
        return _equivalence(evidence, base, budget.margin.of(base))
    bound = budget.limit(base)
    result = _by_interval(budget.op, bound, evidence)
    if result == "undecided":
        why = f"{_interval(evidence, confidence)} reaches over the bound {bound:.6g}"
        return Finding(evidence, bound, result, why)
    times = samples_of(case.measurements, budget.metric)
    if times is not None and budget.op.startswith("<") and base is None:
        return _percentile(times[0], times[1], Finding(evidence, bound, result), confidence)
    return Finding(evidence, bound, result)


def _by_interval(op: str, bound: float, evidence: Evidence) -> BudgetResult:
    ends = {holds(op, end, bound) for end in (evidence.low, evidence.high, evidence.value) if end is not None}
    return "undecided" if len(ends) == 2 else "met" if ends == {True} else "missed"


def _percentile(samples: object, q: float, found: Finding, confidence: float) -> Finding:
    """The same by the count of samples over the limit, whatever their distribution."""
    import numpy as np

    assert found.bound is not None
    values = np.asarray(samples)
    over = int((values > found.bound).sum())
    how = f"{over} of {len(values)} samples over the limit; {found.evidence.how}"
    evidence = replace(found.evidence, how=how)
    shown = percentile_within if found.result == "met" else percentile_beyond
    if shown(values, found.bound, q, confidence):
        return replace(found, evidence=evidence)
    if found.result == "missed":
        why = f"{over} of {len(values)} samples over the limit do not show at {confidence:g} that p{q:g} is over it"
    else:
        need = minimum_samples(q, over, confidence)
        why = f"with {over} samples over the limit p{q:g} is shown within it by {need} at {confidence:g}, not by {len(values)}"
    return Finding(evidence, found.bound, "undecided", why)


def _equivalence(evidence: Evidence, base: float, margin: float) -> Finding:
    """Two one-sided tests; `bound` is the end of the margin that the number is nearer to."""
    low, high = base - margin, base + margin
    assert evidence.value is not None
    bound = high if evidence.value >= base else low
    first = evidence.low if evidence.low is not None else evidence.value
    last = evidence.high if evidence.high is not None else evidence.value
    if is_equivalent((first, last), low, high):
        return Finding(evidence, bound, "met")
    if last <= low or high <= first:
        return Finding(evidence, bound, "missed")
    return Finding(
        evidence, bound, "undecided", f"[{first:.6g}, {last:.6g}] reaches over the margin {low:.6g} to {high:.6g}"
    )


def _undecided(evidence: Evidence) -> Finding:
    return Finding(evidence, None, "undecided", evidence.why)


def _interval(evidence: Evidence, confidence: float) -> str:
    return f"the {100 * confidence:g} % interval [{evidence.low:.6g}, {evidence.high:.6g}]"
