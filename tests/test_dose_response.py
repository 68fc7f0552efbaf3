"""Dose-response curves on curves with a known truth: thresholds, shapes, areas, lengths, rises."""

import math

import numpy as np
import pytest
from test_curve_breaks import study

from kvx.stats.clustered import paired_difference
from kvx.stats.curve_area import area
from kvx.stats.curve_shape import step_out_of_sample
from kvx.stats.dose_response import BELOW, BETWEEN, REACHED, UNKNOWN, fit
from kvx.stats.instability import rises
from kvx.stats.interaction import interaction_p
from kvx.stats.length_effect import shift_per_doubling

BUDGETS = [1.0, 0.8, 0.6, 0.4, 0.3, 0.2]


def logistic(x, middle, scale):
    return 1 / (1 + np.exp(-(np.log2(x) - middle) / scale))


def scores_of(rates, n, seed=0, **data):
    scores, clusters = study.draw_scores(rates, n, np.random.default_rng(seed), **data)
    return scores, clusters.tolist()


def test_a_fit_finds_the_curve_that_the_scores_came_from():
    rates = 0.2 + 0.7 * logistic(BUDGETS, math.log2(0.4), 0.2)
    found = fit(BUDGETS, *scores_of(rates, 4000), 0.95)
    assert found.guess == pytest.approx(0.2, abs=0.05)
    assert found.lapse == pytest.approx(0.1, abs=0.03)
    assert found.midpoint == pytest.approx(0.4, abs=0.02)
    assert found.width == pytest.approx(2 * math.log(9) * 0.2, abs=0.2)
    assert math.isnan(found.overdispersion)  # one example per cluster tells nothing of it
    # 0.2 + 0.7 s(b) = q · 0.9 (nearly the whole rise is below the full cache)
    assert found.b50.budget == pytest.approx(
        2 ** (math.log2(0.4) + 0.2 * math.log(5 / 9)), abs=0.02
    )
    low, high = found.b50.interval
    assert low < found.b50.budget < high < low + 0.1
    assert found.b50_isotonic == pytest.approx(found.b50.budget, abs=0.04)


def test_clusters_show_as_overdispersion_and_widen_the_interval():
    rates = 0.9 * logistic(BUDGETS, math.log2(0.4), 0.25)
    alone = fit(BUDGETS, *scores_of(rates, 600, pairing=0.0), 0.95)
    together = fit(BUDGETS, *scores_of(rates, 600, pairing=0.9, cluster_size=20, icc=0.5), 0.95)
    assert together.overdispersion > 0.1

    def width(found):
        return found.b50.interval.high - found.b50.interval.low

    assert width(together) > 1.5 * width(alone)


def test_a_score_that_is_kept_everywhere_has_no_threshold_but_a_bound():
    found = fit(BUDGETS, *scores_of([0.9] * 6, 400, pairing=0.9), 0.95)
    assert found.b50.state == BELOW
    assert math.isnan(found.b50.budget)
    assert found.b50.interval.low == 0.0
    assert found.b50.interval.high < 0.25


def test_a_score_lost_at_once_lies_above_every_budget_tried():
    found = fit(BUDGETS, *scores_of([0.9, *[0.1] * 5], 200), 0.95)
    assert found.b95.state == BETWEEN
    assert tuple(found.b95.interval) == (0.8, 1.0)


@pytest.mark.parametrize(("levels", "between"), [([1, 1, 0], (0.2, 0.5)), ([1, 0, 0], (0.5, 1.0))])
def test_a_fall_between_two_budgets_may_lie_anywhere_there(levels, between):
    found = fit([1.0, 0.5, 0.2], np.repeat(levels, 500).reshape(3, 500), range(500), 0.95)
    for one in (found.b50, found.b95):
        assert one.state == BETWEEN
        assert math.isnan(one.budget)
        assert tuple(one.interval) == between


@pytest.mark.parametrize("cliff", [0.55, 0.47, 0.22])
@pytest.mark.parametrize("levels", [(0.95, 0.05), (0.9, 0.6)])
def test_a_cliff_anywhere_between_two_budgets_is_held_by_the_interval(cliff, levels):
    budgets, held = [1.0, 0.5, 0.2], 0
    for seed in range(10):
        rates = np.where(np.array(budgets) >= cliff, *levels)
        low, high = fit(budgets, *scores_of(rates, 200, seed), 0.95).b95.interval
        held += low <= cliff <= high
    assert held >= 9


