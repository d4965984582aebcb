"""What a million tokens (samples, for encoders and vision models) cost on each target, with the price that was used.

The recipe's target: measured, where its throughput was measured. Every GPU of `targets.py`: the least it can cost, from the
roofline at a stated batch and the row's price; that is a bound and says so. Where a figure is missing the row says why.

    cost = 1e6 · price / 3600 · seconds a token
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openclaw_opt.artifacts import GraphFacts, Measurement, Task
from openclaw_opt.formats import FORMATS
from openclaw_opt.metrics.roofline import Roofline, Work, cache_bytes, multiply_seconds
from openclaw_opt.records import CostRecord
from openclaw_opt.targets import TARGETS, Target

MEASURED = "measured on the engine"
BOUND = "bound from the target's figures"
RATES: dict[Task, tuple[str, str]] = {
    "decoder": ("throughput.decode_tokens_per_s", "output tokens"),
    "encoder": ("throughput.samples_per_s", "samples"),
    "vision": ("throughput.samples_per_s", "samples"),
}
"""The measurement that a cost rests on, and what it counts."""
ROW_PRICE = "the target's row, on demand"
RECIPE_PRICE = "the recipe"


@dataclass(frozen=True)
class Bounded:
    """Least seconds of one token or sample on a target, or why there is no bound; `said` names its conditions."""

    seconds: float | None
    said: str = ""
    why: str = ""


def least_seconds(work: Work | None, facts: GraphFacts, options: Roofline) -> dict[str, Bounded]:
    """The bound of every GPU row for one graph. `work` is None where there is no graph to count. Pure."""
    return {name: bounded(work, facts, options, target) for name, target in TARGETS.items()}


def bounded(work: Work | None, facts: GraphFacts, options: Roofline, target: Target) -> Bounded:
    if work is None:
        return Bounded(None, why="there is no graph to count")
    lacking = sorted({one.format for one in facts.quantized if not target.realises(FORMATS[one.format], "tensorrt")})
    if lacking:
        return Bounded(None, why=f"{target.title} does not realise {', '.join(lacking)}")
    if facts.task != "decoder" and work.convolutions:
        return Bounded(None, why=f"{work.convolutions} convolutions are not counted")
    assert target.bandwidth is not None, "every GPU row states its bandwidth"
    new, cached = (1, options.context) if facts.task == "decoder" else (options.prompt, 0)
    moved = work.weight_bytes + options.batch * cache_bytes(facts, cached)
    if moved > target.memory:
        return Bounded(
            None, why=f"weights and cache ({moved / 1e9:.1f} GB) do not fit into {target.memory / 1e9:.0f} GB"
        )
    seconds = max(moved / target.bandwidth, options.batch * multiply_seconds(work, facts, target, new, cached))
    context = f", {cached} tokens in the cache" if cached else f", {new} tokens" if facts.task == "encoder" else ""
    return Bounded(seconds / options.batch, said=f"batch {options.batch}{context}")


def costs_of(
    target: Target,
    task: Task,
    measurements: Sequence[Measurement],
    bounds: Mapping[str, Bounded],
    *,
    priced_by_recipe: bool,
) -> tuple[CostRecord, ...]:
    """The recipe's target first, then every other GPU row. Pure."""
    own = _measured(target, task, measurements, RECIPE_PRICE if priced_by_recipe else ROW_PRICE)
    if own.per_million_usd is None and target.name in bounds:
        own = _of_bound(target, task, bounds[target.name], own.price_source)
    others = (row for row in TARGETS.values() if row.name != target.name)
    return (own, *(_of_bound(row, task, bounds[row.name], ROW_PRICE) for row in others if row.name in bounds))


def pass_cost(
    target: Target, task: Task, measurements: Sequence[Measurement], bound: Bounded | None, *, priced_by_recipe: bool
) -> CostRecord:
    """What a million cost on the engine that a pass leads to: from its measured throughput, or at least, from its bound. Pure."""
    source = RECIPE_PRICE if priced_by_recipe else ROW_PRICE
    return _measured(target, task, measurements, source) if bound is None else _of_bound(target, task, bound, source)


def _unpriced(target: Target, task: Task, source: str) -> CostRecord:
    """The target and its price, without a figure yet."""
    return CostRecord(
        target=target.name,
        title=target.title,
        hourly_usd=target.hourly_usd,
        price_source="" if target.hourly_usd is None else source,
        per_million_usd=None,
        unit=RATES[task][1],
    )


def _measured(target: Target, task: Task, measurements: Sequence[Measurement], source: str) -> CostRecord:
    name = RATES[task][0]
    rows = [one for one in measurements if one.name == name and one.subject == "engine" and not one.at]
    rate = next((one.value for one in rows if one.value), None)
    row = _unpriced(target, task, source)
    if target.hourly_usd is None:
        why = f"no hourly price is known for {target.title}; `target: {{name: {target.name}, hourly_usd: …}}` in the recipe sets one"
        return row.model_copy(update={"not_measured": why})
    if rate is None:
        why = next(
            (one.not_measured for one in rows if one.not_measured),
            "no throughput was measured: add `latency` to the metrics",
        )
        return row.model_copy(update={"not_measured": why})
    note = next(one.note for one in rows if one.value)
    basis = f"{MEASURED}: {name}" + (f" at {note.split(';')[0]}" if note else "")
    return row.model_copy(update={"per_million_usd": 1e6 * target.hourly_usd / 3600 / rate, "basis": basis})


def _of_bound(target: Target, task: Task, bound: Bounded, source: str) -> CostRecord:
    row = _unpriced(target, task, source)
    if bound.seconds is None:
        return row.model_copy(update={"not_measured": bound.why})
    if target.hourly_usd is None:
        return row.model_copy(update={"not_measured": f"no public hourly price of {target.title} is known"})
    dollars = 1e6 * target.hourly_usd / 3600 * bound.seconds
    return row.model_copy(update={"per_million_usd": dollars, "basis": f"{BOUND}: {bound.said}"})
