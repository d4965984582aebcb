"""The few numbers to see first: accuracy, speed, size, memory, and the cost; each measured, or with the reason why not."""

from __future__ import annotations

from dataclasses import dataclass

from openclaw_opt.artifacts import Measurement
from openclaw_opt.records import Report
from openclaw_opt.report import numbers, views

RATES = ("token/s", "tokens/s")


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
    subject, taken = result_size(report)
    if taken is None:
        return _gap_headline("size", "nothing was built")
    share = numbers.percent(taken / report.checkpoint_bytes) if report.checkpoint_bytes else "an unknown share"
    return Headline(
        "size on disk",
        numbers.size(taken),
        f"{share} of the checkpoint's {numbers.size(report.checkpoint_bytes)}",
        subject,
    )


def result_size(report: Report) -> tuple[str, int | None]:
    """Whose size, and how many bytes: the engine, or what the last pass left when there is no engine yet."""
    last = report.passes[-1] if report.passes else None
    taken = report.engine_bytes if report.engine_bytes is not None else last.size_bytes if last else None
    return "engine" if (report.engine_files and report.finished) or last is None else f"after {last.word}", taken


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
    """Cost per million tokens with the price used: as measured by a metric, or derived from throughput and price."""
    own = [one for one in report.measurements if views.first_word(one.name) == "cost"]
    if own:
        return tuple(_headline(one.name, one) for one in own)
    label, price = "cost per million output tokens", report.target_facts.get("hourly_usd")
    rates = [one for one in views.latencies(report) if one.unit in RATES and one.subject == "engine" and one.value]
    rate = next((one for one in rates if "prefill" not in one.name and "prompt" not in one.name), None)
    if not isinstance(price, (int, float)) or isinstance(price, bool):
        return (
            _gap_headline(
                label, f"no hourly price is known for {report.target_title}; `target.hourly_usd` in the recipe sets one"
            ),
        )
    if rate is None or rate.value is None:
        return (
            _gap_headline(
                label, f"no tokens/s of the engine on {report.target_title}; the price would be ${price:g} an hour"
            ),
        )
    dollars = 1e6 * price / 3600 / rate.value
    return (
        Headline(
            label,
            f"${numbers.significant(dollars, 3)}",
            f"derived: ${price:g} an hour ÷ {rate.name} {numbers.measured(rate)}",
            "",
        ),
    )
