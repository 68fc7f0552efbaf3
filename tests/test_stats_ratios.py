"""Ratios of sums with their intervals."""

import math

import numpy as np
import pytest

from kvx.stats.ratios import ratio_of_sums


def test_the_interval_of_a_constant_ratio_is_unknown() -> None:
    b = np.arange(1, 31, dtype=float)
    found = ratio_of_sums(3 * b, b, range(30), 0.95)
    assert found.value == pytest.approx(3)
    assert math.isnan(found.interval.low)
    assert math.isnan(found.interval.high)
    assert (found.n, found.n_clusters) == (30, 30)


def test_cochrans_worked_formula() -> None:
    """The error of a ratio estimate, from its residuals, written out for four pairs thrice."""
    a, b = np.array([4.0, 7, 1, 9] * 3), np.array([2.0, 3, 1, 4] * 3)
    found = ratio_of_sums(a, b, range(12), 0.95)
    assert found.value == pytest.approx(21 / 10)
    residuals = a - 2.1 * b
    error = math.sqrt(12 / 11 * (residuals**2).sum()) / 30 / 2.1
    reach = math.exp(2.200985 * error)  # Student's t with 11 degrees of freedom
    assert tuple(found.interval) == pytest.approx((2.1 / reach, 2.1 * reach), rel=1e-5)


def test_coverage_over_clusters() -> None:
    """Lengths that vary by text: 95% intervals hold the true ratio in 92 to 98% of 1,000 draws."""
    rng, held, n = np.random.default_rng(1), 0, 1000
    for _ in range(n):
        texts = np.repeat(rng.gamma(4, 20, 40), 5)
        longer = np.repeat(rng.lognormal(math.log(1.5) - 0.02, 0.2, 40), 5)
        there = rng.poisson(texts)
        here = rng.poisson(texts * longer)
        low, high = ratio_of_sums(here, there, np.repeat(range(40), 5).tolist(), 0.95).interval
        held += low <= 1.5 <= high
    assert 0.92 < held / n < 0.98


def test_what_cannot_be_known_is_nan() -> None:
    few = ratio_of_sums([1.0, 2.0], [1.0, 1.0], ["a", "b"], 0.95)
    assert few.value == 1.5
    assert math.isnan(few.interval.low)
    nothing = ratio_of_sums([1.0, 2.0], [0.0, 0.0], ["a", "b"], 0.95)
    assert math.isnan(nothing.value)
    missing = ratio_of_sums([math.nan, 2.0], [1.0, 1.0], ["a", "b"], 0.95)
    assert (missing.n, missing.value) == (1, 2.0)
    with pytest.raises(ValueError, match="must pair up"):
        ratio_of_sums([1.0], [1.0, 2.0], ["a"], 0.95)
    with pytest.raises(ValueError, match="at least 0"):
        ratio_of_sums([-1.0], [1.0], ["a"], 0.95)
