"""Properties of dominance: what `front`, `contenders` and `knee` promise for any points."""

from __future__ import annotations

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclaw_opt.numerics.pareto import contenders, front, knee

WAYS: list[Literal["higher", "lower"]] = ["higher", "lower"]
VALUE = st.floats(-5, 5).map(lambda value: round(value, 1))
POINTS = st.lists(st.tuples(VALUE, VALUE), min_size=1, max_size=12)
ENDS = st.tuples(VALUE, VALUE).map(lambda ends: (min(ends), max(ends)))
INTERVALS = st.lists(st.tuples(ENDS, ENDS), min_size=1, max_size=10)


def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Written out by hand: first higher is better, second lower."""
    return one[0] >= other[0] and one[1] <= other[1] and one != other


def test_by_hand() -> None:
    points = [(0.99, 10.0), (0.95, 5.0), (0.94, 6.0), (0.99, 12.0), (0.95, 5.0)]
    assert front(points, WAYS) == [0, 1, 4]
    assert front(points, ["lower", "lower"]) == [1, 2, 4]
    assert knee([(1.0, 10.0), (0.98, 2.0), (0.5, 1.0)], WAYS) == 1


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    found = front(points, WAYS)
    assert found == [i for i, one in enumerate(points) if not any(beats(other, one) for other in points)]
    assert found, "a finite set has a front"


@given(POINTS, st.randoms())
def test_the_front_does_not_depend_on_order(points: list[tuple[float, float]], random: object) -> None:
    shuffled = points[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert sorted(points[i] for i in front(points, WAYS)) == sorted(shuffled[i] for i in front(shuffled, WAYS))


@given(INTERVALS)
def test_contenders_hold_the_front_of_any_values_inside(points: list[tuple[tuple[float, float], ...]]) -> None:
    kept = set(contenders(points, WAYS))
    for pick in (min, max, lambda ends: sum(ends) / 2):
        inside = [tuple(pick(ends) for ends in row) for row in points]
        undominated = {inside[i] for i in front(inside, WAYS)}
        assert undominated <= {inside[i] for i in kept}


def test_overlapping_intervals_cannot_be_told_apart() -> None:
    assert contenders([((0.98, 1.0), (5.0, 5.0)), ((0.97, 0.99), (5.0, 5.0))], WAYS) == [0, 1]
    assert contenders([((0.98, 1.0), (5.0, 5.0)), ((0.90, 0.98), (5.0, 5.0))], WAYS) == [0, 1]
    assert contenders([((0.98, 1.0), (5.0, 5.0)), ((0.90, 0.97), (5.0, 5.0))], WAYS) == [0]


@given(POINTS)
def test_the_knee_is_on_the_front(points: list[tuple[float, float]]) -> None:
    assert knee(points, WAYS) in front(points, WAYS)


def test_what_is_no_point_is_refused() -> None:
    with pytest.raises(ValueError, match="not intervals"):
        front([(math.nan, 1.0)], WAYS)
    with pytest.raises(ValueError, match="1 values for 2"):
        front([(1.0,)], WAYS)
    with pytest.raises(ValueError, match="not intervals"):
        contenders([((2.0, 1.0), (0.0, 0.0))], WAYS)
    with pytest.raises(ValueError, match="finite"):
        knee([(math.inf, 1.0)], WAYS)
    assert front([(math.inf, 1.0), (1.0, 2.0)], WAYS) == [0]
