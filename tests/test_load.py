"""`load`: an open loop is counted from when a request was due, not from when the engine got to it."""

from __future__ import annotations

import numpy as np
import pytest

from openclaw_opt.metrics.load import Load, Served, arrivals, serve


class Clock:
    """Time that passes only when somebody sleeps or works."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_waiting_counts_from_when_a_request_was_due() -> None:
    clock = Clock()

    def generate() -> float:
        clock.sleep(1.0)
        first = clock()
        clock.sleep(3.0)
        return first

    served = serve([0.0, 1.0, 20.0], generate, 4, clock, clock.sleep)
    assert [one.ttft_ms for one in served] == [1000, 4000, 1000], "the second waits for the first, the third does not"
    assert [one.e2e_ms for one in served] == [4000, 7000, 4000]
    assert [one.itl_ms for one in served] == [1000, 1000, 1000]


def test_goodput_counts_only_what_met_both_limits() -> None:
    served = [Served(i, i + 0.1, i + 0.3, 3) for i in range(8)] + [Served(8, 9, 9.2, 3), Served(9, 9.1, 9.9, 3)]
    rows = {row.name: row for row in Load(ttft_ms=500.0, itl_ms=150.0).rows(served, 1.0)}
    assert rows["load.slo"].value == 0.8
    assert rows["load.goodput_rps"].value == pytest.approx(8 / 9.9)
    assert rows["load.ttft.p50_ms"].value == pytest.approx(100)
    assert rows["load.ttft.p90_ms"].not_measured == "p90 needs 44 requests, 10 were served"
    assert rows.keys() == set(Load.measurement_names())


def test_arrivals_are_poisson_seeded_and_end_in_time() -> None:
    due = arrivals(10.0, 4000, 1e9)
    gaps = np.diff(due)
    assert due == arrivals(10.0, 4000, 1e9)
    assert gaps.mean() == pytest.approx(0.1, rel=0.1)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1), "exponential: deviation equals mean"
    assert max(arrivals(10.0, 4000, 2.0)) <= 2.0
    assert arrivals(1e-9, 5, 1.0) == [0.0]
