"""Percentiles, intervals and divergences against closed forms, scipy and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from scipy import stats as scipy_stats

from openclaw_opt.numerics import divergence, stats


@pytest.mark.parametrize(
    ("percentile", "over", "samples"),
    [
        (50, 0, 7), (50, 1, 11), (50, 2, 14), (50, 5, 22),
        (90, 0, 44), (90, 1, 64), (90, 2, 81), (90, 5, 127),
        (95, 0, 90), (95, 1, 130), (95, 2, 165), (95, 5, 259),
        (99, 0, 459), (99, 1, 662), (99, 2, 838), (99, 5, 1307),
        (99.9, 0, 4603), (99.9, 1, 6636),
    ],
)  # fmt: skip
def test_minimum_samples_are_those_of_the_load_generator(percentile: float, over: int, samples: int) -> None:
    assert stats.minimum_samples(percentile, over) == samples


@given(st.floats(1, 99.9), st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_minimum_samples_is_the_smallest_that_proves(percentile: float, over: int) -> None:
    count = stats.minimum_samples(percentile, over)
    series = np.concatenate([np.full(over, 2.0), np.ones(count - over)])
    assert stats.percentile_within(series, 1.0, percentile)
    assert count - 1 == over or not stats.percentile_within(series[:-1], 1.0, percentile)


def test_a_percentile_without_enough_samples_is_none_not_a_number() -> None:
    assert stats.percentile(range(458), 99) is None
    assert stats.percentile(range(459), 99) == pytest.approx(np.percentile(np.arange(459), 99))
    assert stats.percentile_estimate([1.0] * 6, 50) is None


@given(st.lists(st.floats(0.01, 1e3), min_size=7, max_size=60), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_an_interval_holds_inside_the_samples_and_is_seeded(samples: list[float], seed: int) -> None:
    first = stats.percentile_estimate(samples, 50, seed=seed)
    assert first is not None
    assert first == stats.percentile_estimate(samples, 50, seed=seed)
    assert first.low is not None
    assert first.high is not None
    assert min(samples) <= first.low <= first.high <= max(samples)


def test_the_interval_of_a_median_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        estimate = stats.percentile_estimate(random.exponential(size=120), 50, seed=trial)
        assert estimate is not None
        assert estimate.low is not None
        assert estimate.high is not None
        hits += estimate.low <= np.log(2) <= estimate.high
    assert 0.88 <= hits / 200 <= 0.995


def test_blocks_widen_the_interval_of_a_correlated_series() -> None:
    random = np.random.default_rng(0)
    drift = np.cumsum(random.normal(size=1000)) / 10 + 50
    shuffled = random.permutation(drift)
    wide, narrow = stats.percentile_estimate(drift, 50), stats.percentile_estimate(shuffled, 50)
    assert wide is not None
    assert narrow is not None
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_a_paired_ratio_cancels_what_both_series_share() -> None:
    random = np.random.default_rng(1)
    machine = np.exp(np.repeat(random.normal(0, 0.5, 20), 10))
    fast = machine * np.exp(random.normal(0, 0.01, 200))
    ratio = stats.paired_ratio(2 * machine, fast)
    alone = stats.percentile_estimate(machine, 50)
    assert ratio is not None
    assert alone is not None
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low <= ratio.value <= ratio.high
    assert ratio.value == pytest.approx(2, rel=0.02)
    assert (ratio.high - ratio.low) / 2 < (alone.high - alone.low) / alone.value


def test_series_that_are_not_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in length: 3 and 2"):
        stats.paired_ratio([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="positive"):
        stats.paired_ratio([1.0] * 9, [0.0] * 9)
    with pytest.raises(ValueError, match="NaN"):
        stats.percentile([1.0, float("nan")], 50)
    with pytest.raises(ValueError, match="between 0 and 100"):
        stats.minimum_samples(100)
    assert stats.paired_ratio([1.0] * 6, [1.0] * 6) is None


def test_ratio_of_sums_weighs_by_the_denominator() -> None:
    estimate = stats.ratio_of_sums([1.0, 30.0], [1.0, 10.0])
    assert estimate.value == pytest.approx(31 / 11)
    assert stats.ratio_of_sums([2.0], [4.0]) == stats.Estimate(0.5, None, None, 1)
    exact = stats.ratio_of_sums([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert exact.low == exact.high == pytest.approx(2)


logits = st.integers(2, 12).flatmap(
    lambda vocab: st.lists(
        st.lists(st.floats(-30, 30, width=32), min_size=vocab, max_size=vocab), min_size=2, max_size=6
    )
)


@given(logits)
@settings(max_examples=80, deadline=None)
def test_log_softmax_and_kl_agree_with_scipy(rows: list[list[float]]) -> None:
    values = np.asarray(rows, np.float32)
    expected = special.log_softmax(values.astype(np.float64), axis=-1)
    np.testing.assert_allclose(divergence.log_softmax(values), expected, atol=2e-5)
    p, q = expected[:-1], expected[1:]
    got = divergence.kl_divergence(p.astype(np.float32), q.astype(np.float32))
    want = scipy_stats.entropy(np.exp(p), np.exp(q), axis=-1)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert (got > -1e-4).all()


@given(logits, st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_a_sequence_against_itself_loses_nothing(rows: list[list[float]], seed: int) -> None:
    values = divergence.log_softmax(np.asarray(rows, np.float32))
    targets = np.random.default_rng(seed).integers(0, values.shape[1], len(values))
    target = divergence.target_log_probability(values, targets)
    top = values.argmax(-1).astype(np.int32)
    score = divergence.score_sequence(values, targets, values, target.astype(np.float32), top)
    assert score.agreed == score.tokens == len(values)
    assert score.kl == pytest.approx(0, abs=1e-4)
    assert score.nll == pytest.approx(score.reference_nll, rel=1e-5, abs=1e-5)


def test_cosine_neighbours_and_sqnr_closed_forms() -> None:
    rows = np.array([[1, 0], [1, 0.1], [0, 2], [0, 3]], np.float32)
    np.testing.assert_array_equal(divergence.nearest_neighbours(rows), [1, 0, 3, 2])
    np.testing.assert_allclose(divergence.cosine(rows[[0, 0]], rows[[2, 0]]), [0, 1], atol=1e-12)
    np.testing.assert_array_equal(divergence.cosine(np.zeros((2, 2)), np.array([[0, 0], [1, 0]])), [1, 0])
    assert divergence.sqnr_db(np.ones(10, np.float32), np.full(10, 0.9, np.float32)) == pytest.approx(20, rel=1e-5)
    assert divergence.sqnr_db(rows, rows) == float("inf")
    with pytest.raises(ValueError, match="at least two"):
        divergence.nearest_neighbours(rows[:1])
