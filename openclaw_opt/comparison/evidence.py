"""A number, or how it changed, with the interval that the samples carry at a confidence.

What carries one, best first: items (paired with the other side's, item by item), samples of time (two runs, resampled in
blocks and apart), a stored 95 % interval. What has none of these has no sampling error, as a size, and is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from openclaw_opt.artifacts import Measurement
from openclaw_opt.comparison.rows import Series, metric_of, own_row, reference_row, samples_of, series_of
from openclaw_opt.numerics import paired
from openclaw_opt.numerics.paired import Ends
from openclaw_opt.numerics.stats import COVERAGE, block_length

FEWEST_RIGHT = 20
"""Right answers of the checkpoint below which a share of them has no interval."""


NO_ERROR = "no sampling error"
ONE_RUN = "one measurement; how much it varies is not known"


@dataclass(frozen=True)
class Evidence:
    """`value` with the ends of its interval. Without ends it is exact, or `why` says why nothing can be decided by it."""

    value: float | None
    low: float | None = None
    high: float | None = None
    how: str = ""
    why: str = ""

    @property
    def exact(self) -> bool:
        return self.value is not None and self.low is None and not self.why

    def shifted(self, base: float, scale: float) -> Evidence:
        """base + scale · each number; `scale` is positive."""
        value, low, high = (None if x is None else base + scale * x for x in (self.value, self.low, self.high))
        return replace(self, value=value, low=low, high=high)


def alone(measurements: Sequence[Measurement], name: str, confidence: float) -> Evidence:
    """The artifact's own number."""
    row = own_row(measurements, name)
    if row is None or row.value is None:
        return Evidence(None, why=row.not_measured if row else "the pipeline ended before it could be measured")
    series, times = series_of(measurements, name), samples_of(measurements, name)
    if series is not None:
        return _with_ends(row.value, *_alone(series, confidence))
    if times is not None:
        return _with_ends(
            row.value, _percentile_ends(*times, confidence), f"block bootstrap over {len(times[0])} samples", ""
        )
    return _stored(row, confidence)


def _alone(series: Series, confidence: float) -> tuple[Ends | None, str, str]:
    """Ends, how, and why there are none."""
    n = series.count
    if series.is_share:
        right = int(series.items.sum())
        return paired.wilson_interval(right, n, confidence), f"Wilson interval of {right} of {n} items", ""
    if series.is_share_of_share:
        right = int(series.weights.sum())
        if right < FEWEST_RIGHT:
            return None, "", f"the checkpoint has {right} of {n} items right, and a share of them needs {FEWEST_RIGHT}"
        flips = paired.flips(series.weights, series.items)
        low, high = (1 + end * n / right for end in paired.tango_interval(flips, confidence))
        return (low, high), said_of(flips), ""
    return _bootstrapped(paired.bootstrap(series.of, n, confidence), n, confidence, f"bootstrap over {n} items")


def _bootstrapped(found: Ends | None, n: int, confidence: float, how: str) -> tuple[Ends | None, str, str]:
    few = f"{n} items carry no interval at {confidence:g}: it takes {paired.fewest_items(confidence)}"
    return found, how, "" if found else few


def _percentile_ends(samples: paired.Samples, q: float, confidence: float) -> Ends | None:
    return paired.bootstrap(
        lambda rows: np.percentile(samples[rows], q, axis=1), len(samples), confidence, block=block_length(len(samples))
    )


def _stored(row: Measurement, confidence: float) -> Evidence:
    """A row that holds its 95 % interval and not what it was made from: good for as much confidence and no more."""
    if row.low is None or row.high is None:
        if row.samples == 1:
            return Evidence(row.value, why="one sample carries no interval")
        metric = metric_of(row.name)
        once = metric is not None and metric.depends_on == "machine"
        return Evidence(row.value, how=ONE_RUN if once else NO_ERROR)
    if confidence > COVERAGE + 1e-9:
        return Evidence(
            row.value, why=f"only its {100 * COVERAGE:.0f} % interval is kept, and {confidence:g} was asked for"
        )
    return Evidence(row.value, row.low, row.high, f"its {100 * COVERAGE:.0f} % interval")


def change(
    before: Sequence[Measurement], after: Sequence[Measurement], name: str, confidence: float, *, relative: bool
) -> Evidence:
    """How far `after` is from `before`: as a share of it, or as a difference. The same items are drawn for both."""
    old, new = own_row(before, name), own_row(after, name)
    return _change(old, new, (before, after), name, confidence, relative)


def change_from_checkpoint(rows: Sequence[Measurement], name: str, confidence: float, *, relative: bool) -> Evidence:
    """How far the artifact is from the checkpoint, whose row stands beside its own."""
    old, new = reference_row(rows, name), own_row(rows, name)
    return _change(old, new, (rows, rows), name, confidence, relative, reference=True)


