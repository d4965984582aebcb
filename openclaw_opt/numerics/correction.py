"""From a predicted loss to a measured one: the largest allowance whose choice keeps a rule, found in a few measurements.

The rule's margin falls as the allowance grows, about linearly where losses are small. So the allowance is bracketed by the
safest choice (which must keep the rule) and the cheapest (done, if that keeps it too), then narrowed by the secant through the
bracket's ends (Illinois: an end that stays has its margin halved), or by halving where the margins say nothing. What is kept
is the cheapest choice that was measured and kept the rule: the prediction decides what is tried, never what is accepted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from openclaw_opt.numerics.knapsack import Choice

NARROW = 5e-3
"""Costs of the bracket's ends that differ by less than this share are not told apart further."""
INSIDE = 0.05
"""A guess keeps this share of the bracket from its ends."""
SOLVES = 40
"""Solves that may give a choice that was measured already."""


@dataclass(frozen=True)
class Round:
    """One measured choice."""

    allowance: float
    choice: Choice
    margin: float
    """How far inside the rule; negative outside."""

    @property
    def holds(self) -> bool:
        return self.margin >= 0


@dataclass
class _End:
    allowance: float
    choice: Choice
    margin: float


def correct(
    solve: Callable[[float], Choice | None],
    measure: Callable[[Choice], float],
    lowest: float,
    highest: float,
    most: int,
) -> list[Round]:
    """Every round in order; `best` of them is the result.

    Args:
        solve: allowance → the cheapest choice within it.
        measure: a choice → the margin it keeps; called at most `most` times, never twice for the same picks.
        lowest: allowance of the safest choice.
        highest: allowance of the cheapest.
        most: measurements, at least 2.
    """
    rounds: list[Round] = []

    def tried(allowance: float, choice: Choice) -> _End:
        rounds.append(Round(allowance, choice, measure(choice)))
        return _End(allowance, choice, rounds[-1].margin)

    safest, cheapest = solve(lowest), solve(highest)
    assert safest is not None, "the least losses are within their own sum"
    assert cheapest is not None, "the largest losses are within their own sum"
    low = tried(lowest, safest)
    if low.margin < 0 or cheapest.picks == safest.picks:
        return rounds
    high = tried(highest, cheapest)
    if high.margin >= 0:
        return rounds
    weights = [1.0, 1.0]
    for _ in range(SOLVES):
        if len(rounds) >= most or low.choice.cost - high.choice.cost <= NARROW * low.choice.cost:
            break
        guess = _guess(low, high, weights)
        choice = solve(guess)
        assert choice is not None, "an allowance above the least losses has a choice"
        if choice.picks in (low.choice.picks, high.choice.picks):
            end = low if choice.picks == low.choice.picks else high
            end.allowance = guess
            if high.allowance - low.allowance <= 1e-9 * high.allowance:
                break
            continue
        made = tried(guess, choice)
        if made.margin >= 0:
            low, weights = made, [1.0, weights[1] / 2]
        else:
            high, weights = made, [weights[0] / 2, 1.0]
    return rounds


def best(rounds: list[Round]) -> Round | None:
    """The cheapest that keeps the rule; of equal cost the one further inside."""
    kept = [one for one in rounds if one.holds]
    return min(kept, key=lambda one: (one.choice.cost, -one.margin), default=None)


def closest(rounds: list[Round]) -> Round:
    """The one nearest to keeping it."""
    return max(rounds, key=lambda one: one.margin)


def _guess(low: _End, high: _End, weights: list[float]) -> float:
    inside, outside = weights[0] * low.margin, -weights[1] * high.margin
    width = high.allowance - low.allowance
    if not math.isfinite(outside) or inside + outside <= 0 or high.allowance > 100 * max(low.allowance, 1e-12):
        # Over decades of allowance a secant creeps: halve the exponent.
        return math.sqrt(max(low.allowance, high.allowance * 1e-4) * high.allowance)
    share = inside / (inside + outside)
    return low.allowance + width * min(1 - INSIDE, max(INSIDE, share))
