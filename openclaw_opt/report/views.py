"""What the report's forms show, picked out of the Report once: the headline, the accuracy's steps, latency series, gaps.

The metrics name themselves; nothing here knows one by its full name, only the first word of the dotted name (`latency`,
`memory`, …) and `recovery` as the last. A number that is derived here (a share of the checkpoint's size, a cost) says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from openclaw_opt.artifacts import Measurement
from openclaw_opt.numerics import pareto
from openclaw_opt.records import BudgetRecord, EarlierBuild, PassRecord, Report
from openclaw_opt.report import numbers

COSTS = (
    "latency", "throughput", "speedup", "memory", "size", "cost", "energy", "roofline", "ttft", "load", "batching", "anatomy",
)  # fmt: skip
"""First words of measurements that are not about accuracy."""
EARLIER = "earlier"
"""Kind of the point of an earlier build."""
NAMED, UNNAMED = 9, "\u00a0"
"""So many earlier builds, the newest, have their number in a picture; the others' points stand without."""
BOUND = "bound"
REFERENCE = "reference"
THE_ENGINE = "the engine"
"""`timed` of a pass that leads to the engine of the build."""
A_MODEL = "the model"
"""What `timed` begins with where a model was turned into an engine; a graph without `fuse` is nothing that is shipped."""
_PERFECT = {"recovery": 1.0, "agreement": 1.0, "cosine": 1.0, "kl": 0.0, "divergence": 0.0}
"""What the reference has against itself, by a word of the metric's name."""


@dataclass(frozen=True)
class Step:
    """The accuracy before and after a pass; None where it is not known."""

    record: PassRecord
    before: float | None
    after: float | None
    measurement: Measurement | None
    """None after an exact pass, whose outputs were compared instead."""


@dataclass(frozen=True)
class Point:
    """One place in the picture of accuracy against latency."""

    label: str
    kind: str
    """`reference`, `baseline`, `earlier`, `pass`, `engine`, or in a joint report `other` and `missed`."""
    latency: Measurement
    accuracy: Measurement
    short: str = ""
    """What stands in the picture where the label is too long for it; the label begins with it."""


@dataclass(frozen=True)
class Series:
    """Raw latency samples of one subject in one stage, and the percentiles stated from them."""

    stage: str
    subject: str
    samples: tuple[float, ...]


@dataclass(frozen=True)
class Percentile:
    """A percentile that was stated, e.g. p99 of `latency.decode`; `share` is 0.99."""

    label: str
    share: float
    row: Measurement


@dataclass(frozen=True)
class BatchPoint:
    """Latency and throughput of the engine at one batch."""

    batch: int
    latency: Measurement
    throughput: Measurement


def first_word(name: str) -> str:
    """`latency` of `latency.decode.p50_ms`, `size` of `size_mib`."""
    return re.split(r"[._]", name, maxsplit=1)[0]


def is_accuracy(one: Measurement) -> bool:
    return first_word(one.name) not in COSTS and one.subject != BOUND and not one.at


def accuracy_name(report: Report) -> str:
    """The accuracy that is shown first: one with a budget, else a recovery, else the first; empty if there is none."""
    stepped = [one.name for record in report.passes for one in record.accuracy]
    final = [one.name for one in report.measurements if is_accuracy(one)]
    names = list(dict.fromkeys([name for name in stepped if name in final] or stepped or final))
    budgeted = {budget.metric for budget in report.budgets}
    ranked = sorted(names, key=lambda name: (name not in budgeted, not name.endswith("recovery"), names.index(name)))
    return ranked[0] if ranked else ""


def engine_measurement(report: Report, name: str) -> Measurement | None:
    """The final measurement of that name that is neither the reference's nor a bound; one with a value if there is one."""
    own = [one for one in report.measurements if one.name == name and _own(one)]
    return next((one for one in own if one.value is not None), own[0] if own else None)


def _own(one: Measurement) -> bool:
    return one.subject not in (REFERENCE, BOUND) and not one.at


def number(one: Measurement) -> float:
    """The value of a row that is known to have one."""
    assert one.value is not None, f"{one.name} was chosen for its value"
    return one.value


def ends(rows: Sequence[Measurement]) -> list[float]:
    """Values and interval ends that can be drawn."""
    return [end for one in rows for end in (one.value, one.low, one.high) if end is not None and math.isfinite(end)]


def reference_value(report: Report, name: str) -> float | None:
    """What the reference has by that name: measured, or known because the metric compares with the reference itself."""
    for one in report.measurements:
        if one.name == name and one.subject == REFERENCE and one.value is not None:
            return one.value
    return next((value for word, value in _PERFECT.items() if word in name.replace("_", ".").split(".")), None)