def test_a_curve_with_a_budget_inside_its_fall_has_a_threshold():
    found = fit([1.0, 0.5, 0.35, 0.2], *scores_of([0.9, 0.85, 0.5, 0.1], 400), 0.95)
    assert found.b50.state == REACHED
    assert 0.3 < found.b50.interval.low < found.b50.budget < found.b50.interval.high < 0.36


@pytest.mark.parametrize(
    ("scores", "clusters"),
    [
        (np.zeros((3, 20)), range(20)),  # nothing to keep
        (np.full((3, 20), np.nan), range(20)),
        (np.array([[1.0] * 20, [np.nan] * 20, [np.nan] * 20]), range(20)),  # no compressed score
        (np.ones((3, 20)), ["a", "b"] * 10),
        (np.ones((3, 1)), "a"),
    ],
)
def test_nothing_is_fitted_where_nothing_can_be_known(scores, clusters):
    found = fit([1.0, 0.5, 0.2], scores, list(clusters), 0.95)
    assert found.b50.state == found.b95.state == UNKNOWN
    assert math.isnan(found.guess)


def test_every_example_right_is_no_certainty():
    found = fit([1.0, 0.5, 0.2], np.ones((3, 24)), range(24), 0.95)
    assert found.b50.state == BELOW
    assert found.b95.interval.high > 0.3  # 24 right answers cannot exclude a loss of 5%


def test_wrong_requests_are_refused_in_words():
    with pytest.raises(ValueError, match="full cache first"):
        fit([0.5, 0.2], np.ones((2, 3)), range(3), 0.95)
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        fit([1.0, 0.2], np.full((2, 3), 37.0), range(3), 0.95)
    with pytest.raises(ValueError, match="need"):
        fit([1.0, 0.2], np.ones((3, 3)), range(3), 0.95)


def test_intervals_of_thresholds_hold_the_truth():
    found = study.threshold_coverage(math.log2(0.3), 0.25, 0.0, 0.9, BUDGETS, 120, 40, seed=5)
    assert found["b50"] >= 0.88  # 0.95 less three standard errors of 40 curves
    assert found["b95"] >= 0.85


def test_a_cliff_is_a_step_and_a_slope_is_none():
    cliff = study.zones(BUDGETS, [0.9, 0.9, 0.9, 0.6, 0.6, 0.6], 100, 60, seed=3)
    assert cliff["right"] >= 0.9
    for slope in (np.linspace(0.9, 0.3, 6), 0.3 + 0.6 * logistic(BUDGETS, math.log2(0.5), 0.5)):
        assert study.zones(BUDGETS, slope, 100, 60, seed=3)["zone"] <= 0.05


def test_a_step_is_not_looked_for_among_few_budgets_or_clusters():
    scores, clusters = scores_of([0.9, 0.9, 0.2, 0.2], 100)
    assert step_out_of_sample(BUDGETS[:4], scores, clusters) is None
    scores, _ = scores_of([0.9, 0.9, 0.9, 0.2, 0.2, 0.2], 100)
    assert step_out_of_sample(BUDGETS, scores, [0, 1] * 50) is None
    assert step_out_of_sample(BUDGETS, scores, range(100)) == 2


def test_a_report_without_any_effect_names_hardly_a_zone():
    assert study.false_zones(50, 120, 12, 40, seed=1, icc=0.3) <= 0.1


def test_failures_that_rise_before_the_mean_falls_are_found():
    rng = np.random.default_rng(0)
    scores = rng.random((3, 100))
    scores[2] -= 0.6 * (scores[2] > 0.6)
    failed = np.zeros((3, 100))
    failed[1:, :30] = 1
    found = {(r.index, r.what): r for r in rises(scores, failed, range(100), 0.15)}
    assert (2, "failures") not in found  # its mean has fallen
    assert found[1, "failures"].change == pytest.approx(0.3)
    assert found[1, "failures"].p < 1e-6
    assert found[1, "spread"].p > 0.01


def test_graded_scores_that_scatter_more_are_found_and_binary_ones_are_not_asked():
    rng = np.random.default_rng(0)
    scores = np.clip(0.6 + rng.normal(size=(2, 200)) * [[0.05], [0.25]], 0, 1)
    found = {r.what: r for r in rises(scores, np.zeros((2, 200)), range(200), 0.15)}
    assert found["spread"].change == pytest.approx(0.2, abs=0.03)
    assert found["spread"].p < 1e-6
    binary = rises(np.ones((2, 20)), np.zeros((2, 20)), range(20), 0.15)
    assert {r.what for r in binary} == {"failures"}


