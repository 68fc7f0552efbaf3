"""Key findings as sentences: every one with its numbers, intervals and n."""

from typing import Any

import pandas as pd

from kvx.analyze.columns import ALL_BINS, CURVE, is_full
from kvx.config.analyze import AnalyzeConfig
from kvx.report.curve_findings import curve_sentences
from kvx.report.verdicts import Verdict, corrected_p, in_words, lengths, verdict
from kvx.report.wording import DEGENERATE, curve_name, full_name, interval, ranges_of

MANY = 12  # compressed points above which the tables alone say what each one costs


def findings(
    stats: pd.DataFrame,
    comparisons: pd.DataFrame,
    transitions: pd.DataFrame,
    used: dict[str, float],
    config: AnalyzeConfig,
    dose_response: pd.DataFrame | None = None,
) -> list[str]:
    """For every press: what each budget cost, where it breaks, what failures could explain.

    `used` is what guarded points had on the device, by point.
    """
    compared = comparisons[comparisons["primary"] & ~is_full(comparisons)]
    if not len(compared):
        return ["No compressed point has a full cache beside it, so nothing can be compared."]
    ranges = ranges_of(stats)
    several = stats["variant_id"].nunique() > 1
    each = compared["point_id"].nunique() <= MANY
    sentences = []
    for key, group in compared.groupby(CURVE, sort=False):
        name = full_name(group.iloc[0], several)
        curve = group[group["bin"] == ALL_BINS].sort_values("budget", ascending=False)
        for _, row in curve.iterrows() if each else ():
            sentences.append(_cost(name, row, group, ranges, used, 1 - config.confidence))
        for _, row in transitions.iterrows():
            if all(row[k] == v for k, v in zip(CURVE, key, strict=True)):
                called = curve_name(group.iloc[0], several)
                sentences += curve_sentences(called, row, config, dose_response)
    return sentences


def _cost(
    name: str,
    row: pd.Series,
    group: pd.DataFrame,
    ranges: dict[Any, str],
    used: dict[str, float],
    alpha: float,
) -> str:
    """The loss at one budget over all bins, and the bins with the largest."""
    loss = verdict(row, alpha) is Verdict.loss
    if verdict(row, alpha) is Verdict.nothing:
        return f"**{name} at budget {row['budget_label']}**: {in_words(row, alpha)}."
    test = f"; corrected p = {corrected_p(row):.2g}" if pd.notna(row["p"]) else ""
    point = row["point_id"]
    really = f" ({used[point]:.2f} on the device, on average)" if point in used else ""
    text = (
        f"**{name} at budget {row['budget_label']}**{really}: {in_words(row, alpha)} "
        f"against the full cache, {row['twin_mean']:.2f} → {row['mean']:.2f} "
        f"({row['difference']:+.2f} {interval(row, sign=True)}, n = {row['n_pairs']} pairs; "
        f"{row['n_lost']} lost, {row['n_won']} won{test})."
    )
    if row["n_degenerate"]:
        text += f" {DEGENERATE} {row['n_degenerate']} of {row['n_pairs']} are degenerate."
    bins = group[(group["bin"] != ALL_BINS) & (group["point_id"] == row["point_id"])]
    text += lengths(row, bins[bins["n_degenerate"] == 0], ranges, alpha)
    return text + (_attribution(row) if loss else "")


def _attribution(row: pd.Series) -> str:
    """The share of a loss that failed examples could explain, exactly."""
    share, cut = (
        min(max(row[c] / row["difference"], 0.0), 1.0)
        for c in ("difference_from_failures", "difference_from_truncated")
    )
    if share < 0.005:
        return " No failed request took part in it."
    detail = f", truncated ones {cut:.0%}" if 0.005 <= cut < share else ""
    detail = ", all of them truncated" if cut >= share else detail
    # what a missing answer would have been is not known: it counts as wrong, which is no bound
    most = "explain" if row["n_missing"] or row["n_missing_full"] else "explain at most"
    return f" Failed requests could {most} {share:.0%} of it{detail}."
