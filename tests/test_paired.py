"""Paired statistics against closed forms, published figures, scipy, properties, and simulations of their error rates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy import stats as scipy_stats

from openclaw_opt.numerics import paired, stats
from openclaw_opt.numerics.paired import Flips

counts = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 400)).map(
    lambda three: Flips(three[0], three[1], sum(three))
)


def test_flips_count_what_only_one_has_right() -> None:
    assert paired.flips([1, 1, 0, 0, 1], [1, 0, 1, 0, 0]) == Flips(2, 1, 5)
    assert paired.flips([1, 1, 0, 0, 1], [1, 0, 1, 0, 0]).difference == pytest.approx(-1 / 5)
    with pytest.raises(ValueError, match="0 or 1"):
        paired.flips([0.5], [1])
    with pytest.raises(ValueError, match="equal length"):
        paired.flips([1, 1], [1])


def test_mcnemar_closed_forms() -> None:
    assert paired.mcnemar_exact(Flips(0, 0, 10)) == 1
    assert paired.mcnemar_exact(Flips(6, 0, 100)) == pytest.approx(2 / 2**6)
    assert paired.mcnemar_mid_p(Flips(6, 0, 100)) == pytest.approx(1 / 2**6)
    assert paired.mcnemar_exact(Flips(55, 22, 1000)) == pytest.approx(0.0002, abs=5e-5)
    assert paired.mcnemar_exact(Flips(7, 1, 21)) == pytest.approx(2 * (1 + 8) / 2**8)
    assert paired.mcnemar_mid_p(Flips(7, 1, 21)) == pytest.approx((2 * (1 + 8) - 8) / 2**8)
    assert paired.mcnemar_mid_p(Flips(2, 2, 21)) == pytest.approx(1 - 6 / 2**5)


@given(counts)
@settings(max_examples=60, deadline=None)
def test_mid_p_is_below_the_exact_p_and_both_are_symmetric(one: Flips) -> None:
    turned = Flips(one.beneficial, one.harmful, one.items)
    assert paired.mcnemar_exact(one) == pytest.approx(paired.mcnemar_exact(turned))
    assert paired.mcnemar_mid_p(one) == pytest.approx(paired.mcnemar_mid_p(turned))
    assert 0 < paired.mcnemar_mid_p(one) <= paired.mcnemar_exact(one) <= 1


def test_tango_without_a_flip_is_a_closed_form() -> None:
    z, n = scipy_stats.norm.ppf(0.975), 100
    low, high = paired.tango_interval(Flips(0, 0, n), 0.95)
    assert (low, high) == pytest.approx((-(z**2) / (n + z**2), z**2 / (n + z**2)), rel=1e-6)


@pytest.mark.parametrize("one", [Flips(2, 12, 50), Flips(55, 22, 1000), Flips(1, 0, 44)])
def test_tango_is_the_score_test_under_the_best_shares_of_that_difference(one: Flips) -> None:
    """The likelihood is maximised by a general optimizer here, by Tango's closed form there."""
    n, b, c = one.items, one.beneficial, one.harmful
    for delta in paired.tango_interval(one, 0.95):

        def unlikely(q: float, delta: float = delta) -> float:
            return -(b * np.log(q + delta) + c * np.log(q) + (n - b - c) * np.log(1 - 2 * q - delta))

        bounds = (max(0, -delta) + 1e-12, (1 - delta) / 2 - 1e-12)
        q = optimize.minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        score = (b - c - n * delta) / np.sqrt(n * (2 * q + delta - delta**2))
        assert abs(score) == pytest.approx(scipy_stats.norm.ppf(0.975), rel=1e-3)


@given(counts, st.sampled_from([0.9, 0.95, 0.99]))
@settings(max_examples=80, deadline=None)
def test_tango_holds_the_difference_widens_and_mirrors(one: Flips, confidence: float) -> None:
    low, high = paired.tango_interval(one, confidence)
    assert -1 <= low <= one.difference <= high <= 1
    wider = paired.tango_interval(one, 0.999)
    assert wider[0] <= low + 1e-9
    assert high <= wider[1] + 1e-9
    mirrored = paired.tango_interval(Flips(one.beneficial, one.harmful, one.items), confidence)
    assert mirrored == pytest.approx((-high, -low), abs=1e-7)