def test_the_area_is_the_mean_over_budgets_beside_the_full_cache():
    scores = np.array([[1.0] * 10, [0.5] * 10, [0.5] * 10])
    found = area([1.0, 0.6, 0.2], scores, range(10), 0.95)
    assert found.mean_a == pytest.approx(0.625)  # (0.75 · 0.4 + 0.5 · 0.4) / 0.8
    assert found.difference == pytest.approx(-0.375)
    with pytest.raises(ValueError, match="full cache first"):
        area([1.0, 1.0], np.ones((2, 3)), range(3), 0.95)


def test_the_area_of_scores_that_all_change_alike_has_the_exact_interval():
    found = area([1.0, 0.6, 0.2], np.outer([1.0, 0.0, 0.0], np.ones(20)), range(20), 0.95)
    same = paired_difference(np.full(20, 0.25), np.ones(20), range(20), 0.95, binary=False)
    assert found.method == same.method == "all_alike"
    assert found.interval == pytest.approx(same.interval)
    assert found.interval.low < found.difference < found.interval.high


def of_lengths(move, n=24, seed=0):
    """Five lengths, each double the last, whose curve moves by `move` log2 units each time."""
    parts = [
        scores_of(0.9 * logistic(BUDGETS, math.log2(0.3) + move * (i - 2), 0.25), n, seed + i)[0]
        for i in range(5)
    ]
    return np.hstack(parts), np.repeat(1000 * 2.0 ** np.arange(5), n)


def test_a_curve_that_moves_with_the_length_is_measured():
    scores, lengths = of_lengths(0.3)
    found = shift_per_doubling(BUDGETS, scores, lengths, range(120), 0.95)
    assert found.interval.low < 2**0.3 < found.interval.high < found.interval.low + 0.3
    assert found.p < 0.001
    losses = scores[0] - scores[1:].mean(axis=0)
    assert interaction_p(losses, lengths, range(120), 0) < 0.01
    assert interaction_p(losses, lengths, np.arange(120) % 24, 0) < 0.01  # texts in every bin


@pytest.mark.parametrize(
    ("budgets", "levels"),
    [
        ([1.0, 0.5], [[1.0, 0.9], [1.0, 0.4]]),  # one compressed budget: the width is not known
        ([1.0, 0.5, 0.2], [[1.0, 0.0, 0.0]] * 2),  # all lost at once
        ([1.0, 0.5, 0.2], [[1.0, 1.0, 0.0]] * 2),  # anywhere between two budgets
        ([1.0, 0.5, 0.2], [[1.0, 0.2, 0.2]] * 2),  # at the floor
    ],
)
def test_a_shift_needs_a_budget_inside_the_fall(budgets, levels):
    scores = np.hstack([(np.arange(20) < 20 * np.array(one)[:, None]) * 1.0 for one in levels])
    found = shift_per_doubling(budgets, scores, np.repeat([500, 2000], 20), range(40), 0.95)
    assert math.isnan(found.factor)
    assert math.isnan(found.p)


def test_two_compressed_budgets_are_enough_if_one_lies_inside_the_fall():
    levels = np.array([[1.0, 0.8, 0.2], [1.0, 0.5, 0.1]])
    scores = np.hstack([(np.arange(40) < 40 * one[:, None]) * 1.0 for one in levels])
    found = shift_per_doubling([1.0, 0.5, 0.2], scores, np.repeat([500, 2000], 40), range(80), 0.95)
    assert found.interval.low < found.factor < found.interval.high
    assert found.factor > 1


def test_the_length_says_nothing_with_one_bin_few_clusters_or_no_loss():
    one = shift_per_doubling(BUDGETS, np.ones((6, 20)), [1000] * 20, range(20), 0.95)
    assert math.isnan(one.p)
    scores, lengths = of_lengths(0.3)
    assert math.isnan(shift_per_doubling(BUDGETS, scores, lengths, [0, 1] * 60, 0.95).p)
    whole = shift_per_doubling(BUDGETS, np.ones((6, 120)), lengths, range(120), 0.95)
    assert math.isnan(whole.p)
