"""Paired statistics of two results, as rows of one table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.compare.pairing import Pairs, clusters, pairs
from kvx.compare.results import Result
from kvx.errors import UserError
from kvx.stats.clustered import Difference, paired_difference
from kvx.stats.multiplicity import holm

UNIT = (0.0, 1.0)


@dataclass(frozen=True)
class Comparison:
    """`b` against `a`: differences are b - a. `lost` are pairs where `b` is worse.

    In `headline` a missing answer counts as the metric's worst value, where it has one (scores
    between 0 and 1, then `bounded`); `complete` are the pairs with both answers. Where one side
    alone is a full cache, the `reference`, pairs without its answer are left out of both: there is
    nothing to lose. `only_a` and `only_b` count examples without a partner; they are in neither.
    """

    a: Result
    b: Result
    metric_a: str
    metric_b: str
    higher_is_better: bool
    pairs: Pairs
    scores_a: NDArray[np.float64]
    scores_b: NDArray[np.float64]
    clusters: NDArray[np.object_]
    headline: Difference
    complete: Difference
    bounded: bool

    @property
    def reference(self) -> str | None:
        return _reference(self.a, self.b)

    @property
    def missing_a(self) -> int:
        return int(np.isnan(self.scores_a).sum())

    @property
    def missing_b(self) -> int:
        return int(np.isnan(self.scores_b).sum())

    @property
    def only_a(self) -> int:
        return len(self.a.examples) - len(self.pairs.a)

    @property
    def only_b(self) -> int:
        return len(self.b.examples) - len(self.pairs.b)

    @property
    def lost_and_won(self) -> tuple[int, int]:
        found = self.headline.n_lost, self.headline.n_won
        return found if self.higher_is_better else found[::-1]


def compare(
    a: Result, b: Result, metric: str | None, metric_b: str | None, confidence: float
) -> Comparison | None:
    """The comparison by one metric; None without a common example.

    Raises `UserError` for a metric that a side lacks, and one whose direction the sides tell
    otherwise.
    """
    names = metric_names(a, b, metric, metric_b)
    directions = a.higher_is_better[names[0]], b.higher_is_better[names[1]]
    if directions[0] != directions[1]:
        raise UserError(
            f"compare.metric: {names[0]} of {a.path} and {names[1]} of {b.path} are not better in "
            "the same direction"
        )
    paired = pairs(a, b)
    if not len(paired.a):
        return None
    groups = clusters(a, b, paired)
    ours = a.scores[names[0]].to_numpy(dtype=np.float64)[paired.a]
    theirs = b.scores[names[1]].to_numpy(dtype=np.float64)[paired.b]
    known = np.concatenate([ours, theirs])
    known = known[~np.isnan(known)]
    bounds = UNIT if ((known >= 0) & (known <= 1)).all() else None
    complete = paired_difference(theirs, ours, groups, confidence, bounds)
    headline = complete
    if bounds is not None:
        worst = 0.0 if directions[0] else 1.0
        reference = _reference(a, b)
        filled = [
            side if name == reference else np.where(np.isnan(side), worst, side)
            for name, side in (("b", theirs), ("a", ours))
        ]
        headline = paired_difference(filled[0], filled[1], groups, confidence, bounds)
    return Comparison(
        a, b, *names, directions[0], paired, ours, theirs, groups, headline, complete,
        bounds is not None,
    )  # fmt: skip


def _reference(a: Result, b: Result) -> str | None:
    """The side that is a full cache, if the other is not."""
    if a.is_full == b.is_full:
        return None
    return "a" if a.is_full else "b"


def metric_names(a: Result, b: Result, metric: str | None, metric_b: str | None) -> tuple[str, str]:
    """What each side calls the metric: the one asked for, or the first one of `a` that both have.

    Where they have none in common, each side's primary metric. Raises `UserError` for a name that a
    side lacks.
    """
    common = [name for name in a.scores.columns if name in b.scores.columns]
    first = metric or (common[0] if common else str(a.scores.columns[0]))
    second = metric_b or metric or (common[0] if common else str(b.scores.columns[0]))
    for result, name, field in ((a, first, "metric"), (b, second, "metric_b")):
        if name not in result.scores.columns:
            there = ", ".join(result.scores.columns)
            raise UserError(
                f"compare.{field}={name}: {result.path} is not scored by it; there are {there}"
            )
    return first, second


def matches(left: Sequence[Result], right: Sequence[Result]) -> list[tuple[Result, Result]]:
    """Which results are compared: everything with a single one, else those of one place.

    A property of the places (press, budget, task …) must be equal where both sides have a value of
    it in common; a property of which they share no value tells nothing, such as the model where two
    models are compared.
    """
    if len(left) == 1 or len(right) == 1:
        return [(a, b) for a in left for b in right]
    shared = [
        name
        for name in left[0].place
        if {r.place.get(name) for r in left} & {r.place.get(name) for r in right} - {None}
    ]
    return [
        (a, b)
        for a in left
        for b in right
        if all(a.place.get(name) == b.place.get(name) for name in shared)
    ]


def corrected(comparisons: Sequence[Comparison]) -> NDArray[np.float64]:
    """Holm's p of every comparison: they are one family."""
    return holm([c.headline.p for c in comparisons])


