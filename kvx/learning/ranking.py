"""Measures of a ranking and of probabilities, with intervals from resampled prompts.

Point estimates are exact. For the intervals, scores are first put into at most 2,000 classes of
equal size: then a resample is one product of weights and counts per prompt. scikit-learn's measures
take one set of weights per call, not thousands; for one value they agree to 2e-16, and take two to
three times as long (0.40 s against 0.13 s for the AUROC of a million tokens).
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvx.stats.auroc import clustered_auroc
from kvx.stats.bootstrap import (
    CHUNK_BYTES,
    ClusterBootstrap,
    percentile_interval,
    row_chunks,
)
from kvx.stats.intervals import UNKNOWN_INTERVAL, Interval, with_width

CLASSES = 2000
CALIBRATION_BINS = 15
WORKING_BYTES = 16 * 2**20
QUANTILE_BYTES = 8 + 1 + 1  # per value and resample: running total, weight, whether it is reached


@dataclass(frozen=True)
class Estimate:
    """A value and its interval, nan where it is not known."""

    value: float
    interval: Interval

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.interval.low:.3f}, {self.interval.high:.3f}]"


def auroc(score: ArrayLike, positive: ArrayLike) -> float:
    """Probability that a positive scores above a negative, ties counted half; nan without both."""
    hits, misses = _by_score(score, positive)
    return float(_auroc(hits[None], misses[None])[0])


def average_precision(score: ArrayLike, positive: ArrayLike) -> float:
    """Area under the precision-recall curve by steps, equal scores taken together; nan without a
    positive.
    """
    hits, misses = _by_score(score, positive)
    return float(_average_precision(hits[None], misses[None])[0])


def calibration_error(
    probability: ArrayLike, positive: ArrayLike, equal_mass: bool
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.intp]]:
    """What the expected calibration error is made from: probabilities, labels, and the bin [n] of
    each: 15 of equal width, or of equal mass.

    Source: Naeini, Cooper & Hauskrecht (2015), AAAI.
    """
    p, label = np.asarray(probability, np.float64), np.asarray(positive, bool)
    if equal_mass and len(p):
        edges = np.unique(np.quantile(p, np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]))
    else:
        edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
    return p, label, np.searchsorted(edges, p, side="right")


@dataclass(frozen=True)
class Resampler:
    """Resamples the same `n_clusters` prompts for everything that is compared."""

    n_clusters: int
    n_boot: int
    confidence: float
    seed: int

    @cached_property
    def weights(self) -> NDArray[np.unsignedinteger]:
        """[n_boot, n_clusters]: how often each prompt is in each resample."""
        return ClusterBootstrap(self.n_clusters, self.n_boot, self.seed).weights

    def resampled(self, sums: ArrayLike) -> NDArray[np.float64]:
        """Totals of every resample, [n_boot] or [n_boot, columns].

        `sums` are the prompts' own: [n_clusters], or [n_clusters, columns] for several at once.
        """
        own = np.asarray(sums, np.float64)
        totals = np.empty((self.n_boot, *own.shape[1:]))
        limit = WORKING_BYTES if own.ndim == 1 else CHUNK_BYTES
        for chunk in row_chunks(self.n_boot, 8 * self.n_clusters, limit):
            totals[chunk] = self.weights[chunk].astype(np.float64) @ own
        return totals

    def estimate(self, value: float, draws: NDArray[np.float64], clusters: ArrayLike) -> Estimate:
        """`value` with the interval of its `draws`; unknown for fewer than two prompts."""
        if len(np.unique(np.asarray(clusters))) < 2:
            return Estimate(value, UNKNOWN_INTERVAL)
        return Estimate(value, percentile_interval(draws, self.confidence))

    def ranked(self, score: ArrayLike, positive: ArrayLike, clusters: ArrayLike) -> "Ranked":
        """Resamples of a ranking: scores, labels and prompts' numbers, all [n]."""
        values, label = np.asarray(score, np.float64), np.asarray(positive, bool)
        of = np.asarray(clusters, np.int64)
        places = np.unique(values, return_inverse=True)[1]
        order = np.argsort(places, kind="stable")
        # equal scores share a class; a class may hold neighbouring scores
        rank = np.empty(len(values), np.int64)
        rank[order] = np.arange(len(values)) * CLASSES // max(len(values), 1)
        first = np.full(places.max(initial=-1) + 1, CLASSES, np.int64)
        np.minimum.at(first, places, rank)
        classes = first[places]
        cell = of * CLASSES + classes
        shape = (self.n_clusters, CLASSES)
        hits = np.bincount(cell[label], minlength=shape[0] * shape[1]).reshape(shape)
        misses = np.bincount(cell[~label], minlength=shape[0] * shape[1]).reshape(shape)
        used = (hits + misses).any(axis=0)
        return Ranked(self, hits[:, used], misses[:, used], of, values, label)

    def share(self, values: ArrayLike, clusters: ArrayLike) -> Estimate:
        """Share of `values` [n] that are true; where all agree, with the exact interval of as many
        trials as there are prompts.
        """
        known = np.asarray(values, np.float64)
        found = self.ratio(known, np.ones(len(known)), clusters)
        n = len(np.unique(np.asarray(clusters)))
        return replace(found, interval=with_width(found.interval, found.value, n, self.confidence))

    def ratio(
        self, top: ArrayLike, bottom: ArrayLike, clusters: ArrayLike, unit: float = 1.0
    ) -> Estimate:
        """Sum of `top` over sum of `bottom` [n], times `unit`; nan if that is over 0."""
        sums = [self._sums(part, clusters) for part in (top, bottom)]
        value = unit * _over(sums[0].sum(), sums[1].sum())
        draws = unit * _over(self.resampled(sums[0]), self.resampled(sums[1]))
        return self.estimate(float(value), draws, clusters)

    def ratio_difference(
        self,
        one: tuple[ArrayLike, ArrayLike],
        other: tuple[ArrayLike, ArrayLike],
        clusters: ArrayLike,
    ) -> Estimate:
        """What `ratio` of one top and bottom [n] is above that of the other."""
        value, draws = 0.0, np.zeros(self.n_boot)
        for sign, (top, bottom) in ((1, one), (-1, other)):
            sums = [self._sums(part, clusters) for part in (top, bottom)]
            value += sign * float(_over(sums[0].sum(), sums[1].sum()))
            draws = draws + sign * _over(self.resampled(sums[0]), self.resampled(sums[1]))
        return self.estimate(value, draws, clusters)

    def quantile(self, values: ArrayLike, clusters: ArrayLike, q: float) -> Estimate:
        """The lowest value that at least the share `q` of `values` [n] does not exceed."""
        known, of = np.asarray(values, np.float64), np.asarray(clusters, np.int64)
        if not len(known):
            return Estimate(float("nan"), UNKNOWN_INTERVAL)
        order = np.argsort(known, kind="stable")
        known, of = known[order], of[order]
        draws = np.empty(self.n_boot)
        for chunk in row_chunks(self.n_boot, QUANTILE_BYTES * len(known), WORKING_BYTES):
            up_to = np.cumsum(self.weights[chunk][:, of], axis=1, dtype=np.float64)
            reached = up_to >= np.maximum(q * up_to[:, -1:], 1e-9)
            draws[chunk] = np.where(up_to[:, -1] > 0, known[reached.argmax(axis=1)], np.nan)
        value = known[max(int(np.ceil(q * len(known))) - 1, 0)]
        return self.estimate(float(value), draws, of)

    def calibration_error(
        self,
        probability: NDArray[np.float64],
        positive: NDArray[np.bool_],
        bins: NDArray[np.intp],
        clusters: ArrayLike,
    ) -> Estimate:
        """Mean distance between probability and frequency over bins (see `calibration_error`)."""
        of, n_bins = np.asarray(clusters, np.int64), CALIBRATION_BINS
        cell = of * n_bins + bins
        size = self.n_clusters * n_bins
        away = np.bincount(cell, weights=probability - positive, minlength=size)
        count = np.bincount(cell, minlength=size).astype(np.float64)
        away, count = away.reshape(-1, n_bins), count.reshape(-1, n_bins)
        value = _over(np.abs(away.sum(axis=0)).sum(), count.sum())
        draws = _over(np.abs(self.resampled(away)).sum(axis=1), self.resampled(count).sum(axis=1))
        return self.estimate(float(value), draws, of)

    def _sums(self, values: ArrayLike, clusters: ArrayLike) -> NDArray[np.float64]:
        of, known = np.asarray(clusters, np.int64), np.asarray(values, np.float64)
        return np.bincount(of, weights=known, minlength=self.n_clusters).astype(np.float64)


