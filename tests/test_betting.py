"""P-values by betting: valid for any distribution, tight where losses vary little."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvx.stats.betting import betting_p, fixed_order, prompts_like
from kvx.stats.intervals import clopper_pearson
from kvx.stats.risk_control import (
    BETTING,
    BOUNDED,
    EXACT,
    least_prompts,
    prompts_for_power,
    risk_test,
    weighted_losses,
)

ALPHA, LEVEL, DRAWS = 0.05, 0.05, 4_000


def share_of_texts(rng: np.random.Generator, risk: float, icc: float, n: int) -> np.ndarray:
    """Mean losses [DRAWS, n] of texts with five questions each that lose alike by `icc`."""
    scale = 1 / icc - 1
    rates = rng.beta(risk * scale, (1 - risk) * scale, (DRAWS, n, 1))
    means: np.ndarray = (rng.random((DRAWS, n, 5)) < rates).mean(axis=2)
    return means


@pytest.mark.parametrize("icc", [0.1, 0.6])
@pytest.mark.parametrize("n", [200, 400])
def test_the_promise_is_kept_at_a_risk_of_alpha(icc: float, n: int) -> None:
    losses = share_of_texts(np.random.default_rng(1), ALPHA, icc, n)
    broken = int((betting_p(losses, ALPHA, LEVEL) <= LEVEL).sum())
    assert clopper_pearson(broken, DRAWS, 0.999).low <= LEVEL
    assert broken > 0


def test_p_is_valid_at_other_levels_than_the_one_it_aims_at() -> None:
    losses = share_of_texts(np.random.default_rng(2), ALPHA, 0.2, 150)
    p = betting_p(losses, ALPHA, LEVEL)
    for u in (0.01, 0.2, 0.5):
        assert clopper_pearson(int((p <= u).sum()), DRAWS, 0.999).low <= u


def test_a_hundred_texts_at_a_risk_of_one_percent_are_mostly_certified() -> None:
    """Hoeffding–Bentkus, which does not see how little the means vary, certifies a third."""
    losses = share_of_texts(np.random.default_rng(3), 0.01, 0.05, 100)
    bets = (betting_p(losses, ALPHA, LEVEL) <= LEVEL).mean()
    bounds = np.mean([BOUNDED.p_value(row, ALPHA, LEVEL) <= LEVEL for row in losses])
    assert bets > 0.88
    assert bounds < 0.35


def test_harmless_flips_are_certified_by_their_net_loss_only() -> None:
    """A twentieth gets worse and a twentieth better: the net loss is 0, the gross one 5%."""
    kind = np.random.default_rng(4).random((DRAWS, 500))
    change = np.where(kind < 0.05, 1.0, np.where(kind < 0.1, -1.0, 0.0))
    assert (betting_p(change, ALPHA, LEVEL) <= LEVEL).mean() > 0.9
    gross = [EXACT.p_value(row, ALPHA, LEVEL) <= LEVEL for row in np.maximum(change, 0)]
    assert np.mean(gross) < 0.05


def test_a_net_loss_of_alpha_breaks_no_promise() -> None:
    kind = np.random.default_rng(5).random((DRAWS, 300))
    change = np.where(kind < 0.10, 1.0, np.where(kind < 0.15, -1.0, 0.0))
    broken = int((betting_p(change, ALPHA, LEVEL) <= LEVEL).sum())
    assert clopper_pearson(broken, DRAWS, 0.999).low <= LEVEL


@given(st.lists(st.floats(-1, 1), max_size=60), st.floats(0.01, 0.6), st.floats(0.001, 0.5))
def test_p_lies_between_0_and_1_and_is_that_of_the_batch(
    losses: list[float], alpha: float, level: float
) -> None:
    p = betting_p(losses, alpha, level)
    assert 0 < p <= 1
    both = betting_p(np.array([losses, [1.0] * len(losses)]), alpha, level)
    assert both[0] == pytest.approx(float(p))
    assert both[1] == 1


def test_what_cannot_be_is_refused() -> None:
    for losses in ([1.2], [np.nan]):
        with pytest.raises(ValueError, match="at most 1"):
            betting_p(losses, 0.1, 0.05)
    for alpha, level in ((0.0, 0.05), (0.1, 1.0)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            betting_p([0.0], alpha, level)


def test_the_order_is_fixed_and_random() -> None:
    assert sorted(fixed_order(500)) == list(range(500))
    np.testing.assert_array_equal(fixed_order(500), fixed_order(500))
    assert abs(np.corrcoef(fixed_order(500), np.arange(500))[0, 1]) < 0.15


def test_number_and_kind_decide_for_the_test() -> None:
    def chosen(n: int, alpha: float = 0.05, binary: bool = False, net: bool = False) -> str:
        return risk_test(n, binary, net, alpha, 0.05).name

    assert chosen(1000, binary=True) == EXACT.name
    assert chosen(99) == BOUNDED.name
    assert chosen(100) == BETTING.name
    assert chosen(300, alpha=0.01) == BOUNDED.name  # so few could pass by no bet
    assert chosen(30, binary=True, net=True) == BETTING.name


@pytest.mark.parametrize(("alpha", "delta"), [(0.05, 0.05), (0.01, 0.05), (0.1, 0.01)])
def test_no_loss_at_all_passes_from_the_least_number(alpha: float, delta: float) -> None:
    for gains in (False, True):
        n = least_prompts(gains, alpha, delta)
        for binary in (False, True):
            test = risk_test(n, binary, gains, alpha, delta)
            assert test.p_value(np.zeros(n), alpha, delta) <= delta * (1 + 1e-9)
        assert test.p_value(np.zeros(n - 1), alpha, delta) > delta
    for n in range(100, 600, 50):
        test = risk_test(n, False, False, alpha, delta)
        passes = test.p_value(np.zeros(n), alpha, delta) <= delta
        assert passes == (n >= least_prompts(False, alpha, delta))


def test_fifty_nine_prompts_are_rarely_enough() -> None:
    assert round((1 - 0.01) ** 59, 3) == 0.553
    assert [prompts_for_power(r, 0.05, 0.05, 0.8) for r in (0.0, 0.01, 0.025)] == [59, 124, 434]
    rng = np.random.default_rng(6)
    losses = (rng.random((DRAWS, 124)) < 0.01).astype(float)
    assert np.mean([EXACT.p_value(row, 0.05, 0.05) <= 0.05 for row in losses]) > 0.8
    for risk, power in ((0.05, 0.8), (-0.1, 0.8), (0.01, 1.0)):
        with pytest.raises(ValueError, match="must"):
            prompts_for_power(risk, 0.05, 0.05, power)


def test_prompts_like_these() -> None:
    rng = np.random.default_rng(7)
    losses = share_of_texts(rng, 0.02, 0.2, 100)[0]
    n = prompts_like(losses, 0.05, 0.05, 0.8)
    assert n is not None
    drawn = losses[rng.integers(0, 100, (1000, n))]
    assert (betting_p(drawn, 0.05, 0.05) <= 0.05).mean() > 0.7
    assert prompts_like(np.full(100, 0.2), 0.05, 0.05, 0.8) is None
    assert prompts_like([], 0.05, 0.05, 0.8) is None


def test_a_mean_over_examples_weighs_texts_by_their_size() -> None:
    """Where large texts lose more, the two means differ, and each has a test of its own."""
    means, sizes = np.array([0.0, 0.0, 0.3]), np.array([1, 1, 8])
    assert (means * sizes).sum() / sizes.sum() == pytest.approx(0.24)
    for alpha in (0.2, 0.23, 0.25, 0.3):
        weighted = weighted_losses(means, sizes, alpha)
        assert (weighted.mean() > alpha) == (alpha < 0.24)
        assert (weighted <= 1).all()
    rng = np.random.default_rng(8)
    large = rng.random((DRAWS, 200)) < 0.5
    sizes = np.where(large, 9, 1)
    losses = np.where(large, rng.binomial(9, 0.08 * 10 / 9, large.shape) / 9, 0.0)
    weighted = np.array([weighted_losses(m, s, 0.08) for m, s in zip(losses, sizes, strict=True)])
    by_examples = int((betting_p(weighted, 0.08, LEVEL) <= LEVEL).sum())
    assert clopper_pearson(by_examples, DRAWS, 0.999).low <= LEVEL  # its true risk is 0.08
    assert (betting_p(losses, 0.08, LEVEL) <= LEVEL).mean() > 0.5  # over texts it is 0.044
