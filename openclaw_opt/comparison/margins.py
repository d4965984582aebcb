"""How far apart two numbers may be and still be the same for practical purposes: a row a kind, to be replaced with `--margin`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openclaw_opt.comparison.rows import metric_of
from openclaw_opt.errors import RecipeError, nearest
from openclaw_opt.recipe_grammar import AMOUNT, Amount

Margins = Mapping[str, Amount]


@dataclass(frozen=True)
class Kind:
    """One row: which numbers, and their margin."""

    name: str
    pattern: str
    """Of the measurement's name."""
    margin: Amount
    why: str


_ROWS = (
    Kind("likelihood", r"bits_per_byte", Amount(0.5, True), "half the loss that MLPerf's 99 % allows"),
    Kind("divergence", r"kl\..*", Amount(0.001), "nats; what 8-bit weights cost is about half of it"),
    Kind("share", r"(accuracy|agreement|embedding)\..*", Amount(0.005), "half a point of a hundred"),
    Kind("time", r"latency\..*", Amount(5, True), "below what two builds of the same source differ by from day to day"),
    Kind("size", r"size.*", Amount(0.5, True), "exact: this is for names and timestamps in files"),
    Kind("memory", r"memory\..*", Amount(5, True), "one measurement each"),
    Kind("receipt", r"receipt\..*", Amount(0), "a count"),
)
KINDS: dict[str, Kind] = {row.name: row for row in _ROWS}
OTHER = Kind("other", r".*", Amount(1, True), "a number of an accuracy metric that no row is about")


def kind_of(name: str) -> Kind:
    """The row a number belongs to."""
    return next((row for row in _ROWS if re.fullmatch(row.pattern, name)), OTHER)


def margin_of(name: str, given: Margins) -> Amount:
    """What was given for the number itself, else for its kind, else the row's."""
    kind = kind_of(name)
    return given.get(name) or given.get(kind.name) or kind.margin


def parse_margins(texts: Sequence[str]) -> dict[str, Amount]:
    """`time=3%`, `accuracy.top1=0.01` → amounts. Raises RecipeError for what is no kind, number or amount."""
    found: dict[str, Amount] = {}
    for text in texts:
        name, equals, amount = text.partition("=")
        match = AMOUNT.fullmatch(amount) if equals else None
        where = f"--margin {text}"
        if match is None or float(match[1]) < 0:
            raise RecipeError("wants NAME=AMOUNT", where=where, fix="--margin time=3%, --margin accuracy.top1=0.01")
        if name not in KINDS and metric_of(name) is None:
            raise RecipeError(f"no kind or measurement is called {name!r}", where=where, fix=nearest(name, KINDS))
        found[name] = Amount(float(match[1]), bool(match[2]))
    return found
