"""Percentiles that know when they have too few samples, and bootstrap intervals.

Percentile method: linear interpolation (`numpy.percentile`'s default). A percentile q is stated only from at least
`minimum_samples(q)` samples: the smallest N for which N samples under a limit show, at 99 % confidence, that the true
q-quantile is under it too (the early-stopping rule of MLPerf's load generator). Smaller N gives None, never a number.

Intervals: percentile bootstrap, 95 %, seeded. Latency samples of one run are correlated (frequency, caches, other jobs), so
they are resampled in circular blocks (Politis and Romano, 1992) of n^(1/3) samples, and a ratio of two interleaved
series draws the same blocks from both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Samples = NDArray[np.float64]

CONFIDENCE = 0.99
COVERAGE = 0.95
RESAMPLES = 1000
MINIMUM_HITS = 20
_CHUNK_ELEMENTS = 4_000_000
"""Resampled values held at once: 32 MB of float64."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; the interval is None where the samples do not carry one."""

    value: float
    low: float | None
    high: float | None
    samples: int


@lru_cache(maxsize=256)
def minimum_samples(percentile: float, over: int = 0, confidence: float = CONFIDENCE) -> int:
    """Fewest samples of which `over` may exceed a limit and the percentile still be shown to be within it.

    `percentile` in (0, 100). 50 → 7, 90 → 44, 95 → 90, 99 → 459 at `over=0`.
    """
    _check_percentile(percentile)
    if over < 0 or not 0 < confidence < 1:
        raise ValueError(f"over must be >= 0 and confidence in (0, 1), not {over}, {confidence}")
    high: int = over + 1
    while not _proves(over, high, percentile, confidence):
        high *= 2
    low: int = over
    while high - low > 1:
        middle = (low + high) // 2
        if _proves(over, middle, percentile, confidence):
            high = middle
        else:
            low = middle
    return high


def percentile_within(samples: ArrayLike, limit: float, percentile: float, confidence: float = CONFIDENCE) -> bool:
    """Do the samples show, at `confidence`, that the true percentile is at most `limit`?"""
    _check_percentile(percentile)
    values = _series(samples)
    return _proves(int((values > limit).sum()), values.size, percentile, confidence)


def percentile(samples: ArrayLike, q: float) -> float | None:
    """The q-th percentile (q in (0, 100)) of a series, or None when it has fewer than `minimum_samples(q)` samples."""
    values = _series(samples)
    return float(np.percentile(values, q)) if values.size >= minimum_samples(q) else None


def percentile_estimate(samples: ArrayLike, q: float, *, seed: int = 0) -> Estimate | None:
    """The q-th percentile with its block-bootstrap interval; None when there are too few samples for the percentile."""
    value = percentile(samples, q)
    if value is None:
        return None
    values = _series(samples)
    low, high = _interval([np.percentile(values[rows], q, axis=1) for rows in block_rows(values.size, seed)])
    return Estimate(value, low, high, values.size)


def mean_estimate(samples: ArrayLike, *, seed: int = 0) -> Estimate:
    """The mean of a series with its block-bootstrap interval; no interval below `minimum_samples(50)` samples."""
    values = _series(samples)
    value = float(values.mean())
    if values.size < minimum_samples(50):
        return Estimate(value, None, None, values.size)
    low, high = _interval([values[rows].mean(1) for rows in block_rows(values.size, seed)])
    return Estimate(value, low, high, values.size)


def paired_ratio(numerator: ArrayLike, denominator: ArrayLike, *, seed: int = 0) -> Estimate | None:
    """Ratio of medians of two interleaved series of equal length (sample i of both was taken back to back).

    None below `minimum_samples(50)` pairs. Raises ValueError for unequal lengths or a value that is not positive.
    """
    over, under = _series(numerator), _series(denominator)
    if over.size != under.size:
        raise ValueError(f"paired series differ in length: {over.size} and {under.size}")
    if min(over.min(), under.min()) <= 0:
        raise ValueError("a ratio of times needs positive samples")
    if over.size < minimum_samples(50):
        return None
    draws = [np.median(over[rows], axis=1) / np.median(under[rows], axis=1) for rows in block_rows(over.size, seed)]
    low, high = _interval(draws)
    return Estimate(float(np.median(over) / np.median(under)), low, high, over.size)


def ratio_of_sums(numerators: ArrayLike, denominators: ArrayLike, *, seed: int = 0) -> Estimate:
    """Σ numerators / Σ denominators with an interval over independent units (sequences), e.g. nats over tokens.

    One unit has no interval. Raises ValueError for unequal lengths or a denominator sum that is not positive.
    """
    over, under = _series(numerators), _series(denominators)
    if over.size != under.size:
        raise ValueError(f"series differ in length: {over.size} and {under.size}")
    if not under.sum() > 0:
        raise ValueError("the denominators sum to nothing")
    value = float(over.sum() / under.sum())
    if over.size < 2:
        return Estimate(value, None, None, over.size)
    low, high = _interval([over[rows].sum(1) / under[rows].sum(1) for rows in block_rows(over.size, seed, block=1)])
    return Estimate(value, low, high, over.size)


def ratio_of_hits(right: NDArray[np.float64], was_right: NDArray[np.float64]) -> Estimate | float:
    """Σ right / Σ was_right of the same items, each 0 or 1; without an interval below MINIMUM_HITS: a draw needs one hit."""
    if was_right.sum() < MINIMUM_HITS:
        return float(right.sum() / was_right.sum())
    return ratio_of_sums(right, was_right)


def block_length(samples: int) -> int:
    """n^(1/3), at least 1: the growth rate that is optimal for the variance of a mean under weak dependence."""
    return max(1, math.ceil(float(np.cbrt(samples)) - 1e-9))


def percentile_beyond(samples: ArrayLike, limit: float, percentile: float, confidence: float = CONFIDENCE) -> bool:
    """Do the samples show, at `confidence`, that the true percentile is more than `limit`? The same test, turned round."""
    from scipy.stats import binom

    _check_percentile(percentile)
    values = _series(samples)
    over = int((values > limit).sum())
    return bool(binom.sf(over - 1, values.size, 1 - percentile / 100) <= 1 - confidence + 1e-12)


def _proves(over: int, samples: int, percentile: float, confidence: float) -> bool:
    from scipy.stats import binom  # takes a second to import; only latencies need it

    return bool(binom.cdf(over, samples, 1 - percentile / 100) <= 1 - confidence + 1e-12)


def block_rows(
    size: int, seed: int, block: int | None = None, resamples: int = RESAMPLES
) -> Iterator[NDArray[np.int64]]:
    """Index rows [resamples, size] of a circular block bootstrap, in chunks that bound memory."""
    length = block or block_length(size)
    blocks = -(-size // length)
    random = np.random.default_rng(seed)
    per_chunk = max(1, _CHUNK_ELEMENTS // size)
    for done in range(0, resamples, per_chunk):
        count = min(per_chunk, resamples - done)
        starts = random.integers(0, size, (count, blocks, 1))
        yield ((starts + np.arange(length)) % size).reshape(count, -1)[:, :size]


def _interval(draws: list[Samples]) -> tuple[float, float]:
    tail = 50 * (1 - COVERAGE)
    low, high = np.percentile(np.concatenate(draws), [tail, 100 - tail])
    return float(low), float(high)


def _series(samples: ArrayLike) -> Samples:
    values = np.asarray(samples, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"a non-empty series of numbers is needed, not shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("the series holds NaN or infinity")
    return values


def _check_percentile(percentile: float) -> None:
    if not 0 < percentile < 100:
        raise ValueError(f"a percentile lies between 0 and 100, not {percentile}")
