"""Intervals of means from the sums of clusters, of many cells at once."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit

from kvx.stats.intervals import UNKNOWN_INTERVAL, Interval, exact_ends

Floats = NDArray[np.float64]
Ends = tuple[Floats, Floats]
Bounds = tuple[float, float] | None

ALL_ALIKE, CLUSTER_T, KORN_GRAUBARD = "all_alike", "cluster_t", "korn_graubard"
PSEUDO = 0.5  # of a cluster, added at each end of the range of a mean


def alike_interval(value: float, n_clusters: int, confidence: float, bounds: Bounds) -> Interval:
    """Interval of a mean where every cluster gave the same `value`; unknown without `bounds`.

    At `confidence` at most a share u of all clusters gives another value, by Clopper and Pearson;
    these could lie at either bound. Of rates of 0 or 1 it is the exact interval with a cluster as a
    trial.
    """
    low, high = alike_ends([value], [n_clusters], confidence, bounds)
    return UNKNOWN_INTERVAL if bounds is None else Interval(float(low[0]), float(high[0]))


def alike_ends(values: ArrayLike, groups: ArrayLike, confidence: float, bounds: Bounds) -> Ends:
    """Both ends of `alike_interval` for each of `values` [m] that `groups` [m] clusters gave."""
    value = np.asarray(values, np.float64)
    if bounds is None:
        return np.full(value.shape, np.nan), np.full(value.shape, np.nan)
    _, others = exact_ends(np.zeros(value.shape), groups, confidence)
    return value - others * (value - bounds[0]), value + others * (bounds[1] - value)


def t_interval(
    values: Floats,
    sums: Floats,
    counts: Floats,
    confidence: float,
    bounds: Bounds,
    added: float = 0.0,
) -> tuple[Interval, str]:
    """Student's interval of the mean of `values` [n] over clusters, within `bounds`; and its name.

    `sums` and `counts` [g] are the clusters'; there are g - 1 degrees of freedom. Every row weighs
    the same, so larger clusters weigh more. Two clusters of the mean size are added whose sums are
    `added` and -`added`: where few clusters differ, and all to one side, the spread seen is too
    small. For single 0/1 pairs and the sum 1 that is Bonett and Price's adjustment.

    Source: Cameron & Miller (2015), Journal of Human Resources 50, 317-372; Bonett & Price (2012),
    Journal of Educational and Behavioral Statistics 37, 479-488.
    """
    groups = len(sums)
    if values.min() == values.max():
        return alike_interval(float(values[0]), groups, confidence, bounds), ALL_ALIKE
    low, high = t_ends(
        sums[None], counts[None], np.array([groups]), confidence, bounds, np.array([added])
    )
    return Interval(float(low[0]), float(high[0])), CLUSTER_T


def t_ends(
    sums: Floats,
    counts: Floats,
    groups: NDArray[np.int64],
    confidence: float,
    bounds: Bounds,
    added: Floats,
) -> Ends:
    """Both ends of `t_interval` for each of m cells.

    `sums` and `counts` [m, c] are the clusters', both 0 in those that a cell does not have;
    `groups` [m] says how many it has.
    """
    n, more = counts.sum(axis=1), added > 0
    size = np.where(more, n / groups, 0.0)
    total = n + 2 * size
    centre = sums.sum(axis=1) / total
    squares = ((sums - centre[:, None] * counts) ** 2).sum(axis=1)
    squares += (added - centre * size) ** 2 + (added + centre * size) ** 2
    error = _error(squares, groups + 2 * more, total)
    reach = stdtrit(groups - 1, (1 + confidence) / 2) * error
    low, high = centre - reach, centre + reach
    if bounds is not None:
        low, high = np.maximum(low, bounds[0]), np.minimum(high, bounds[1])
    return low, high


def padded_ends(
    sums: Floats,
    counts: Floats,
    groups: NDArray[np.int64],
    confidence: float,
    bounds: tuple[float, float],
) -> Ends:
    """Korn and Graubard's interval of means within `bounds`, with half a cluster at each bound.

    Values that all happen to lie near one end would seem to have no spread. Shapes as in `t_ends`.
    """
    low, width = bounds[0], bounds[1] - bounds[0]
    n = counts.sum(axis=1)
    shares, half = (sums - low * counts) / width, PSEUDO * n / groups
    total = n + 2 * half
    share = (shares.sum(axis=1) + half) / total
    squares = ((shares - share[:, None] * counts) ** 2).sum(axis=1)
    squares += (share * half) ** 2 + (half - share * half) ** 2
    ends = korn_graubard_ends(share, _error(squares, groups + 2, total), groups, confidence)
    return low + width * ends[0], low + width * ends[1]


def korn_graubard(
    share: float, standard_error: float, n_clusters: int, confidence: float
) -> Interval:
    """Clopper and Pearson's interval of a `share` at its effective n, for clustered data.

    `standard_error` is that over clusters. The effective n is share (1 - share) / error², with
    quantiles of Student's distribution for the normal's, since few clusters know their spread
    badly.

    Source: Korn & Graubard (1998), Survey Methodology 24, 193-201.
    """
    low, high = korn_graubard_ends([share], [standard_error], [n_clusters], confidence)
    return Interval(float(low[0]), float(high[0]))


def korn_graubard_ends(
    shares: ArrayLike, standard_errors: ArrayLike, groups: ArrayLike, confidence: float
) -> Ends:
    """Both ends of `korn_graubard` for arrays [m]."""
    share, error = np.asarray(shares, np.float64), np.maximum(standard_errors, 1e-12)
    z, t = float(ndtri((1 + confidence) / 2)), stdtrit(np.asarray(groups) - 1, (1 + confidence) / 2)
    effective = share * (1 - share) / error**2 * (z / t) ** 2
    return exact_ends(share * effective, effective, confidence)


def _error(squares: Floats, groups: NDArray[np.int64], n: Floats) -> Floats:
    """Standard error of means over clusters, from the squared sums of what is off the mean."""
    error: Floats = np.sqrt(groups / (groups - 1) * squares) / n
    return error