def _change(
    old: Measurement | None,
    new: Measurement | None,
    reports: tuple[Sequence[Measurement], Sequence[Measurement]],
    name: str,
    confidence: float,
    relative: bool,
    *,
    reference: bool = False,
) -> Evidence:
    for row, whose in ((new, ""), (old, "the checkpoint's: " if reference else "the baseline's: ")):
        if row is None or row.value is None:
            return Evidence(None, why=f"{whose}{row.not_measured if row else 'not measured'}")
    assert old is not None
    assert new is not None
    first, second = series_of(reports[0], name, reference=reference), series_of(reports[1], name)
    value = _distance(old.value, new.value, relative)
    if first is not None and second is not None:
        return _with_ends(value, *paired_ends(first, second, confidence, relative=relative))
    if (first is None) != (second is None):
        return Evidence(value, why="one of the two reports holds no items (an older version wrote it): build it again")
    times = samples_of(reports[0], name), samples_of(reports[1], name)
    if times[0] and times[1] and not reference:
        return _with_ends(value, *_apart(times[0], times[1], confidence, relative))
    return _of_intervals(_stored(old, confidence), _stored(new, confidence), relative)


def _distance(old: float | None, new: float | None, relative: bool) -> float:
    assert old is not None
    assert new is not None
    return (new / old - 1 if old else 0.0 if new == old else np.inf) if relative else new - old


def paired_ends(before: Series, after: Series, confidence: float, *, relative: bool) -> tuple[Ends | None, str, str]:
    """Ends of the change, how they were found, and why there are none."""
    n = after.count
    if before.count != n:
        return None, "", f"{before.count} items before and {n} after: not the same evaluation data"
    if before.is_share and after.is_share:
        flips = paired.flips(before.items, after.items)
        share = float(before.items.mean())
        scale = (1 / share if share else np.inf) if relative else 1.0
        low, high = (scale * end for end in paired.tango_interval(flips, confidence))
        return (low, high), said_of(flips), ""

    def statistic(rows: paired.Rows) -> paired.Samples:
        old, new = before.of(rows), after.of(rows)
        return np.asarray(new / old - 1 if relative else new - old)

    return _bootstrapped(paired.bootstrap(statistic, n, confidence), n, confidence, f"paired bootstrap over {n} items")


def said_of(flips: paired.Flips) -> str:
    """McNemar's test in a line."""
    counted = f"{flips.harmful} harmful and {flips.beneficial} beneficial flips of {flips.items}"
    return f"McNemar exact p = {paired.mcnemar_exact(flips):.2g}, mid-p = {paired.mcnemar_mid_p(flips):.2g}: {counted}"


def _apart(
    old: tuple[paired.Samples, float], new: tuple[paired.Samples, float], confidence: float, relative: bool
) -> tuple[Ends | None, str, str]:
    """Two runs at different times: what disturbed one and not the other is not in the interval."""
    n = min(len(old[0]), len(new[0]))
    if n < paired.fewest_items(confidence):
        return _bootstrapped(None, n, confidence, "")
    drawn = []
    for seed, (samples, q) in enumerate((old, new)):
        block = block_length(len(samples))
        found = paired.draws(
            lambda rows, samples=samples, q=q: np.percentile(samples[rows], q, axis=1),  # type: ignore[misc]
            len(samples), seed=seed, block=block,
        )  # fmt: skip
        drawn.append(found)
    both = drawn[1] / drawn[0] - 1 if relative else drawn[1] - drawn[0]
    ends = paired.ends(both, confidence, max(2, n // block_length(n)))
    return ends, f"block bootstrap of two runs ({len(old[0])} and {len(new[0])} samples), not taken in turns", ""


def _of_intervals(old: Evidence, new: Evidence, relative: bool) -> Evidence:
    """Every pair of values inside both intervals: wider than need be, never narrower."""
    assert old.value is not None
    assert new.value is not None
    value = _distance(old.value, new.value, relative)
    if why := old.why or new.why:
        return Evidence(value, why=why)
    if old.exact and new.exact:
        return Evidence(value, how=new.how)
    pairs = [
        _distance(a, b, relative)
        for a in ((old.low, old.high) if not old.exact else (old.value,))
        for b in ((new.low, new.high) if not new.exact else (new.value,))
    ]
    return Evidence(value, min(pairs), max(pairs), "both stored 95 % intervals, of two runs")


def _with_ends(value: float, ends: Ends | None, how: str, why: str) -> Evidence:
    if ends is None:
        return Evidence(value, why=why or "too few samples for an interval")
    return Evidence(value, ends[0], ends[1], how, why)
