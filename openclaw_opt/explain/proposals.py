"""A report and its recipe → recipe changes for each budget that does not hold, likeliest first. Pure.

What a change is expected to do is reasoned, not measured, and says so; `openclaw_opt/explain/trial.py` measures it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from openclaw_opt.artifacts import Measurement
from openclaw_opt.explain import mixed_formats
from openclaw_opt.formats import FORMATS
from openclaw_opt.passes._caching import FLOAT
from openclaw_opt.passes.prune import Prune
from openclaw_opt.passes.quantize import ALGORITHMS, BLOCKS, PLAIN, Quantize
from openclaw_opt.passes.sparsify import Sparsify
from openclaw_opt.recipe import Recipe
from openclaw_opt.records import BudgetRecord, LayerRecord, Report
from openclaw_opt.report.views import engine_measurement, is_accuracy, reference_value
from openclaw_opt.targets import formats_of

MOST_SAMPLES = 64
"""How many times larger an evaluation set may be proposed; a budget that needs more is too close to call."""
MOST_ALGORITHMS = 2
"""The best of those that were not used; the rest differ from them by less than other changes do."""


@dataclass(frozen=True)
class Proposal:
    """One change of the recipe.

    Attributes:
        budget: the measurement whose budget it is for.
        settings: as `--set` takes them.
        why: one sentence: what it changes, and why that should help.
        price: what it is likely to cost elsewhere; empty if nothing.
    """

    budget: str
    settings: tuple[str, ...]
    why: str
    price: str = ""


def proposals(report: Report, recipe: Recipe) -> tuple[Proposal, ...]:
    """Changes for every budget that was missed or not decided; a change that helps two stands once."""
    found: dict[tuple[str, ...], Proposal] = {}
    for budget in report.budgets:
        if budget.result != "met":
            for one in _for(budget, report, recipe):
                found.setdefault(one.settings, one)
    return tuple(found.values())


def _for(budget: BudgetRecord, report: Report, recipe: Recipe) -> Iterator[Proposal]:
    own = engine_measurement(report, budget.metric)
    if own is not None and own.value is None:
        return  # what was not measured here is measured elsewhere, not by another recipe
    if budget.result == "undecided":
        yield from _more_evidence(budget, own, recipe)
    elif own is not None and is_accuracy(own):
        yield from _more_accurate(budget, own, report, recipe)
    elif own is not None:
        yield from _smaller(budget, own, report, recipe)


def _more_evidence(budget: BudgetRecord, own: Measurement | None, recipe: Recipe) -> Iterator[Proposal]:
    """More samples, as many as the interval needs to come off the bound: its width falls with the root of their number."""
    if own is None or budget.got is None:
        return
    factor = _factor(budget, own)
    if not is_accuracy(own):
        metric = next((one for one in recipe.metrics if hasattr(one, "time_box_s")), None)
        if metric is not None:
            box = float(metric.time_box_s) * factor  # type: ignore[attr-defined]
            yield Proposal(
                budget.metric,
                (f"metrics.{metric.word}.time_box_s={box:g}",),
                f"measures {factor} times as long: the interval of {budget.metric} reaches over its bound",
                f"up to {box:g} s of measuring",
            )
        return
    if recipe.evaluation is not None:
        samples = recipe.evaluation.samples * factor
        yield Proposal(
            budget.metric,
            (f"data.evaluation.samples={samples}",),
            f"evaluates on {samples} items: the interval of {budget.metric} reaches over its bound",
            f"evaluation takes {factor} times as long",
        )


def _factor(budget: BudgetRecord, own: Measurement) -> int:
    if own.low is None or own.high is None or budget.bound is None or budget.got is None:
        return 4
    distance, half = abs(budget.got - budget.bound), (own.high - own.low) / 2
    return min(MOST_SAMPLES, max(2, math.ceil((half / distance) ** 2))) if distance else MOST_SAMPLES


def _more_accurate(budget: BudgetRecord, own: Measurement, report: Report, recipe: Recipe) -> Iterator[Proposal]:
    share = share_to_win_back(budget, own, report)
    words = [budget.spent_by] if budget.spent_by else [part.word for part in recipe.passes]
    for part in recipe.passes:
        if part.word not in words:
            continue
        if isinstance(part, Quantize) and part.format == "auto":
            lossless = reference_value(report, budget.metric)
            yield from _changes(budget, mixed_formats.gentler(budget, lossless, part, recipe))
        elif isinstance(part, Quantize):
            yield from _gentler_cache(budget, part)
            if part.format != FLOAT:
                yield from _gentler_quantize(budget, part, share, report, recipe)
        elif isinstance(part, Prune):
            yield from _trained(budget, part, recipe)
            yield from _gentler_prune(budget, part, share)
        elif isinstance(part, Sparsify):
            yield from _gentler_zeros(budget, part, share, report)


def share_to_win_back(budget: BudgetRecord, own: Measurement, report: Report) -> float:
    """The share of the loss against the checkpoint that must go for the budget to hold, from 0 to 1; 1 if not known."""
    start = reference_value(report, budget.metric)
    if start is None or own.value is None or budget.bound is None or own.value == start:
        return 1.0
    return min(1.0, max(0.0, (own.value - budget.bound) / (own.value - start)))


def _gentler_cache(budget: BudgetRecord, part: Quantize) -> Iterator[Proposal]:
    if part.kv_cache == FLOAT:
        return
    if part.kv_cache == "int4":
        why, price = "keys and values in 8 bits instead of 4", "twice the cache"
        yield Proposal(budget.metric, ("passes.quantize.kv_cache=int8",), why, price)
    elif part.format != FLOAT:
        settings = ("passes.quantize.kv_cache=float", "passes.quantize.kv_calibration=null")
        yield Proposal(budget.metric, settings, "a float key/value cache", "a cache four times as large")


def _gentler_quantize(
    budget: BudgetRecord, part: Quantize, share: float, report: Report, recipe: Recipe
) -> Iterator[Proposal]:
    yield from _other_algorithms(budget, part, report.task)
    block = part.block_size()
    smaller = [size for size in BLOCKS if block is not None and size < block]
    if smaller and part.format != "nvfp4":
        row = FORMATS[part.format]
        price = f"{row.bits_per_weight(max(smaller)) - row.bits_per_weight(block):.2g} bits more a weight"
        why = f"{max(smaller)} weights share a scale instead of {block}"
        yield Proposal(budget.metric, (f"passes.quantize.block={max(smaller)}",), why, price)
    yield from _kept_layers(budget, part, share, report)
    bits = FORMATS[part.format].bits_per_weight(part.block)
    wider = [FORMATS[name] for name in formats_of(recipe.target, recipe.backend)]
    wider = sorted((row for row in wider if row.bits_per_weight() > bits), key=lambda row: row.bits_per_weight())
    for row in wider:
        yield Proposal(
            budget.metric,
            (f"passes.quantize.format={row.name}", "passes.quantize.algorithm=auto", "passes.quantize.block=null"),
            f"{row.title.lower().replace('int', 'INT').replace('fp', 'FP')} instead of {part.format}",
            f"{row.bits_per_weight() - bits:.2g} bits more a weight",
        )


def _other_algorithms(budget: BudgetRecord, part: Quantize, task: str) -> Iterator[Proposal]:
    used = part.algorithm_for(task)
    better = [word for word in ALGORITHMS[part.format] if word != used and word not in PLAIN]
    for word in better[:MOST_ALGORITHMS]:
        extra = () if part.alpha is None or word.startswith("smoothquant") else ("passes.quantize.alpha=null",)
        why = f"{word} looks for scales on calibration data where {used} was used"
        yield Proposal(
            budget.metric,
            (f"passes.quantize.algorithm={word}", *extra),
            why,
            "calibration takes longer; the size stays",
        )


def _kept_layers(
    budget: BudgetRecord, part: Quantize | Sparsify, share: float, report: Report, stay: str = "float"
) -> Iterator[Proposal]:
    """The fewest layers that make up the share of the noise which must go."""
    record = next((one for one in report.passes if one.word == part.word), None)
    # Keys and values of a low-bit cache are rows too, and have no weight that could stay.
    worst = worst_layers([layer for layer in record.layers if layer.parameters] if record else ())
    total = sum(noise for _, noise in worst)
    if not total:
        return
    taken, chosen = 0.0, list[LayerRecord]()
    for layer, noise in worst:
        chosen.append(layer)
        taken += noise
        if taken >= share * total:
            break
    if len(chosen) == len(worst):
        return
    kept = ", ".join([*part.patterns(report.task), *(layer.name for layer in chosen)])
    weights = sum(layer.parameters for layer in chosen)
    yield Proposal(
        budget.metric,
        (f"passes.{part.word}.keep=[{kept}]",),
        f"{_layers(len(chosen))} with the largest error stay {stay}: {taken / total:.0%} of the noise that {part.word} adds",
        f"{weights / 1e6:.3g} M weights stay {stay}",
    )


def worst_layers(layers: Sequence[LayerRecord]) -> list[tuple[LayerRecord, float]]:
    """Layers and the noise each adds relative to its output (or weight, where only that is known), largest first."""
    known = [
        (layer, 10 ** (-decibels / 10))
        for layer in layers
        if (decibels := layer.output_sqnr_db if layer.output_sqnr_db is not None else layer.weight_sqnr_db) is not None
    ]
    return sorted(known, key=lambda pair: -pair[1])


def _gentler_zeros(budget: BudgetRecord, part: Sparsify, share: float, report: Report) -> Iterator[Proposal]:
    """Zeros that others make up for, in fewer layers, or fewer of them."""
    if part.method != "sparsegpt":
        why = f"with sparsegpt the weights that are left make up for the zeros, with {part.method} they do not"
        yield Proposal(budget.metric, ("passes.sparsify.method=sparsegpt",), why, "calibration takes longer")
    yield from _kept_layers(budget, part, share, report, "dense")
    if part.zeros is not None:
        less = math.floor(100 * part.zeros * (1 - share)) / 100
        if less > 0:
            why = f"fewer zeros: {share:.0%} of the loss must go"
            yield Proposal(budget.metric, (f"passes.sparsify.ratio={less}",), why, "fewer zeros")


def _trained(budget: BudgetRecord, part: Prune, recipe: Recipe) -> Iterator[Proposal]:
    """The passes of the recipe with `distill` behind this one."""
    if any(other.word == "distill" for other in recipe.passes):
        return
    listed: list[dict[str, Any] | str] = []
    for one in recipe.passes:
        listed.append({one.word: one.model_dump(mode="json", exclude_defaults=True)})
        if one is part:
            listed.append("distill")
    why = "what was pruned is trained on what the untouched checkpoint says; the size stays"
    yield Proposal(budget.metric, (f"passes={json.dumps(listed)}",), why, "minutes to hours of training")


def _gentler_prune(budget: BudgetRecord, part: Prune, share: float) -> Iterator[Proposal]:
    """The same cuts, smaller by the share of the loss that must go; the loss grows at least in step with what is cut."""
    if part.cuts_ffn and part.allocation != "sensitivity":
        why = "as many FFN channels go, but those that matter least for the whole model"
        price = "layers of different widths, which no Hugging Face config holds"
        yield Proposal(budget.metric, ("passes.prune.allocation=sensitivity",), why, price)
    settings = []
    for name in ("ffn", "heads", "query_heads", "hidden"):
        fraction = getattr(part, name)
        if fraction is not None:
            less = math.floor(100 * fraction * (1 - share)) / 100
            settings.append(f"passes.prune.{name}={less if less > 0 else 'null'}")
    if part.layers is not None:
        settings.append(f"passes.prune.layers={part.layers - 1 or 'null'}")
    if settings and not all(one.endswith("=null") for one in settings):
        yield Proposal(
            budget.metric, tuple(settings), f"removes less: {share:.0%} of the loss must go", "larger and slower"
        )


def _changes(budget: BudgetRecord, changes: Iterable[mixed_formats.Change]) -> Iterator[Proposal]:
    return (Proposal(budget.metric, (setting,), why, price) for setting, why, price in changes)


def _smaller(budget: BudgetRecord, own: Measurement, report: Report, recipe: Recipe) -> Iterator[Proposal]:
    """Fewer bits, then fewer channels: for a size or a time."""
    quantize = next((part for part in recipe.passes if isinstance(part, Quantize) and part.format != FLOAT), None)
    prune = next((part for part in recipe.passes if isinstance(part, Prune)), None)
    if quantize is not None and quantize.format == "auto":
        yield from _changes(budget, mixed_formats.smaller(own, quantize, recipe))
    elif quantize is not None:
        yield from _fewer_bits(budget, quantize, recipe)
    if quantize is not None and quantize.patterns(report.task):
        yield Proposal(
            budget.metric, ("passes.quantize.keep=[]",), "the layers that are kept float are quantized too", "accuracy"
        )
    if prune is not None and prune.ffn is not None and prune.ffn < 0.5:
        more = round(min(0.5, prune.ffn + 0.1), 2)
        yield Proposal(
            budget.metric, (f"passes.prune.ffn={more}",), f"removes {more:.0%} of the FFN channels", "accuracy"
        )


def _fewer_bits(budget: BudgetRecord, part: Quantize, recipe: Recipe) -> Iterator[Proposal]:
    bits = FORMATS[part.format].bits_per_weight(part.block)
    rows = [FORMATS[name] for name in formats_of(recipe.target, recipe.backend)]
    for row in sorted((row for row in rows if row.bits_per_weight() < bits), key=lambda row: -row.bits_per_weight()):
        settings = (f"passes.quantize.format={row.name}", "passes.quantize.algorithm=auto", "passes.quantize.block=null")  # fmt: skip
        yield Proposal(budget.metric, settings, f"{row.title} instead of {part.format}", "accuracy")


def _layers(count: int) -> str:
    return f"{count} layer" + ("s" if count != 1 else "")
