"""The area under a curve of scores: the mean score over all budgets, beside the full cache's."""

from collections.abc import Collection, Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from kvx.stats.bootstrap import score_array
from kvx.stats.clustered import Difference, paired_difference


def area(
    doses: Sequence[float], scores: ArrayLike, clusters: Collection[Hashable], confidence: float
) -> Difference:
    """Mean score over the doses from the lowest to the full cache, minus the full cache's.

    `doses` [k] are budgets or shares of its bytes, the full cache first and the largest; `scores`
    [k, n] are of the same n examples. Between doses each example's score is taken as linear
    (trapezoids), so that the difference is paired; an example without a score at some dose is left
    out. Scores that all lie in [0, 1] are taken to be bounded by these. Raises `ValueError` on
    shapes that do not fit, or if all doses are the same.
    """
    x, table = np.asarray(doses, dtype=np.float64), score_array(scores)
    if x.ndim != 1 or table.shape != (len(x), len(clusters)):
        raise ValueError(f"scores {table.shape}: need [{len(x)}, {len(clusters)}]")
    if not len(x) or x.max() != x[0] or x.min() == x[0]:
        raise ValueError(f"doses={list(doses)}: need the full cache first and a smaller one")
    order = np.argsort(x)
    means = np.trapezoid(table[order], x[order], axis=0) / np.ptp(x)
    full = np.where(np.isnan(means), np.nan, table[0])
    known = table[~np.isnan(table)]
    inside = bool(((known >= 0) & (known <= 1)).all())
    bounds = (0.0, 1.0) if inside else None
    # a trapezoid's rounding must not leave the range
    means = np.clip(means, 0, 1) if inside else means
    return paired_difference(means, full, clusters, confidence, bounds, binary=False)
