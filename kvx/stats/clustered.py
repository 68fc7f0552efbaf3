"""Means and paired differences of prompts that come in clusters (questions on one text).

Exact methods where the rows are independent and every score is 0 or 1; else Student's t over the
clusters, with a test that flips the signs of their sums. With too few clusters neither is given.

Thousands of cells are computed together: those with the same rows and clusters as one array.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvx.stats.bootstrap import Cell, cluster_codes, cluster_sums, row_chunks, score_array
from kvx.stats.cluster_intervals import (
    ALL_ALIKE,
    CLUSTER_T,
    KORN_GRAUBARD,
    Bounds,
    alike_ends,
    padded_ends,
    t_ends,
)
from kvx.stats.intervals import UNKNOWN_INTERVAL, Interval, check_confidence, exact_ends
from kvx.stats.paired import mcnemar_ps, newcombe_ends
from kvx.stats.sign_flips import sign_flip_p

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Pair = tuple[ArrayLike, ArrayLike, Collection[Hashable]]
T = TypeVar("T")

LEAST_CLUSTERS = 8  # below, an interval over clusters covers far less than it says
ROUNDING = 1e-12  # of a total, to which wins and losses balance
TOGETHER_BYTES = 4 * 2**20  # of the values of cells that are computed together

CLOPPER_PEARSON, NEWCOMBE = "clopper_pearson", "newcombe"
TOO_FEW, NO_DATA = "too_few_clusters", "no_data"


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
    return means([(values, clusters)], confidence, bounds, binary)[0]


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
    return paired_differences([(a, b, clusters)], confidence, bounds, binary)[0]


def means(
    cells: Sequence[Cell],
    confidence: float,
    bounds: Bounds = (0.0, 1.0),
    binary: bool | Sequence[bool] | None = None,
) -> list[Mean]:
    """`mean` of each (values, clusters) of `cells`; `binary` may be said of each."""
    check_confidence(confidence)

    def together(
        sides: list[Floats], codes: NDArray[np.intp], some: NDArray[np.intp]
    ) -> list[Mean]:
        check_bounds(sides[0], bounds)
        return _means(sides[0], codes, confidence, bounds, _of(binary, some, len(cells)))

    return by_clusters(cells, together)


def paired_differences(
    pairs: Sequence[Pair],
    confidence: float,
    bounds: Bounds = (0.0, 1.0),
    binary: bool | Sequence[bool] | None = None,
) -> list[Difference]:
    """`paired_difference` of each (a, b, clusters) of `pairs`; `binary` may be said of each."""
    check_confidence(confidence)

    def together(
        sides: list[Floats], codes: NDArray[np.intp], some: NDArray[np.intp]
    ) -> list[Difference]:
        left, right = sides
        check_bounds(left, bounds)
        check_bounds(right, bounds)
        told = _of(binary, some, len(pairs))
        return _differences(left, right, codes, confidence, bounds, told)

    return by_clusters(pairs, together)


def check_bounds(values: Floats, bounds: tuple[float, float] | None) -> None:
    """Raises `ValueError` if one of `values` lies outside `bounds`."""
    if bounds is not None and ((values < bounds[0]) | (values > bounds[1])).any():
        worst = values[(values < bounds[0]) | (values > bounds[1])][0]
        raise ValueError(f"{worst:g} lies outside the metric's range [{bounds[0]}, {bounds[1]}]")


def _of(binary: bool | Sequence[bool] | None, some: NDArray[np.intp], n: int) -> Bools | None:
    """What is said of `some` of `n` cells."""
    return None if binary is None else np.broadcast_to(np.asarray(binary, dtype=bool), n)[some]


def by_clusters(
    cells: Sequence[tuple[Any, ...]],
    function: Callable[[list[Floats], NDArray[np.intp], NDArray[np.intp]], list[T]],
) -> list[T]:
    """`function` of all cells that have the same rows and clusters at once; in the cells' order.

    A cell is one or two sides of [n] values and their clusters. `function` gets the sides [m, n],
    each row's cluster [n] by number, and the numbers [m] of the cells. Raises `ValueError` for
    infinite values and on lengths that differ.
    """
    alike: dict[bytes, list[int]] = defaultdict(list)
    codes_of: dict[int, bytes] = {}  # by identity: many cells share one collection
    scores: list[list[Floats]] = []
    for i, (*sides, names) in enumerate(cells):
        scores.append([score_array(side) for side in sides])
        if id(names) not in codes_of:
            codes_of[id(names)] = cluster_codes(names)[0].tobytes()
        shapes = {side.shape for side in scores[-1]}
        if shapes != {(len(names),)}:
            raise ValueError(f"values {sorted(shapes)}: must pair up, with {len(names)} clusters")
        alike[codes_of[id(names)]].append(i)
    found: dict[int, T] = {}
    for key, same in alike.items():
        codes = np.frombuffer(key, np.intp)
        for chunk in row_chunks(len(same), 8 * len(codes) + 8, TOGETHER_BYTES):
            some = same[chunk]
            stacked = [np.stack(side) for side in zip(*(scores[i] for i in some), strict=True)]
            found |= zip(some, function(stacked, codes, np.array(some)), strict=True)
    return [found[i] for i in range(len(cells))]


def _means(
    scores: Floats,
    codes: NDArray[np.intp],
    confidence: float,
    bounds: Bounds,
    binary: Bools | None,
) -> list[Mean]:
    """Of each row of `scores` [m, n]."""
    known = ~np.isnan(scores)
    sums, counts = _by_size(*sums_of(scores, known, codes))
    n, groups = known.sum(axis=1), (counts > 0).sum(axis=1)
    found = _row_means(scores, known, n)
    off = np.where(known, scores - found[:, None], 0.0)
    sd = np.full(len(n), np.nan)
    np.sqrt((off**2).sum(axis=1) / np.maximum(n - 1, 1), out=sd, where=n > 1)
    zero_one = _zero_one(scores, known) if binary is None else binary
    low, high = np.full((2, len(n)), np.nan)
    method = np.where(n > 0, TOO_FEW, NO_DATA).astype(object)

    def fill(chosen: Bools, name: str, ends: Callable[[Bools], tuple[Floats, Floats]]) -> None:
        if chosen.any():
            low[chosen], high[chosen] = ends(chosen)
            method[chosen] = name

    exact = zero_one & (groups == n) & (n > 0)
    fill(
        exact, CLOPPER_PEARSON, lambda c: exact_ends(np.rint(sums[c].sum(axis=1)), n[c], confidence)
    )
    rest = ~exact & (groups >= LEAST_CLUSTERS)
    alike = rest & _alike(scores, known)
    fill(
        alike,
        ALL_ALIKE,
        lambda c: alike_ends(_first(scores, known, c), groups[c], confidence, bounds),
    )
    rest &= ~alike
    if bounds is None:
        none = np.zeros(len(n))
        fill(
            rest,
            CLUSTER_T,
            lambda c: t_ends(sums[c], counts[c], groups[c], confidence, None, none[c]),
        )
    else:
        fill(
            rest,
            KORN_GRAUBARD,
            lambda c: padded_ends(sums[c], counts[c], groups[c], confidence, bounds),
        )
    return [
        Mean(k, g, average, spread, _interval(a, b), name)
        for k, g, average, spread, a, b, name in _rows(n, groups, found, sd, low, high, method)
    ]


def _differences(
    left: Floats,
    right: Floats,
    codes: NDArray[np.intp],
    confidence: float,
    bounds: Bounds,
    binary: Bools | None,
) -> list[Difference]:
    """Of each row of `left` and `right` [m, n]."""
    apart = left - right
    known = ~np.isnan(apart)
    sums, counts = _by_size(*sums_of(apart, known, codes))
    n, groups = known.sum(axis=1), (counts > 0).sum(axis=1)
    lost, won = (left < right).sum(axis=1), (left > right).sum(axis=1)
    zero_one = binary
    if zero_one is None:
        zero_one = _zero_one(left, known) & _zero_one(right, known)
    low, high, p = np.full((3, len(n)), np.nan)
    method = np.where(n > 0, TOO_FEW, NO_DATA).astype(object)
    exact = zero_one & (groups == n)
    if (counted := exact & (n > 0)).any():
        both = np.where(known, left * right, 0.0)[counted].sum(axis=1).astype(np.int64)
        b, c = lost[counted], won[counted]
        neither = n[counted] - both - b - c
        low[counted], high[counted] = newcombe_ends(both, b, c, neither, confidence)
        p[counted], method[counted] = mcnemar_ps(b, c), NEWCOMBE
    rest = ~exact & (groups >= LEAST_CLUSTERS)
    reach = None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
    alike = rest & _alike(apart, known)
    if alike.any():
        values = _first(apart, known, alike)
        low[alike], high[alike] = alike_ends(values, groups[alike], confidence, reach)
        method[alike] = ALL_ALIKE
    t = rest & ~alike
    if t.any():
        added = _added(sums[t], n[t] / groups[t], reach)
        low[t], high[t] = t_ends(sums[t], counts[t], groups[t], confidence, reach, added)
        method[t] = CLUSTER_T
    p[rest] = [sign_flip_p(sums[i][counts[i] > 0]) for i in np.flatnonzero(rest)]
    mean_a, mean_b = (_row_means(np.where(known, side, np.nan), known, n) for side in (left, right))
    difference = np.divide(sums.sum(axis=1), n, out=np.full(len(n), np.nan), where=n > 0)
    means_of = _rows(n, groups, mean_a, mean_b, difference)
    tests = _rows(low, high, p, method, lost, won, exact)
    return [
        Difference(k, g, ours, theirs, d, _interval(a, b), p_, name, n_lost, n_won, is_exact)
        for (k, g, ours, theirs, d), (a, b, p_, name, n_lost, n_won, is_exact) in zip(
            means_of, tests, strict=True
        )
    ]


def _rows(*columns: NDArray[Any]) -> Iterator[tuple[Any, ...]]:
    """Plain values of one cell after the other."""
    return zip(*(column.tolist() for column in columns), strict=True)


def _interval(low: float, high: float) -> Interval:
    return UNKNOWN_INTERVAL if math.isnan(low) else Interval(low, high)


def sums_of(values: Floats, known: Bools, codes: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """Sums and counts [m, c] of the clusters, both 0 where a cell has none."""
    if len(np.unique(codes)) == len(codes):
        return np.where(known, values, 0.0), known.astype(np.float64)
    sums, counts = cluster_sums(values, codes)
    return sums, counts.astype(np.float64)


def _by_size(sums: Floats, counts: Floats) -> tuple[Floats, Floats]:
    """Each row in an order that names and places of clusters do not change."""
    if (counts == counts[:1, :1]).all():
        return np.sort(sums, axis=1), counts
    order = np.lexsort((sums, counts), axis=1)
    return np.take_along_axis(sums, order, axis=1), np.take_along_axis(counts, order, axis=1)


def _row_means(values: Floats, known: Bools, n: NDArray[np.int64]) -> Floats:
    """Mean of the known `values` [m, n] of each row, added by size; nan without one."""
    ordered = np.nan_to_num(np.sort(values, axis=1), nan=0.0)
    means: Floats = np.divide(ordered.sum(axis=1), n, out=np.full(len(n), np.nan), where=n > 0)
    return means


def _zero_one(values: Floats, known: Bools) -> Bools:
    """Of each row, whether what is known is 0 or 1."""
    found: Bools = ((values == 0) | (values == 1) | ~known).all(axis=1)
    return found


def _alike(values: Floats, known: Bools) -> Bools:
    """Of each row, whether all that is known is the same."""
    low = np.where(known, values, np.inf).min(axis=1, initial=np.inf)
    found: Bools = low == np.where(known, values, -np.inf).max(axis=1, initial=-np.inf)
    return found


def _first(values: Floats, known: Bools, chosen: Bools) -> Floats:
    """The first known value of each of the `chosen` rows, which have one."""
    rows = np.flatnonzero(chosen)
    found: Floats = values[rows, known[rows].argmax(axis=1)]
    return found


def _added(sums: Floats, size: Floats, reach: Bounds) -> Floats:
    """The sum of the clusters added to each cell (see `t_interval`), `size` the mean of clusters.

    0 where wins balance losses. Where all clusters differ to one side it is the largest sum to be
    reckoned with: the largest seen, moved towards the largest possible by 1 / (k + 1), because k
    clusters that differ say little of how far others may (Laplace's rule of succession).
    """
    sizes = np.abs(sums)
    total = sizes.sum(axis=1)
    share = np.abs(sums.sum(axis=1)) / np.where(total > 0, total, 1.0)
    share[share < ROUNDING] = 0.0
    if reach is None:
        without: Floats = sizes.max(axis=1) * share
        return without
    largest = reach[1] * size
    seen = np.minimum(sizes.max(axis=1), largest)
    added: Floats = share * (seen + (largest - seen) / (np.count_nonzero(sizes, axis=1) + 1))
    return added
