"""Cluster bootstrap of means: resample prompts, not rows, as one product of weights and sums."""

import math
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvx.stats.intervals import UNKNOWN_INTERVAL, Interval, check_confidence

CHUNK_BYTES = 256 * 2**20
DRAWS_BYTES = 64 * 2**20
CACHE_BYTES = 64 * 2**20  # of resamples that are kept
DRAWING_BYTES = 16 * 2**20
ALIGNED_ROWS = 64  # BLAS sums the rows left over from its blocks in another order
Cell = tuple[ArrayLike, Collection[Hashable]]


@dataclass(frozen=True)
class MeanEstimate:
    """Mean of the scored values; `sd` is the sample standard deviation (ddof 1), nan for n < 2."""

    n: int
    n_clusters: int
    mean: float
    sd: float
    interval: Interval


class ClusterBootstrap:
    """`n_boot` seeded resamples of `n_clusters` clusters, drawn with replacement.

    `weights` [n_boot, n_clusters] says how often each cluster is in each resample; every row sums
    to `n_clusters`. The type is the smallest that holds the counts, one byte in practice. The same
    arguments give the same weights. `seed` is an int or a tuple of ints, all >= 0. Raises
    `ValueError` for n_clusters < 0 or n_boot < 1.

    Source: Field & Welsh (2007), Journal of the Royal Statistical Society B 69, 369-390.
    """

    def __init__(self, n_clusters: int, n_boot: int, seed: int | tuple[int, ...]) -> None:
        if n_clusters < 0:
            raise ValueError(f"n_clusters={n_clusters}: must be at least 0")
        check_n_boot(n_boot)
        rng = np.random.default_rng(seed)
        weights: NDArray[np.unsignedinteger] = np.empty((n_boot, n_clusters), dtype=np.uint8)
        for chunk in row_chunks(n_boot if n_clusters else 0, 8 * n_clusters, DRAWING_BYTES):
            n = chunk.stop - chunk.start
            drawn = rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), n)
            needed = np.min_scalar_type(drawn.max())
            if needed.itemsize > weights.itemsize:
                weights = weights.astype(needed)
            weights[chunk] = drawn
        weights.flags.writeable = False
        self.weights = weights

    def means(self, sums: ArrayLike, counts: ArrayLike) -> NDArray[np.float64]:
        """Mean of every cell in every resample, [cells, n_boot].

        `sums` and `counts` [cells, n_clusters] are those of `cluster_sums`; cells may hold
        different clusters. A resample in which a cell has no value is nan. A cell with values in
        fewer than two clusters is all nan: resampling one cluster returns it unchanged, which would
        look like certainty. Raises `ValueError` on shapes that do not fit.
        """
        totals = np.asarray(sums, dtype=np.float64)
        sizes = np.asarray(counts, dtype=np.float64)
        n_boot, n_clusters = self.weights.shape
        if totals.ndim != 2 or totals.shape != sizes.shape or totals.shape[1] != n_clusters:
            raise ValueError(
                f"sums {totals.shape}, counts {sizes.shape}: both must be [cells, {n_clusters}]"
            )
        known = np.count_nonzero(sizes, axis=1) >= 2
        if len(sizes) and (sizes == sizes[0]).all():
            sizes = sizes[:1]  # one denominator serves every cell: saves the second product
        draws = np.full((len(totals), n_boot), np.nan)
        row_bytes = 8 * (n_clusters + len(totals) + len(sizes))
        for chunk in row_chunks(n_boot, row_bytes, CHUNK_BYTES):
            weights = self.weights[chunk].T.astype(np.float64)
            drawn = sizes @ weights
            np.divide(totals @ weights, drawn, out=draws[:, chunk], where=drawn > 0)
        draws[~known] = np.nan
        return draws


def check_n_boot(n_boot: int) -> None:
    if n_boot < 1:
        raise ValueError(f"n_boot={n_boot}: must be at least 1")


