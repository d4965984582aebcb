"""Recipe changes for `quantize: {format: auto}`: what it chooses among, and what it is to keep. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from openclaw_opt.artifacts import Measurement
from openclaw_opt.formats import FORMATS, Format
from openclaw_opt.passes.candidates import FLOAT, rules_of
from openclaw_opt.passes.quantize import Quantize
from openclaw_opt.recipe import Recipe
from openclaw_opt.records import BudgetRecord
from openclaw_opt.report.views import first_word
from openclaw_opt.targets import formats_of

Change = tuple[str, str, str]
"""One `--set`, why it should help, and what it is likely to cost."""
SIZES = ("size", "memory")


def gentler(budget: BudgetRecord, lossless: float | None, part: Quantize, recipe: Recipe) -> Iterator[Change]:
    """For an accuracy: a stricter `within`, then a candidate that loses less.

    Args:
        lossless: the checkpoint's own value, where it is known.
    """
    if budget.got is not None and budget.bound is not None:
        yield from _stricter(budget, budget.got, budget.bound, lossless, part)
    given = part.candidates or ()
    if any(item["format"] == FLOAT for item in given):
        return
    most = max((_bits(item) for item in given), default=0.0)
    for word in [*[row.name for row in _rows(recipe) if row.bits_per_weight() > most][:1], FLOAT]:
        yield _with(given, word), f"layers may also be {word}, which loses less", "those layers grow"


def _stricter(
    budget: BudgetRecord, got: float, wanted: float, lossless: float | None, part: Quantize
) -> Iterator[Change]:
    """The budget's measurement in `within`; where it is there, the loss it allows made less by as much as the build lost more."""
    within: dict[str, Any] = dict(part.within or {})
    own = next((rule for rule in rules_of(within) if rule.metric == budget.metric), None)
    sign = "<=" if got > wanted else ">="
    if own is None:
        within[budget.metric] = f"{sign} {wanted:.6g}"
        why = f"the choice is made to keep {within[budget.metric]}, which it was not asked for"
    else:
        start = 0.0 if lossless is None else lossless
        if own.bound == start or (wanted - start) * (got - start) <= 0:
            return  # nothing may be lost already
        bound = start + (own.bound - start) * (wanted - start) / (got - start)
        within[budget.metric] = {"rule": f"{sign} {bound:.6g}", "confidence": own.confidence}
        why = f"evaluation data lost {abs(got - start) / abs(own.bound - start):.2g} times what calibration data was to lose"
    yield f"passes.quantize.within={json.dumps(within)}", why, "more bits a weight"


def smaller(own: Measurement, part: Quantize, recipe: Recipe) -> Iterator[Change]:
    """For a size or a time: the right thing minimised, then a candidate of fewer bits."""
    if first_word(own.name) not in SIZES and part.minimise != "time":
        yield "passes.quantize.minimise=time", "the choice minimises the roofline of a decode step, not bytes", "size"
    given = part.candidates or ()
    least = min((_bits(item) for item in given if item["format"] != FLOAT), default=0.0)
    for row in [row for row in _rows(recipe) if row.bits_per_weight() < least][-1:]:
        yield _with(given, row.name), f"layers may also be {row.name}", "accuracy, as far as `within` allows"


def _with(given: Sequence[dict[str, Any]], word: str) -> str:
    items = [item["format"] if len(item) == 1 else json.dumps(item) for item in given]
    return f"passes.quantize.candidates=[{', '.join([*items, word])}]"


def _bits(item: dict[str, Any]) -> float:
    return FORMATS[item["format"]].bits_per_weight(item.get("block"))


def _rows(recipe: Recipe) -> list[Format]:
    """Formats that the target realises, fewest bits first."""
    found = [FORMATS[name] for name in formats_of(recipe.target, recipe.backend)]
    return sorted(found, key=lambda row: row.bits_per_weight())