def test_fewest_items_is_the_sign_tests() -> None:
    assert [paired.fewest_items(c) for c in (0.5, 0.9, 0.95, 0.99)] == [2, 5, 6, 8]
    assert paired.bootstrap(lambda rows: rows.mean(1), 5, 0.95) is None
    assert paired.bootstrap(lambda rows: rows.mean(1), 6, 0.95) is not None
    with pytest.raises(ValueError, match="between 0 and 1"):
        paired.fewest_items(1)


def test_percentile_beyond_is_the_other_side_of_within() -> None:
    slow, fast = [2.0] * 500, [0.5] * 500
    assert stats.percentile_beyond(slow, 1, 99)
    assert not stats.percentile_beyond(fast, 1, 99)
    assert not stats.percentile_beyond([2.0], 1, 90, 0.95)
    assert stats.percentile_beyond([2.0, 2.0], 1, 90, 0.95)  # 0.1² ≤ 0.05


@given(st.lists(st.floats(0.1, 10), min_size=8, max_size=40), st.floats(0.2, 9))
@settings(max_examples=40, deadline=None)
def test_no_series_is_within_and_beyond(samples: list[float], limit: float) -> None:
    assert not (stats.percentile_within(samples, limit, 50) and stats.percentile_beyond(samples, limit, 50))


def test_equivalence_wants_the_whole_interval_inside() -> None:
    assert paired.is_equivalent((-0.01, 0.01), -0.02, 0.02)
    assert not paired.is_equivalent((-0.02, 0.01), -0.02, 0.02)


# ---- the stated error rates hold


def rate(hits: int, trials: int) -> tuple[float, float]:
    """99.9 % interval of a simulated rate, so that a right procedure fails one run of a thousand at most."""
    return paired.wilson_interval(hits, trials, 0.999)


@pytest.mark.slow
@pytest.mark.parametrize("items", [8, 16, 64])
def test_the_paired_bootstrap_covers_the_ratio_as_often_as_it_says(items: int) -> None:
    """Sequences of unequal length; skewed losses; the second model 1 % worse with noise of its own."""
    random = np.random.default_rng(items)
    hits, trials = 0, 400
    for trial in range(trials):
        weights = random.integers(50, 250, items).astype(float)
        before = weights * random.lognormal(1, 0.3, items)
        after = before * (1.01 + 0.02 * random.standard_normal(items))

        def ratio(rows: np.ndarray, a: np.ndarray = after, b: np.ndarray = before) -> np.ndarray:
            return np.asarray(a[rows].sum(1) / b[rows].sum(1))

        found = paired.bootstrap(ratio, items, 0.95, seed=trial)
        assert found is not None
        hits += found[0] <= 1.01 <= found[1]
    assert rate(hits, trials)[1] >= 0.93
    assert hits / trials >= 0.92


@pytest.mark.parametrize(("harm", "help_"), [(0.01, 0.01), (0.03, 0.02), (0.002, 0.0)])
def test_tango_covers_as_often_as_it_says(harm: float, help_: float) -> None:
    random = np.random.default_rng(1)
    hits, trials = 0, 600
    for _ in range(trials):
        b, c, _rest = random.multinomial(400, [help_, harm, 1 - harm - help_])
        low, high = paired.tango_interval(Flips(int(c), int(b), 400), 0.95)
        hits += low <= help_ - harm <= high
    assert hits / trials >= 0.93


def test_mcnemar_flags_no_more_than_it_says_without_a_difference() -> None:
    random = np.random.default_rng(2)
    flagged, trials = 0, 1000
    for _ in range(trials):
        discordant = random.binomial(1000, 0.02)
        harmful = random.binomial(discordant, 0.5)
        flagged += paired.mcnemar_exact(Flips(int(harmful), int(discordant - harmful), 1000)) <= 0.05
    assert flagged / trials <= 0.05


def test_two_one_sided_tests_pass_a_model_at_the_margin_as_seldom_as_they_say() -> None:
    """Truly worse by the margin: called equivalent at most α = 5 % of the time."""
    random = np.random.default_rng(3)
    passed, trials, margin = 0, 500, 0.01
    for _ in range(trials):
        b, c, _rest = random.multinomial(2000, [0.01, 0.01 + margin, 0.98 - margin])
        interval = paired.tango_interval(Flips(int(c), int(b), 2000), 0.90)
        passed += paired.is_equivalent(interval, -margin, margin)
    assert rate(passed, trials)[0] <= 0.05