@dataclass(frozen=True)
class Ranked:
    """Positives and negatives of each prompt in each class of scores, lowest first."""

    by: Resampler
    hits: NDArray[np.int64]  # [prompts, classes]
    misses: NDArray[np.int64]
    clusters: NDArray[np.int64]
    score: NDArray[np.float64]
    positive: NDArray[np.bool_]

    @cached_property
    def _drawn(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self.by.resampled(self.hits), self.by.resampled(self.misses)

    def auroc(self, value: float) -> Estimate:
        """Not resampled: a ranking that is perfect here would be so in every resample."""
        confidence = self.by.confidence
        _, interval = clustered_auroc(self.score, self.positive, self.clusters, confidence)
        return Estimate(value, interval)

    def average_precision(self, value: float) -> Estimate:
        return self._estimate(value, _average_precision(*self._drawn))

    def base_rate(self, value: float) -> Estimate:
        return self._estimate(value, self._rates())

    def lift(self, value: float) -> Estimate:
        """Average precision over the base rate."""
        return self._estimate(value, _over(_average_precision(*self._drawn), self._rates()))

    def recall_at(self, rate: float) -> Estimate:
        """Share of positives above the lowest score that at most `rate` of the negatives reach."""
        hits, misses = _by_score(self.score, self.positive)
        exact = float(_recall_at(hits[None], misses[None], rate)[0])
        found = self._estimate(exact, _recall_at(*self._drawn, rate))
        n = len(np.unique(self.clusters[self.positive]))
        return replace(found, interval=with_width(found.interval, exact, n, self.by.confidence))

    def _rates(self) -> NDArray[np.float64]:
        hits, misses = (part.sum(axis=1) for part in self._drawn)
        return _over(hits, hits + misses)

    def _estimate(self, value: float, draws: NDArray[np.float64]) -> Estimate:
        return self.by.estimate(value, draws, self.clusters)


def _by_score(
    score: ArrayLike, positive: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How many positives and negatives have each score, lowest first."""
    values, label = np.asarray(score, np.float64), np.asarray(positive, bool)
    places = np.unique(values, return_inverse=True)[1]
    n = int(places.max(initial=-1)) + 1
    counts = (np.bincount(places[rows], minlength=n).astype(float) for rows in (label, ~label))
    hits, misses = counts
    return hits, misses


def _auroc(hits: NDArray[np.float64], misses: NDArray[np.float64]) -> NDArray[np.float64]:
    below = np.cumsum(misses, axis=1) - misses / 2
    pairs = hits.sum(axis=1) * misses.sum(axis=1)
    return _over((hits * below).sum(axis=1), pairs)


def _average_precision(
    hits: NDArray[np.float64], misses: NDArray[np.float64]
) -> NDArray[np.float64]:
    caught = np.cumsum(hits[:, ::-1], axis=1)
    alarms = caught + np.cumsum(misses[:, ::-1], axis=1)
    precision = np.where(alarms > 0, caught / np.maximum(alarms, 1e-9), 0.0)
    return _over((precision * hits[:, ::-1]).sum(axis=1), hits.sum(axis=1))


def _recall_at(
    hits: NDArray[np.float64], misses: NDArray[np.float64], rate: float
) -> NDArray[np.float64]:
    if not hits.shape[1]:
        return np.full(len(hits), np.nan)
    caught = np.cumsum(hits[:, ::-1], axis=1)
    false = np.cumsum(misses[:, ::-1], axis=1)
    allowed = false <= rate * false[:, -1:] + 1e-9
    best = np.where(allowed, caught, 0.0).max(axis=1)
    return np.where(false[:, -1] > 0, _over(best, caught[:, -1]), np.nan)


def _over(top: ArrayLike, bottom: ArrayLike) -> NDArray[np.float64]:
    """Quotient; nan over 0."""
    below = np.asarray(bottom, np.float64)
    quotient: NDArray[np.float64] = np.where(
        below > 0, np.asarray(top, np.float64) / np.where(below > 0, below, 1.0), np.nan
    )
    return quotient