def steps(report: Report) -> tuple[Step, ...]:
    """The accuracy along the passes. An exact pass keeps the value before it; its proof is its verification."""
    name = accuracy_name(report)
    before = reference_value(report, name)
    found = []
    for record in report.passes:
        own = next((one for one in record.accuracy if one.name == name), None)
        kept = before if record.kind == "exact" and _kept(record) else None
        after = own.value if own is not None else kept
        found.append(Step(record, before, after, own))
        before = after if after is not None else before
    return tuple(found)


def _kept(record: PassRecord) -> bool:
    return record.verification is not None and record.verification.ok


def latencies(report: Report) -> tuple[Measurement, ...]:
    """Every time and rate, in the report's order; bounds are kept apart."""
    words = ("latency", "throughput", "speedup", "ttft", "load")
    return tuple(
        one for one in report.measurements if first_word(one.name) in words and one.subject != BOUND and not one.at
    )


def bounds(report: Report) -> tuple[Measurement, ...]:
    """What is computed from the target's row and was never measured."""
    return tuple(one for one in report.measurements if one.subject == BOUND)


def series(report: Report) -> tuple[Series, ...]:
    """Raw samples, once for each stage and subject: the percentiles of one series carry the same samples."""
    found: dict[tuple[str, str], Series] = {}
    for one in report.measurements:
        if len(one.raw) > 1 and not one.at:
            stage = one.name.rsplit(".", 1)[0] if "." in one.name else one.name
            found.setdefault((stage, one.subject), Series(stage, one.subject, one.raw))
    return tuple(found.values())


def percentiles(report: Report, stage: str) -> tuple[Percentile, ...]:
    """The stated percentiles of a stage, of every subject."""
    found = []
    for one in report.measurements:
        match = re.fullmatch(r"p(\d+(?:\.\d+)?)_ms", one.name.removeprefix(f"{stage}."))
        if match and one.name.startswith(f"{stage}.") and one.value is not None and not one.at:
            found.append(Percentile(f"p{match[1]}", float(match[1]) / 100, one))
    return tuple(found)


def batches(report: Report) -> tuple[BatchPoint, ...]:
    """Batches at which both a time and a rate were measured, the smallest first."""
    rows = [one for one in report.measurements if set(one.at) == {"batch"} and known(one)]
    times = {int(one.at["batch"]): one for one in rows if one.unit == "ms"}
    rates = {int(one.at["batch"]): one for one in rows if one.unit.endswith("/s")}
    return tuple(BatchPoint(batch, times[batch], rates[batch]) for batch in sorted(times.keys() & rates.keys()))


def known(one: Measurement) -> bool:
    """Has it a value that can be drawn and compared?"""
    return one.value is not None and math.isfinite(one.value)


def bound_of(report: Report, latency: str) -> Measurement | None:
    """The roofline's row for the same stage, e.g. `roofline.decode_ms` for `latency.decode.p50_ms`."""
    stage = latency.split(".")[1] if "." in latency else latency
    return next((one for one in bounds(report) if one.name == f"roofline.{stage}_ms" and known(one)), None)


def latency_name(report: Report) -> str:
    """The latency of the picture: of the engine and something to compare with, a budgeted one first, then a median."""
    engine = [
        one.name for one in latencies(report) if one.unit == "ms" and one.value is not None and one.subject != REFERENCE
    ]
    others = {one.name for one in latencies(report) if one.subject == REFERENCE and one.value is not None}
    others |= {one.name for build in (report.history.builds if report.history else ()) for one in build.measurements}
    others |= {one.name for one in (report.baseline.measurements if report.baseline else ()) if one.value is not None}
    names = [name for name in dict.fromkeys(engine) if name in others]
    budgeted = {budget.metric for budget in report.budgets}
    order = ("decode", "infer")
    ranked = sorted(names, key=lambda name: (name not in budgeted, "p50" not in name, not any(one in name for one in order), names.index(name)))  # fmt: skip
    return ranked[0] if ranked else ""


def points(report: Report) -> tuple[Point, ...]:
    """Reference, baseline, passes, engine: those with both numbers; empty where the engine has nothing beside it."""
    latency, accuracy = latency_name(report), accuracy_name(report)
    own, score = engine_measurement(report, latency), engine_measurement(report, accuracy)
    if own is None or score is None or not (known(own) and known(score)):
        return ()
    found = [
        *_reference_points(report, latency, score),
        *_earlier_points(report, latency, accuracy),
        *_baseline_points(report, latency, accuracy),
        *_pass_points(report, latency, accuracy),
    ]
    return (*found, Point("this build", "engine", own, score)) if found else ()


def _reference_points(report: Report, latency: str, score: Measurement) -> Iterator[Point]:
    start = reference_value(report, score.name)
    rows = [one for one in report.measurements if one.subject == REFERENCE and not one.at and one.value is not None]
    time = next((one for one in rows if one.name == latency), None)
    if time is None or start is None:
        return
    by_definition = score.model_copy(update={"value": start, "low": None, "high": None, "subject": REFERENCE})
    yield Point(REFERENCE, REFERENCE, time, next((one for one in rows if one.name == score.name), by_definition))


