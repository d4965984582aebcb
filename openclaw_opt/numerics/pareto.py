"""Pareto fronts: which points nothing else beats in everything at once. Plain floats, no torch.

Source: Pareto dominance as in Deb, *Multi-Objective Optimization using Evolutionary Algorithms*, 2001, section 2.4.

`front` looks at the values: it is what a picture shows, and repeats exactly. `contenders` looks at intervals: a point leaves
only when another is at least as good at its worst as the point at its best, in every objective, and somewhere better. That
relation is transitive, so the answer does not depend on the order of points. Contenders hold the whole front; those beyond
it cannot be told from it by what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Better = Literal["higher", "lower"]
Interval = tuple[float, float]
"""Lower and upper end; equal where a number has no sampling error."""


def front(points: Sequence[Sequence[float]], better: Sequence[Better]) -> list[int]:
    """Indices of the points that no other dominates, ascending; equal points stay together.

    Args:
        points: one row a point, one column an objective. Infinite values are legal.
        better: for each objective, which way is better.

    Raises:
        ValueError: a value is NaN, or a row has another length than `better`.
    """
    return contenders([[(value, value) for value in row] for row in points], better)


def contenders(points: Sequence[Sequence[Interval]], better: Sequence[Better]) -> list[int]:
    """Indices of the points that no other surely dominates, ascending.

    Raises:
        ValueError: an end is NaN, ends are in the wrong order, or a row has another length than `better`.
    """
    scaled = [_costs(row, better) for row in points]
    return [i for i, one in enumerate(scaled) if not any(_dominates(other, one) for other in scaled)]


def knee(points: Sequence[Sequence[float]], better: Sequence[Better]) -> int:
    """Index of the point nearest to the best of each objective, every objective scaled to its range over the points.

    Distances are Euclidean; of equals, the first. An objective in which all points are equal counts for nothing.

    Raises:
        ValueError: there are no points, a value is not finite, or a row has another length than `better`.
    """
    costs = [[best for best, _ in _costs([(value, value) for value in row], better)] for row in points]
    if not costs or not all(math.isfinite(value) for row in costs for value in row):
        raise ValueError("a knee wants points, all of finite values")
    lows = [min(column) for column in zip(*costs, strict=True)]
    spans = [max(column) - low for column, low in zip(zip(*costs, strict=True), lows, strict=True)]
    far = [
        math.hypot(*((value - low) / span for value, low, span in zip(row, lows, spans, strict=True) if span))
        for row in costs
    ]
    return far.index(min(far))


def _costs(row: Sequence[Interval], better: Sequence[Better]) -> list[Interval]:
    """(at best, at worst) of each objective, turned so that less is better."""
    if len(row) != len(better):
        raise ValueError(f"{len(row)} values for {len(better)} objectives")
    if any(math.isnan(end) for ends in row for end in ends) or any(low > high for low, high in row):
        raise ValueError(f"not intervals of numbers: {row}")
    return [(low, high) if way == "lower" else (-high, -low) for (low, high), way in zip(row, better, strict=True)]


def _dominates(one: Sequence[Interval], other: Sequence[Interval]) -> bool:
    pairs = [(worst, best) for (_, worst), (best, _) in zip(one, other, strict=True)]
    return all(worst <= best for worst, best in pairs) and any(worst < best for worst, best in pairs)
