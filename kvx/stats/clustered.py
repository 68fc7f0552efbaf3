"""Means and paired differences of prompts that come in clusters (questions on one text).

Exact methods where the rows are independent and every score is 0 or 1; else Student's t over the
clusters, with a test that flips the signs of their sums. With too few clusters neither is given.
"""

import math
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, ndtri, stdtrit

from kvx.stats.bootstrap import cluster_sums, score_array
from kvx.stats.intervals import UNKNOWN_INTERVAL, Interval, check_confidence, clopper_pearson
from kvx.stats.paired import mcnemar_exact, newcombe_interval
from kvx.stats.sign_flips import sign_flip_p

Floats = NDArray[np.float64]

LEAST_CLUSTERS = 8  # below, an interval over clusters covers far less than it says
PSEUDO = 0.5  # of a cluster, added at each end of the range of a mean

CLOPPER_PEARSON, KORN_GRAUBARD = "clopper_pearson", "korn_graubard"
NEWCOMBE, CLUSTER_T = "newcombe", "cluster_t"
ALL_ALIKE, TOO_FEW, NO_DATA = "all_alike", "too_few_clusters", "no_data"


@dataclass(frozen=True)
class Mean:
    """Mean of the scored values [n]; `sd` is the sample standard deviation, nan for n < 2."""

    n: int
    n_clusters: int
    mean: float
    sd: float
    interval: Interval
    method: str


@dataclass(frozen=True)
class Difference:
    """Means over the pairs and their `difference` a - b, in the unit of the scores.

    `n_lost` pairs have a < b, `n_won` have a > b. `p` is two-sided, for "no difference"; nan where
    `method` says that nothing can be known. `exact` says that the pairs are independent 0/1 scores.
    """

    n_pairs: int
    n_clusters: int
    mean_a: float
    mean_b: float
    difference: float
    interval: Interval
    p: float
    method: str
    n_lost: int
    n_won: int
    exact: bool


def mean(
    values: ArrayLike,
    clusters: Collection[Hashable],
    confidence: float,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    binary: bool | None = None,
) -> Mean:
    """Mean of `values` [n] (nan left out) with an interval, by what is known of them.

    `bounds` are the metric's; None if it has none. `binary` says that the metric gives 0 or 1 only
    (default: look at the values). Methods:

    - `clopper_pearson`: 0/1 values, one per cluster;
    - `korn_graubard`: bounded values otherwise, that interval at the effective n, which is smaller
      the more alike the values of a cluster are; half a cluster is added at each bound;
    - `cluster_t`: values without bounds, Student's t over clusters;
    - `all_alike`: equal values, where no spread can be estimated (see `alike_interval`);
    - `too_few_clusters`: fewer than `LEAST_CLUSTERS`, no interval; `no_data`: no value.

    Raises `ValueError` for values outside `bounds` or infinite, and on shapes that differ.

    Source: Korn & Graubard (1998), Survey Methodology 24, 193-201.
    """
    check_confidence(confidence)
    scores, known = score_array(values), ~np.isnan(score_array(values))
    check_bounds(scores, bounds)
    sums, counts = _sums(values, clusters)
    scores, groups = scores[known], len(sums)
    n = len(scores)
    found = float(np.sort(scores).mean()) if n else math.nan
    sd = float(scores.std(ddof=1)) if n >= 2 else math.nan
    exact = bool(np.isin(scores, (0, 1)).all()) if binary is None else binary
    if not n:
        return Mean(0, 0, found, sd, UNKNOWN_INTERVAL, NO_DATA)
    if exact and groups == n:
        interval = clopper_pearson(round(float(scores.sum())), n, confidence)
        return Mean(n, groups, found, sd, interval, CLOPPER_PEARSON)
    interval, method = _mean_interval(scores, sums, counts, confidence, bounds)
    return Mean(n, groups, found, sd, interval, method)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Collection[Hashable],
    confidence: float,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    binary: bool | None = None,
) -> Difference:
    """Mean of a - b over the pairs [n] with neither side nan, with an interval and a test.

    `bounds` and `binary` as in `mean`. Methods:

    - `newcombe`: 0/1 scores, one pair per cluster, with McNemar's exact p;
    - `cluster_t`: Student's t over clusters and two added ones, which differ by more the more
      one-sided the differences are (see `t_interval`); with `sign_flip_p` of the clusters' sums;
    - `all_alike`: all pairs differ by the same (see `alike_interval`), the same p;
    - `too_few_clusters`: fewer than `LEAST_CLUSTERS`, neither interval nor p; `no_data`: no pair.

    Raises `ValueError` for values outside `bounds` or infinite, and on shapes that differ.
    """
    check_confidence(confidence)
    left, right = score_array(a), score_array(b)
    if left.shape != right.shape:
        raise ValueError(f"a {left.shape} and b {right.shape}: must pair up")
    check_bounds(left, bounds)
    check_bounds(right, bounds)
    apart = left - right
    sums, counts = _sums(apart, clusters)
    paired = ~np.isnan(apart)
    left, right, apart = left[paired], right[paired], apart[paired]
    n, groups = len(apart), len(sums)
    n_lost, n_won = int((left < right).sum()), int((left > right).sum())
    if binary is None:
        binary = bool(np.isin([left, right], (0, 1)).all())
    exact = binary and groups == n
    difference, p = float(sums.sum() / n) if n else math.nan, math.nan
    if not n:
        interval, method = UNKNOWN_INTERVAL, NO_DATA
    elif exact:
        both = int((left * right).sum())
        neither = n - both - n_lost - n_won
        interval = newcombe_interval(both, n_lost, n_won, neither, confidence)
        p, method = mcnemar_exact(n_lost, n_won), NEWCOMBE
    elif groups < LEAST_CLUSTERS:
        interval, method = UNKNOWN_INTERVAL, TOO_FEW
    else:
        sizes = np.abs(sums)  # where all differ to one side, as much as the largest
        added = float(sizes.max() * abs(sums.sum()) / sizes.sum()) if sizes.any() else 0.0
        reach = None
        if bounds is not None:
            width = bounds[1] - bounds[0]
            reach, added = (-width, width), min(added, width * float(counts.mean()))
        interval, method = t_interval(apart, sums, counts, confidence, reach, added)
        p = sign_flip_p(sums)
    return Difference(
        n_pairs=n,
        n_clusters=groups,
        mean_a=_mean(left),
        mean_b=_mean(right),
        difference=difference,
        interval=interval,
        p=p,
        method=method,
        n_lost=n_lost,
        n_won=n_won,
        exact=exact,
    )


