"""Objectives, the Pareto front over the points, and which recipe is best. Pure.

A point stands on the front by its measured values, so that the front of the same numbers is always the same; points that the
95 % intervals cannot tell from it are named beside it. The best recipe is one whose build missed no budget. With a budget on
the accuracy objective that is the cheapest on the front of those: the budget has said what accuracy is enough. Without one
it is the knee: nearest to the best of every objective, each scaled to its range on that front.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from openclaw_opt.artifacts import Measurement, Task
from openclaw_opt.errors import BudgetMissed, MachineError, RecipeError, nearest
from openclaw_opt.metrics import Number
from openclaw_opt.numerics.pareto import contenders, front, knee
from openclaw_opt.recipe import Recipe
from openclaw_opt.sweep.state import ObjectiveRecord, PointRecord, SweepRecord

COSTS = ("latency.decode.p50_ms", "latency.infer.p50_ms")
BOUNDS = ("roofline.decode_ms", "roofline.infer_ms")
SIZE = "size_mib"
WITHIN = ("within budget", "no budgets", "not finished")
"""Verdicts of builds that missed no budget; `not finished` waits for its engine on the GPU host."""
SEVERITY = (1, 5, 3, 2)
"""Of failed points the first of these is the sweep's exit code: a bug, a verification, the machine, the recipe."""


def objectives_of(recipes: Sequence[tuple[Recipe, Task]], asked: Sequence[str]) -> tuple[ObjectiveRecord, ...]:
    """What points are compared by: those asked for, or one of accuracy and one of cost.

    Accuracy: the first number on evaluation data that a budget names, else the first recovery, else the first that is better
    higher. Cost: the median latency where every engine runs here, else the roofline bound, else the size.

    Raises:
        RecipeError: a name that some point does not measure, or nothing to compare by.
    """
    known = _measured(recipes)
    wrong = [
        RecipeError(f"no metric of this recipe measures {name!r}", where="--objective", fix=nearest(name, known))
        for name in asked
        if name not in known
    ]
    if wrong:
        raise RecipeError("unknown objectives", mistakes=wrong)
    chosen = asked or [name for name in (_accuracy(recipes, known), _cost(recipes, known)) if name]
    if not chosen:
        raise RecipeError(
            "nothing to compare the points by: the recipe measures neither accuracy nor cost",
            where=str(recipes[0][0].file),
            fix="metrics: [perplexity, latency, size]",
        )
    return tuple(
        ObjectiveRecord(metric=name, better="higher" if known[name].better == "higher" else "lower") for name in chosen
    )


def _measured(recipes: Sequence[tuple[Recipe, Task]]) -> dict[str, Number]:
    """Numbers that every point measures."""
    each = [
        {n.name: n for metric in recipe.metrics for n in metric.numbers if task in n.tasks} for recipe, task in recipes
    ]
    return {name: number for name, number in each[0].items() if all(name in other for other in each)}


def _accuracy(recipes: Sequence[tuple[Recipe, Task]], known: dict[str, Number]) -> str:
    recipe = recipes[0][0]
    names = [n.name for m in recipe.metrics if m.needs_data for n in m.numbers if n.name in known]
    budgeted = [budget.metric for budget in recipe.budgets if budget.metric in names]
    kept = [name for name in names if name.endswith(".recovery")]
    higher = [name for name in names if known[name].better == "higher"]
    return next(iter([*budgeted, *kept, *higher, *names]), "")


def _cost(recipes: Sequence[tuple[Recipe, Task]], known: dict[str, Number]) -> str:
    runs_here = all(recipe.backend == "onnxruntime" for recipe, _ in recipes)
    bounded = all(recipe.target.bandwidth is not None for recipe, _ in recipes)
    names = [*(COSTS if runs_here else ()), *(BOUNDS if bounded else ()), SIZE]
    return next((name for name in names if name in known), "")


def row_of(metric: str, rows: Sequence[Measurement]) -> Measurement | None:
    """The row that budgets look at, too: the first of that name without conditions."""
    return next((row for row in rows if row.name == metric and not row.at), None)


def decided(state: SweepRecord) -> SweepRecord:
    """The state with front, contenders, best and exit code worked out from its points."""
    ways = [objective.better for objective in state.objectives]
    shown = [point for point in state.points if point.status == "done" and _values(point, state) is not None]
    values = [_values(point, state) or [] for point in shown]
    on_front = [shown[i].name for i in front(values, ways)] if shown else []
    near = [shown[i].name for i in contenders([_ends(point, state) for point in shown], ways)] if shown else []
    best, rule = _best(state, shown)
    update = {
        "front": tuple(on_front),
        "contenders": tuple(name for name in near),
        "best": best.name if best is not None else None,
        "rule": rule,
        "exit_code": _exit_code(state, best),
    }
    return state.model_copy(update=update)


def _values(point: PointRecord, state: SweepRecord) -> list[float] | None:
    """One finite value for each objective, or None where one was not measured."""
    rows = [point.values.get(objective.metric) for objective in state.objectives]
    found = [row.value for row in rows if row is not None and row.value is not None and math.isfinite(row.value)]
    return found if len(found) == len(rows) else None


def _ends(point: PointRecord, state: SweepRecord) -> list[tuple[float, float]]:
    found = []
    for objective in state.objectives:
        row = point.values[objective.metric]
        assert row.value is not None
        low, high = (row.value if end is None else end for end in (row.low, row.high))
        found.append((min(low, row.value), max(high, row.value)))
    return found


def _best(state: SweepRecord, shown: Sequence[PointRecord]) -> tuple[PointRecord | None, str]:
    fit = [point for point in shown if point.verdict in WITHIN]
    if not fit:
        why = "no point was measured" if not shown else "no point is within all budgets"
        return None, f"{why}: there is no best recipe"
    ways = [objective.better for objective in state.objectives]
    values = [_values(point, state) or [] for point in fit]
    kept = front(values, ways)
    cost = state.objectives[-1]
    accuracy = state.objectives[0]
    held = any(budget.metric == accuracy.metric for budget in fit[0].budgets)
    if len(ways) == 1 or held:
        index = min(kept, key=lambda i: (_cost_of(values[i][-1], cost), _cost_of(values[i][0], accuracy), fit[i].name))
        return fit[index], f"of the points within all budgets, the one with the best {cost.metric}"
    index = kept[knee([values[i] for i in kept], ways)]
    names = " and ".join(objective.metric for objective in state.objectives)
    within = "of the points within all budgets" if fit[0].budgets else "no budgets"
    return fit[index], f"{within}: the knee of the front, nearest to the best of {names}, each scaled to its range"


def _cost_of(value: float, objective: ObjectiveRecord) -> float:
    return value if objective.better == "lower" else -value


def _exit_code(state: SweepRecord, best: PointRecord | None) -> int:
    """Failed points first; then no point within budget; then a best whose engine is left to finish."""
    failed = {point.exit_code for point in state.points if point.status == "failed"}
    if failed:
        return next((code for code in SEVERITY if code in failed), MachineError.exit_code)
    if best is None:
        return BudgetMissed.exit_code
    return MachineError.exit_code if best.verdict == "not finished" else 0
