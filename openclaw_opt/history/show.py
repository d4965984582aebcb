"""Trends → a table for people, Markdown, JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from openclaw_opt.history.trend import Trend, regressions
from openclaw_opt.report import numbers

BARS = "▁▂▃▄▅▆▇█"
LONGEST = 24


def sparkline(values: Sequence[float], longest: int = LONGEST) -> str:
    """The newest values as bars between the least and the largest of them."""
    shown = values[-longest:]
    low, high = min(shown), max(shown)
    if low == high:
        return BARS[3] * len(shown)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in shown)


def told(one: Trend) -> str:
    """What became of it, as a sentence."""
    change = one.last
    if one.state == "too short":
        return f"{_builds(len(one.levels))} to compare: too few to tell"
    if change is None or one.state == "steady":
        return f"steady over {_builds(len(one.levels))}"
    before, after = (numbers.quantity(value, one.unit) for value in (change.before, change.after))
    sure = f", p = {change.p:.2g}" if change.p else ""
    return f"{one.state} since {one.builds[change.index]}: {before} → {after}{sure}"


def rows(found: Sequence[Trend]) -> list[tuple[str, ...]]:
    """Recipe, measurement, newest value, bars, and what became of it."""
    return [
        (
            one.recipe,
            one.metric + (" *" if one.gated else ""),
            numbers.quantity(one.levels[-1].value, one.unit),
            sparkline([level.value for level in one.levels]),
            told(one) + (f" ({one.broken})" if one.broken else ""),
        )
        for one in found
    ]


def lines(found: Sequence[Trend]) -> list[str]:
    """A line a number; those with a budget are marked, and a regression of one fails."""
    told_rows = rows(found)
    widths = [max((len(row[i]) for row in told_rows), default=0) for i in range(4)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in told_rows
    ]


def markdown(found: Sequence[Trend]) -> str:
    """The same as a table for a job summary; regressions first."""
    bad = regressions(found)
    head = f"**{len(bad)} regressed**" if bad else "no number with a budget regressed"
    ordered = [*bad, *(one for one in found if one not in bad)]
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows(ordered)]
    columns = ["| recipe | measurement | newest | trend | |", "|---|---|--:|---|---|"]
    return "\n".join(
        [f"## History: {head}", "", *columns, *body, "", "\\* has a budget: a regression of it fails.", ""]
    )


def as_json(found: Sequence[Trend]) -> list[dict[str, Any]]:
    """Every trend, whole."""
    return [asdict(one) | {"levels": [level.model_dump() for level in one.levels]} for one in found]


def verdict(found: Sequence[Trend], builds: int) -> str:
    """The last line: what happened and what to do."""
    bad = regressions(found)
    if not bad:
        return f"history: {_builds(builds)}, no number with a budget regressed"
    named = "; ".join(f"{one.recipe} {one.metric} {told(one)}" for one in bad)
    change = bad[0].last
    assert change is not None
    since = bad[0].builds[change.index]
    return f"history: {len(bad)} regressed: {named}. Next: look at what changed in {since}"


def _builds(count: int) -> str:
    return f"{count} build" + ("s" if count != 1 else "")
