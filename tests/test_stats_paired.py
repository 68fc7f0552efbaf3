"""Paired comparison with the full cache: differences, flips, McNemar, and what failures explain."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from kvx.stats.bootstrap import bootstrap_means
from kvx.stats.paired import (
    failure_attribution,
    mcnemar_exact,
    paired_differences,
)

NAN = math.nan
score = st.one_of(st.just(NAN), st.floats(0, 1))
pairs = st.lists(st.tuples(score, score, st.booleans(), st.integers(0, 5)), max_size=30)


def compare(a, b, clusters=None, n_boot=300):
    clusters = range(len(a)) if clusters is None else clusters
    return paired_differences([(a, b, clusters)], n_boot, 0.95, 0)[0]


@pytest.mark.parametrize(
    ("n_lost", "n_won", "p"),
    [
        (0, 5, 2 / 2**5),
        (6, 0, 2 / 2**6),
        (1, 9, 2 * (1 + 10) / 2**10),
        (2, 8, 2 * (1 + 10 + 45) / 2**10),
        (5, 5, 1.0),
        (0, 0, 1.0),
        # Agresti (2002), Categorical Data Analysis, table 10.1: approval of the prime minister
        (150, 86, 3.716e-05),
    ],
)
def test_mcnemar_is_the_exact_binomial_on_discordant_pairs(n_lost, n_won, p):
    assert mcnemar_exact(n_lost, n_won) == pytest.approx(p, rel=1e-3)
    assert mcnemar_exact(n_won, n_lost) == pytest.approx(p, rel=1e-3)


def test_binary_scores_count_lost_and_won_answers():
    compressed = [1] * 60 + [0] * 9 + [1] * 1 + [0] * 30
    full_cache = [1] * 60 + [1] * 9 + [0] * 1 + [0] * 30
    got = compare(compressed, full_cache)
    assert (got.n_pairs, got.n_clusters, got.n_lost, got.n_won) == (100, 100, 9, 1)
    assert (got.mean_a, got.mean_b) == pytest.approx((0.61, 0.69))
    assert got.difference == pytest.approx(-0.08)
    assert got.mcnemar_p == pytest.approx(22 / 1024)
    assert got.interval.high < 0


def test_graded_scores_count_strict_changes_and_have_no_mcnemar():
    got = compare([0.5, 0.2, 1.0, 0.0], [0.5, 0.4, 0.9, 0.3])
    assert (got.n_lost, got.n_won, got.mcnemar_p) == (2, 1, None)
    assert got.difference == pytest.approx(-0.1)


def test_pairs_with_an_unscored_side_are_dropped_from_everything():
    with_gaps = compare([1, NAN, 0, 1, NAN], [1, 1, 1, NAN, NAN], clusters=list("abcde"))
    without = compare([1, 0], [1, 1], clusters=list("ac"))
    assert with_gaps == without
    assert with_gaps.n_pairs == 2


def test_no_pairs_and_one_cluster_are_unknown_not_certain():
    none = compare([NAN], [1.0])
    assert (none.n_pairs, none.n_lost, none.n_won, none.mcnemar_p) == (0, 0, 0, None)
    assert all(math.isnan(x) for x in (none.mean_a, none.mean_b, none.difference, *none.interval))
    one = compare([0, 0, 1], [1, 1, 1], clusters=["doc"] * 3)
    assert one.difference == pytest.approx(-2 / 3)
    assert all(math.isnan(end) for end in one.interval)


def test_pairing_finds_a_small_loss_that_two_separate_intervals_cannot():
    rng = np.random.default_rng(0)
    full_cache = rng.random(200)
    compressed = full_cache - 0.02 + rng.normal(scale=0.02, size=200)
    cells = [(x, range(200)) for x in (compressed, full_cache)]
    alone = bootstrap_means(cells, 1000, 0.95, 0)
    assert alone[0].interval.high > alone[1].interval.low
    assert compare(compressed, full_cache).interval.high < 0


def test_swapping_the_sides_swaps_the_answer():
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 2, (2, 50))
    one, other = compare(a, b), compare(b, a)
    assert (one.n_lost, one.n_won) == (other.n_won, other.n_lost)
    assert one.mcnemar_p == other.mcnemar_p
    assert one.difference == -other.difference


@given(rows=pairs, data=st.data())
@settings(deadline=None, max_examples=50)
def test_order_and_names_change_nothing_and_the_interval_holds_the_difference(rows, data):
    shuffled = data.draw(st.permutations(rows))
    got = compare([r[0] for r in rows], [r[1] for r in rows], [r[3] for r in rows])
    again = compare(
        [r[0] for r in shuffled], [r[1] for r in shuffled], [f"doc {9 - r[3]}" for r in shuffled]
    )
    assert repr(got) == repr(again)
    if got.n_clusters >= 2:
        assert got.interval.low - 1e-9 <= got.difference <= got.interval.high + 1e-9
        assert got.difference == pytest.approx(got.mean_a - got.mean_b)


def test_failures_explain_only_their_own_pairs():
    # four lost answers, one of them a failure; one failure was wrong anyway
    score_, twin = [0, 0, 0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 0, 1, 1, 1]
    failed = [True, False, False, False, True, False, False, False]
    assert failure_attribution(score_, twin, failed) == pytest.approx(-1 / 8)
    assert failure_attribution(score_, twin, [True] * 8) == pytest.approx(-4 / 8)
    assert failure_attribution([NAN, 0], [1, 1], [True, True]) == pytest.approx(-1)
    assert math.isnan(failure_attribution([NAN], [1], [True]))


@given(rows=pairs)
@settings(deadline=None, max_examples=50)
def test_failures_and_the_rest_add_up_to_the_difference(rows):
    a, b = [r[0] for r in rows], [r[1] for r in rows]
    failed = np.array([r[2] for r in rows], dtype=bool)
    parts = failure_attribution(a, b, failed) + failure_attribution(a, b, ~failed)
    whole = compare(a, b).difference
    assert parts == pytest.approx(whole, nan_ok=True)


def test_sides_that_do_not_pair_up_are_refused():
    with pytest.raises(ValueError, match="pair up"):
        compare([1, 0], [1])
    with pytest.raises(ValueError, match="pair up"):
        failure_attribution([1, 0], [1, 0], [True])
    with pytest.raises(ValueError, match="need"):
        compare([1, 0], [1, 0], clusters=["a"])


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_scipys_binomial_test(n_lost, n_won):
    n = n_lost + n_won
    theirs = binomtest(n_lost, n, 0.5).pvalue if n else 1.0
    assert mcnemar_exact(n_lost, n_won) == pytest.approx(theirs, rel=1e-9)


@given(st.lists(pairs, max_size=6))
@settings(deadline=None, max_examples=50)
def test_many_comparisons_are_each_of_them_alone(cells):
    cells = [
        ([a for a, *_ in cell], [b for _, b, *_ in cell], [c for *_, c in cell]) for cell in cells
    ]
    together = paired_differences(cells, 200, 0.95, 3)
    for cell, found in zip(cells, together, strict=True):
        (alone,) = paired_differences([cell], 200, 0.95, 3)
        assert tuple(found.interval) == pytest.approx(tuple(alone.interval), abs=1e-12, nan_ok=True)
        assert repr(replace(found, interval=None)) == repr(replace(alone, interval=None))
