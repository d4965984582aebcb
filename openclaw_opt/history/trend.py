"""Entries → series → where each changed its level, and whether the last change is a regression. Pure.

Only what is comparable stands in one series: builds of the same recipe, target, checkpoint and evaluation data, and for
times and memory of the same machine. A series whose conditions changed starts anew, and says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from openclaw_opt.history import Entry, Level
from openclaw_opt.numerics.changepoint import FEWEST, SIGNIFICANCE, Change, change_points
from openclaw_opt.report.views import first_word

EXACT = ("size",)
"""First words of numbers without noise: any difference is a change."""
OF_A_MACHINE = (
    "latency",
    "throughput",
    "speedup",
    "memory",
    "gpu",
    "batching",
    "anatomy",
    "cost",
    "load",
    "cold",
    "roofline",
)
RECENT = 10
LEAST = 0.001
"""Changes of level below this share of it are not told: nobody decides by them."""
State = Literal["steady", "better", "worse", "changed", "too short"]


@dataclass(frozen=True)
class Trend:
    """One number over comparable builds, oldest first.

    Attributes:
        builds: what each build is called: its label, else when it started.
        broken: why the series does not reach further back; empty if it does.
        gated: a budget names it in the newest build, so a regression of it fails.
        state: of the last change among the newest `recent` builds; `steady` without one.
    """

    recipe: str
    metric: str
    unit: str
    better: str
    builds: tuple[str, ...]
    levels: tuple[Level, ...]
    changes: tuple[Change, ...]
    broken: str
    gated: bool
    state: State

    @property
    def last(self) -> Change | None:
        return self.changes[-1] if self.changes else None


def trends(
    entries: Sequence[Entry],
    *,
    only: Sequence[str] = (),
    recent: int = RECENT,
    least: float = LEAST,
    significance: float = SIGNIFICANCE,
) -> tuple[Trend, ...]:
    """The trend of every number of the newest build of each recipe, or of those in `only`.

    Gated series share the significance (Bonferroni): with none of them changing, the chance that any is called a regression
    is at most `significance`.
    """
    found = []
    for name in dict.fromkeys(entry.name for entry in entries):
        own = [entry for entry in entries if entry.name == name]
        newest = own[-1]
        metrics = [metric for metric in newest.levels if not only or metric in only]
        gated = [metric for metric in metrics if metric in (only or newest.budgets)]
        for metric in metrics:
            share = significance / max(1, len(gated)) if metric in gated else significance
            found.append(_trend(own, metric, metric in gated, share, recent, least))
    return tuple(found)


def regressions(found: Iterable[Trend]) -> tuple[Trend, ...]:
    """Gated series that became worse in one of the newest builds."""
    return tuple(one for one in found if one.gated and one.state == "worse")


def _trend(own: Sequence[Entry], metric: str, gated: bool, significance: float, recent: int, least: float) -> Trend:
    entries, broken = _comparable(own, metric)
    levels = tuple(entry.levels[metric] for entry in entries)
    changes = _changes([level.value for level in levels], metric, significance, least)
    return Trend(
        recipe=own[-1].name,
        metric=metric,
        unit=levels[-1].unit,
        better=levels[-1].better,
        builds=tuple(entry.label or entry.started for entry in entries),
        levels=levels,
        changes=changes,
        broken=broken,
        gated=gated,
        state=_state(changes, len(levels), levels[-1].better, recent, metric),
    )


def _comparable(own: Sequence[Entry], metric: str) -> tuple[list[Entry], str]:
    """The newest builds that may be compared with the last one, and why an older one may not."""
    newest, kept = own[-1], [own[-1]]
    for entry in reversed(own[:-1]):
        if metric not in entry.levels:
            continue
        why = _differs(newest, entry, metric)
        if why:
            return kept[::-1], f"{why} after {entry.label or entry.started}"
        kept.append(entry)
    return kept[::-1], ""


def _differs(newest: Entry, entry: Entry, metric: str) -> str:
    facts = {"the target": (newest.target, entry.target), "the checkpoint": (newest.model, entry.model)}
    word = first_word(metric)
    if word in OF_A_MACHINE:
        facts["the machine"] = (newest.machine, entry.machine)
    elif word not in EXACT:
        facts["the evaluation data"] = (newest.data, entry.data)
    changed = [name for name, (new, old) in facts.items() if new != old]
    return f"{' and '.join(changed)} changed" if changed else ""


def _changes(values: Sequence[float], metric: str, significance: float, least: float) -> tuple[Change, ...]:
    if first_word(metric) in EXACT:
        pairs = enumerate(itertools.pairwise(values), 1)
        found = tuple(Change(i, before, after, 0.0) for i, (before, after) in pairs if before != after)
    else:
        found = change_points(values, significance=significance)
    return tuple(one for one in found if abs(one.after - one.before) > least * max(abs(one.before), abs(one.after)))


def _state(changes: Sequence[Change], builds: int, better: str, recent: int, metric: str) -> State:
    if builds < 2 or (builds < 2 * FEWEST and first_word(metric) not in EXACT):
        return "too short"
    if not changes or changes[-1].index < builds - recent:
        return "steady"
    if better not in ("higher", "lower"):
        return "changed"
    return "better" if (changes[-1].after > changes[-1].before) == (better == "higher") else "worse"
