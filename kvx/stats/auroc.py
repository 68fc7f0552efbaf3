"""AUROC of scores that come in clusters (tokens of one prompt), with an interval."""

import math
from collections.abc import Collection, Hashable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, stdtrit

from kvx.stats.bootstrap import cluster_codes
from kvx.stats.cluster_intervals import alike_interval
from kvx.stats.clustered import LEAST_CLUSTERS
from kvx.stats.intervals import UNKNOWN_INTERVAL, Interval, check_confidence

Floats = NDArray[np.float64]
ADDED = 0.25  # of a cluster at either end of the ranking
Side = tuple[NDArray[Any], NDArray[Any]]


def clustered_auroc(
    score: ArrayLike, positive: ArrayLike, clusters: Collection[Hashable], confidence: float
) -> tuple[float, Interval]:
    """Probability that a positive scores above a negative, and its interval.

    `score`, `positive` and `clusters` are [n]; ties count half. The variance is Obuchowski's over
    clusters, which may hold positives, negatives or both; the interval is Student's on the logit
    scale, with one degree of freedom fewer than there are clusters with the rarer label. A perfect
    ranking of few prompts is no certainty: its interval is that of as many trials as there are
    clusters with the rarer label, and others also hold that of the same data with a quarter of a
    cluster ranked as badly as can be, and of one ranked as well, added to both labels. nan without
    both labels; an unknown interval below `LEAST_CLUSTERS` clusters, or where a label is in fewer
    than two. Raises `ValueError` on lengths that differ.

    Source: Obuchowski (1997), Biometrics 53, 567-578; the logit: Pepe (2003), The Statistical
    Evaluation of Medical Tests, section 5.2.4.
    """
    check_confidence(confidence)
    values, label = np.asarray(score, np.float64), np.asarray(positive, bool)
    if not len(values) == len(label) == len(clusters):
        raise ValueError(f"score {values.shape}, positive {label.shape}: must be of one length")
    codes, n_clusters = cluster_codes(clusters)
    hits, misses = _placements(values, label)
    if not len(hits) or not len(misses):
        return math.nan, UNKNOWN_INTERVAL
    found = float(np.sort(hits).mean())
    sides = [
        (
            np.bincount(codes[rows], placed, n_clusters),
            np.bincount(codes[rows], minlength=n_clusters),
        )
        for rows, placed in ((label, hits), (~label, misses))
    ]
    held = [int(np.count_nonzero(counts)) for _, counts in sides]
    if n_clusters < LEAST_CLUSTERS or min(held) < 2:
        return found, UNKNOWN_INTERVAL
    if found in (0.0, 1.0):
        return found, alike_interval(found, min(held), confidence, (0.0, 1.0))
    quantile = float(stdtrit(min(held) - 1, (1 + confidence) / 2))
    ends = [_logit_ends(sides, held, quantile, added) for added in (0.0, ADDED)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    return found, Interval(low, high)


def _logit_ends(
    sides: list[Side], held: list[int], quantile: float, added: float
) -> tuple[float, float]:
    """The interval's ends with `added` clusters at either end of each label's placements.

    `sides` are sums and counts [clusters] of the placements of positives and of negatives, `held`
    the clusters that have any.
    """
    parts, centres, variance = [], [], 0.0
    for (sums, counts), groups in zip(sides, held, strict=True):
        size = added * float(counts.sum()) / groups
        n = float(counts.sum()) + 2 * size
        centre = float(sums.sum() + size) / n
        part = (sums - centre * counts) / n
        variance += groups / (groups - 1) * float(part @ part)
        variance += (size / n) ** 2 * (centre**2 + (1 - centre) ** 2)
        parts.append(part)
        centres.append(centre)
    groups = len(parts[0])
    variance += 2 * groups / (groups - 1) * float(parts[0] @ parts[1])
    middle = sum(centres) / 2
    if not 0 < middle < 1:
        return middle, middle
    reach = quantile * math.sqrt(max(variance, 0.0)) / (middle * (1 - middle))
    return float(expit(logit(middle) - reach)), float(expit(logit(middle) + reach))


def _placements(values: Floats, label: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Shares of the negatives below each positive, and of the positives above each negative."""
    hits, misses = values[label], values[~label]
    if not len(hits) or not len(misses):
        return hits, misses
    below, above = np.sort(misses), np.sort(hits)
    first = np.searchsorted(below, hits, "left") + np.searchsorted(below, hits, "right")
    second = np.searchsorted(above, misses, "left") + np.searchsorted(above, misses, "right")
    return first / (2 * len(misses)), 1 - second / (2 * len(hits))
