"""Verdicts on a point against its full cache, and how many examples they need.

An exact two-sided test of pairs cannot reach the 5% level with fewer than 6 of them, even if all
are lost; an interval may exclude zero all the same. Below that number no verdict is given.
"""

from enum import Enum
from typing import Any

import pandas as pd

from kvx.analyze.naming import metric_title
from kvx.config.numbers import plural
from kvx.stats.paired import least_pairs


class Verdict(Enum):
    loss = "a loss"
    gain = "a gain"
    unclear = "no clear change"
    too_few = "too few"
    at_odds = "at odds"


def verdict(row: Any, alpha: float) -> Verdict:
    """Of a row of `comparisons`, at the two-sided level `alpha`.

    A loss is a fall of the score, or a rise where lower is better. A loss or a gain needs an
    interval without zero, and McNemar's exact p below `alpha` where there is one. A bootstrap has
    no interval where all examples differ by the same; from `least_pairs` on that is one exact test
    passed.
    """
    least, differ = least_pairs(alpha), row["n_lost"] + row["n_won"]
    below, above = row["ci_high"] < 0, row["ci_low"] > 0
    if pd.isna(row["ci_low"]) and row["difference"]:
        below, above = row["difference"] < 0, row["difference"] > 0
    tested = pd.notna(row["mcnemar_p"])
    if row["n_clusters"] < least or (differ < least and (below or above)):
        return Verdict.too_few
    if tested and (row["mcnemar_p"] < alpha) != (below or above):
        return Verdict.at_odds
    if not below and not above:
        return Verdict.unclear
    return Verdict.loss if below == row["higher_is_better"] else Verdict.gain


def in_words(row: Any, alpha: float) -> str:
    """`a loss of exact match`, or why there is no verdict."""
    found, metric = verdict(row, alpha), metric_title(row["metric"])
    if found is Verdict.too_few:
        return f"{too_few(row, alpha)} for a verdict on {metric}"
    if found is Verdict.at_odds:
        return f"no verdict (the interval and the exact test disagree) on {metric}"
    return f"{found.value} of {metric}"


def too_few(row: Any, alpha: float) -> str:
    """`too few examples (n = 2)`: there are not enough of them, or not enough that differ."""
    if row["n_clusters"] >= least_pairs(alpha):
        return f"too few examples that differ (n = {row['n_lost'] + row['n_won']})"
    if row["n_clusters"] < row["n_pairs"]:
        clusters = plural(row["n_clusters"], "cluster")
        return f"too few independent examples ({row['n_pairs']} of {clusters})"
    return f"too few examples (n = {row['n_clusters']})"
