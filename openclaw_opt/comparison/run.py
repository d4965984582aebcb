"""Read two builds, time their engines in turns where both run here, and compare."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

from openclaw_opt.comparison.comparable import provenance_of
from openclaw_opt.comparison.records import Comparison
from openclaw_opt.comparison.verdicts import TWO_RUNS, Options, Timed, check_comparable, compare_reports
from openclaw_opt.records import Report
from openclaw_opt.report import read_report
from openclaw_opt.report.provenance import metrics_in
from openclaw_opt.store import sha256_file

NOT_TIMED = f"{TWO_RUNS}; without --stored the engines are timed in turns"


def compare(a: Path, b: Path, options: Options, *, seconds: float | None) -> Comparison:
    """Is B worse than A?

    Args:
        a, b: folders of builds, or their report.json.
        seconds: how long to time both engines; None leaves times as the reports have them.

    Raises:
        RecipeError: no report, a damaged or newer one, another checkpoint, other evaluation data.
    """
    began, started = time.monotonic(), datetime.datetime.now(datetime.UTC)
    first, second = read_report(a), read_report(b)
    paths = (str(a), str(b))
    check_comparable(provenance_of(second), provenance_of(first), paths)
    identical = same_engine(a, first, b, second)
    timed = Timed(why=NOT_TIMED) if seconds is None else _timed(a, b, second, seconds)
    found = compare_reports(first, second, timed, options, paths=paths, identical=identical)
    return found.model_copy(
        update={"started": started.isoformat(timespec="seconds"), "seconds": time.monotonic() - began}
    )


def _timed(a: Path, b: Path, report: Report, seconds: float) -> Timed:
    """With the prompt, batch and tokens that B's recipe measures latency with."""
    from openclaw_opt.comparison.turns import time_in_turns
    from openclaw_opt.metrics.latency import Latency

    stated = metrics_in(report.recipe).get("latency", {})
    known = {key: value for key, value in stated.items() if key in Latency.model_fields}
    return time_in_turns(a, b, Latency.model_validate({**known, "time_box_s": seconds}))


def same_engine(a: Path, first: Report, b: Path, second: Report) -> bool:
    """Do both folders hold the same engine files, byte for byte?"""
    if not (a.is_dir() and b.is_dir()) or not first.engine_files or first.engine_files != second.engine_files:
        return False
    pairs = [(a / name, b / name) for name in first.engine_files]
    if not all(x.is_file() and y.is_file() and x.stat().st_size == y.stat().st_size for x, y in pairs):
        return False
    return all(sha256_file(x) == sha256_file(y) for x, y in pairs)
