"""Where a series changed its level: E-divisive, with a permutation test that states how sure it is.

Matteson and James, "A Nonparametric Approach for Multiple Change Point Analysis of Multivariate Data", JASA 109 (2014),
with exponent 1: the energy distance between what is before and after a split, weighted by their sizes, is largest at a
change. Nothing is assumed of the distribution, and a single outlier is no change: both sides have at least `fewest`
observations. Observations are taken as exchangeable between changes, which builds of separate CI jobs are.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]

FEWEST = 3
SIGNIFICANCE = 0.01
PERMUTATIONS = 4999


@dataclass(frozen=True)
class Change:
    """A new level from `index` on.

    Attributes:
        index: first observation after the change.
        before: median of the segment that ends there.
        after: median of the segment that starts there.
        p: share of permutations of the surrounding segment that split at least as well; at most the significance.
    """

    index: int
    before: float
    after: float
    p: float


def change_points(
    values: ArrayLike, *, significance: float = SIGNIFICANCE, fewest: int = FEWEST, seed: int = 0
) -> tuple[Change, ...]:
    """Every change of level of a series in time order, found from the largest to the smallest.

    Args:
        values: finite numbers, shape [n].
        significance: chance, for a series that never changes, that a change is found in it.
        fewest: observations that a segment has at least; a change shows from the `fewest`-th observation after it.

    Raises:
        ValueError: a value is not finite, or an argument is out of range.
    """
    series = np.asarray(values, np.float64)
    if series.ndim != 1 or not np.isfinite(series).all():
        raise ValueError("a series is one row of finite numbers")
    if fewest < 2 or not 0 < significance < 1:
        raise ValueError(f"fewest must be >= 2 and significance in (0, 1), not {fewest}, {significance}")
    draw = np.random.default_rng(seed)
    edges, found, settled = [0, len(series)], {}, set[tuple[int, int]]()
    while True:
        open_ones = [pair for pair in itertools.pairwise(edges) if pair not in settled]
        splits = {pair: best_split(series[slice(*pair)], fewest) for pair in open_ones}
        able = {pair: split for pair, split in splits.items() if split is not None}
        if not able:
            break
        pair = max(able, key=lambda one: able[one][1])
        at, score = able[pair]
        p = _p_value(series[slice(*pair)], score, fewest, significance, draw)
        if p > significance:
            settled.add(pair)
            continue
        found[pair[0] + at] = p
        edges = sorted([*edges, pair[0] + at])
    return tuple(_change(series, edges, index, found[index]) for index in sorted(found))


def best_split(series: Values, fewest: int = FEWEST) -> tuple[int, float] | None:
    """Index and score of the best split of a segment; None when it is too short for two sides or is constant."""
    n = len(series)
    if n < 2 * fewest or bool((series == series[0]).all()):
        return None
    distances = np.abs(series[:, None] - series[None, :])
    sums = distances.cumsum(0).cumsum(1)
    left = np.arange(fewest, n - fewest + 1)
    right = n - left
    before = sums[left - 1, left - 1]
    across = sums[left - 1, n - 1] - before
    after = sums[n - 1, n - 1] - before - 2 * across
    energy = 2 * across / (left * right) - before / (left * (left - 1)) - after / (right * (right - 1))
    scores = energy * left * right / n
    at = int(scores.argmax())
    return int(left[at]), float(scores[at])


def _p_value(series: Values, score: float, fewest: int, significance: float, draw: np.random.Generator) -> float:
    """(1 + permutations that score as much) / (1 + permutations); ended early once it cannot be significant."""
    as_good = 0
    for done in range(1, PERMUTATIONS + 1):
        split = best_split(draw.permutation(series), fewest)
        as_good += split is not None and split[1] >= score - 1e-12
        if (1 + as_good) / (1 + PERMUTATIONS) > significance:
            return (1 + as_good) / (1 + done)
    return (1 + as_good) / (1 + PERMUTATIONS)


def _change(series: Values, edges: list[int], index: int, p: float) -> Change:
    at = edges.index(index)
    before, after = series[edges[at - 1] : index], series[index : edges[at + 1]]
    return Change(index, float(np.median(before)), float(np.median(after)), p)
