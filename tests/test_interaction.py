"""Press × length: exact where all shuffles can be listed, and its error rate and power."""

import itertools
import math

import numpy as np
import pytest

from kvx.stats.interaction import interaction_p


def test_it_is_the_share_of_shuffles_that_part_the_bins_as_far():
    """Ten texts in two bins: 252 ways to put five of them into the first."""
    apart = np.array([0.0, 0.1, 0.0, -0.2, 0.1, -0.9, -0.4, -0.8, -0.3, -0.6])
    bins = np.repeat([0, 1], 5)

    def between(chosen):
        first = np.isin(np.arange(10), chosen)
        return (apart[first].mean() - apart[~first].mean()) ** 2

    observed = between(range(5))
    exact = np.mean([between(c) >= observed - 1e-12 for c in itertools.combinations(range(10), 5)])
    found = interaction_p(apart, bins, range(10), 0)
    assert found == pytest.approx(exact, abs=4 * math.sqrt(exact / 2000))


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("groups", [12, 250])  # shuffled, and by the chi-squared distribution
def test_no_interaction_is_found_in_five_percent(groups, crossed):
    """A loss that is the same at every length; texts in one bin, or each text in all."""
    rng, runs = np.random.default_rng(1), 400
    per = 4 if groups < 100 else 1
    texts = np.arange(groups * 5 * per) // per
    bins = texts // groups
    if crossed:
        texts = texts % groups
    found = 0
    for _ in range(runs):
        change = 0.3 * rng.normal(size=texts.max() + 1)[texts] - 0.2 + rng.normal(0, 0.3, len(bins))
        found += interaction_p(change, bins, texts, 0) <= 0.05
    assert 0.02 <= found / runs <= 0.085  # 3 standard errors


def test_an_effect_of_each_text_at_each_length_is_not_one_of_the_length():
    """Five questions on a text at one length are lost together; on average as many at each."""
    rng, runs, found = np.random.default_rng(4), 300, 0
    texts, bins = np.repeat(np.arange(20), 15), np.tile(np.repeat([0, 1, 2], 5), 20)
    for _ in range(runs):
        own = np.repeat(rng.normal(-0.2, 0.4, 60), 5)
        found += interaction_p(own + rng.normal(0, 0.2, 300), bins, texts, 0) <= 0.05
    assert 0.01 <= found / runs <= 0.09  # single rows shuffled within texts: about a third


def test_questions_that_share_a_text_and_a_length_are_one_observation():
    """20 texts in three bins, five questions each, that are lost or kept together."""
    rng, runs, found = np.random.default_rng(2), 300, 0
    texts, bins = np.repeat(np.arange(20), 15), np.tile(np.repeat(range(3), 5), 20)
    for _ in range(runs):
        together = rng.normal(0, 0.3, (20, 3))[texts, bins]
        found += interaction_p(together + rng.normal(0, 0.1, 300), bins, texts, 0) <= 0.05
    assert found / runs <= 0.09


def test_a_cliff_in_one_of_five_bins_is_found():
    """38 points lost at one length, 24 examples a bin, and one answer in twenty flips anyway."""
    rng, runs, found = np.random.default_rng(0), 200, 0
    bins = np.repeat(range(5), 24)
    for _ in range(runs):
        lost = (rng.random(120) < 0.375) & (bins == 4)
        change = np.where(lost, -1.0, rng.choice([-1.0, 0.0, 1.0], 120, p=[0.025, 0.95, 0.025]))
        found += interaction_p(change, bins, range(120), 0) <= 0.05
    assert found / runs >= 0.9


def test_where_nothing_can_vary_nothing_is_said():
    assert math.isnan(interaction_p([0.1] * 9, [0] * 9, range(9), 0))
    assert math.isnan(interaction_p([0.1] * 6, [0, 1] * 3, range(6), 0))
    assert math.isnan(interaction_p([math.nan] * 20, [0, 1] * 10, range(20), 0))
    assert interaction_p([-0.5] * 20, [0, 1] * 10, range(20), 0) == 1.0
    with pytest.raises(ValueError, match="one length"):
        interaction_p([0.1] * 9, [0] * 8, range(9), 0)
