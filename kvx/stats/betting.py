"""Is a mean at most alpha? Bets against a mean of alpha, whose winnings are the evidence.

A gambler starts with 1 and bets, before each observation, that it lies below alpha. If the mean is
alpha or more, no strategy makes the capital grow on average, so it reaches 1 / p with a chance of
at most p (Ville's inequality). This holds for any distribution and adapts to its spread, which
bounds such as Hoeffding's do not.

Source: Waudby-Smith & Ramdas (2024), Estimating means of bounded random variables by betting,
Journal of the Royal Statistical Society B 86, 1-27. Bets are those of their theorem 3, sized for
what is still missing and the observations that are left: Voráček & Orabona (2025), STaR-Bets,
https://arxiv.org/abs/2505.22422.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

LARGEST_BET = 0.95  # of the bet that a single loss of 1 would ruin
ORDER_SEED = 0
REDRAWS, MOST_TIMES = 200, 64


def betting_p(losses: ArrayLike, alpha: float, level: float) -> NDArray[np.float64]:
    """P-values [...] of "the mean is alpha or more", from `losses` [..., n] in a fixed order.

    Losses are at most 1; below 0 they are gains. The order must not depend on their values (see
    `fixed_order`). Bets aim at a p of `level`: any level gives valid p-values, and the one that p
    is compared with the most power. n = 0 gives 1. Raises `ValueError` for a loss above 1 or nan,
    and for alpha or level outside (0, 1).
    """
    x = np.asarray(losses, dtype=np.float64)
    for name, value in (("alpha", alpha), ("level", level)):
        if not 0 < value < 1:
            raise ValueError(f"{name}={value}: must lie between 0 and 1, for example 0.05")
    if not (x <= 1).all():
        raise ValueError("losses: must be numbers of at most 1")
    n, target = x.shape[-1], -np.log(level)
    largest = LARGEST_BET / (1 - alpha)
    capital = np.zeros(x.shape[:-1])  # logarithms
    best = capital.copy()
    # before the first observation: a mean of 1/2 and a variance of 1/4, as if seen once
    total, squares = np.full(capital.shape, 0.5), np.full(capital.shape, 0.25)
    for i in range(n):
        missing = target - capital
        per_observation = np.where(missing > 0, missing / (n - i), target / n)
        variance = squares / (i + 1)
        bet = np.minimum(np.sqrt(2 * per_observation / variance), largest)
        capital += np.log1p(bet * (alpha - x[..., i]))
        np.maximum(best, capital, out=best)
        total += x[..., i]
        squares += (x[..., i] - total / (i + 2)) ** 2
    found: NDArray[np.float64] = np.exp(-best)
    return found


def fixed_order(n: int) -> NDArray[np.intp]:
    """The order [n] in which `n` observations are bet on: the same random one for every `n`."""
    return np.random.default_rng(ORDER_SEED).permutation(n)


def prompts_like(losses: ArrayLike, alpha: float, level: float, power: float) -> int | None:
    """About how many losses like `losses` [n] give p <= `level` with a chance of `power`.

    Losses are redrawn from the given ones, in numbers that grow by a quarter each; None if even
    `MOST_TIMES` n would not do. Errors are those of `betting_p`.
    """
    x = np.asarray(losses, dtype=np.float64)
    rng = np.random.default_rng(ORDER_SEED)
    n = float(x.size)
    while x.size and n <= MOST_TIMES * x.size:
        passed = betting_p(x[rng.integers(0, x.size, (REDRAWS, round(n)))], alpha, level) <= level
        if passed.mean() >= power:
            return round(n)
        n *= 1.25
    return None
