"""Budgets whose scores scatter more, or whose requests fail more, before the mean has fallen."""

from collections.abc import Collection, Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from kvx.stats.bootstrap import score_array
from kvx.stats.clustered import paired_difference

SPREAD, FAILURES = "spread", "failures"


@dataclass(frozen=True)
class Rise:
    """How much more of a thing (`what`) there is at the budget `index` than with the full cache.

    `change` is in score units (sd) or a share; `p` is one-sided and uncorrected, nan where there
    are too few clusters.
    """

    index: int
    what: str
    change: float
    p: float


def rises(
    scores: ArrayLike, failed: ArrayLike, clusters: Collection[Hashable], drop: float
) -> list[Rise]:
    """The changes of spread and failures at the budgets whose mean has not fallen by `drop`.

    `scores` and `failed` [k, n] are of the same n examples at each budget, the full cache first;
    nan is unscored. Spread is the standard deviation of graded scores, tested by the distances from
    the budget's mean (Levene's test, paired and over clusters); that of 0/1 scores is a function of
    their mean, and is left out. Raises `ValueError` on shapes that do not fit and drop <= 0.

    Source: Levene (1960), in Contributions to Probability and Statistics, 278-292.
    """
    table, fails = score_array(scores), np.asarray(failed, dtype=np.float64)
    if table.ndim != 2 or table.shape != fails.shape or table.shape[1] != len(clusters):
        raise ValueError(f"scores {table.shape}, failed {fails.shape}: need [k, n] each")
    if not drop > 0:
        raise ValueError(f"drop={drop}: must be above 0")
    known = table[~np.isnan(table)]
    graded = not np.isin(known, (0, 1)).all()
    found = []
    for i in range(1, len(table)):
        both = ~np.isnan(table[0] - table[i])
        if not both.any() or table[0, both].mean() - table[i, both].mean() >= drop:
            continue
        sides = {FAILURES: fails[[i, 0]]}
        if graded:
            pair = np.where(both, table[[i, 0]], np.nan)
            sides[SPREAD] = np.abs(pair - np.nanmean(pair, axis=1, keepdims=True))
        for what, (here, full) in sides.items():
            test = paired_difference(here, full, clusters, 0.95, bounds=None)
            change = test.difference
            if what == SPREAD:
                change = float(np.nanstd(pair[0]) - np.nanstd(pair[1]))
            p = test.p / 2 if test.difference > 0 else 1 - test.p / 2
            found.append(Rise(i, what, change, p))
    return found