def corrected_complete(comparisons: Sequence[Comparison]) -> NDArray[np.float64]:
    """The same of the pairs with both answers."""
    return holm([c.complete.p for c in comparisons])


def frame(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """All that is known of each comparison, a row each; the columns of compare.csv."""
    p_holm, complete = corrected(comparisons), corrected_complete(comparisons)
    return pd.DataFrame([_row(*row) for row in zip(comparisons, p_holm, complete, strict=True)])


def example_frame(comparisons: Iterable[Comparison]) -> pd.DataFrame:
    """Every pair of every comparison: the columns of examples.csv."""
    parts = []
    for number, c in enumerate(comparisons, start=1):
        ids = {
            side: result.examples["id"].to_numpy(dtype=object)[rows]
            for side, result, rows in (("a", c.a, c.pairs.a), ("b", c.b, c.pairs.b))
        }
        parts.append(
            pd.DataFrame(
                {
                    "comparison": number, "row_a": c.pairs.a, "row_b": c.pairs.b,
                    "id_a": ids["a"], "id_b": ids["b"], "cluster": c.clusters,
                    "score_a": c.scores_a, "score_b": c.scores_b,
                }
            )
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def _row(c: Comparison, p_holm: float, complete_p_holm: float) -> dict[str, Any]:
    lost, won = c.lost_and_won
    head, complete = c.headline, c.complete  # of b - a: what they call `a` is b
    return {
        "a": c.a.label, "b": c.b.label, "metric_a": c.metric_a, "metric_b": c.metric_b,
        "higher_is_better": c.higher_is_better, "paired_by": c.pairs.by,
        "n_pairs": head.n_pairs, "n_clusters": head.n_clusters,
        "mean_a": head.mean_b, "mean_b": head.mean_a, "difference": head.difference,
        "ci_low": head.interval.low, "ci_high": head.interval.high, "method": head.method,
        "p": head.p, "p_holm": p_holm, "n_lost": lost, "n_won": won,
        "missing_a": c.missing_a, "missing_b": c.missing_b, "reference": c.reference,
        "complete_n_pairs": complete.n_pairs, "complete_mean_a": complete.mean_b,
        "complete_mean_b": complete.mean_a, "complete_difference": complete.difference,
        "complete_ci_low": complete.interval.low, "complete_ci_high": complete.interval.high,
        "complete_p": complete.p, "complete_p_holm": complete_p_holm,
        "only_a": c.only_a, "only_b": c.only_b,
    }  # fmt: skip
