"""Corrects the p-values of tables for how many tests they hold."""

from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvx.analyze.columns import ALL_BINS, is_full
from kvx.config.analyze import Family
from kvx.stats.multiplicity import benjamini_hochberg, holm

Row = dict[str, Any]
Correction = Callable[[ArrayLike], NDArray[np.float64]]
SHARED: dict[Family, tuple[str, ...]] = {  # columns in which the rows of a family agree
    Family.experiment: (),
    Family.variant: ("variant_id",),
    Family.curve: ("variant_id", "press", "controller", "seed", "budget_kind"),
}


def correct_comparisons(rows: list[Row], family: Family) -> list[Row]:
    """Adds `p_holm`, `p_bh` and `interaction_p_bh` to rows of comparisons.

    `p_holm` is of the declared family: compressed points, all bins together, the primary metric.
    `p_bh` is of what is explored: per metric all points together, and all points × bins. A point
    asked for its full cache compresses nothing, so it is no hypothesis.
    """
    tested = [row for row in rows if not is_full(row)]
    declared = [row for row in tested if row["primary"] and row["bin"] == ALL_BINS]
    correct(declared, "p", "p_holm", holm, SHARED[family])
    for row in tested:
        row["overall"] = row["bin"] == ALL_BINS
    correct(tested, "p", "p_bh", benjamini_hochberg, ("metric", "overall"))
    overall = [row for row in tested if row.pop("overall")]
    correct(overall, "interaction_p", "interaction_p_bh", benjamini_hochberg, ("metric",))
    return rows


def correct(
    rows: list[Row], source: str, target: str, correction: Correction, same: tuple[str, ...]
) -> None:
    """Puts the corrected `source` of each row into `target`; rows alike in `same` are a family."""
    families: dict[tuple[Hashable, ...], list[Row]] = defaultdict(list)
    for row in rows:
        families[tuple(row[name] for name in same)].append(row)
    for family in families.values():
        p = [np.nan if row.get(source) is None else row[source] for row in family]
        for row, corrected in zip(family, correction(p).tolist(), strict=True):
            row[target] = None if np.isnan(corrected) else corrected
