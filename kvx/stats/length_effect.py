"""By how much the budget that is needed moves with the length of the context."""

import math
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit, stdtr, stdtrit, xlog1py, xlogy

from kvx.stats.bootstrap import cluster_codes, score_array
from kvx.stats.clustered import LEAST_CLUSTERS, paired_difference
from kvx.stats.dose_response import FLAT, USUAL_WIDTH, WIDTH_SPREAD
from kvx.stats.intervals import UNKNOWN_INTERVAL, Interval, check_confidence

Floats = NDArray[np.float64]

TELLING = 4.0  # log2 units: a wider half of the interval means that nothing is known


@dataclass(frozen=True)
class Shift:
    """The budget that keeps a share of the score is multiplied by `factor` per doubling of length.

    `p` is two-sided, for a factor of 1. All nan where the data cannot say.
    """

    factor: float
    interval: Interval
    p: float


NO_SHIFT = Shift(math.nan, UNKNOWN_INTERVAL, math.nan)


def shift_per_doubling(
    budgets: Sequence[float],
    scores: ArrayLike,
    lengths: ArrayLike,
    clusters: Collection[Hashable],
    confidence: float,
) -> Shift:
    """The joint surface of scores over log budget and log length, and how it shifts with length.

    `scores` [k, n] in [0, 1] at `budgets` [k] in (0, 1], the full cache first; `lengths` [n] in
    tokens take few values (a bin's middle). The curve is that of `kvx.stats.dose_response`; its
    midpoint moves linearly with log length, the logit of the full cache's score too, and its width
    and floor stay. `b50` then moves as the midpoint does. The interval is Student's over clusters,
    from a sandwich variance in which each cluster's residuals are corrected for its own part in the
    fit.

    Unknown with one length, fewer than `LEAST_CLUSTERS` clusters, and where no budget lies inside
    the fall, tellably below the full cache and above the lowest budget: then the curve's width is
    that of its prior, and the shift with it. Raises `ValueError` on shapes that do not fit and
    scores out of range.

    Source: Liang & Zeger (1986), Biometrika 73, 13-22; Mancl & DeRouen (2001), Biometrics 57,
    126-134.
    """
    check_confidence(confidence)
    x, table = np.log2(np.asarray(budgets, dtype=np.float64)), score_array(scores)
    z = np.log2(np.asarray(lengths, dtype=np.float64))
    if table.shape != (len(x), len(z)) or len(clusters) != len(z):
        raise ValueError(f"scores {table.shape}: need [{len(x)}, {len(z)}]")
    if (table < 0).any() or (table > 1).any():
        raise ValueError("scores: must lie in [0, 1]")
    known = ~np.asarray(np.isnan(table).any(axis=0))
    codes, n_clusters = cluster_codes(
        [c for c, k in zip(clusters, known.tolist(), strict=True) if k]
    )
    table, z = table[:, known], z[known]
    places, bins = np.unique(z, return_inverse=True)
    if len(places) < 2 or n_clusters < LEAST_CLUSTERS or len(x) < 3 or not table[0].any():
        return NO_SHIFT
    if not _one_inside(table, codes.tolist(), confidence):
        return NO_SHIFT
    # right [k, clusters, bins] of n [clusters, bins]
    slots, shape = codes * len(places) + bins, (n_clusters, len(places))
    size = n_clusters * len(places)
    n = np.bincount(slots, minlength=size).reshape(shape).astype(float)
    right: Floats = np.stack([np.bincount(slots, row, size).reshape(shape) for row in table])
    at: Floats = places - float(n.sum(axis=0) @ places) / float(n.sum())
    return _shift(x, at, right, n, confidence)


def _one_inside(table: Floats, clusters: list[int], confidence: float) -> bool:
    """Whether a budget's mean is told from both the full cache's and the lowest, by paired tests.

    `table` [k, n] without nan, the full cache first.
    """
    means = table.mean(axis=1)
    low = int(means.argmin())
    middle = int(np.abs(means - (means[0] + means[low]) / 2).argmin())
    return all(
        found.difference > 0 and found.p <= 1 - confidence
        for found in (
            paired_difference(table[0], table[middle], clusters, confidence),
            paired_difference(table[middle], table[low], clusters, confidence),
        )
    )


def _shift(x: Floats, at: Floats, right: Floats, n: Floats, confidence: float) -> Shift:
    total, sizes = right.sum(axis=1), n.sum(axis=0)

    def chances(v: Floats) -> Floats:
        middle, scale, floor = v[0] + v[1] * at, math.exp(v[2]), expit(v[3])
        rise = floor + (1 - floor) * expit((x[:, None] - middle) / scale)
        full = floor + (1 - floor) * expit(-middle / scale)
        p: Floats = np.clip(expit(v[4] + v[5] * at) * rise / full, FLAT, 1 - FLAT)
        return p

    def loss(v: Floats) -> float:
        p = chances(v)
        prior = 0.5 * ((v[2] - math.log(USUAL_WIDTH)) / WIDTH_SPREAD) ** 2 + 0.02 * v[3] ** 2
        prior += 0.5 * (v[1] / 2) ** 2 + 0.005 * v[4] ** 2
        return float(prior - (xlogy(total, p) + xlog1py(sizes - total, -p)).sum())

    full = float(logit(np.clip(total[0].sum() / sizes.sum(), 0.02, 0.98)))
    low = float(x.min())
    limits = [(low - 1, 1.0), (-4, 4), (math.log(0.03), math.log(3)), (-5, 5), (-6, 7), (-5, 5)]
    starts = [np.array([m, 0.0, math.log(USUAL_WIDTH), -2.0, full, 0.0])
              for m in np.linspace(low, -0.1, 4)]  # fmt: skip
    starts.sort(key=loss)
    best = min(
        (minimize(loss, s, method="L-BFGS-B", bounds=limits) for s in starts[:2]),
        key=lambda found: float(found.fun),
    ).x
    p = chances(best)
    step = 1e-4 * np.eye(len(best))
    slopes = np.stack([(chances(best + s) - chances(best - s)) / 2e-4 for s in step])
    weights = slopes / (p * (1 - p))  # [parameters, k, bins]
    information = np.einsum("akb,ckb,b->ac", weights, slopes, sizes)
    information += np.diag([1e-6, 0.25, 1 / WIDTH_SPREAD**2, 0.04, 0.01, 1e-6])
    # residuals [k, clusters, bins] → scores [parameters, clusters]
    scores = np.einsum("akb,kgb->ag", weights, right - n * p[:, None])
    groups, inverse = n.shape[0], np.linalg.pinv(information)
    own = np.einsum("akb,ckb,gb->gac", weights, slopes, n)  # each cluster's information
    apart = np.eye(len(best)) - own @ inverse
    corrected = np.linalg.solve(apart, scores.T[..., None])[..., 0]  # [clusters, parameters]
    variance = inverse @ (corrected.T @ corrected) @ inverse
    error = math.sqrt(max(float(variance[1, 1]), 0.0))
    shift, df = float(best[1]), groups - 1
    reach = float(stdtrit(df, (1 + confidence) / 2)) * error
    if not 0 < reach < TELLING or abs(shift) >= 3.99:
        return NO_SHIFT
    interval = Interval(2 ** (shift - reach), 2 ** (shift + reach))
    return Shift(2**shift, interval, min(1.0, 2 * float(stdtr(df, -abs(shift) / error))))
