"""The classic transition rule on hand-made curves, and its bootstrap support."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvx.stats.transition import find_transition

NAN = math.nan
BUDGETS = [1.0, 0.5, 0.2, 0.1]


def transition(scores, bins=None, clusters=None, budgets=None, drop=0.15, n_boot=400, seed=0):
    n = np.shape(scores)[1]
    return find_transition(
        BUDGETS[: len(scores)] if budgets is None else budgets,
        scores,
        [0] * n if bins is None else bins,
        range(n) if clusters is None else clusters,
        drop,
        n_boot,
        seed,
    )


def curve(*means, n=20):
    """Scores that are the same for all n examples, so that nothing is left to chance."""
    return [[m] * n for m in means]


@pytest.mark.parametrize(
    ("means", "budget", "drop"),
    [
        ((0.9, 0.85, 0.4, 0.1), 0.2, 0.45),  # the first fall that is big enough, not the biggest
        ((0.9, 0.7, 0.1, 0.1), 0.5, 0.2),
        ((0.9, 0.8, 0.7, 0.6), None, None),  # a slope is no cliff, however far it goes down
        ((0.4, 0.9, 0.7, 0.7), 0.2, 0.2),  # below the next higher budget, not below the full cache
        ((0.2, 0.5, 0.9, 0.9), None, None),
        ((0.95, 0.80, 0.80, 0.80), 0.5, 0.15),  # 0.95 - 0.80 is 0.1499999999999999 in floats
        ((0.95, 0.8001, 0.80, 0.80), None, None),
    ],
)
def test_the_rule_names_the_first_budget_that_falls_far_enough(means, budget, drop):
    got = transition(curve(*means))
    assert got.budget == budget
    assert got.drop == (None if drop is None else pytest.approx(drop))
    assert got.support == 1.0
    assert got.support_any == (0.0 if budget is None else 1.0)
    assert got.support_by_budget == {b: float(b == budget) for b in BUDGETS[1:]}


def test_a_fall_of_exactly_015_in_right_and_wrong_answers_counts():
    right = np.zeros((2, 20))
    right[0, :19] = 1  # 0.95
    right[1, :16] = 1  # 0.80
    assert transition(right).budget == 0.5


def test_every_bin_weighs_the_same_however_many_examples_it_holds():
    scores = [[1.0] * 10, [1.0] * 8 + [0.0] * 2]
    bins = [0] * 8 + [1] * 2
    got = transition(scores, bins)
    assert got.drop == pytest.approx(0.5)
    assert got.support == 1.0  # resampled within bins: no resample has more of one bin


def test_support_is_sure_of_a_cliff_and_torn_at_the_edge_of_the_rule():
    rng = np.random.default_rng(0)
    cliff = np.stack([rng.random(100) < p for p in (0.9, 0.88, 0.2)]).astype(float)
    assert transition(cliff).budget == 0.2
    assert transition(cliff).support > 0.99
    edge = np.ones((2, 100))
    edge[1, :15] = 0
    got = transition(edge, n_boot=2000)
    assert got.budget == 0.5
    assert 0.4 < got.support < 0.7


def test_support_without_a_transition_is_the_share_that_names_none():
    nearly = np.ones((2, 100))
    nearly[1, :13] = 0
    got = transition(nearly, n_boot=2000)
    assert got.budget is None
    assert got.support == pytest.approx(1 - got.support_any)
    assert 0.1 < got.support_any < 0.5
    assert got.support_by_budget == {0.5: got.support_any}


def test_examples_of_one_cluster_give_less_support_than_as_many_independent_ones():
    scores = np.ones((2, 80))
    scores[1, :20] = 0  # mean 0.75
    alone = transition(scores, n_boot=2000)
    together = transition(scores, clusters=np.repeat(range(8), 10), n_boot=2000)
    assert alone.budget == together.budget == 0.5
    assert together.support < alone.support - 0.1


def test_a_cluster_in_two_bins_is_resampled_in_each_on_its_own():
    x = np.tile([0.0, 1.0], 10)
    scores = [np.ones(40), np.concatenate([x, 1 - x])]  # drawn together, the mean never moves
    got = transition(scores, [0] * 20 + [1] * 20, clusters=[*range(20), *range(20)], drop=0.5)
    assert got.budget == 0.5
    assert got.support < 0.9


def test_bins_are_resampled_independently_of_each_other():
    lost_in_each_bin = [0.0] * 10 + [1.0] * 40
    got = transition([[1.0] * 100, lost_in_each_bin * 2], [0] * 50 + [1] * 50, n_boot=4000)
    lost = np.random.default_rng(1).binomial(50, 0.2, size=(2, 100_000)) / 50
    expected = (lost.mean(axis=0) >= 0.15 - 1e-9).mean()  # bins moving as one would give 0.81
    assert got.support == pytest.approx(expected, abs=0.025)


budget_scores = st.one_of(st.just(NAN), st.sampled_from([0.0, 0.5, 1.0]))
tables = st.lists(
    st.tuples(budget_scores, budget_scores, budget_scores, st.integers(0, 2), st.integers(0, 4)),
    min_size=1,
    max_size=25,
)


@given(rows=tables, data=st.data())
@settings(deadline=None, max_examples=60)
def test_order_and_names_change_nothing_and_shares_add_up(rows, data):
    def of(rows, name):
        scores = np.array([r[:3] for r in rows]).T
        return transition(scores, [r[3] for r in rows], [name(r[4]) for r in rows], n_boot=100)

    got = of(rows, int)
    assert repr(got) == repr(of(data.draw(st.permutations(rows)), lambda c: f"doc {9 - c}"))
    assert sum(got.support_by_budget.values()) == pytest.approx(got.support_any, nan_ok=True)
    if not math.isnan(got.support):
        named = 1 - got.support_any if got.budget is None else got.support_by_budget[got.budget]
        assert got.support == pytest.approx(named)


def test_the_seed_decides_the_resamples():
    scores = np.ones((2, 60))
    scores[1, :9] = 0
    assert transition(scores, seed=1) == transition(scores, seed=1)
    assert transition(scores, seed=1) != transition(scores, seed=2)


def test_unscored_examples_are_left_out_of_their_budget_only():
    scores = [[1.0] * 10, [NAN, NAN, *[0.5] * 8]]
    got = transition(scores)
    assert (got.budget, got.drop, got.support) == (0.5, 0.5, 1.0)


def test_an_example_that_was_never_scored_changes_nothing():
    scores = np.ones((2, 30))
    scores[1, :6] = 0
    with_gaps = np.hstack([scores, np.full((2, 5), NAN)])
    assert transition(scores) == transition(with_gaps)
    lone = transition([[1.0, NAN], [0.0, NAN]])
    assert lone.budget == 0.5
    assert math.isnan(lone.support)


def test_a_bin_that_is_missing_at_one_budget_is_no_fall():
    # the easy bin was never run at the lower budget; the hard bin did not move
    scores = [[1.0] * 5 + [0.4] * 5, [NAN] * 5 + [0.4] * 5]
    got = transition(scores, [0] * 5 + [1] * 5)
    assert got.budget is None
    assert got.support == 1.0


def test_a_budget_without_scores_is_passed_over():
    got = transition([[0.9] * 5, [NAN] * 5, [0.3] * 5])
    assert got.budget == 0.2
    assert got.drop == pytest.approx(0.6)
    assert got.support_by_budget == {0.5: 0.0, 0.2: 1.0}


@pytest.mark.parametrize(
    ("scores", "bins", "clusters", "budget"),
    [
        (curve(0.9, 0.1, n=3), [0, 0, 1], "abc", 0.5),  # one cluster in bin 1
        (curve(0.9, 0.1, n=4), [0, 0, 0, 0], "aaaa", 0.5),
        ([[0.9, 0.9], [0.1, NAN]], [0, 0], "ab", 0.5),  # one cluster left at the lower budget
        (curve(0.9, n=4), [0, 0, 0, 0], "abcd", None),  # one budget
        ([[0.9, 0.9], [NAN, NAN]], [0, 0], "ab", None),
        (np.empty((2, 0)), [], "", None),
    ],
)
def test_support_is_unknown_where_the_data_cannot_say(scores, bins, clusters, budget):
    got = transition(scores, bins, list(clusters))
    assert got.budget == budget
    assert math.isnan(got.support)
    assert math.isnan(got.support_any)
    assert all(math.isnan(share) for share in got.support_by_budget.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budgets": [0.5, 1.0]}, "descending"),
        ({"budgets": [1.0, 1.0]}, "descending"),
        ({"budgets": [1.0]}, "need"),
        ({"bins": [0]}, "need"),
        ({"drop": 0.0}, r"drop=0\.0"),
        ({"n_boot": 0}, "n_boot=0"),
        ({"scores": [[1.0, math.inf], [1.0, 1.0]]}, "finite"),
    ],
)
def test_a_wrong_request_is_refused_in_words(change, message):
    request = {"scores": curve(0.9, 0.1, n=2), "budgets": [1.0, 0.5]} | change
    with pytest.raises(ValueError, match=message):
        transition(**request)
