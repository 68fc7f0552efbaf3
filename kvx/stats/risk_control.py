"""Is a mean loss at most alpha? P-values that hold at every n, and tests in a fixed sequence.

A loss is a number in [0, 1], one per independent prompt. The risk is its mean over all prompts that
might have been drawn. Learn then Test: Angelopoulos, Bates, Candès, Jordan & Lei (2021),
https://arxiv.org/abs/2110.01052.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Hashable, Iterable
from itertools import takewhile

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr

from kvx.stats.bootstrap import cluster_sums

PValue = Callable[[float, int, float], float]  # total loss, n, alpha
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


def cluster_means(losses: ArrayLike, clusters: Collection[Hashable]) -> NDArray[np.float64]:
    """Mean loss of every cluster [c] of `losses` [n], by first appearance; nan losses left out.

    Prompts of one cluster (questions on one story) are not independent draws; their means are.
    Clusters without a loss are left out. Raises `ValueError` on shapes that differ or losses
    outside [0, 1].
    """
    values = np.asarray(losses, dtype=np.float64)
    if ((values < 0) | (values > 1)).any():
        raise ValueError("losses: must lie between 0 and 1, or be nan where unknown")
    sums, counts = cluster_sums(values, clusters)
    known = counts > 0
    means: NDArray[np.float64] = sums[known] / counts[known]
    return means


def _check(total: float, n: int, alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha}: must lie between 0 and 1, for example 0.05")
    if not 0 <= total <= n + ROUNDING:
        raise ValueError(f"total={total}, n={n}: losses must add up to between 0 and n")