def alike_interval(
    value: float, n_clusters: int, confidence: float, bounds: tuple[float, float] | None
) -> Interval:
    """Interval of a mean where every cluster gave the same `value`; unknown without `bounds`.

    At `confidence` at most a share u of all clusters gives another value, by Clopper and Pearson;
    these could lie at either bound. Of rates of 0 or 1 it is the exact interval with a cluster as a
    trial.
    """
    if bounds is None:
        return UNKNOWN_INTERVAL
    others = clopper_pearson(0, n_clusters, confidence).high
    return Interval(value - others * (value - bounds[0]), value + others * (bounds[1] - value))


def t_interval(
    values: Floats,
    sums: Floats,
    counts: Floats,
    confidence: float,
    bounds: tuple[float, float] | None,
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
    if added:
        sums = np.append(sums, [-added, added])
        counts = np.append(counts, [counts.mean()] * 2)
    centre = float(sums.sum() / counts.sum())
    reach = _t_quantile(groups - 1, confidence) * _standard_error(sums, counts)
    low, high = centre - reach, centre + reach
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Interval(low, high), CLUSTER_T


def check_bounds(values: Floats, bounds: tuple[float, float] | None) -> None:
    """Raises `ValueError` if one of `values` lies outside `bounds`."""
    if bounds is not None and ((values < bounds[0]) | (values > bounds[1])).any():
        worst = values[(values < bounds[0]) | (values > bounds[1])][0]
        raise ValueError(f"{worst:g} lies outside the metric's range [{bounds[0]}, {bounds[1]}]")


def _mean_interval(
    scores: Floats,
    sums: Floats,
    counts: Floats,
    confidence: float,
    bounds: tuple[float, float] | None,
) -> tuple[Interval, str]:
    groups = len(sums)
    if groups < LEAST_CLUSTERS:
        return UNKNOWN_INTERVAL, TOO_FEW
    if bounds is None or scores.min() == scores.max():
        return t_interval(scores, sums, counts, confidence, bounds)
    low, width = bounds[0], bounds[1] - bounds[0]
    shares, half = (sums - low * counts) / width, PSEUDO * float(counts.mean())
    # values that all happen to lie near one end would seem to have no spread
    shares, counts = np.append(shares, [0.0, half]), np.append(counts, [half, half])
    share, error = float(shares.sum() / counts.sum()), _standard_error(shares, counts)
    interval = korn_graubard(share, error, groups, confidence)
    return Interval(low + width * interval.low, low + width * interval.high), KORN_GRAUBARD


def korn_graubard(
    share: float, standard_error: float, n_clusters: int, confidence: float
) -> Interval:
    """Clopper and Pearson's interval of a `share` at its effective n, for clustered data.

    `standard_error` is that over clusters. The effective n is share (1 - share) / error², with
    quantiles of Student's distribution for the normal's, since few clusters know their spread
    badly.

    Source: Korn & Graubard (1998), Survey Methodology 24, 193-201.
    """
    z, t = float(ndtri((1 + confidence) / 2)), _t_quantile(n_clusters - 1, confidence)
    error = max(standard_error, 1e-12)
    effective = share * (1 - share) / error**2 * (z / t) ** 2
    k = share * effective
    low = betaincinv(k, effective - k + 1, (1 - confidence) / 2) if k > 0 else 0.0
    high = betaincinv(k + 1, effective - k, (1 + confidence) / 2) if k < effective else 1.0
    return Interval(float(low), float(high))


def _sums(values: ArrayLike, clusters: Collection[Hashable]) -> tuple[Floats, Floats]:
    """Sums and counts of the clusters that have a value, by size: names and order do not matter."""
    sums, counts = cluster_sums(values, clusters)
    sums, counts = sums[counts > 0], counts[counts > 0]
    order = np.lexsort((sums, counts))
    return sums[order], counts[order].astype(np.float64)


def _standard_error(sums: Floats, counts: Floats) -> float:
    """Of the mean sums / counts, over clusters."""
    groups, n = len(sums), float(counts.sum())
    off = sums - sums.sum() / n * counts
    return math.sqrt(groups / (groups - 1) * float(off @ off)) / n


@cache
def _t_quantile(df: float, confidence: float) -> float:
    return float(stdtrit(df, (1 + confidence) / 2))


def _mean(values: Floats) -> float:
    return float(np.sort(values).mean()) if values.size else math.nan
