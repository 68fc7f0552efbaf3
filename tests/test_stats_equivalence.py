"""Non-inferiority: what is called harmless is harmless, at the error that is promised."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import gammaln, xlogy
from scipy.stats import binom, binomtest

from kvx.stats.equivalence import EFFECTIVE, MOVER, non_inferiority

Scores = NDArray[np.float64]


def pairs(lost: int, won: int, n: int) -> tuple[Scores, Scores]:
    """Right and wrong scores, here and with the full cache."""
    full = np.ones(n)
    full[lost : lost + won] = 0
    here = np.ones(n)
    here[:lost] = 0
    return here, full


def holds(lost: int, won: int, n: int, margin: float) -> bool:
    here, full = pairs(lost, won, n)
    return non_inferiority(here, full, range(n), margin, 0.95).upper <= margin


def test_without_a_difference_it_is_the_rule_of_three() -> None:
    """Nothing lost in n pairs: the bound is Clopper and Pearson's, 1 - 0.05^(1/n)."""
    here, full = pairs(0, 0, 149)
    found = non_inferiority(here, full, range(149), 0.02, 0.95)
    assert found.method == MOVER
    assert found.upper == pytest.approx(1 - 0.05 ** (1 / 149))
    assert found.p == pytest.approx(0.98**149, rel=1e-3)  # that no pair of 149 shows a loss of 2%
    assert found.p < 0.05 < non_inferiority(*pairs(0, 0, 148), range(148), 0.02, 0.95).p


def test_without_a_win_it_is_scipys_exact_binomial() -> None:
    here, full = pairs(3, 0, 200)
    found = non_inferiority(here, full, range(200), 0.05, 0.95)
    exact = binomtest(3, 200, alternative="less").proportion_ci(0.95, "exact")
    assert found.upper == pytest.approx(exact.high)
    assert found.p == pytest.approx(binom.cdf(3, 200, 0.05), rel=1e-3)
    assert found.loss == pytest.approx(0.015)


@pytest.mark.parametrize(("n", "margin"), [(20, 0.1), (60, 0.05), (100, 0.02), (150, 0.02)])
def test_error_of_independent_pairs_is_at_most_five_percent(n: int, margin: float) -> None:
    """The chance of "loses less than the margin" where it loses just that, over all tables."""
    lost, won = np.divmod(np.arange((n + 1) ** 2), n + 1)
    table = lost + won <= n
    lost, won = lost[table], won[table]
    few = lost - won <= margin * n  # others cannot hold
    lost, won = lost[few], won[few]
    said = np.array([holds(int(b), int(c), n, margin) for b, c in zip(lost, won, strict=True)])
    lost, won = lost[said], won[said]
    ways = gammaln(n + 1) - gammaln(lost + 1) - gammaln(won + 1) - gammaln(n - lost - won + 1)
    for discordance in (margin, 0.1, 0.2, 0.3, 0.4):
        if discordance < margin:
            continue
        win = (discordance - margin) / 2
        logs = xlogy(lost, win + margin) + xlogy(won, win)
        logs = logs + xlogy(n - lost - won, 1 - 2 * win - margin)
        assert np.exp(ways + logs).sum() <= 0.05, discordance


def clustered(
    rng: np.random.Generator, groups: int, size: int, win: float, margin: float, alike: float
) -> tuple[Scores, Scores, list[int]]:
    """Pairs that lose `margin` net, in uneven clusters whose pairs correlate by `alike`."""
    shares = np.array([win + margin, win, 1 - 2 * win - margin])
    drawn = rng.standard_gamma(np.maximum(shares * (1 - alike) / alike, 1e-9), (groups, 3))
    drawn[:, 2] += 1e-12
    here, full, clusters = [], [], []
    for group, chance in enumerate(drawn / drawn.sum(axis=1, keepdims=True)):
        kinds = rng.choice(3, rng.integers(1, 2 * size), p=chance)
        here += [0.0 if k == 0 else 1.0 for k in kinds]
        full += [0.0 if k == 1 else 1.0 for k in kinds]
        clusters += [group] * len(kinds)
    return np.array(here), np.array(full), clusters


@pytest.mark.parametrize("groups", [20, 100])
@pytest.mark.parametrize("win", [0.0, 0.02, 0.19])
@pytest.mark.parametrize("alike", [0.01, 0.7])
def test_error_of_clustered_pairs(groups: int, win: float, alike: float) -> None:
    """At most 6% with chance's allowance (400 draws: two standard errors)."""
    rng, wrong, n = np.random.default_rng(7), 0, 400
    for _ in range(n):
        here, full, clusters = clustered(rng, groups, 5, win, 0.05, alike)
        wrong += non_inferiority(here, full, clusters, 0.05, 0.95).upper <= 0.05
    assert wrong / n <= 0.06 + 2 * math.sqrt(0.06 * 0.94 / n)


def test_a_rare_total_loss_is_not_missed_behind_small_ones() -> None:
    """Graded scores: 2% of prompts lose everything, the others move by a little."""
    rng, wrong, n = np.random.default_rng(3), 0, 400
    for _ in range(n):
        full = np.full(133, 0.99)
        here = np.where(rng.random(133) < 0.02 / 0.99, 0.0, 0.99 + rng.uniform(-0.01, 0.01, 133))
        wrong += non_inferiority(here, full, range(133), 0.02, 0.95).upper <= 0.02
    assert wrong / n <= 0.06 + 2 * math.sqrt(0.06 * 0.94 / n)


def test_questions_on_few_texts_say_less_than_as_many_texts() -> None:
    here, full = pairs(2, 2, 400)
    apart = non_inferiority(here, full, range(400), 0.05, 0.95)
    together = non_inferiority(here, full, [i // 40 for i in range(400)], 0.05, 0.95)
    assert (apart.method, together.method) == (MOVER, EFFECTIVE)
    assert (together.n_clusters, together.n_pairs) == (10, 400)
    assert apart.upper < 0.02 < 0.2 < together.upper
    assert together.worth == pytest.approx(10)
    one = non_inferiority(here, full, ["text"] * 400, 0.05, 0.95)
    assert math.isnan(one.upper)
    assert math.isnan(one.p)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(2, 60), st.integers(0, 60), st.integers(0, 60), st.sampled_from([0.02, 0.1, 0.3])
)
def test_bound_and_p_agree(n: int, lost: int, won: int, margin: float) -> None:
    lost, won = min(lost, n), min(won, n - min(lost, n))
    here, full = pairs(lost, won, n)
    for clusters in (list(range(n)), [i // 2 for i in range(n)]):
        found = non_inferiority(here, full, clusters, margin, 0.95)
        if math.isnan(found.upper):
            continue
        assert found.loss <= found.upper <= 1
        assert (found.upper <= margin) == (found.p <= 0.05)


def test_wrong_input_is_refused() -> None:
    for here, full, clusters, margin, match in (
        ([0.5], [1.0], ["a"], 0.0, "margin=0"),
        ([2.0], [1.0], ["a"], 0.02, "must lie in"),
        ([1.0, 1.0], [1.0], ["a"], 0.02, "must pair up"),
    ):
        with pytest.raises(ValueError, match=match):
            non_inferiority(here, full, clusters, margin, 0.95)
    nothing = non_inferiority([math.nan], [1.0], ["a"], 0.02, 0.95)
    assert nothing.n_pairs == 0
    assert math.isnan(nothing.p)
