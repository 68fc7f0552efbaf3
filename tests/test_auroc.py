"""AUROC over clusters: DeLong's variance where nothing is clustered, and coverage where it is."""

import math

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import norm, t

from kvx.stats.auroc import clustered_auroc

Z = math.sqrt(2)


def delong(hits, misses):
    """AUROC and its variance by every pair, as DeLong, DeLong & Clarke-Pearson (1988) define it."""
    wins = (hits[:, None] > misses[None]) + 0.5 * (hits[:, None] == misses[None])
    return wins.mean(), wins.mean(1).var(ddof=1) / len(hits) + wins.mean(0).var(ddof=1) / len(
        misses
    )


def test_without_clusters_the_variance_is_delongs():
    """With so many that the added half clusters no longer count."""
    rng = np.random.default_rng(0)
    hits, misses = rng.normal(0.9, 1, 3000).round(2), rng.normal(0, 1, 4000).round(2)
    value, variance = delong(hits, misses)
    found, interval = clustered_auroc(
        np.concatenate([hits, misses]), [True] * 3000 + [False] * 4000, range(7000), 0.95
    )
    assert found == pytest.approx(value, abs=1e-12)
    reach = t(2999).ppf(0.975) * math.sqrt(variance) / (value * (1 - value))
    expected = expit(logit(value) - reach), expit(logit(value) + reach)
    assert tuple(interval) == pytest.approx(expected, abs=3e-4)


def test_copies_of_a_cluster_add_nothing():
    rng = np.random.default_rng(1)
    label = np.arange(40) % 2 == 0
    score = rng.normal(label * 1.0, 1)
    once, twice = (
        clustered_auroc(np.repeat(score, n), np.repeat(label, n), np.repeat(range(40), n), 0.95)
        for n in (1, 5)
    )
    assert once[0] == pytest.approx(twice[0])
    assert tuple(once[1]) == pytest.approx(tuple(twice[1]))


def test_a_perfect_ranking_of_few_prompts_is_no_certainty():
    label = np.arange(30) < 8
    found, (low, high) = clustered_auroc(label * 1.0, label, range(30), 0.95)
    assert (found, high) == (1.0, 1.0)
    assert low == pytest.approx(0.025 ** (1 / 8))  # 8 of 8, by Clopper and Pearson
    wrong, (worst, best) = clustered_auroc(-1.0 * label, label, range(30), 0.95)
    assert (wrong, worst) == (0.0, 0.0)
    assert best == pytest.approx(1 - low)


@pytest.mark.parametrize(("label", "clusters"), [
    ([True] * 10, range(10)), ([False] * 10, range(10)), ([True, False] * 5, [0, 1] * 5),
    ([True] + [False] * 9, range(10)),
])  # fmt: skip
def test_where_it_cannot_be_known_the_interval_is_unknown(label, clusters):
    _, interval = clustered_auroc(np.arange(10.0), label, clusters, 0.95)
    assert math.isnan(interval.low)


@pytest.mark.parametrize(("prompts", "tokens"), [(30, 1), (30, 20), (100, 20)])
@pytest.mark.parametrize("truth", [0.5, 0.8, 0.95, 0.99, 0.999])
def test_the_truth_is_covered(prompts, tokens, truth):
    """Half the prompts derail, and the tokens of a prompt are alike. Resampling: .23 to .87."""
    rng, runs = np.random.default_rng(7), 200
    of = np.repeat(np.arange(prompts), tokens)
    covered = 0
    for _ in range(runs):
        derails = rng.random(prompts) < 0.5
        label = derails[of] & (rng.random(len(of)) < (1 if tokens == 1 else 0.4))
        noise = math.sqrt(0.4) * rng.normal(size=prompts)[of]
        noise += math.sqrt(0.6) * rng.normal(size=len(of))
        _, (low, high) = clustered_auroc(noise + Z * norm.ppf(truth) * label, label, of, 0.95)
        covered += low <= truth <= high
    assert covered / runs >= 0.93
