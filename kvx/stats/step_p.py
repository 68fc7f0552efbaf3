"""This branch's stand-in for stats/clustered.py and stats/multiplicity.py: goes when they come."""

from collections.abc import Collection, Hashable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr

from kvx.stats.bootstrap import cluster_codes, score_array
from kvx.stats.paired import mcnemar_exact

LEAST_CLUSTERS = 6


def paired_p(a: ArrayLike, b: ArrayLike, clusters: Collection[Hashable]) -> float:
    """Two-sided p of no difference: exact McNemar for independent binary pairs, else cluster t."""
    left, right = score_array(a), score_array(b)
    both = ~np.isnan(left - right)
    codes, _ = cluster_codes([c for c, keep in zip(clusters, both, strict=True) if keep])
    left, right = left[both], right[both]
    n_clusters = len(set(codes.tolist()))
    if n_clusters < LEAST_CLUSTERS:
        return float("nan")
    if n_clusters == len(codes) and np.isin([left, right], (0, 1)).all():
        return mcnemar_exact(int((left < right).sum()), int((left > right).sum()))
    totals = np.bincount(codes, weights=left - right)
    scale = np.sqrt((totals**2).sum() * n_clusters / (n_clusters - 1))
    if scale == 0:
        return 1.0
    return float(2 * stdtr(n_clusters - 1, -abs(totals.sum()) / scale))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's corrected p-values [m]; nan stays nan and is not counted."""
    p = np.asarray(p_values, dtype=np.float64)
    out = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known])]
    factors = len(order) - np.arange(len(order))
    out[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return out
