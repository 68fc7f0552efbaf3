"""Ratios of two sums over the same prompts, as tokens per right answer, with intervals."""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from kvx.stats.clustered import LEAST_CLUSTERS, Floats, Pair, by_clusters, sums_of
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
    return ratios_of_sums([(a, b, clusters)], confidence)[0]


def ratios_of_sums(pairs: Sequence[Pair], confidence: float) -> list[Ratio]:
    """`ratio_of_sums` of each (a, b, clusters) of `pairs`."""
    check_confidence(confidence)

    def together(sides: list[Floats], codes: NDArray[np.intp], _: NDArray[np.intp]) -> list[Ratio]:
        above, below = sides
        if (above < 0).any() or (below < 0).any():
            raise ValueError("a and b must be at least 0")
        return _ratios(above, below, codes, confidence)

    return by_clusters(pairs, together)


def _ratios(
    above: Floats, below: Floats, codes: NDArray[np.intp], confidence: float
) -> list[Ratio]:
    """Of each row of `above` and `below` [m, n]."""
    known = ~np.isnan(above + below)
    tops, counts = sums_of(np.where(known, above, np.nan), known, codes)
    bottoms, _ = sums_of(np.where(known, below, np.nan), known, codes)
    n, groups, total = known.sum(axis=1), (counts > 0).sum(axis=1), bottoms.sum(axis=1)
    some = total > 0
    whole = np.where(some, total, 1.0)
    value = np.where(some, tops.sum(axis=1) / whole, np.nan)
    off = tops - value[:, None] * bottoms
    # all clusters with the same ratio say nothing of those that were not drawn
    varies = (np.abs(off) > 1e-9 * tops.max(axis=1, initial=0.0)[:, None]).any(axis=1)
    told = some & (groups >= LEAST_CLUSTERS) & (value > 0) & varies
    low, high = np.full((2, len(n)), np.nan)
    g = groups[told]
    error = np.sqrt(g / (g - 1) * (off[told] ** 2).sum(axis=1)) / total[told] / value[told]
    reach = np.exp(stdtrit(g - 1, (1 + confidence) / 2) * error)
    low[told], high[told] = value[told] / reach, value[told] * reach
    return [
        Ratio(k, g, ratio, Interval(a, b) if a == a else UNKNOWN_INTERVAL)
        for k, g, ratio, a, b in zip(
            *(column.tolist() for column in (n, groups, value, low, high)), strict=True
        )
    ]
