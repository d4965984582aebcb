"""The comparison of two artifacts as a record: JSON in, JSON out."""

from __future__ import annotations

from typing import Literal

from openclaw_opt.artifacts import Facts

COMPARISON_VERSION = 1
Result = Literal["better", "worse", "equivalent", "undecided"]


class Side(Facts):
    """One of the two."""

    name: str
    path: str
    started: str
    """UTC, ISO 8601."""
    target: str
    machine: str
    engine_tool: str = ""


class Compared(Facts):
    """One number of both, and what can be said of the second."""

    name: str
    kind: str
    """The row of margins.py that says the margin."""
    before: float | None
    after: float | None
    unit: str = ""
    better: Literal["higher", "lower", "neither"]
    relative: bool = True
    """The change is a share of `before`, else a difference in the unit."""
    change: float | None = None
    low: float | None = None
    high: float | None = None
    """Interval of the change at `confidence`."""
    confidence: float | None = None
    """Of this row: the stated one is shared among rows of one group, so that it holds for all of them together."""
    margin: str = ""
    result: Result
    why: str = ""
    evidence: str = ""


class Comparison(Facts):
    """Is B worse than A? One row a number."""

    schema_version: int = COMPARISON_VERSION
    a: Side
    b: Side
    result: Result
    """Worse if anything is; else undecided if anything is; else better if anything is."""
    exit_code: int
    confidence: float
    undecided: Literal["fail", "pass"]
    rows: tuple[Compared, ...] = ()
    differences: tuple[str, ...] = ()
    """What else differs: recipe, versions, kernels."""
    notes: tuple[str, ...] = ()
    started: str = ""
    seconds: float = 0.0
