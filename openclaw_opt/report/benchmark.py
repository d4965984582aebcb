"""Report → what github-action-benchmark reads: one file of numbers where smaller is better, one where bigger is.

    [{"name": "int8-cpu: latency.decode.p50_ms", "unit": "ms", "value": 0.39, "range": "0.38 to 0.40", "extra": "…"}]

Only numbers that were measured: no bounds, nothing of the reference, nothing that says `not measured`.
"""

from __future__ import annotations

import json
import math
from typing import Literal

from openclaw_opt.artifacts import Measurement
from openclaw_opt.records import Report
from openclaw_opt.report import numbers, tables, views

FILES: dict[str, Literal["lower", "higher"]] = {"benchmark.smaller.json": "lower", "benchmark.bigger.json": "higher"}
"""File to which way is better: `customSmallerIsBetter` and `customBiggerIsBetter`."""


def benchmark(report: Report, better: Literal["lower", "higher"]) -> str:
    """The file, a JSON list; empty where nothing was measured."""
    rows = [_entry(report, one) for one in report.measurements if one.better == better and _counts(one)]
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"


def _counts(one: Measurement) -> bool:
    return one.value is not None and math.isfinite(one.value) and one.subject not in (views.REFERENCE, views.BOUND)


def _entry(report: Report, one: Measurement) -> dict[str, str | float]:
    entry: dict[str, str | float] = {
        "name": f"{report.name}: {tables.under(one)}",
        "unit": one.unit or "ratio",
        "value": views.number(one),
    }
    between = numbers.interval(one.low, one.high, one.unit)
    if between:
        entry["range"] = between
    samples = f"n = {one.samples:,}" if one.samples is not None else ""
    extra = "\n".join(part for part in (f"measured on: {one.subject}", samples, one.note, report.machine.title) if part)
    return {**entry, "extra": extra}
