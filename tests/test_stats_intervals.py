"""Intervals of a proportion: published values, and what holds for every k and n."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from kvx.stats.intervals import Interval, clopper_pearson, wilson


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.3085),
        (8, 10, 0.4439, 0.9748),
        # Newcombe (1998), Statistics in Medicine 17, 857-872, table I
        (81, 263, 0.2527, 0.3676),
        (15, 148, 0.0578, 0.1617),
        (0, 20, 0.0, 0.1684),
        (1, 29, 0.0009, 0.1776),
    ],
)
def test_clopper_pearson_gives_the_published_95_percent_intervals(k, n, low, high):
    assert tuple(clopper_pearson(k, n, 0.95)) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        # Newcombe (1998), table I
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_95_percent_intervals(k, n, low, high):
    assert tuple(wilson(k, n, 0.95)) == pytest.approx((low, high), abs=5e-5)


def test_no_failure_certifies_a_rate_below_one_percent_only_from_299_trials():
    # one-sided 95% is the upper end of a two-sided 90% interval
    assert clopper_pearson(0, 298, 0.90).high > 0.01
    assert clopper_pearson(0, 299, 0.90).high < 0.01


@pytest.mark.parametrize("interval", [clopper_pearson, wilson])
def test_no_trials_give_an_unknown_interval(interval):
    assert all(math.isnan(end) for end in interval(0, 0, 0.95))


trials = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize("interval", [clopper_pearson, wilson])
@given(trial=trials, confidence=st.floats(0.5, 0.999))
@settings(deadline=None, max_examples=60)
def test_an_interval_contains_the_rate_mirrors_and_stays_between_0_and_1(
    interval, trial, confidence
):
    k, n = trial
    low, high = interval(k, n, confidence)
    assert 0 <= low <= k / n + 1e-12
    assert k / n - 1e-12 <= high <= 1
    assert tuple(interval(n - k, n, confidence)) == pytest.approx((1 - high, 1 - low), abs=1e-9)


@given(n=st.integers(1, 40), rate=st.floats(0.001, 0.999))
@settings(deadline=None, max_examples=40)
def test_clopper_pearson_covers_every_rate_at_least_as_often_as_it_says(n, rate):
    covered = [k for k in range(n + 1) if _holds(clopper_pearson(k, n, 0.9), rate)]
    assert binom.pmf(covered, n, rate).sum() >= 0.9 - 1e-9


@pytest.mark.parametrize("interval", [clopper_pearson, wilson])
@pytest.mark.parametrize(
    ("k", "n", "confidence"), [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 95), (0, 0, 1.0)]
)
def test_an_impossible_request_is_refused_even_with_no_trials(interval, k, n, confidence):
    with pytest.raises(ValueError, match="must lie between"):
        interval(k, n, confidence)


def _holds(interval: Interval, rate: float) -> bool:
    return interval.low <= rate <= interval.high


@given(trial=trials, confidence=st.floats(0.5, 0.999))
@settings(deadline=None, max_examples=100)
def test_intervals_are_scipys(trial, confidence):
    k, n = trial
    for interval, method in ((clopper_pearson, "exact"), (wilson, "wilson")):
        theirs = binomtest(k, n).proportion_ci(confidence, method)
        assert tuple(interval(k, n, confidence)) == pytest.approx(tuple(theirs), abs=1e-10)