def cluster_codes(clusters: Collection[Hashable]) -> tuple[NDArray[np.intp], int]:
    """Each row's cluster [n], numbered from 0 by first appearance, and the number of clusters.

    The one place that decides which rows belong together: equal names, same cluster. Raises
    `ValueError` for a nan name, which equals nothing, not even itself.
    """
    if isinstance(clusters, np.ndarray) and clusters.dtype.kind in "iu":
        _, first, own = np.unique(clusters, return_index=True, return_inverse=True)
        rank = np.empty(len(first), dtype=np.intp)
        rank[np.argsort(first)] = np.arange(len(first))
        return rank[own], len(first)
    index: dict[Hashable, int] = {}
    codes = np.empty(len(clusters), dtype=np.intp)
    for row, name in enumerate(clusters):
        if name != name:
            raise ValueError(f"clusters: row {row} is nan; every row needs a cluster name")
        codes[row] = index.setdefault(name, len(index))
    return codes, len(index)


def score_array(values: ArrayLike) -> NDArray[np.float64]:
    """`values` as float64, nan meaning unscored. Raises `ValueError` for an infinite value."""
    scores = np.asarray(values, dtype=np.float64)
    if np.isinf(scores).any():
        raise ValueError("values: must be finite, or nan where there is no score")
    return scores


