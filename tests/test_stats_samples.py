"""Samples of a prompt: variance in two parts, pass@k, and the reach of rounding."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import f_oneway

from kvx.stats.samples import noise_reach, pass_at_k, variance_components


def test_components_are_those_of_scipys_analysis_of_variance() -> None:
    """F = MSB / MSW, with MSB = within + samples * between."""
    scores = np.random.default_rng(0).normal(size=(12, 5)) + np.arange(12)[:, None]
    found = variance_components(scores)
    f = f_oneway(*scores).statistic
    assert (found.within + 5 * found.between) / found.within == pytest.approx(f)
    assert found.alike == pytest.approx((f - 1) / (f + 4))


def test_components_of_a_known_truth() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(0, 2, (4000, 1)) + rng.normal(0, 1, (4000, 4))
    found = variance_components(scores)
    assert found.between == pytest.approx(4, rel=0.1)
    assert found.within == pytest.approx(1, rel=0.05)


def test_without_variance_or_samples_nothing_is_shared() -> None:
    assert math.isnan(variance_components(np.ones((5, 3))).alike)
    assert variance_components(np.ones((5, 3))).within == 0
    assert math.isnan(variance_components(np.ones((5, 1))).within)
    opposed = variance_components([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert (opposed.between, opposed.alike) == (0, 0)
    with pytest.raises(ValueError, match="prompts, samples"):
        variance_components([0.0, 1.0])
    with pytest.raises(ValueError, match="without nan"):
        variance_components([[0.0, math.nan]])


@given(
    st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))
)
def test_pass_at_k_is_the_share_of_all_choices(case: tuple[int, int, int]) -> None:
    n, right, k = case
    answers = [True] * right + [False] * (n - right)
    chosen = list(itertools.combinations(answers, k))
    share = sum(any(some) for some in chosen) / len(chosen)
    assert pass_at_k([right], n, k)[0] == pytest.approx(share)


def test_pass_at_k_is_the_products_of_the_paper() -> None:
    """The numerically stable form of Chen et al. (2021), figure 3."""
    n, k = 200, 100
    for right in (0, 1, 7, 150):
        stable = 1.0 if n - right < k else 1 - np.prod(1 - k / np.arange(n - right + 1, n + 1))
        assert pass_at_k([right], n, k)[0] == pytest.approx(stable)


def test_pass_at_k_refuses_what_is_no_count() -> None:
    for right, k, match in (
        ([1], 0, "k=0"),
        ([1], 4, "k=4"),
        ([4], 1, "right"),
        ([0.5], 1, "right"),
    ):
        with pytest.raises(ValueError, match=match):
            pass_at_k(right, 3, k)


def test_noise_reach_holds_what_flips_at_random() -> None:
    """Of runs that flip 5% of 200 answers either way, 95% of mean differences lie within it."""
    rng, inside, n = np.random.default_rng(2), 0, 1000
    flips = np.zeros(200)
    flips[:10] = 1
    reach = noise_reach(flips * rng.choice([-1, 1], 200), range(200), 1.959964)
    for _ in range(n):
        inside += abs((flips * rng.choice([-1, 1], 200)).mean()) <= reach
    assert 0.93 < inside / n < 0.99
    assert noise_reach(np.zeros(5), range(5), 1.96) == 0
    assert noise_reach(np.ones(5), range(5), 1.96) == 1  # a shift is no scatter
    assert math.isnan(noise_reach([], [], 1.96))
    together = noise_reach([1.0, 1.0, -1.0, -1.0], [0, 0, 1, 1], 1.96)
    assert together == pytest.approx(1.96 * math.sqrt(8) / 4)
