"""How often certificates break their promise, where the true risk is known.

A promise is broken if any certified budget has a risk above alpha; certifying none breaks nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvx.stats.risk_control import RiskTest, fixed_sequence

Draw = Callable[[np.random.Generator], NDArray[np.float64]]  # losses [budgets, n]


@dataclass(frozen=True)
class Kept:
    """Of `n` certificates: how many chose a budget, and how many of these broke the promise.

    `n_broken` is by the known risk, `n_over` by the mean of prompts that were not used.
    """

    n: int
    n_chosen: int
    n_broken: int
    n_over: int = 0


def smallest(losses: NDArray[np.float64], alpha: float, delta: float, test: RiskTest) -> int:
    """How many of the budgets of `losses` [budgets, n], the largest first, are certified."""
    return fixed_sequence((test.p_value(row, alpha, delta) for row in losses), delta)


def synthetic(
    draw: Draw, risks: ArrayLike, alpha: float, delta: float, test: RiskTest, n: int, seed: int
) -> Kept:
    """`n` certificates from fresh draws of a population with true `risks` [budgets]."""
    rng = np.random.default_rng(seed)
    above = np.asarray(risks) > alpha
    chosen = [smallest(draw(rng), alpha, delta, test) for _ in range(n)]
    return Kept(n, sum(k > 0 for k in chosen), sum(bool(above[:k].any()) for k in chosen))


def halves(
    losses: ArrayLike, alpha: float, delta: float, test: RiskTest, n: int, seed: int
) -> Kept:
    """`n` calibrations on random halves of real prompts, `losses` [budgets, prompts].

    The known risk is the mean over all prompts; `n_over` is by the other half. A half is drawn
    without replacement and what it misses is in the other half: so `n_broken` flatters and `n_over`
    exaggerates. `redraws` does neither.
    """
    pool = np.asarray(losses, dtype=np.float64)
    above, rng, size = pool.mean(axis=1) > alpha, np.random.default_rng(seed), pool.shape[1] // 2
    n_chosen = n_broken = n_over = 0
    for _ in range(n):
        order = rng.permutation(pool.shape[1])
        here, there = pool[:, order[:size]], pool[:, order[size:]]
        k = smallest(here, alpha, delta, test)
        n_chosen += k > 0
        n_broken += bool(above[:k].any())
        n_over += bool((there[:k].mean(axis=1) > alpha).any())
    return Kept(n, n_chosen, n_broken, n_over)


def redraws(
    losses: ArrayLike, alpha: float, delta: float, test: RiskTest, n: int, seed: int
) -> Kept:
    """`n` calibrations of as many prompts, drawn with replacement: real prompts as a population."""
    pool = np.asarray(losses, dtype=np.float64)

    def draw(rng: np.random.Generator) -> NDArray[np.float64]:
        drawn: NDArray[np.float64] = pool[:, rng.integers(0, pool.shape[1], pool.shape[1])]
        return drawn

    return synthetic(draw, pool.mean(axis=1), alpha, delta, test, n, seed)
