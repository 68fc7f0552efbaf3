"""Is a mean loss at most alpha? P-values that hold at every n, and tests in a fixed sequence.

A loss is a number in [0, 1], one per independent prompt; a net loss may be a gain, down to -1. The
risk is its mean over all prompts that might have been drawn. Learn then Test: Angelopoulos, Bates,
Candès, Jordan & Lei (2021), https://arxiv.org/abs/2110.01052.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr

from kvx.stats.betting import betting_p, fixed_order
from kvx.stats.bootstrap import cluster_sums

PValue = Callable[[float, int, float], float]  # total loss, n, alpha
BETTING_FROM = 100  # prompts: with fewer, Hoeffding–Bentkus certifies oftener
ROUNDING = 1e-9  # of a sum of losses, in prompts
MOST_PROMPTS = 1 << 40


def binomial_p(n_lost: float, n: int, alpha: float) -> float:
    """P-value of "the risk is above `alpha`" from `n_lost` losses in `n`, each loss 0 or 1.

    Exact: the chance of so few losses at a risk of `alpha`. n = 0 gives 1. Raises `ValueError`
    unless 0 <= n_lost <= n, n_lost is whole and 0 < alpha < 1.
    """
    _check(n_lost, n, alpha)
    if n_lost != math.floor(n_lost):
        raise ValueError(f"n_lost={n_lost}: losses of 0 and 1 add up to a whole number")
    return float(bdtr(n_lost, n, alpha)) if n else 1.0


def hoeffding_bentkus_p(total: float, n: int, alpha: float) -> float:
    """P-value of "the risk is above `alpha`" from losses in [0, 1] that add up to `total`.

    The smaller of Hoeffding's and Bentkus's bounds on the chance of so small a mean. n = 0 gives 1.
    Raises `ValueError` unless 0 <= total <= n and 0 < alpha < 1.

    Source: Bates, Angelopoulos, Lei, Malik & Jordan (2021), Journal of the ACM 68(6), theorem 3.
    """
    _check(total, n, alpha)
    if n == 0:
        return 1.0
    mean = min(total / n, alpha)
    entropy = mean * math.log(mean / alpha) if mean else 0.0
    entropy += (1 - mean) * math.log((1 - mean) / (1 - alpha))
    bentkus = math.e * float(bdtr(math.ceil(total - ROUNDING), n, alpha))
    return min(1.0, math.exp(-n * entropy), bentkus)


def fixed_sequence(p_values: Iterable[float], delta: float) -> int:
    """How many hypotheses at the start are rejected, each at level `delta`, until one is not.

    The order must not depend on the data. The chance that any true one is among them is at most
    `delta`: the first true one has to be rejected before any other.
    """
    return sum(1 for _ in takewhile(lambda p: p <= delta, p_values))


def prompts_needed(total: float, alpha: float, delta: float, p_value: PValue = binomial_p) -> int:
    """The smallest n at which losses that add up to `total` give p <= delta.

    Any certificate needs that of `total` 0: (1 - alpha)^n <= delta. Raises `ValueError` for alpha
    or delta outside (0, 1).
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta}: must lie between 0 and 1")
    least = max(1, math.ceil(total - ROUNDING))
    high = least
    while p_value(total, high, alpha) > delta:
        high *= 2
        if high > MOST_PROMPTS:
            raise ValueError(f"alpha={alpha}: needs more than {MOST_PROMPTS:.0e} prompts")
    low = max(least, high // 2)
    return bisect_left(range(high), True, low, key=lambda n: p_value(total, n, alpha) <= delta)


@dataclass(frozen=True)
class RiskTest:
    """A test of "the risk is above alpha": its `name`, and `p_value(losses [n], alpha, level)`.

    `level` is what p will be compared with; p is valid whatever it is. Losses come in any order
    that does not depend on them.
    """

    name: str
    p_value: Callable[[NDArray[np.float64], float, float], float]


def _by_total(p_value: PValue) -> Callable[[NDArray[np.float64], float, float], float]:
    return lambda losses, alpha, level: p_value(float(losses.sum()), len(losses), alpha)


def _by_bets(losses: NDArray[np.float64], alpha: float, level: float) -> float:
    return float(betting_p(losses[fixed_order(len(losses))], alpha, level))


EXACT = RiskTest("exact binomial", _by_total(binomial_p))
BOUNDED = RiskTest("Hoeffding–Bentkus", _by_total(hoeffding_bentkus_p))
BETTING = RiskTest("betting", _by_bets)


def risk_test(n: int, zero_or_one: bool, gains: bool, alpha: float, level: float) -> RiskTest:
    """The test for `n` losses: by their number and kind, so that it is known before they are.

    `zero_or_one`: every loss is 0 or 1 by definition, one per independent prompt. `gains`: losses
    may lie below 0, which only bets can use. Where few losses of 0 could just pass, bets could not.
    """
    if gains:
        return BETTING
    if zero_or_one:
        return EXACT
    return BETTING if n >= max(BETTING_FROM, 1.3 * -math.log(level) / alpha) else BOUNDED


def least_prompts(gains: bool, alpha: float, delta: float) -> int:
    """The smallest n at which no loss at all gives p <= delta.

    All tests agree on it where no gain counts. Raises `ValueError` for alpha or delta outside
    (0, 1).
    """
    low = high = prompts_needed(0, alpha, delta)
    if not gains:
        return low

    def suffices(n: int) -> bool:
        return BETTING.p_value(np.zeros(n), alpha, delta) <= delta

    while not suffices(high):
        high *= 2
    return bisect_left(range(high), True, low, key=suffices)


def prompts_for_power(risk: float, alpha: float, delta: float, power: float) -> int:
    """How many 0/1 losses of a true `risk` below `alpha` give p <= delta with a chance of `power`.

    By the exact test, whose power falls from one n that allows a further loss to the next: the
    smallest of these whose power stays at `power` until then. Raises `ValueError` unless
    0 <= risk < alpha, or for a power or delta outside (0, 1).
    """
    if not 0 <= risk < alpha:
        raise ValueError(f"risk={risk}: must be at least 0 and below alpha={alpha}")
    if not 0 < power < 1:
        raise ValueError(f"power={power}: must lie between 0 and 1, for example 0.8")
    n, allowed = 1, 0  # `allowed` losses: the most that pass; n grows with it
    while True:
        n = prompts_needed(allowed, alpha, delta)
        last = prompts_needed(allowed + 1, alpha, delta) - 1
        # the chance falls within n..last, where no further loss is allowed
        if float(bdtr(allowed, last, risk)) >= power:
            return n
        allowed += 1


def weighted_losses(means: ArrayLike, sizes: ArrayLike, alpha: float) -> NDArray[np.float64]:
    """Losses [c] whose mean is above `alpha` just if the mean over all examples is.

    `means` [c] are those of clusters of `sizes` [c] examples. The mean over examples weighs a
    cluster by its size: mean(size * (mean - alpha)) is above 0 just if it is above alpha. Sizes
    count in shares of the largest, so that no loss is above 1; clusters to come must not be larger.
    """
    weights = np.asarray(sizes, dtype=np.float64)
    weights = weights / weights.max() if weights.size else weights
    weighted: NDArray[np.float64] = alpha + weights * (np.asarray(means) - alpha)
    return weighted


def cluster_means(losses: ArrayLike, clusters: Collection[Hashable]) -> NDArray[np.float64]:
    """Mean loss of every cluster [c] of `losses` [n], by first appearance; nan losses left out.

    Prompts of one cluster (questions on one story) are not independent draws; their means are.
    Clusters without a loss are left out. Raises `ValueError` on shapes that differ or losses
    outside [-1, 1].
    """
    values = np.asarray(losses, dtype=np.float64)
    if (np.abs(values) > 1).any():
        raise ValueError("losses: must lie between 0 and 1 (gains: -1), or be nan where unknown")
    sums, counts = cluster_sums(values, clusters)
    known = counts > 0
    means: NDArray[np.float64] = sums[known] / counts[known]
    return means


def _check(total: float, n: int, alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha}: must lie between 0 and 1, for example 0.05")
    if not 0 <= total <= n + ROUNDING:
        raise ValueError(f"total={total}, n={n}: losses must add up to between 0 and n")
