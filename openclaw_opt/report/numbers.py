"""Numbers as people read them: sensible digits, units, and never a zero or a blank for what was not measured.

Sizes are decimal (1 MB = 10^6 bytes), as vendors state memory. Thousands are separated by commas. All functions are
pure and total: NaN and infinity have a text too.
"""

from __future__ import annotations

import math
import re

from openclaw_opt.artifacts import Measurement
from openclaw_opt.records import BudgetRecord, CostRecord

NOT_MEASURED = "not measured"
_SIZES = ("B", "kB", "MB", "GB", "TB", "PB")
_PLAIN_UNITS = ("", "ratio", "fraction")
_TIMES_UNITS = ("x", "×", "times")
_MOST_DIGITS = 17
"""Significant decimal digits that tell any two float64 apart."""


def significant(value: float, digits: int = 4) -> str:
    """`digits` significant digits in plain notation: 0.98765 → `0.9877`, 12345.6 → `12,346`; extremes in e-notation."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "-∞")
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    magnitude = int(f"{value:.{digits - 1}e}".split("e")[1])  # of the rounded value: 0.9996 to three digits is 1.00
    if not -5 <= magnitude < 15:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def size(count: float) -> str:
    """Bytes → `999 B`, `12.3 kB`, `4.57 GB`."""
    if not math.isfinite(count):
        return f"{significant(count)} bytes"
    for step, unit in enumerate(_SIZES):
        scaled = count / 1000**step
        if abs(scaled) < 999.5 or unit == _SIZES[-1]:
            break
    return f"{count:,.0f} B" if unit == "B" else f"{_three(scaled)} {unit}"


def milliseconds(value: float) -> str:
    """Milliseconds → `0.412 ms`, `12.3 ms`, `1.20 s`."""
    if not math.isfinite(value):
        return f"{significant(value)} ms"
    return seconds(value / 1000) if abs(value) >= 999.5 else f"{_three(value)} ms"


def seconds(value: float) -> str:
    """Seconds → `12 ms`, `3.21 s`, `2 min 05 s`, `1 h 02 min`."""
    if not math.isfinite(value):
        return f"{significant(value)} s"
    if value < 0:
        return f"-{seconds(-value)}"
    if value < 0.9995:
        return f"{_three(value * 1000)} ms" if value else "0 s"
    if value < 99.95:  # in whole seconds a minute would lose up to 0.8 %
        return f"{_three(value)} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(value / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def percent(ratio: float) -> str:
    """0.9957 → `99.57 %`. A ratio that is not one is never shown as `100 %`, one that is not zero never as `0 %`."""
    if not math.isfinite(ratio):
        return f"{significant(ratio)} %"
    if ratio in (0, 1):
        return f"{ratio * 100:.0f} %"
    for decimals in (2, 3, 4, 6):
        text = f"{ratio * 100:,.{decimals}f}"
        if float(text.replace(",", "")) not in (0, 100):
            return f"{text} %"
    return f"{'<' if ratio < 1 else '>'} 100 %" if abs(ratio) > 0.5 else f"{significant(ratio * 100)} %"


def percent_short(ratio: float) -> str:
    """A share to read off a picture: `93 %`, `0.4 %`, `< 0.1 %`."""
    if not math.isfinite(ratio):
        return f"{significant(ratio)} %"
    if 0 < ratio < 0.001:
        return "< 0.1 %"
    return f"{ratio:.0%}".replace("%", " %") if ratio >= 0.0995 else f"{ratio * 100:.1f} %"


def times(ratio: float) -> str:
    """2.345 → `2.35×`."""
    return f"{_three(ratio) if math.isfinite(ratio) else significant(ratio)}×"


def count(value: float) -> str:
    """Parameters or samples in short: 4512768 → `4.51 M`; below ten thousand in full."""
    if not math.isfinite(value) or abs(value) < 10_000:
        return significant(value)
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * scale:
            return f"{_three(value / scale)} {unit}"
    raise AssertionError("unreachable: the value is at least ten thousand")


def quantity(value: float, unit: str) -> str:
    """A value in its unit, scaled where people would scale it."""
    if unit in ("bytes", "B"):
        return size(value)
    if unit == "ms":
        return milliseconds(value)
    if unit in ("s", "seconds"):
        return seconds(value)
    if unit in _TIMES_UNITS:
        return times(value)
    return with_unit(significant(value), unit)


def interval(low: float | None, high: float | None, unit: str) -> str:
    """`0.991 to 0.998 ms`, or empty when there is none."""
    if low is None or high is None:
        return ""
    first, last = quantity(low, unit), quantity(high, unit)
    same = first.partition(" ")[2] == last.partition(" ")[2]
    return f"{first.partition(' ')[0] if same else first} to {last}"


def measured(one: Measurement) -> str:
    """The value in its unit, or `not measured: why`."""
    return missing(one.not_measured) if one.value is None else quantity(one.value, one.unit)


def short(one: Measurement) -> str:
    """The value in its unit, or `not measured`; the reason stands among the gaps."""
    return NOT_MEASURED if one.value is None else quantity(one.value, one.unit)


def evidence(one: Measurement) -> str:
    """What the value rests on: `95 % interval 0.991 to 0.998, n = 64`."""
    between = interval(one.low, one.high, one.unit)
    parts = [f"95 % interval {between}"] if between else []
    return ", ".join([*parts, *([f"n = {one.samples:,}"] if one.samples is not None else [])])


def missing(why: str) -> str:
    """`not measured: why`, also where the reason says so itself."""
    return f"{NOT_MEASURED}: {reason(why)}" if why else NOT_MEASURED


def reason(why: str) -> str:
    return why.removeprefix(f"{NOT_MEASURED}: ")


def beside(value: float, bound: float, unit: str) -> str:
    """The value with as many digits as it takes to see on which side of the bound it lies; the unit is not scaled."""
    text = next(
        text for text in (significant(value, n) for n in range(4, _MOST_DIGITS + 2)) if _same_side(text, value, bound)
    )
    raw = with_unit(text, unit)
    return f"{raw} ({size(value)})" if unit in ("bytes", "B") and abs(value) >= 1000 else raw


def with_unit(text: str, unit: str) -> str:
    """A number that is already text, with its unit: `12 ms`, `2×`, `0.98`."""
    if unit in _PLAIN_UNITS:
        return text
    return f"{text}×" if unit in _TIMES_UNITS else f"{text} {unit}"


def got(budget: BudgetRecord) -> str:
    """What a budget got, with the digits that decide it."""
    if budget.got is None:
        return missing(budget.why)
    bound = budget.bound if budget.bound is not None else rule_number(budget.rule)
    return quantity(budget.got, budget.unit) if bound is None else beside(budget.got, bound, budget.unit)


def rule_number(rule: str) -> float | None:
    """The number in `>= 0.98`; None where there is none, or where it is a share of something else."""
    found = re.search(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?", rule)
    return float(found[0]) if found and not rule[found.end() :].lstrip().startswith("%") else None


def is_bound(one: CostRecord) -> bool:
    """Is it the least it can cost, and not a measurement?"""
    return one.per_million_usd is not None and one.basis.startswith("bound")


def dollars(one: CostRecord) -> str:
    """`$0.462`, or `at least $0.0031` where it is a bound."""
    assert one.per_million_usd is not None
    return f"{'at least ' if is_bound(one) else ''}${significant(one.per_million_usd, 3)}"


def _same_side(text: str, value: float, bound: float) -> bool:
    if not math.isfinite(value):
        return True
    shown = float(text.replace(",", ""))
    return (shown > bound) == (value > bound) and (shown < bound) == (value < bound)


def _three(value: float) -> str:
    """Three significant digits; an integer of three digits or more in full."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else significant(value, 3)
