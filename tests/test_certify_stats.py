"""Certificates' statistics: p-values that hold, sequences that stop, prompts that suffice."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from kvx.stats.intervals import clopper_pearson
from kvx.stats.resplits import halves, redraws, synthetic
from kvx.stats.risk_control import (
    BOUNDED,
    EXACT,
    RiskTest,
    binomial_p,
    cluster_means,
    fixed_sequence,
    hoeffding_bentkus_p,
    prompts_needed,
)

ALPHAS = st.floats(0.01, 0.6)
TESTS = (binomial_p, hoeffding_bentkus_p)


def test_no_loss_in_59_prompts_is_what_5_and_5_percent_need() -> None:
    assert binomial_p(0, 59, 0.05) == pytest.approx(0.95**59)
    assert hoeffding_bentkus_p(0, 59, 0.05) == pytest.approx(0.95**59)
    assert binomial_p(0, 58, 0.05) > 0.05
    assert [prompts_needed(k, 0.05, 0.05) for k in (0, 1, 2)] == [59, 93, 124]
    assert prompts_needed(0, 0.1, 0.1) == 22
    assert prompts_needed(1, 0.05, 0.05, hoeffding_bentkus_p) > 93


def test_worked_example_of_the_bounds() -> None:
    """20 of 200 at alpha 0.15: the binomial tail, e times it, and Hoeffding's relative entropy."""
    tail = binom.cdf(20, 200, 0.15)
    assert binomial_p(20, 200, 0.15) == pytest.approx(tail)
    entropy = 0.1 * math.log(0.1 / 0.15) + 0.9 * math.log(0.9 / 0.85)
    expected = min(math.exp(-200 * entropy), math.e * tail)
    assert hoeffding_bentkus_p(20, 200, 0.15) == pytest.approx(expected)
    assert hoeffding_bentkus_p(19.3, 200, 0.15) <= expected


@given(st.integers(1, 300), ALPHAS)
@settings(max_examples=100)
def test_p_values_are_small_no_oftener_than_they_say(n: int, alpha: float) -> None:
    """At a risk of exactly alpha, over all outcomes of 0/1 losses: P(p <= u) <= u."""
    k = np.arange(n + 1)
    chance = binom.pmf(k, n, alpha)
    for p_value in TESTS:
        p = np.array([p_value(int(i), n, alpha) for i in k])
        assert ((p >= 0) & (p <= 1)).all()
        assert (np.diff(p) >= -1e-12).all()
        for u in (0.01, 0.05, 0.1, 0.5):
            assert chance[p <= u].sum() <= u * (1 + 1e-9)


@given(st.integers(1, 200), st.data(), ALPHAS)
def test_bounded_losses_need_more_than_binary_ones(
    n: int, data: st.DataObject, alpha: float
) -> None:
    k = data.draw(st.integers(0, n))
    assert hoeffding_bentkus_p(k, n, alpha) >= binomial_p(k, n, alpha) * (1 - 1e-9)


@given(st.integers(0, 30), ALPHAS, st.floats(0.001, 0.5), st.sampled_from(TESTS))
def test_prompts_needed_is_the_least_number_that_does(k, alpha, delta, p_value) -> None:  # type: ignore[no-untyped-def]
    n = prompts_needed(k, alpha, delta, p_value)
    assert p_value(k, n, alpha) <= delta
    assert n == max(1, k) or p_value(k, n - 1, alpha) > delta


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.001, 0.999))
def test_a_sequence_ends_at_its_first_failure(p_values: list[float], delta: float) -> None:
    n = fixed_sequence(p_values, delta)
    assert all(p <= delta for p in p_values[:n])
    assert n == len(p_values) or p_values[n] > delta


def test_a_sequence_goes_no_further_than_an_unknown_p() -> None:
    assert fixed_sequence([0.01, math.nan, 0.01], 0.05) == 1


def test_a_cluster_is_one_prompt() -> None:
    losses = [1, 0, 0.5, math.nan, math.nan]
    assert cluster_means(losses, ["a", "b", "a", "b", "c"]).tolist() == [0.75, 0.0]
    with pytest.raises(ValueError, match="between 0 and 1"):
        cluster_means([1.2], ["a"])


@pytest.mark.parametrize("p_value", TESTS)
def test_what_cannot_be_is_refused(p_value) -> None:  # type: ignore[no-untyped-def]
    assert p_value(0, 0, 0.1) == 1.0
    for total, n, alpha in ((3, 2, 0.1), (-1, 2, 0.1), (1, 2, 0.0), (1, 2, 1.0)):
        with pytest.raises(ValueError, match="must"):
            p_value(total, n, alpha)
    with pytest.raises(ValueError, match="whole number"):
        binomial_p(0.5, 2, 0.1)
    with pytest.raises(ValueError, match="delta"):
        prompts_needed(0, 0.1, 1.0)


ALPHA, DELTA = 0.05, 0.05
DRAWS = 4_000


def broken_no_oftener_than_delta(n_broken: int, n: int) -> bool:
    """Within binomial error: delta is not below the exact 99.9% interval."""
    return clopper_pearson(n_broken, n, 0.999).low <= DELTA


@pytest.mark.parametrize(("n", "at_least"), [(59, 0.03), (200, 0.015)])
def test_the_promise_is_broken_at_most_delta_of_the_time(n: int, at_least: float) -> None:
    """Known risks, the third a hair above alpha; n = 59 leaves the least slack."""
    risks = np.array([0.01, 0.02, ALPHA + 1e-9, 0.2])

    def draw(rng: np.random.Generator) -> np.ndarray:
        return (rng.random((1, n)) < risks[:, None]).astype(float)

    found = synthetic(draw, risks, ALPHA, DELTA, EXACT, DRAWS, seed=3)
    assert broken_no_oftener_than_delta(found.n_broken, found.n)
    assert found.n_broken / found.n > at_least  # it would notice a test that never certifies
    assert found.n_chosen > found.n_broken


def test_the_promise_is_kept_for_graded_losses() -> None:
    risks, n = np.array([0.005, ALPHA + 1e-9]), 200

    def draw(rng: np.random.Generator) -> np.ndarray:
        return rng.beta(risks, 1 - risks, (n, 2)).T

    found = synthetic(draw, risks, ALPHA, DELTA, BOUNDED, DRAWS, seed=4)
    assert broken_no_oftener_than_delta(found.n_broken, found.n)
    assert found.n_chosen > 0.9 * found.n


def test_a_test_that_is_too_bold_is_found_out() -> None:
    """The observed mean instead of a p-value: the check above must fail for it."""

    def bold(losses: np.ndarray, alpha: float, level: float) -> float:
        return 0.0 if losses.mean() <= alpha else 1.0

    risks, n = np.array([ALPHA + 1e-9]), 100

    def draw(rng: np.random.Generator) -> np.ndarray:
        return (rng.random((1, n)) < risks[:, None]).astype(float)

    found = synthetic(draw, risks, ALPHA, DELTA, RiskTest("bold", bold), DRAWS, seed=5)
    assert not broken_no_oftener_than_delta(found.n_broken, found.n)


def test_resplits_of_real_prompts_keep_the_promise() -> None:
    rng = np.random.default_rng(6)
    losses = (rng.random((1, 150)) < np.array([[0.01], [0.06], [0.3]])).astype(float)
    for risk in losses.mean(axis=1)[1:]:
        for way in (halves, redraws):
            found = way(losses, float(risk) - 1e-9, DELTA, EXACT, 1_000, seed=7)
            assert broken_no_oftener_than_delta(found.n_broken, found.n)
            assert found.n_chosen > 0