def cluster_sums(
    values: ArrayLike, clusters: Collection[Hashable]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Total and number of the scored `values` in each cluster.

    `values` [n] gives two arrays [c]; [cells, n] gives two arrays [cells, c]. Columns are in
    `cluster_codes` order; nan values are left out, so a cluster may have count 0. The order of rows
    within a cluster changes no bit. Raises `ValueError` on shapes that do not fit and on infinite
    values.
    """
    scores = score_array(values)
    codes, n_clusters = cluster_codes(clusters)
    if scores.ndim not in (1, 2) or scores.shape[-1] != len(codes):
        raise ValueError(f"values {scores.shape}: need [n] or [cells, n] with n={len(codes)} rows")
    cells = np.atleast_2d(scores)
    order = np.argsort(cells, axis=1)  # adding by size makes the sum independent of row order
    ordered = np.take_along_axis(cells, order, axis=1)
    scored = ~np.isnan(ordered)
    slots = (np.arange(len(cells))[:, None] * n_clusters + codes[order])[scored]
    size, shape = len(cells) * n_clusters, (*scores.shape[:-1], n_clusters)
    sums = np.bincount(slots, weights=ordered[scored], minlength=size).astype(np.float64)
    counts = np.bincount(slots, minlength=size).astype(np.int64)
    return sums.reshape(shape), counts.reshape(shape)


def resampled_means(
    values: ArrayLike, clusters: Collection[Hashable], n_boot: int, seed: int | tuple[int, ...]
) -> NDArray[np.float64]:
    """Bootstrap means [cells, n_boot] of `values` [cells, n]; all cells share the resamples.

    The order of rows and the names of clusters do not matter. nan and errors are those of
    `cluster_sums` and `ClusterBootstrap.means`.
    """
    sums, counts = cluster_sums(np.atleast_2d(score_array(values)), clusters)
    held = counts.any(axis=0)
    sums, counts = sums[:, held], counts[:, held]
    # clusters get weights by content, not by name or place; resamples are exchangeable
    order = np.lexsort(np.vstack([sums, counts]))
    bootstrap = _cached_bootstrap(sums.shape[1], n_boot, seed)
    return bootstrap.means(sums[:, order], counts[:, order])


def percentile_intervals(draws: ArrayLike, confidence: float) -> list[Interval]:
    """Percentile interval of each cell's `draws` [cells, n_boot], nan draws ignored.

    A cell with no draw left gets (nan, nan). Raises `ValueError` unless 0 < confidence < 1.

    Source: Efron & Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.
    """
    check_confidence(confidence)
    cells = np.asarray(draws, dtype=np.float64)
    if cells.ndim != 2:
        raise ValueError(f"draws {cells.shape}: need [cells, n_boot]")
    drawn = ~np.isnan(cells)
    known = drawn.any(axis=1)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    bounds = np.full((2, len(cells)), np.nan)
    if known.any():
        quantile = np.quantile if drawn[known].all() else np.nanquantile
        bounds[:, known] = quantile(cells[known], tails, axis=1)
    return [Interval(float(low), float(high)) for low, high in bounds.T]


def percentile_interval(draws: ArrayLike, confidence: float) -> Interval:
    """Percentile interval of one set of `draws` [n_boot]; see `percentile_intervals`."""
    return percentile_intervals(np.asarray(draws, dtype=np.float64)[None], confidence)[0]


def bootstrap_means(
    cells: Sequence[Cell], n_boot: int, confidence: float, seed: int | tuple[int, ...]
) -> list[MeanEstimate]:
    """Mean of each cell's values [n], with the percentile interval of a cluster bootstrap.

    nan values (unscored) are left out, of n too. Fewer than two clusters give a (nan, nan)
    interval. Below about 20 clusters a percentile interval is too narrow, and equal values give one
    of width zero; for a rate of independent rows `clopper_pearson` has neither fault. Cells with
    equally many clusters share one product of weights and sums, and cells with equal clusters are
    resampled once: thousands of cells take seconds. Raises `ValueError` on lengths that differ,
    infinite values, n_boot < 1 or a confidence outside (0, 1).
    """
    check_confidence(confidence)
    check_n_boot(n_boot)
    contents = [_Content.of(*cell) for cell in cells]
    alike: dict[int, dict[bytes, _Content]] = defaultdict(dict)
    for content in contents:
        alike[content.n_clusters].setdefault(content.key, content)
    intervals: dict[bytes, Interval] = {}
    for n_clusters, distinct in alike.items():
        found = _intervals(list(distinct.values()), n_clusters, n_boot, confidence, seed)
        intervals |= dict(zip(distinct, found, strict=True))
    return [
        MeanEstimate(
            n=content.values.size,
            n_clusters=content.n_clusters,
            mean=float(content.values.mean()) if content.values.size else math.nan,
            sd=float(content.values.std(ddof=1)) if content.values.size >= 2 else math.nan,
            interval=intervals[content.key],
        )
        for content in contents
    ]


@dataclass(frozen=True)
class _Content:
    """A cell's sorted values, and its clusters' totals and sizes, sorted too: names of clusters and
    the order of rows do not matter.
    """

    values: NDArray[np.float64]
    sums: NDArray[np.float64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, values: ArrayLike, clusters: Collection[Hashable]) -> "_Content":
        scores = score_array(values)
        if scores.ndim != 1:
            raise ValueError(f"values {scores.shape}: need [n]")
        sums, counts = cluster_sums(scores, clusters)
        held = np.flatnonzero(counts)
        place = held[np.lexsort((sums[held], counts[held]))]
        return cls(np.sort(scores[~np.isnan(scores)]), sums[place], counts[place])

    @property
    def n_clusters(self) -> int:
        return len(self.sums)

    @property
    def key(self) -> bytes:
        return self.sums.tobytes() + self.counts.tobytes()


def _intervals(
    contents: Sequence[_Content],
    n_clusters: int,
    n_boot: int,
    confidence: float,
    seed: int | tuple[int, ...],
) -> list[Interval]:
    """Percentile intervals of cells that hold `n_clusters` each."""
    if n_clusters < 2:
        return [UNKNOWN_INTERVAL] * len(contents)
    bootstrap = _cached_bootstrap(n_clusters, n_boot, seed)
    found: list[Interval] = []
    step = max(1, DRAWS_BYTES // (8 * n_boot))
    for start in range(0, len(contents), step):
        part = contents[start : start + step]
        sums, counts = np.stack([c.sums for c in part]), np.stack([c.counts for c in part])
        draws = bootstrap.means(sums, counts)
        found += percentile_intervals(draws, confidence)
    return found


def _cached_bootstrap(
    n_clusters: int, n_boot: int, seed: int | tuple[int, ...]
) -> ClusterBootstrap:
    """The same resamples for the same arguments, drawn once while they fit `CACHE_BYTES`.

    Curves over many bins need the same ones again and again: one for each bin.
    """
    key = n_clusters, n_boot, seed
    found = _drawn.pop(key, None) or ClusterBootstrap(n_clusters, n_boot, seed)
    _drawn[key] = found  # the latest
    while len(_drawn) > 1 and sum(one.weights.nbytes for one in _drawn.values()) > CACHE_BYTES:
        del _drawn[next(iter(_drawn))]
    return found


_drawn: dict[tuple[int, int, int | tuple[int, ...]], ClusterBootstrap] = {}


def row_chunks(n_rows: int, row_bytes: int, chunk_bytes: int) -> Iterator[slice]:
    """Slices of `n_rows` rows that hold at most `chunk_bytes` each, or a single row.

    Full slices hold a multiple of `ALIGNED_ROWS` rows where that many fit, so that a product of a
    matrix and a vector has the same last bit as in one piece.
    """
    step = max(1, chunk_bytes // max(1, row_bytes))
    if step > ALIGNED_ROWS:
        step -= step % ALIGNED_ROWS
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))
