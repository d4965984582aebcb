"""Two reports → better, worse, equivalent or undecided, number by number. Pure.

    equivalent  the change is shown to be inside the margin (two one-sided tests at 1 − confidence each)
    worse       it is not, and the whole interval of the change is on the worse side of no change; better likewise
    undecided   neither can be shown: too few samples, or no samples that can be compared

The confidence is shared by the rows of a group (accuracy; time): each is held to 1 − (1 − confidence) / rows, so that two
runs of the same artifact are called different in a group no more often than 1 − confidence (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from openclaw_opt.artifacts import Measurement
from openclaw_opt.comparison.comparable import Provenance, check_model, other_data, provenance_of, why_not
from openclaw_opt.comparison.differences import differences
from openclaw_opt.comparison.evidence import Evidence, change
from openclaw_opt.comparison.margins import Margins, kind_of, margin_of
from openclaw_opt.comparison.records import Compared, Comparison, Result, Side
from openclaw_opt.comparison.rows import metric_of, own_row
from openclaw_opt.errors import BudgetMissed, RecipeError
from openclaw_opt.numerics import paired
from openclaw_opt.numerics.stats import block_length
from openclaw_opt.recipe_grammar import Amount
from openclaw_opt.records import Report
from openclaw_opt.report.provenance import machine_line

TWO_RUNS = "timed in two runs, not in turns: what disturbed one of them is not known"


@dataclass(frozen=True)
class Timed:
    """Times in ms by name, of A and of B, taken in turns: round i of both back to back. Or why there are none."""

    series: dict[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    why: str = TWO_RUNS
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """What the person who compares may say."""

    confidence: float = 0.95
    margins: Margins = field(default_factory=dict)
    undecided: Literal["fail", "pass"] = "pass"


def compare_reports(  # the whole of it
    a: Report,
    b: Report,
    timed: Timed,
    options: Options,
    *,
    paths: tuple[str, str] = ("A", "B"),
    identical: bool = False,
) -> Comparison:
    """Everything that can be said of B against A.

    Args:
        identical: both hold the same engine, byte for byte: then their accuracy is the same, whatever the samples show.

    Raises:
        RecipeError: of different checkpoints, or evaluated on different data.
    """
    ours, theirs = provenance_of(b), provenance_of(a)
    check_comparable(ours, theirs, paths)
    rows = (
        *_accuracy(a, b, options, identical),
        *_times(a, b, timed, options),
        *_others(a, b, ours, theirs, options),
    )
    result = result_of(rows)
    failed = result == "worse" or (any(row.result == "undecided" for row in rows) and options.undecided == "fail")
    return Comparison(
        a=_side(a, paths[0]),
        b=_side(b, paths[1]),
        result=result,
        exit_code=BudgetMissed.exit_code if failed else 0,
        confidence=options.confidence,
        undecided=options.undecided,
        rows=rows,
        differences=differences(a, b),
        notes=(*timed.notes, *(["both hold the same engine, byte for byte"] if identical else [])),
    )


def check_comparable(ours: Provenance, theirs: Provenance, paths: tuple[str, str]) -> None:
    """Refuse what cannot be compared, and say what differs."""
    where = f"{paths[0]}, {paths[1]}"
    check_model(ours, theirs, where)
    if (ours.evaluation or theirs.evaluation) and (why := other_data(ours, theirs)):
        raise RecipeError(f"not comparable: {why}", where=where, fix="build both with the same `data.evaluation`")


def result_of(rows: Sequence[Compared]) -> Result:
    """Of all rows together."""
    order: tuple[Result, ...] = ("worse", "undecided", "better")
    return next((one for one in order if any(row.result == one for row in rows)), "equivalent")


def _side(report: Report, path: str) -> Side:
    return Side(
        name=report.name,
        path=path,
        started=report.started,
        target=report.target,
        machine=machine_line(report.machine),
        engine_tool=report.engine_tool,
    )


def shared(confidence: float, rows: int) -> float:
    """The confidence of each of several rows, that all of them hold together."""
    return 1 - (1 - confidence) / max(1, rows)


def _accuracy(a: Report, b: Report, options: Options, identical: bool) -> list[Compared]:
    """Rows with items, but for recoveries: against the same checkpoint they say the same again."""
    names = dict.fromkeys(m.name for one in (a, b) for m in one.measurements if _is_compared(m))
    confidence = shared(options.confidence, len(names))
    return [_accuracy_row(a, b, name, confidence, options, identical) for name in names]


def _is_compared(one: Measurement) -> bool:
    metric = metric_of(one.name)
    if metric is None or not metric.needs_data or one.name.endswith(".recovery") or one.name == "perplexity":
        return False
    return bool(one.items) or one.low is not None or one.value is None  # the least cosine has neither: it is no mean


def _accuracy_row(a: Report, b: Report, name: str, confidence: float, options: Options, identical: bool) -> Compared:
    margin = margin_of(name, options.margins)
    evidence = change(a.measurements, b.measurements, name, confidence, relative=margin.percent)
    if identical and evidence.value is not None:
        evidence = Evidence(evidence.value, how="the same engine, byte for byte")
    tost = change(a.measurements, b.measurements, name, 2 * options.confidence - 1, relative=margin.percent)
    return _row(a, b, name, evidence, evidence if identical else tost, margin, confidence)


def _times(a: Report, b: Report, timed: Timed, options: Options) -> list[Compared]:
    if not timed.series:
        names = dict.fromkeys(m.name for one in (a, b) for m in one.measurements if _is_median(m))
        return [
            _row(a, b, name, Evidence(None, why=timed.why), Evidence(None, why=timed.why), margin_of(name, options.margins), None)
            for name in names
        ]  # fmt: skip
    confidence = shared(options.confidence, len(timed.series))
    return [_time_row(name, *pair, confidence, options) for name, pair in timed.series.items()]


def _is_median(one: Measurement) -> bool:
    return one.name.startswith("latency.") and one.name.endswith(".p50_ms") and one.subject == "engine" and not one.at


def _time_row(
    name: str, before: Sequence[float], after: Sequence[float], confidence: float, options: Options
) -> Compared:
    """The ratio of the medians of rounds taken in turns; whole blocks of rounds are resampled, the same of both."""
    old, new = np.asarray(before), np.asarray(after)
    margin = margin_of(name, options.margins)
    found = ratio_of_medians(old, new, confidence)
    values = {"before": float(np.median(old)), "after": float(np.median(new))}
    base = {"name": name, "kind": kind_of(name).name, "unit": "ms", "better": "lower", "relative": True}
    how = f"medians of {len(old)} rounds in turns, paired block bootstrap"
    if found is None:
        few = f"a ratio needs {paired.fewest_items(confidence)} rounds in turns, {len(old)} were taken"
        return Compared.model_validate({**base, **values, "margin": str(margin), "result": "undecided", "why": few})
    evidence = Evidence(values["after"] / values["before"] - 1, found[0], found[1], how)
    inner = ratio_of_medians(old, new, 2 * options.confidence - 1) or found
    result, why = decide(evidence, inner, _size(margin, values["before"], True), "lower")
    stated = {"change": evidence.value, "low": found[0], "high": found[1], "confidence": confidence, "evidence": how}
    return Compared.model_validate({**base, **values, **stated, "margin": str(margin), "result": result, "why": why})


def ratio_of_medians(before: paired.Samples, after: paired.Samples, confidence: float) -> paired.Ends | None:
    """Interval of median(after) / median(before) − 1 over rounds in turns."""

    def statistic(rows: paired.Rows) -> paired.Samples:
        return np.asarray(np.median(after[rows], axis=1) / np.median(before[rows], axis=1) - 1)

    return paired.bootstrap(statistic, len(after), confidence, block=block_length(len(after)))


def _others(a: Report, b: Report, ours: Provenance, theirs: Provenance, options: Options) -> list[Compared]:
    """Size and memory, and layers whose precision was not realised."""
    rows = []
    for name in ("size_mib", "memory.peak_mib"):
        if own_row(a.measurements, name) is None and own_row(b.measurements, name) is None:
            continue
        margin = margin_of(name, options.margins)
        why = why_not(name, ours, theirs)
        found = change(a.measurements, b.measurements, name, options.confidence, relative=margin.percent)
        evidence = Evidence(None, why=why) if why else found
        rows.append(_row(a, b, name, evidence, evidence, margin, None))
    if a.receipt or b.receipt:
        rows.append(_receipt(a, b, options))
    return rows


def _receipt(a: Report, b: Report, options: Options) -> Compared:
    before, after = (float(sum(not row.ok for row in one.receipt)) for one in (a, b))
    name = "receipt.not_realised"
    margin = margin_of(name, options.margins)
    evidence = Evidence(after - before, how="quantized layers that do not run as asked")
    result, why = decide(evidence, None, margin.value, "lower")
    facts = {"name": name, "kind": kind_of(name).name, "before": before, "after": after, "better": "lower"}
    said = {"relative": False, "change": after - before, "margin": str(margin), "evidence": evidence.how}
    return Compared.model_validate({**facts, **said, "result": result, "why": why})


def _row(  # a row of the reports' own measurements
    a: Report, b: Report, name: str, evidence: Evidence, tost: Evidence, margin: Amount, confidence: float | None
) -> Compared:
    old, new = own_row(a.measurements, name), own_row(b.measurements, name)
    row = new or old
    assert row is not None
    inner = (tost.low, tost.high) if tost.low is not None and tost.high is not None else None
    base = old.value if old is not None and old.value is not None else 0.0
    result, why = decide(evidence, inner, _size(margin, base, margin.percent), row.better)
    return Compared(
        name=name,
        kind=kind_of(name).name,
        before=old.value if old is not None else None,
        after=new.value if new is not None else None,
        unit=row.unit,
        better=row.better,
        relative=margin.percent,
        change=evidence.value,
        low=evidence.low,
        high=evidence.high,
        confidence=None if evidence.low is None else confidence,
        margin=str(margin),
        result=result,
        why=why,
        evidence=evidence.how,
    )


def _size(margin: Amount, base: float, relative: bool) -> float:
    """The margin on the scale of the change."""
    if relative:
        return margin.value / 100 if margin.percent else margin.value / abs(base) if base else 0.0
    return margin.of(base)


def decide(
    evidence: Evidence, inner: paired.Ends | None, margin: float, better: Literal["higher", "lower", "neither"]
) -> tuple[Result, str]:
    """The result and why it is undecided. `inner` is the 1 − 2α interval of the equivalence test."""
    if evidence.value is None or evidence.why:
        return "undecided", evidence.why or "not measured"
    if evidence.exact:
        return ("equivalent" if abs(evidence.value) <= margin else _side_of(evidence.value, better)), ""
    assert evidence.low is not None
    assert evidence.high is not None
    if inner is not None and paired.is_equivalent(inner, -margin, margin):
        return "equivalent", ""
    if evidence.low > 0 or evidence.high < 0:
        return _side_of(evidence.low if evidence.low > 0 else evidence.high, better), ""
    return "undecided", "the interval holds both no change and one beyond the margin: it takes more samples to tell"


def _side_of(change: float, better: str) -> Result:
    if better == "neither":
        return "undecided"
    return "better" if (change > 0) == (better == "higher") else "worse"