def _baseline_points(report: Report, latency: str, accuracy: str) -> Iterator[Point]:
    rows = [one for one in (report.baseline.measurements if report.baseline else ()) if _own(one) and known(one)]
    time = next((one for one in rows if one.name == latency), None)
    score = next((one for one in rows if one.name == accuracy), None)
    if time and score and report.baseline:
        yield Point(f"baseline {report.baseline.name}", "baseline", time, score)


def _earlier_points(report: Report, latency: str, accuracy: str) -> Iterator[Point]:
    """Builds of the history with both numbers; in a picture of many only the newest are named."""
    builds = report.history.builds if report.history else ()
    for i, build in enumerate(builds, 1):
        time, score = of_build(build, latency), of_build(build, accuracy)
        if time and score and known(time) and known(score):
            name = build.label or build.name
            yield Point(f"{i} {name}", EARLIER, time, score, str(i) if i > len(builds) - NAMED else UNNAMED)


def of_build(build: EarlierBuild, name: str) -> Measurement | None:
    """The number of an earlier build, where it may be compared."""
    return next((one for one in build.measurements if one.name == name), None)


def front(points: Sequence[Point]) -> tuple[int, ...]:
    """Indexes of the points that no other dominates: none is at least as accurate and as fast, and better in one."""
    better: list[Literal["higher", "lower"]] = ["higher", "lower"]
    signed = [1 if one.accuracy.better == "higher" else -1 for one in points]
    rows = [(sign * number(one.accuracy), number(one.latency)) for sign, one in zip(signed, points, strict=True)]
    return tuple(pareto.front(rows, better))


def _pass_points(report: Report, latency: str, accuracy: str) -> Iterator[Point]:
    """What passes gave on the way; after an exact one the accuracy is the one before. The engine itself is a point already."""
    for step in steps(report)[:-1]:
        record = step.record
        time = next((one for one in record.latency if one.name == latency and one.value is not None), None)
        score = step.measurement or _kept_score(report, accuracy, step.after)
        shown = not record.timed or record.timed.startswith(A_MODEL)
        if time and score and score.value is not None and shown and time.subject != BOUND:
            yield Point(f"after {record.word}", "pass", time, score)


def _kept_score(report: Report, accuracy: str, value: float | None) -> Measurement | None:
    own = engine_measurement(report, accuracy)
    if own is None or value is None:
        return None
    return own.model_copy(
        update={"value": value, "low": None, "high": None, "not_measured": "", "items": (), "weights": ()}
    )


def pass_label(record: PassRecord) -> str:
    """`2 quantize`: the place tells two passes of one name apart."""
    return f"{record.index + 1} {record.word}"


def passes_timed(report: Report) -> bool:
    """Was more than one pass's result timed? The last one's is the engine's and stands with the measurements."""
    return sum(any(one.value is not None for one in record.latency) for record in report.passes) > 1


def pass_latency(report: Report, record: PassRecord) -> Measurement | None:
    """The latency that stands for a pass: that of the picture, else a median, measured if there is one."""
    shown = latency_name(report)
    rows = sorted(record.latency, key=lambda one: (one.value is None, one.name != shown, "p50" not in one.name))
    return rows[0] if rows else None


def verdict_line(report: Report) -> str:
    """The verdict as one sentence that names what decided it."""
    missed = [one for one in report.budgets if one.result == "missed"]
    undecided = [one for one in report.budgets if one.result == "undecided"]
    met, total = len(report.budgets) - len(missed) - len(undecided), len(report.budgets)
    if missed:
        return "; ".join(budget_line(one) for one in missed)
    if not report.finished:
        return report.unfinished_why or "the engine is not built yet"
    open_ones = [budget_line(one) for one in undecided]
    if undecided and report.exit_code:
        return "; ".join(open_ones)
    if not total:
        return "no budget was judged, so nothing here says whether this is good enough"
    return "; ".join([f"{met} of {total} budgets met", *open_ones])


def budget_line(one: BudgetRecord) -> str:
    """`latency.decode.p99_ms: wanted <= 12, got 14.31 ms, spent by quantize`."""
    spent = f", spent by {one.spent_by}" if one.spent_by else ""
    why = f" ({one.why})" if one.why and one.got is not None else ""
    return f"{one.metric}: wanted {one.rule}, got {numbers.got(one)}{spent}{why}"


def result_size(report: Report) -> tuple[str, int | None]:
    """Whose size, and how many bytes: the engine, or what the last pass left when there is no engine yet."""
    last = report.passes[-1] if report.passes else None
    taken = report.engine_bytes if report.engine_bytes is not None else last.size_bytes if last else None
    return "engine" if (report.engine_files and report.finished) or last is None else f"after {last.word}", taken
