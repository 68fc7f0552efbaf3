"""Verdicts on a point against its full cache, and how many examples they need.

They go by p-values corrected for how many comparisons there are: Holm's within the declared family
(`analyze.family`: all bins together, the primary metric), Benjamini and Hochberg's for bins and
other metrics. An exact two-sided test of pairs cannot reach the 5% level with fewer than 6 of them,
even if all are lost; below that number no verdict is given.
"""

from enum import Enum
from typing import Any

import pandas as pd

from kvx.analyze.columns import ALL_BINS
from kvx.analyze.naming import metric_title
from kvx.config.numbers import plural
from kvx.stats.clustered import LEAST_CLUSTERS
from kvx.stats.paired import least_pairs


class Verdict(Enum):
    loss = "a loss"
    gain = "a gain"
    unclear = "no clear change"
    may_be_chance = "a change that may be chance"
    too_few = "too few"
    at_odds = "at odds"
    nothing = "nothing to compare"


def corrected_p(row: Any) -> float:
    """The p that a verdict on a row of `comparisons` goes by; nan where nothing was tested."""
    declared = row["primary"] and row["bin"] == ALL_BINS
    found = row["p_holm" if declared else "p_bh"]
    return float("nan") if pd.isna(found) else float(found)


def verdict(row: Any, alpha: float) -> Verdict:
    """Of a row of `comparisons`, at the two-sided level `alpha`.

    A loss is a fall of the score, or a rise where lower is better. A loss or a gain needs a
    corrected p below `alpha` and an interval without zero.
    """
    if not row["n_pairs"]:
        return Verdict.nothing
    least, differ = least_pairs(alpha), row["n_lost"] + row["n_won"]
    below, above = row["ci_high"] < 0, row["ci_low"] > 0
    if pd.isna(row["p"]) or row["n_clusters"] < least or (differ < least and (below or above)):
        return Verdict.too_few
    if (row["p"] < alpha) != (below or above):
        return Verdict.at_odds
    if not below and not above:
        return Verdict.unclear
    if not corrected_p(row) < alpha:
        return Verdict.may_be_chance
    return Verdict.loss if below == row["higher_is_better"] else Verdict.gain


def in_words(row: Any, alpha: float) -> str:
    """`a loss of exact match`, or why there is no verdict."""
    found, metric = verdict(row, alpha), metric_title(row["metric"])
    match found:
        case Verdict.nothing:
            missing = plural(row["n_missing_full"], "example")
            return f"no verdict on {metric}: the full cache answered none of {missing}"
        case Verdict.too_few:
            return f"{too_few(row, alpha)} for a verdict on {metric}"
        case Verdict.at_odds:
            return f"no verdict (the interval and the exact test disagree) on {metric}"
        case Verdict.may_be_chance:
            return (
                f"no clear change of {metric} (p = {row['p']:.2g} alone, {corrected_p(row):.2g} "
                "corrected for the number of comparisons)"
            )
        case _:
            return f"{found.value} of {metric}"


def too_few(row: Any, alpha: float) -> str:
    """`too few examples (n = 2)`: there are not enough of them, or not enough that differ."""
    if row["n_clusters"] < row["n_pairs"] and row["n_clusters"] < LEAST_CLUSTERS:
        clusters = plural(row["n_clusters"], "cluster")
        return f"too few independent examples ({row['n_pairs']} of {clusters})"
    if row["n_clusters"] >= least_pairs(alpha) and pd.notna(row["p"]):
        return f"too few examples that differ (n = {row['n_lost'] + row['n_won']})"
    return f"too few examples (n = {row['n_clusters']})"


def named_bins(row: Any, bins: pd.DataFrame, alpha: float) -> dict[Verdict, list[Any]]:
    """The bins with a loss, and with a gain, of a point whose `row` is over all bins.

    `bins` are the point's rows by bin. A bin is named if its own corrected p says so, and either
    the change over all bins is clear or the test of press × length is: under the null few reports
    name any.
    """
    if not depends_on_length(row, alpha) and verdict(row, alpha) not in (
        Verdict.loss,
        Verdict.gain,
    ):
        return {}
    found: dict[Verdict, list[Any]] = {}
    for _, one in bins.sort_values("bin").iterrows():
        kind = verdict(one, alpha)
        if kind in (Verdict.loss, Verdict.gain):
            found.setdefault(kind, []).append(one)
    return found


def depends_on_length(row: Any, alpha: float) -> bool:
    """Whether the test of press × length says so, corrected over all points."""
    p = row["interaction_p_bh"]
    return bool(pd.notna(p) and p < alpha)


def lengths(row: Any, bins: pd.DataFrame, ranges: dict[Any, str], alpha: float) -> str:
    """Where the change of the overall `row` lies, as sentences; empty where nothing is known.

    `ranges` are the tokens of (point, bin); `bins` as in `named_bins`.
    """
    sentences = []
    for kind, named in named_bins(row, bins, alpha).items():
        if len(named) == len(bins) > 1:
            apart = sorted((r["difference"] for r in named), key=abs)
            sentences.append(
                f" It is {kind.value} in every length bin ({apart[0]:+.2f} to {apart[-1]:+.2f})."
            )
        else:
            where = ", ".join(
                f"{ranges[r['point_id'], r['bin']]} tokens ({r['difference']:+.2f}, "
                f"corrected p = {corrected_p(r):.2g})"
                for r in named
            )
            sentences.append(f" By length it is {kind.value} at {where}.")
    if depends_on_length(row, alpha):
        sentences.append(
            " It depends on the length (press × length: corrected p = "
            f"{row['interaction_p_bh']:.2g})."
        )
    return "".join(sentences)


def in_a_cell(row: Any, bins: pd.DataFrame, ranges: dict[Any, str], alpha: float) -> str:
    """The verdict on an overall `row` for a table, and the lengths at which it is another.

    Arguments as in `lengths`.
    """
    found = verdict(row, alpha)
    words = [_bold(found)]
    for kind, named in named_bins(row, bins, alpha).items():
        if kind is not found:
            where = ", ".join(ranges[r["point_id"], r["bin"]] for r in named)
            words.append(f"{_bold(kind)} at {where} tokens")
    return "; ".join(words)


def _bold(found: Verdict) -> str:
    return f"**{found.value}**" if found in (Verdict.loss, Verdict.gain) else found.value
