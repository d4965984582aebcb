"""One candidate for each layer: the least cost whose losses add up to no more than an allowance.

    minimise  Σ cost[i][c] · x[i][c]     with  Σ loss[i][c] · x[i][c] ≤ allowance,  Σ_c x[i][c] = 1,  x binary

is the multiple-choice knapsack problem (Kellerer, Pferschy, Pisinger 2004, chapter 11). HiGHS solves it by branch and bound
(scipy.optimize.milp) and proves how far from the least cost its answer can be at most: 0 unless the time limit ended it. Among
answers of that cost a second run takes one of least loss, so that ties are not left to the solver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Table = Sequence[Mapping[str, float]]
"""For each layer: candidate → number."""
TIME_LIMIT_S = 30.0
SLACK = 1e-6
"""Of the allowance; HiGHS holds constraints to 1e-7 of a row that is scaled to 1."""


@dataclass(frozen=True)
class Choice:
    """A candidate for each layer, in the order of the tables."""

    picks: tuple[str, ...]
    loss: float
    cost: float
    bound: float
    """No choice within the allowance costs less than this."""

    @property
    def gap(self) -> float:
        """How far the cost can be from the least, as a share of it; 0 is proven optimal."""
        return max(0.0, (self.cost - self.bound) / self.cost) if self.cost > 0 else 0.0


def choose(losses: Table, costs: Table, allowance: float) -> Choice | None:
    """The cheapest choice, or None where none is within the allowance.

    Args:
        losses: non-negative; candidates of a layer are the keys of its row.
        costs: the same keys, non-negative.
        allowance: what the losses may add up to.
    """
    least = sum(min(row.values()) for row in losses)
    if least > allowance * (1 + SLACK):
        return None
    kept = [_undominated(loss, cost) for loss, cost in zip(losses, costs, strict=True)]
    names = [(i, name) for i, row in enumerate(kept) for name in row]
    loss = np.array([losses[i][name] for i, name in names])
    cost = np.array([costs[i][name] for i, name in names])
    one_each = np.zeros((len(kept), len(names)))
    for column, (i, _) in enumerate(names):
        one_each[i, column] = 1
    found, bound = _solve(cost, one_each, loss, allowance)
    spent = float(cost[found].sum())
    tied, _ = _solve(loss, one_each, cost, spent)
    if float(loss[tied].sum()) < float(loss[found].sum()) and float(cost[tied].sum()) <= spent:
        found = tied
    picks = tuple(names[column][1] for column in np.flatnonzero(found))
    # The root bound is a float sum of the same numbers: it may pass the cost by a rounding, never by more.
    return Choice(picks, float(loss[found].sum()), spent, min(bound, spent))


def _undominated(loss: Mapping[str, float], cost: Mapping[str, float]) -> list[str]:
    """Candidates that no other beats in both numbers; of equal ones the first."""
    best, kept = float("inf"), []
    for name in sorted(loss, key=lambda one: (cost[one], loss[one])):
        if loss[name] < best:
            kept.append(name)
            best = loss[name]
    return kept


def _solve(
    target: NDArray[np.float64], one_each: NDArray[np.float64], limited: NDArray[np.float64], limit: float
) -> tuple[NDArray[np.bool_], float]:
    """Which columns are taken, and the proven lower bound of their sum of `target`. Both rows are scaled to about 1."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    scale, size = max(limit, float(limited.max()) * 1e-9, 1e-300), max(float(target.max()), 1e-300)
    result = milp(
        target / size,
        integrality=np.ones_like(target),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint((limited / scale)[None], -np.inf, limit / scale * (1 + SLACK)),
        ],
        options={"mip_rel_gap": 0.0, "time_limit": TIME_LIMIT_S},
    )
    if result.x is None:
        # The least losses are within the limit, so there is an answer; the time ended before one was found.
        return _least(one_each, limited), 0.0
    return result.x > 0.5, float(result.mip_dual_bound) * size


def _least(one_each: NDArray[np.float64], limited: NDArray[np.float64]) -> NDArray[np.bool_]:
    taken = np.zeros(len(limited), bool)
    for row in one_each:
        columns = np.flatnonzero(row)
        taken[columns[limited[columns].argmin()]] = True
    return taken
