"""The budget at which quality breaks: tested steps, and the classic rule with its support."""

import math
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvx.stats.bootstrap import check_n_boot, cluster_codes, resampled_means, score_array
from kvx.stats.clustered import paired_difference
from kvx.stats.multiplicity import holm

TOLERANCE = 1e-9  # 0.95 - 0.80 is 0.1499999999999999 in floats, and counts as 0.15


@dataclass(frozen=True)
class Transition:
    """The transition `budget` and the fall (`drop`, score units) there; both None if there is none.

    `support` is the share of resamples with the same answer, `support_any` the share that name any
    budget, `support_by_budget` the shares that name each budget below the highest. All are nan
    where the data cannot say (see `find_transition`).
    """

    budget: float | None
    drop: float | None
    support: float
    support_any: float
    support_by_budget: dict[float, float]


@dataclass(frozen=True)
class Step:
    """A step of a curve from the budget with index `above` down to the one with index `below`.

    `drop` is how far the mean falls over the examples scored at both (score units); `p` that of
    `paired_difference`, corrected (Holm) over the steps of the curve; nan where it has none.
    """

    above: int
    below: int
    drop: float
    p: float


def curve_steps(scores: ArrayLike, clusters: Collection[Hashable]) -> list[Step]:
    """The steps between neighbouring budgets of `scores` [k, n], highest first, each tested.

    Budgets descend along the first axis; a budget without any score is passed over. `clusters` [n]
    are the examples'; nan is unscored. Raises `ValueError` on shapes that do not fit and infinite
    scores.
    """
    table = score_array(scores)
    if table.ndim != 2 or table.shape[1] != len(clusters):
        raise ValueError(f"scores {table.shape}: need [k, n] with n={len(clusters)} clusters")
    scored = np.flatnonzero(~np.isnan(table).all(axis=1))
    pairs = list(zip(scored[:-1].tolist(), scored[1:].tolist(), strict=True))
    found = [paired_difference(table[j], table[i], clusters, 0.95, bounds=None) for i, j in pairs]
    corrected = holm([difference.p for difference in found])
    return [
        Step(above, below, -difference.difference, float(p))
        for (above, below), difference, p in zip(pairs, found, corrected, strict=True)
    ]


def first_break(steps: Sequence[Step], drop: float, alpha: float) -> Step | None:
    """The first (highest) step that falls by at least `drop` (score units) with p ≤ `alpha`.

    Raises `ValueError` unless drop > 0.
    """
    _check_positive(drop=drop)
    return next((s for s in steps if s.drop >= drop - TOLERANCE and s.p <= alpha), None)


def find_transition(
    budgets: Sequence[float],
    scores: ArrayLike,
    bins: ArrayLike,
    clusters: Collection[Hashable],
    drop: float,
    n_boot: int,
    seed: int,
) -> Transition:
    """The classic rule: the first (highest) budget whose mean of bin means is at least `drop` below
    the one above it. It tests nothing; see `curve_steps`.

    `budgets` [k] descend strictly; `scores` [k, n] are of the same n examples at each budget, nan
    where unscored; `bins` [n] and `clusters` [n] are the examples'; `drop` > 0 is in score units. A
    fall is taken over the bins scored at both budgets; a budget without any score is passed over.

    For support, clusters are resampled within each bin, so every bin keeps its weight; a cluster in
    several bins is resampled in each alone. Support is nan with fewer than two scored budgets, and
    where a bin has scores from fewer than two clusters at some budget, since it could not vary.

    Raises `ValueError` on budgets that do not descend, shapes that do not fit, drop <= 0,
    n_boot < 1 and infinite scores.

    Source of the rule: KV Transition (its classic rule used 0.15 and no resampling).
    """
    series = _descending(budgets)
    table = score_array(scores)
    labels = np.asarray(bins)
    codes, _ = cluster_codes(clusters)
    if table.shape != (len(series), len(codes)) or labels.shape != codes.shape:
        raise ValueError(
            f"scores {table.shape}, bins {labels.shape}: need [{len(series)}, n] and [n] "
            f"with n={len(codes)} clusters"
        )
    _check_positive(drop=drop)
    check_n_boot(n_boot)
    scored = ~np.isnan(table).all(axis=1)
    table, kept = table[scored], series[scored]
    below = [float(b) for b in series[1:]]
    if len(kept) < 2:
        return Transition(None, None, math.nan, math.nan, dict.fromkeys(below, math.nan))

    observed = _bin_means(table, labels)
    draws = np.stack(
        [
            resampled_means(table[:, rows], codes[rows].tolist(), n_boot, (seed, position))
            for position, rows in enumerate(_rows_by_bin(labels))
        ]
    )
    falls = _falls(observed)
    step = int(_first_fall(falls, drop))
    budget = float(kept[step + 1]) if step >= 0 else None
    fall = float(falls[step]) if step >= 0 else None
    if (~np.isnan(observed) & np.isnan(draws).all(axis=-1)).any():
        return Transition(budget, fall, math.nan, math.nan, dict.fromkeys(below, math.nan))

    steps = _first_fall(_falls(draws), drop)
    shares = dict.fromkeys(below, 0.0)
    shares |= {float(b): float((steps == i).mean()) for i, b in enumerate(kept[1:])}
    agreeing, any_ = float((steps == step).mean()), float((steps >= 0).mean())
    return Transition(budget, fall, agreeing, any_, shares)


def _descending(budgets: Sequence[float]) -> NDArray[np.float64]:
    series = np.asarray(budgets, dtype=np.float64)
    if series.ndim != 1 or not (np.diff(series) < 0).all():
        raise ValueError(f"budgets={list(budgets)}: must be strictly descending")
    return series


def _check_positive(**thresholds: float) -> None:
    for name, value in thresholds.items():
        if not value > 0:
            raise ValueError(f"{name}={value}: must be above 0")


def _rows_by_bin(labels: NDArray[np.generic]) -> list[NDArray[np.intp]]:
    names, numbers = np.unique(labels, return_inverse=True)
    return [np.flatnonzero(numbers == number) for number in range(len(names))]


def _bin_means(table: NDArray[np.float64], labels: NDArray[np.generic]) -> NDArray[np.float64]:
    """Mean score of each bin at each budget, [bins, k], of `table` [k, n]."""
    bins = _rows_by_bin(labels)
    means = [_mean_of_scored(table[:, rows], axis=1) for rows in bins]
    return np.stack(means) if means else np.empty((0, len(table)))


def _mean_of_scored(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Mean along `axis` without nan; nan where nothing is left."""
    n = np.count_nonzero(~np.isnan(values), axis=axis)
    means = np.full(n.shape, np.nan)
    np.divide(np.nansum(values, axis=axis), n, out=means, where=n > 0)
    return means


def _falls(bin_means: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each budget is below the one above, [k - 1, ...], of `bin_means` [bins, k, ...]."""
    return _mean_of_scored(bin_means[:, :-1] - bin_means[:, 1:], axis=0)


def _first_fall(falls: NDArray[np.float64], drop: float) -> NDArray[np.intp]:
    """Index along the first axis of the first fall of at least `drop`; -1 without one."""
    fell = falls >= drop - TOLERANCE
    return np.where(fell.any(axis=0), fell.argmax(axis=0), -1)
