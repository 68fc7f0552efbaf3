"""A point against its full cache, example by example."""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr

from kvx.stats.bootstrap import MeanEstimate, bootstrap_means, score_array
from kvx.stats.intervals import UNKNOWN_INTERVAL, Interval, wilson_ends


@dataclass(frozen=True)
class PairedDifference:
    """Means over the same examples and their `difference` a - b, in the unit of the scores.

    `n_lost` pairs have a < b and `n_won` have a > b. `mcnemar_p` is None for graded scores and
    where there is no pair. With no pair the means and the difference are nan.
    """

    n_pairs: int
    n_clusters: int
    mean_a: float
    mean_b: float
    difference: float
    interval: Interval
    n_lost: int
    n_won: int
    mcnemar_p: float | None


def paired_differences(
    pairs: Sequence[tuple[ArrayLike, ArrayLike, Collection[Hashable]]],
    n_boot: int,
    confidence: float,
    seed: int | tuple[int, ...],
) -> list[PairedDifference]:
    """Mean of a - b of each (a, b, clusters) [n], with a bootstrap interval over the clusters.

    Pairs with a nan on either side are dropped. Scores that are all 0 or 1 also get the exact
    McNemar p, which takes pairs as independent: with several pairs per cluster trust the interval.
    Limits and errors are those of `bootstrap_means`. Raises `ValueError` on shapes that differ.
    """
    sides = []
    for a, b, _ in pairs:
        left, right = score_array(a), score_array(b)
        if left.shape != right.shape:
            raise ValueError(f"a {left.shape} and b {right.shape}: must pair up")
        sides.append((left, right))
    cells = [(a - b, clusters) for (a, b), (_, _, clusters) in zip(sides, pairs, strict=True)]
    estimates = bootstrap_means(cells, n_boot, confidence, seed)
    return [_paired(*side, estimate) for side, estimate in zip(sides, estimates, strict=True)]


def _paired(
    left: NDArray[np.float64], right: NDArray[np.float64], estimate: MeanEstimate
) -> PairedDifference:
    paired = ~np.isnan(left - right)
    left, right = left[paired], right[paired]
    n_lost, n_won = int((left < right).sum()), int((left > right).sum())
    binary = bool(np.isin([left, right], (0, 1)).all())
    return PairedDifference(
        n_pairs=estimate.n,
        n_clusters=estimate.n_clusters,
        mean_a=_mean(left),
        mean_b=_mean(right),
        difference=estimate.mean,
        interval=estimate.interval,
        n_lost=n_lost,
        n_won=n_won,
        mcnemar_p=mcnemar_exact(n_lost, n_won) if binary and estimate.n else None,
    )


def mcnemar_exact(n_lost: int, n_won: int) -> float:
    """Two-sided exact p that losses and wins are equally likely; 1.0 where neither occurred.

    Source: McNemar (1947), Psychometrika 12, 153-157, with the binomial distribution instead of
    its chi-square approximation. Raises `ValueError` for negative counts.
    """
    if n_lost < 0 or n_won < 0:
        raise ValueError(f"n_lost={n_lost}, n_won={n_won}: must be at least 0")
    return float(mcnemar_ps(n_lost, n_won))


def mcnemar_ps(n_lost: ArrayLike, n_won: ArrayLike) -> NDArray[np.float64]:
    """`mcnemar_exact` of arrays of counts."""
    lost, won = np.asarray(n_lost), np.asarray(n_won)
    p: NDArray[np.float64] = np.minimum(1.0, 2 * bdtr(np.minimum(lost, won), lost + won, 0.5))
    return np.where(lost + won == 0, 1.0, p)


def least_pairs(alpha: float) -> int:
    """How many independent pairs must differ before an exact two-sided p can be below `alpha`.

    Pairs that all differ the same way have p = 2 · 0.5^n, the smallest that a sign test, McNemar's
    or a permutation of signs can give: 6 pairs at 0.05, 8 at 0.01. Raises `ValueError` unless
    0 < alpha < 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha}: must lie between 0 and 1")
    return next(n for n in count(1) if mcnemar_exact(n, 0) < alpha)


def newcombe_interval(both: int, lost: int, won: int, neither: int, confidence: float) -> Interval:
    """Interval of the difference of two paired proportions, (both + won)/n - (both + lost)/n.

    For independent right/wrong pairs: `lost` counts pairs right only with the full cache,
    `won` pairs right only here. Unlike a bootstrap it does not shrink to nothing where every pair
    is lost. (nan, nan) without pairs. Raises `ValueError` for negative counts.

    Source: Newcombe (1998), Statistics in Medicine 17, 2635-2650, method 10.
    """
    if min(both, lost, won, neither) < 0:
        raise ValueError("counts must be at least 0")
    n = both + lost + won + neither
    if n == 0:
        return UNKNOWN_INTERVAL
    low, high = newcombe_ends(both, lost, won, neither, confidence)
    return Interval(float(low), float(high))


def newcombe_ends(
    both: ArrayLike, lost: ArrayLike, won: ArrayLike, neither: ArrayLike, confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both ends of `newcombe_interval` for arrays of counts, each with a pair."""
    a, b, c, d = (np.asarray(counts, np.float64) for counts in (both, lost, won, neither))
    n = a + b + c + d
    here, full = (a + c) / n, (a + b) / n
    low_here, high_here = wilson_ends(a + c, n, confidence)
    low_twin, high_twin = wilson_ends(a + b, n, confidence)
    margins = np.sqrt((a + b) * (c + d) * (a + c) * (b + d))
    excess = a * d - b * c
    excess = np.where(excess > 0, np.maximum(excess - n / 2, 0), excess)
    phi = np.divide(excess, margins, out=np.zeros_like(margins), where=margins > 0)

    def reach(ours: Any, theirs: Any) -> Any:
        return np.sqrt(np.maximum(ours**2 - 2 * phi * ours * theirs + theirs**2, 0.0))

    low = here - full - reach(here - low_here, high_twin - full)
    high = here - full + reach(high_here - here, full - low_twin)
    return np.maximum(low, -1.0), np.minimum(high, 1.0)


def failure_attribution(score: ArrayLike, twin_score: ArrayLike, failed: ArrayLike) -> float:
    """The part of the mean paired difference that comes from examples that failed at this point.

    Sum of (score - twin_score) over the pairs with `failed` [n], divided by the number of all
    pairs; negative for a loss. Pairs with a nan on either side are dropped, so a failure counts
    only if it was scored. nan with no pair. Raises `ValueError` on shapes that differ.
    """
    scores, full = score_array(score), score_array(twin_score)
    failures = np.asarray(failed, dtype=bool)
    shapes = [a.shape for a in (scores, full, failures)]
    if len(set(shapes)) > 1:
        raise ValueError("score {}, twin_score {} and failed {}: must pair up".format(*shapes))
    difference = scores - full
    return _mean(np.where(failures, difference, 0.0)[~np.isnan(difference)])


def _mean(values: NDArray[np.float64]) -> float:
    return float(np.sort(values).mean()) if values.size else float("nan")
