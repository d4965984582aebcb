"""Are two models of the same items different, and by how much: paired tests and intervals.

    McNemar        flips of a right/wrong item, exact (binomial) and mid-p: McNemar 1947; Fagerland, Lydersen, Laake 2013
    Tango          score interval of a difference of paired shares, right with few or no flips: Tango 1998
    Wilson         score interval of one share: Wilson 1927 (scipy)
    bootstrap      of Σ items / Σ weights, the same items drawn for both: Efron and Tibshirani 1993; the tails are widened
                   for few items as Hesterberg 2015 says, since a percentile interval is too narrow by √((n−1)/n) and by z for t
    equivalence    two one-sided tests at α each are a 1 − 2α interval inside the margin: Schuirmann 1987

All are two-sided at `confidence`, seeded, and float64. An interval over fewer items than `fewest_items` is None: the range
of n items misses their distribution's median with probability 2^(1−n), so fewer cannot show anything at that confidence.

scipy.stats takes a second to import, so it is imported by what computes with it: most builds compare nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openclaw_opt.numerics.stats import block_rows

Samples = NDArray[np.float64]
Rows = NDArray[np.int64]
Ends = tuple[float, float]
RESAMPLES = 4000


@dataclass(frozen=True)
class Flips:
    """Items that only one of two models has right."""

    harmful: int
    """Right before, wrong after."""
    beneficial: int
    items: int

    @property
    def difference(self) -> float:
        """Share right after − share right before."""
        return (self.beneficial - self.harmful) / self.items


def flips(before: ArrayLike, after: ArrayLike) -> Flips:
    """Two series of 0 and 1 for the same items. Raises ValueError for other values or lengths."""
    old, new = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if old.shape != new.shape or old.ndim != 1 or not old.size:
        raise ValueError(f"flips need two series of equal length, not {old.shape} and {new.shape}")
    if not (is_binary(old) and is_binary(new)):
        raise ValueError("flips need items that are 0 or 1")
    return Flips(int(((old == 1) & (new == 0)).sum()), int(((old == 0) & (new == 1)).sum()), old.size)


def is_binary(items: ArrayLike) -> bool:
    """Is every item 0 or 1?"""
    return bool(np.isin(np.asarray(items), (0.0, 1.0)).all())


def mcnemar_exact(counts: Flips) -> float:
    """Two-sided p of the same share: flips go either way like a fair coin. 1 without any flip."""
    from scipy import stats as scipy_stats

    discordant = counts.harmful + counts.beneficial
    return float(scipy_stats.binomtest(counts.harmful, discordant, 0.5).pvalue) if discordant else 1.0


def mcnemar_mid_p(counts: Flips) -> float:
    """The exact p less half of what its own outcome adds on both sides; nearer to the nominal level, at times above it."""
    from scipy import stats as scipy_stats

    discordant = counts.harmful + counts.beneficial
    if not discordant or counts.harmful == counts.beneficial:
        return 1.0 if not discordant else 1.0 - float(scipy_stats.binom.pmf(counts.harmful, discordant, 0.5)) / 2
    return mcnemar_exact(counts) - float(scipy_stats.binom.pmf(counts.harmful, discordant, 0.5))


def tango_interval(counts: Flips, confidence: float) -> Ends:
    """Score interval of share right after − share right before."""
    from scipy import optimize
    from scipy import stats as scipy_stats

    z = float(scipy_stats.norm.ppf((1 + confidence) / 2))
    at = counts.difference

    def end(sign: int) -> float:
        limit = float(sign)
        if abs(_tango_score(counts, limit * (1 - 1e-9))) <= z:
            return limit
        low, high = sorted((at, limit * (1 - 1e-9)))
        root = optimize.brentq(lambda delta: _tango_score(counts, delta) + sign * z, low, high, xtol=1e-10)
        return float(root)

    return (end(-1) if at > -1 else -1.0), (end(1) if at < 1 else 1.0)


def _tango_score(counts: Flips, delta: float) -> float:
    """Tango's statistic: falls as `delta` rises, 0 at the observed difference."""
    n, b, c = counts.items, counts.beneficial, counts.harmful
    quadratic = 2 * n
    linear = -b - c + (2 * n - b + c) * delta
    constant = -c * delta * (1 - delta)
    q = (math.sqrt(max(0.0, linear**2 - 4 * quadratic * constant)) - linear) / (2 * quadratic)
    variance = n * (2 * q + delta * (1 - delta))
    gap = b - c - n * delta
    if variance <= 1e-12:
        return 0.0 if abs(gap) < 1e-12 else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)


def wilson_interval(right: int, items: int, confidence: float) -> Ends:
    """Score interval of one share."""
    from scipy import stats as scipy_stats

    found = scipy_stats.binomtest(right, items).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def fewest_items(confidence: float) -> int:
    """Fewest items with which anything can be shown: 0.9 → 5, 0.95 → 6, 0.99 → 8."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1, not {confidence}")
    return 1 + math.ceil(-math.log2(1 - confidence) - 1e-9)


def bootstrap(
    statistic: Callable[[Rows], Samples], items: int, confidence: float, *, seed: int = 0, block: int = 1
) -> Ends | None:
    """Interval of a statistic of resampled items; `statistic` maps index rows [resamples, items] to [resamples].

    None below `fewest_items(confidence)`. `block` > 1 draws circular blocks, for series whose neighbours are alike.
    """
    if items < fewest_items(confidence):
        return None
    return ends(draws(statistic, items, seed=seed, block=block), confidence, max(2, items // block))


def draws(statistic: Callable[[Rows], Samples], items: int, *, seed: int = 0, block: int = 1) -> Samples:
    """The statistic of RESAMPLES samples of the items, [RESAMPLES]."""
    return np.concatenate([statistic(rows) for rows in block_rows(items, seed, block, RESAMPLES)])


def ends(drawn: Samples, confidence: float, independent: int) -> Ends:
    """Widened percentile interval of bootstrap draws over `independent` units (Hesterberg 2015, section 4.4)."""
    from scipy import stats as scipy_stats

    t = float(scipy_stats.t.ppf((1 + confidence) / 2, independent - 1))
    tail = 100 * float(scipy_stats.norm.cdf(-t * math.sqrt(independent / (independent - 1))))
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return float(low), float(high)


def is_equivalent(interval: Ends, low: float, high: float) -> bool:
    """Two one-sided tests at α each: is the 1 − 2α `interval` strictly inside `low` to `high`?"""
    return low < interval[0] and interval[1] < high
