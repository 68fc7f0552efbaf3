"""Non-inferiority of paired scores: an upper confidence bound of what a point loses.

The loss is the mean of full cache minus here. It is bounded through its two parts, what was lost
and what was won, each with a Clopper-Pearson limit, combined as in MOVER (Zou & Donner 2008,
Statistics in Medicine 27, 1693-1702) with the correlation of two multinomial shares. The error of
"it loses at most the margin" is below the nominal one for independent right/wrong pairs
(`tests/test_stats_equivalence.py` sums the probabilities of all tables).
"""

import math
from collections.abc import Collection, Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, ndtri, stdtrit

from kvx.stats.bootstrap import cluster_codes, score_array
from kvx.stats.intervals import check_confidence

MOVER = "mover_exact"
EFFECTIVE = "mover_effective_n"
FEW = 8  # clusters that differ; with fewer a design effect cannot be estimated
LEAST_P, MOST_P = 1e-9, 0.45


@dataclass(frozen=True)
class NonInferiority:
    """`loss` (full - here) in the unit of the scores, its one-sided upper bound and the p of
    "the loss is at least the margin". Bound and p are nan where nothing can be said. `worth` is how
    many independent pairs tell as much.
    """

    n_pairs: int
    n_clusters: int
    loss: float
    upper: float
    p: float
    method: str
    worth: float


@dataclass(frozen=True)
class _Parts:
    """Mean loss and win per pair, and how many independent pairs they are worth."""

    lost: float
    won: float
    n: float
    n_clusters: int
    floor: bool  # graded scores: a rare total loss may have been missed

    def upper(self, alpha: float) -> float:
        """The one-sided bound that the loss exceeds with probability `alpha` at most."""
        exact = self.n_clusters == 0
        n = self.n if exact else self.n * (ndtri(alpha) / stdtrit(self.n_clusters - 1, alpha)) ** 2
        highest, lowest = _limits(self.lost, self.won, n, alpha)
        up, down = highest - self.lost, self.won - lowest
        rest = (1 - self.lost) * (1 - self.won)
        together = math.sqrt(self.lost * self.won / rest) if rest > 0 else 0.0
        found = self.lost - self.won + math.sqrt(up**2 + down**2 + 2 * together * up * down)
        if self.floor:
            found = max(found, 1 - alpha ** (1 / self.n_clusters))
        return min(found, 1.0)


def non_inferiority(
    here: ArrayLike,
    full: ArrayLike,
    clusters: Collection[Hashable],
    margin: float,
    confidence: float,
) -> NonInferiority:
    """Whether `here` [n] loses less than `margin` against `full` [n], where more is better.

    Scores lie in [0, 1]; pairs with a nan on either side are dropped, so fill what is missing
    first. Right/wrong pairs of one cluster each get limits that are exact in each part. Else the
    counts are effective ones, divided by the design effect of the clusters (Korn & Graubard 1998,
    Survey Methodology 24, 193-201, with t for z); with fewer than `FEW` clusters that differ a
    cluster counts once. Of graded scores the bound is at least 1 - alpha^(1/clusters): so often a
    total loss can be missed. p is 1 where it would be above 0.45. Raises `ValueError` for scores
    outside [0, 1], shapes that differ, a margin outside (0, 1) and a confidence outside (0, 1).
    """
    check_confidence(confidence)
    if not 0 < margin < 1:
        raise ValueError(f"margin={margin}: must lie between 0 and 1, for example 0.02")
    ours, theirs = score_array(here), score_array(full)
    codes, _ = cluster_codes(clusters)
    if not ours.shape == theirs.shape == codes.shape:
        raise ValueError(f"{ours.shape}, {theirs.shape}, {codes.shape}: must pair up")
    known = ~np.isnan(ours - theirs)
    ours, theirs, codes = ours[known], theirs[known], codes[known]
    both = np.concatenate([ours, theirs])
    if ((both < 0) | (both > 1)).any():
        raise ValueError("scores must lie in [0, 1]")
    n, n_clusters = len(ours), len(np.unique(codes))
    exact = n == n_clusters and bool(np.isin(both, (0, 1)).all())
    method = MOVER if exact else EFFECTIVE
    loss = float((theirs - ours).mean()) if n else math.nan
    if n_clusters < (1 if exact else 2):
        return NonInferiority(n, n_clusters, loss, math.nan, math.nan, method, math.nan)
    parts = _parts(theirs - ours, codes, exact)
    upper = parts.upper(1 - confidence)
    return NonInferiority(n, n_clusters, loss, upper, _p(parts, margin), method, parts.n)


def _parts(losses: NDArray[np.float64], codes: NDArray[np.intp], exact: bool) -> _Parts:
    n = len(losses)
    lost, won = float(np.maximum(losses, 0).mean()), float(np.maximum(-losses, 0).mean())
    if exact:
        return _Parts(lost, won, n, 0, floor=False)
    _, codes = np.unique(codes, return_inverse=True)
    totals, sizes = np.bincount(codes, losses), np.bincount(codes)
    n_clusters, loss = len(sizes), lost - won
    spread = n_clusters / (n_clusters - 1) * float(((totals - loss * sizes) ** 2).sum()) / n**2
    independent = (lost + won - loss**2) / n
    once = n**2 / float((sizes**2).sum())  # a cluster counts once: Kish's effective number
    graded = not np.isin(losses, (-1, 0, 1)).all()
    if spread <= 0 or independent <= 0:
        return _Parts(lost, won, once, n_clusters, floor=bool(graded))
    # right/wrong pairs cannot vary less than independent ones; graded ones do
    effect = spread / independent if graded else max(1.0, spread / independent)
    worth = n / effect
    if np.count_nonzero(totals) < FEW:
        worth = min(worth, once)
    return _Parts(lost, won, worth, n_clusters, floor=bool(graded))


def _limits(lost: float, won: float, n: float, alpha: float) -> tuple[float, float]:
    """The upper limit of `lost` and the lower one of `won`, shares of `n` trials."""
    high = 1.0 if lost >= 1 else float(betaincinv(lost * n + 1, n * (1 - lost), 1 - alpha))
    low = 0.0 if won <= 0 else float(betaincinv(won * n, n * (1 - won) + 1, alpha))
    return high, low


def _p(parts: _Parts, margin: float) -> float:
    """The smallest alpha at which the bound is at most `margin`, found by halving."""
    if parts.upper(MOST_P) > margin:
        return 1.0
    low, high = math.log(LEAST_P), math.log(MOST_P)
    if parts.upper(LEAST_P) <= margin:
        return LEAST_P
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if parts.upper(math.exp(middle)) <= margin else (middle, high)
    return math.exp(high)
