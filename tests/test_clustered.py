"""Intervals and tests over clusters: worked examples, scipy's values, and their error rates."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kvx.stats.cluster_intervals import korn_graubard, t_interval
from kvx.stats.clustered import (
    ALL_ALIKE,
    CLOPPER_PEARSON,
    CLUSTER_T,
    KORN_GRAUBARD,
    NEWCOMBE,
    NO_DATA,
    TOO_FEW,
    mean,
    paired_difference,
)
from kvx.stats.paired import mcnemar_exact
from kvx.stats.sign_flips import sign_flip_p

# Darwin's maize, eighths of an inch, cross- minus self-fertilised; Fisher (1935), section 21:
# 863 of the 32,768 choices of signs reach a total of 314, so p = 1,726 / 32,768
MAIZE = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]


def test_fishers_example_has_fishers_p():
    assert sign_flip_p(MAIZE) == pytest.approx(1726 / 32768, abs=1e-12)
    # graded, so rounded to a grid instead of counted
    assert sign_flip_p(np.array(MAIZE) / 7) == pytest.approx(1726 / 32768, abs=0.001)


def test_darwins_maize_has_students_interval():
    ones = np.ones(15)
    alone, name = t_interval(np.array(MAIZE), np.array(MAIZE), ones, 0.95, None)
    expected = stats.ttest_1samp(MAIZE, 0).confidence_interval(0.95)
    assert tuple(alone) == pytest.approx(tuple(expected), abs=1e-9)
    assert name == CLUSTER_T
    # with two more plants, which differ by the largest difference times the share of one side
    added = 75 * 314 / sum(map(abs, MAIZE))
    found = paired_difference(MAIZE, [0] * 15, range(15), 0.95, bounds=None)
    more = stats.ttest_1samp([*MAIZE, added, -added], 0).confidence_interval(
        2 * stats.t(16).cdf(stats.t(14).ppf(0.975)) - 1
    )
    assert tuple(found.interval) == pytest.approx(tuple(more), abs=1e-9)
    assert found.method == CLUSTER_T
    assert found.difference == pytest.approx(314 / 15)


@given(st.lists(st.integers(-6, 6), min_size=1, max_size=40))
def test_whole_sums_are_counted_exactly(sums):
    chance = {0: 1.0}  # of every total, sign by sign
    for s in sums:
        grown = {}
        for total, p in chance.items():
            for sign in (1, -1):
                grown[total + sign * s] = grown.get(total + sign * s, 0) + p / 2
        chance = grown
    exact = sum(p for total, p in chance.items() if abs(total) >= abs(sum(sums)))
    assert sign_flip_p(sums) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("shift", [0, 2, 9])
@pytest.mark.parametrize("unit", [1, 6])
def test_small_chances_keep_their_digits(shift, unit):
    sums = unit * (np.random.default_rng(shift).integers(-9, 10, 150) + shift)
    sizes, away = np.abs(sums).tolist(), abs(int(sums.sum()))
    ways = 1  # 150 bits for the number of choices that give each sum of the positive ones
    for size in sizes:
        ways += ways << (150 * size)
    tail = ways >> (150 * ((sum(sizes) + away) // 2))
    n_ways = 0
    while tail:
        n_ways += tail & ((1 << 150) - 1)
        tail >>= 150
    assert sign_flip_p(sums) == pytest.approx(2 * n_ways / 2**150, rel=1e-10)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (6, 0), (9, 2), (40, 21), (300, 240)])
def test_signs_of_single_pairs_are_mcnemars_test(lost, won):
    assert sign_flip_p([-1] * lost + [1] * won) == pytest.approx(mcnemar_exact(lost, won), rel=1e-9)


@pytest.mark.parametrize("n", [10, 30, 200])
def test_graded_sums_agree_with_scipys_permutations(n):
    sums = np.random.default_rng(n).normal(0.15, 1, n)
    found = stats.permutation_test(
        (sums,), np.sum, permutation_type="samples", n_resamples=40_000, rng=1
    )
    assert sign_flip_p(sums) == pytest.approx(found.pvalue, abs=0.01)


def test_beyond_the_grid_it_is_students_p():
    sums = np.random.default_rng(0).normal(0.05, 1, 3000)
    assert sign_flip_p(sums) == pytest.approx(stats.ttest_1samp(sums, 0).pvalue, rel=1e-6)


def test_independent_zeros_and_ones_get_the_exact_methods():
    ours, full = [1] * 6 + [0] * 8 + [1], [1] * 6 + [1] * 7 + [0, 0]
    found = paired_difference(ours, full, range(15), 0.95)
    assert (found.method, found.n_lost, found.n_won, found.exact) == (NEWCOMBE, 7, 1, True)
    assert found.p == pytest.approx(stats.binomtest(1, 8).pvalue)
    alone = mean(ours, range(15), 0.95)
    exact = stats.binomtest(7, 15).proportion_ci(0.95)
    assert alone.method == CLOPPER_PEARSON
    assert tuple(alone.interval) == pytest.approx(tuple(exact), abs=1e-9)


def test_clusters_that_agree_count_once():
    """Ten copies of each pair tell as much as one of each."""
    rng = np.random.default_rng(3)
    ours, full = rng.uniform(size=(2, 20))
    once = paired_difference(ours, full, range(20), 0.9)
    copied = paired_difference(
        np.repeat(ours, 10), np.repeat(full, 10), np.repeat(range(20), 10).tolist(), 0.9
    )
    assert tuple(copied.interval) == pytest.approx(tuple(once.interval))
    assert copied.p == pytest.approx(once.p, abs=0.002)
    assert copied.difference == pytest.approx(once.difference)
    assert (copied.n_pairs, copied.n_clusters) == (200, 20)


def test_korn_graubard_without_clusters_is_clopper_pearson_at_the_effective_n():
    """With n independent 0/1 values and many degrees of freedom the effective n is n."""
    share, n = 0.3, 100_000
    found = korn_graubard(share, math.sqrt(share * (1 - share) / n), n, 0.95)
    exact = stats.binomtest(30_000, n).proportion_ci(0.95)
    assert tuple(found) == pytest.approx(tuple(exact), abs=2e-6)


@pytest.mark.parametrize("groups", [1, 2, 7])
def test_with_few_clusters_nothing_is_said(groups):
    clusters = [i % groups for i in range(40)]
    ours, full = [0.0] * 40, [1.0, 0.0] * 20
    found, alone = paired_difference(ours, full, clusters, 0.95), mean(full, clusters, 0.95)
    assert found.method == alone.method == TOO_FEW
    assert all(math.isnan(x) for x in [*found.interval, found.p, *alone.interval])
    assert found.difference == -0.5


def test_without_values_nothing_is_known():
    nothing = [math.nan] * 9
    found = paired_difference(nothing, [1.0] * 9, range(9), 0.95)
    assert (found.method, found.n_pairs, found.n_clusters) == (NO_DATA, 0, 0)
    assert math.isnan(found.p)
    assert mean(nothing, range(9), 0.95).method == NO_DATA


def test_without_spread_the_interval_is_that_of_clusters_as_trials():
    """Twelve texts, three questions each, all answered: as 12 of 12."""
    clusters = [i % 12 for i in range(36)]
    alone = mean([1.0] * 36, clusters, 0.95)
    assert alone.method == ALL_ALIKE
    exact = stats.binomtest(12, 12).proportion_ci(0.95)
    assert tuple(alone.interval) == pytest.approx(tuple(exact), abs=1e-9)
    same = paired_difference([0.4] * 12, [0.4] * 12, range(12), 0.95)
    assert same.method == ALL_ALIKE
    assert same.interval.low == -same.interval.high == pytest.approx(exact.low - 1)
    assert same.p == 1.0
    lost = paired_difference([0.4] * 12, [0.6] * 12, range(12), 0.95, bounds=None)
    assert math.isnan(lost.interval.low)
    assert lost.p == pytest.approx(2 / 2**12)


@pytest.mark.parametrize("wrong", [37.0, -0.5])
def test_a_score_outside_the_range_is_refused(wrong):
    with pytest.raises(ValueError, match="range"):
        mean([wrong, 1.0], [0, 1], 0.95)
    with pytest.raises(ValueError, match="range"):
        paired_difference([wrong, 1.0], [0.0, 1.0], [0, 1], 0.95)
    assert mean([wrong, 1.0], [0, 1], 0.95, bounds=None).mean == pytest.approx((wrong + 1) / 2)


def test_an_infinite_score_is_refused():
    with pytest.raises(ValueError, match="finite"):
        mean([math.inf, 1.0], [0, 1], 0.95, bounds=None)


def test_the_order_of_rows_and_the_names_of_clusters_change_no_bit():
    rng = np.random.default_rng(5)
    ours, full, clusters = rng.uniform(size=60), rng.uniform(size=60), rng.integers(0, 15, 60)
    order = rng.permutation(60)
    one = paired_difference(ours, full, clusters.tolist(), 0.95)
    other = paired_difference(
        ours[order], full[order], [f"text {c}" for c in clusters[order]], 0.95
    )
    assert (one.interval, one.p) == (other.interval, other.p)


def clustered(rng, groups, per, rate, alike):
    """0/1 values [groups, per] at `rate` whose texts agree to the correlation `alike`."""
    a, b = rate * (1 / alike - 1), (1 - rate) * (1 / alike - 1)
    return (rng.uniform(size=(groups, per)) < rng.beta(a, b, (groups, 1))).astype(float)


@pytest.mark.parametrize("groups", [8, 15, 40])
def test_no_difference_is_found_in_at_most_five_percent_and_covered_in_95(groups):
    """Questions on one text change together, as often for the better as for the worse."""
    rng, runs, per = np.random.default_rng(groups), 1500, 6
    found = covered = 0
    clusters = np.repeat(range(groups), per).tolist()
    for _ in range(runs):
        full = clustered(rng, groups, per, 0.7, 0.4)
        ours = np.where(rng.uniform(size=(groups, 1)) < 0.5,
                        clustered(rng, groups, per, 0.7, 0.4), full)  # fmt: skip
        seen = paired_difference(ours.ravel(), full.ravel(), clusters, 0.95)
        found += seen.p <= 0.05
        covered += seen.interval.low <= 0 <= seen.interval.high
    assert found / runs <= 0.06
    assert covered / runs >= 0.93
    assert groups < 40 or covered / runs <= 0.995  # with few, half of them alike, too wide


@pytest.mark.parametrize("groups", [10, 30])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_means_of_clustered_answers_are_covered(groups, rate):
    rng, runs, per = np.random.default_rng(groups), 1500, 5
    clusters = np.repeat(range(groups), per).tolist()
    seen = [
        mean(clustered(rng, groups, per, rate, 0.3).ravel(), clusters, 0.95) for _ in range(runs)
    ]
    assert {s.method for s in seen} <= {KORN_GRAUBARD, ALL_ALIKE}
    assert np.mean([s.interval.low <= rate <= s.interval.high for s in seen]) >= 0.93


@pytest.mark.parametrize("groups", [10, 50, 200])
@pytest.mark.parametrize("truth", [0.05, 0.99])
def test_graded_means_near_an_end_of_the_range_are_covered(groups, truth):
    """Most values at the end, the rest far from it: what is seen has too little spread."""
    rng, runs = np.random.default_rng(groups), 800
    values = rng.beta(2 * truth, 2 * (1 - truth), (runs, groups))
    seen = [mean(v, range(groups), 0.95).interval for v in values]
    assert np.mean([low <= truth <= high for low, high in seen]) >= 0.94


@pytest.mark.parametrize("groups", [20, 40, 100])
def test_rare_losses_to_one_side_are_covered_though_few_are_seen(groups):
    """One question in ten is lost, by a share of its score; Student's t alone: .88 to .91."""
    rng, runs = np.random.default_rng(groups), 1500
    lost = (rng.random((runs, groups)) < 0.1) * rng.random((runs, groups))
    seen = [
        paired_difference(1 - row, np.ones(groups), range(groups), 0.95).interval for row in lost
    ]
    assert np.mean([low <= -0.05 <= high for low, high in seen]) >= 0.915
