"""Ratios of two sums over the same prompts, as tokens per right answer, with intervals."""

import math
from collections.abc import Collection, Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from kvx.stats.bootstrap import cluster_sums, score_array
from kvx.stats.clustered import LEAST_CLUSTERS
from kvx.stats.intervals import UNKNOWN_INTERVAL, Interval, check_confidence


@dataclass(frozen=True)
class Ratio:
    """sum(a) / sum(b) over `n` prompts in `n_clusters`; nan where b sums to 0."""

    n: int
    n_clusters: int
    value: float
    interval: Interval


def ratio_of_sums(
    a: ArrayLike, b: ArrayLike, clusters: Collection[Hashable], confidence: float
) -> Ratio:
    """Ratio of the sums of `a` [n] and `b` [n], both at least 0, over the prompts that have both.

    The interval is Student's over clusters on the log scale, from the residuals a - ratio · b
    (Cochran 1977, Sampling Techniques, section 6). Unknown with fewer than `LEAST_CLUSTERS`,
    where a sum is 0, and where all clusters have the same ratio: that says nothing of those that
    were not drawn. Raises `ValueError` for negative or infinite values and shapes that differ.
    """
    check_confidence(confidence)
    above, below = score_array(a), score_array(b)
    if above.shape != below.shape:
        raise ValueError(f"a {above.shape} and b {below.shape}: must pair up")
    if (above < 0).any() or (below < 0).any():
        raise ValueError("a and b must be at least 0")
    known = ~np.isnan(above + below)
    both = np.where(known, [above, below], np.nan)
    (tops, bottoms), counts = cluster_sums(both, clusters)
    held = counts[0] > 0
    tops, bottoms = tops[held], bottoms[held]
    n, groups, total = int(known.sum()), len(tops), float(bottoms.sum())
    if not total > 0:
        return Ratio(n, groups, math.nan, UNKNOWN_INTERVAL)
    value = float(tops.sum()) / total
    if groups < LEAST_CLUSTERS or value == 0:
        return Ratio(n, groups, value, UNKNOWN_INTERVAL)
    off = tops - value * bottoms
    if np.allclose(off, 0, rtol=0, atol=1e-9 * float(tops.max())):
        return Ratio(n, groups, value, UNKNOWN_INTERVAL)
    error = math.sqrt(groups / (groups - 1) * float(off @ off)) / total / value
    reach = math.exp(float(stdtrit(groups - 1, (1 + confidence) / 2)) * error)
    return Ratio(n, groups, value, Interval(value / reach, value * reach))
