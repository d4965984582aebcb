"""The few numbers to see first: accuracy, speed, size, memory, and the cost; each measured, or with the reason why not."""

from __future__ import annotations

from dataclasses import dataclass

from openclaw_opt.artifacts import Measurement
from openclaw_opt.records import Report
from openclaw_opt.report import numbers, views


@dataclass(frozen=True)
class Headline:
    """One of the few numbers to see first. `value` is `not measured` where `measured` is false, and `detail` says why."""

    label: str
    value: str
    detail: str
    subject: str
    measured: bool = True


def headlines(report: Report) -> tuple[Headline, ...]:
    """Accuracy, speed, size, memory: always these four, measured or not."""
    return (_accuracy_headline(report), _speed_headline(report), _size_headline(report), _memory_headline(report))


def _accuracy_headline(report: Report) -> Headline:
    name = views.accuracy_name(report)
    own = views.engine_measurement(report, name) if name else None
    if own is not None:
        return _headline(name, own)
    last = next((step for step in reversed(views.steps(report)) if step.measurement is not None), None)
    if last is None or last.measurement is None:
        return _gap_headline("accuracy", "no accuracy metric ran on this build")
    return _headline(f"{name} after {last.record.word}", last.measurement)


def _speed_headline(report: Report) -> Headline:
    """The speedup, else the first latency or rate that was measured, else why there is none."""
    words = ("speedup", "latency", "throughput")
    own = [one for one in views.latencies(report) if one.subject != views.REFERENCE]
    rows = sorted(
        (one for one in own if views.first_word(one.name) in words),
        key=lambda one: words.index(views.first_word(one.name)),
    )
    if not rows:
        return _gap_headline("speedup", "no latency metric ran on this build")
    shown = next((one for one in rows if one.value is not None), rows[0])
    return _headline(shown.name, shown)


def _size_headline(report: Report) -> Headline:
    subject, taken = views.result_size(report)
    if taken is None:
        return _gap_headline("size", "nothing was built")
    share = numbers.percent(taken / report.checkpoint_bytes) if report.checkpoint_bytes else "an unknown share"
    return Headline(
        "size on disk",
        numbers.size(taken),
        f"{share} of the checkpoint's {numbers.size(report.checkpoint_bytes)}",
        subject,
    )


def _memory_headline(report: Report) -> Headline:
    own = [
        one
        for one in report.measurements
        if one.name.startswith("memory") and one.subject not in (views.REFERENCE, views.BOUND)
    ]
    if not own:
        return _gap_headline("memory", "no memory metric ran on this build")
    return _headline(own[0].name, next((one for one in own if one.value is not None), own[0]))


def _headline(label: str, one: Measurement) -> Headline:
    if one.value is None:
        return Headline(label, numbers.NOT_MEASURED, one.not_measured, one.subject, measured=False)
    return Headline(label, numbers.quantity(one.value, one.unit), numbers.evidence(one) or one.note, one.subject)


def _gap_headline(label: str, why: str) -> Headline:
    return Headline(label, numbers.NOT_MEASURED, why, "", measured=False)


def cost(report: Report) -> tuple[Headline, ...]:
    """Cost per million tokens or samples on the recipe's target, with the price used."""
    own = next((one for one in report.costs if one.target == report.target), None)
    if own is None:
        return (_gap_headline("cost per million output tokens", "this report holds no cost"),)
    label = f"cost per million {own.unit}"
    if own.per_million_usd is None:
        return (_gap_headline(label, own.not_measured),)
    return (
        Headline(
            label, numbers.dollars(own), f"{own.basis}; ${own.hourly_usd:g} an hour, price from {own.price_source}", ""
        ),
    )
