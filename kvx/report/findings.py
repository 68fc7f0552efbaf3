"""Key findings as sentences: every one with its numbers, intervals and n."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from kvx.analyze.frames import ALL_BINS
from kvx.config import AnalyzeConfig
from kvx.report.words import interval, series_name, token_range

KEYS = ["variant_id", "press", "controller", "seed"]
WELL_SUPPORTED = 0.9
ZONE = {
    "spread": "scores scatter more",
    "failures": "failures rise",
    "spread+failures": "scores scatter more and failures rise",
}


def findings(
    stats: pd.DataFrame, comparisons: pd.DataFrame, transitions: pd.DataFrame, config: AnalyzeConfig
) -> list[str]:
    """For every press: what each budget cost, where it breaks, what failures could explain."""
    primary = comparisons[comparisons["primary"]]
    if not len(primary):
        return ["There is no compressed point with a full-cache twin, so nothing can be compared."]
    ranges = {
        (row["point_id"], row["bin"]): token_range(row)
        for row in stats[["point_id", "bin", "bin_low_tokens", "bin_high_tokens"]].to_dict(
            "records"
        )
    }
    several = stats["variant_id"].nunique() > 1
    sentences = []
    for key, group in primary[primary["budget"] < 1].groupby(KEYS, sort=False):
        name = series_name(group.iloc[0], several)
        curve = group[group["bin"] == ALL_BINS].sort_values("budget", ascending=False)
        for _, row in curve.iterrows():
            sentences.append(_cost(name, row, group, ranges))
        for _, row in transitions.iterrows():
            if all(row[k] == v for k, v in zip(KEYS, key, strict=True)):
                sentences.append(_transition(name, row, config))
                sentences += _zone(name, row)
    return sentences


def _cost(name: str, row: pd.Series, group: pd.DataFrame, ranges: dict[Any, str]) -> str:
    """What one budget cost over all bins, and in which bin most."""
    loss, gain = row["ci_high"] < 0, row["ci_low"] > 0
    what = "a loss" if loss else "a gain" if gain else "no clear change"
    test = f"; McNemar p = {row['mcnemar_p']:.2g}" if pd.notna(row["mcnemar_p"]) else ""
    text = (
        f"**{name} at budget {row['budget_label']}**: {what} of {row['metric'].replace('_', ' ')} "
        f"against the full cache, {row['twin_mean']:.2f} → {row['mean']:.2f} "
        f"({row['difference']:+.2f} {interval(row, sign=True)}, n = {row['n_pairs']} pairs; "
        f"{row['n_lost']} lost, {row['n_won']} won{test})."
    )
    bins = group[(group["bin"] != ALL_BINS) & (group["budget_label"] == row["budget_label"])]
    if loss and len(bins) > 1:
        worst = bins.loc[bins["difference"].idxmin()]
        text += (
            f" Worst at {ranges[worst['point_id'], worst['bin']]} tokens: "
            f"{worst['difference']:+.2f} {interval(worst, sign=True)}."
        )
    return text + (_attribution(row) if loss else "")


def _attribution(row: pd.Series) -> str:
    """How much of a loss failed examples could explain: their exact share of the difference."""
    share = min(max(row["difference_from_failures"] / row["difference"], 0.0), 1.0)
    return f" Failed requests could explain at most {share:.0%} of it."


def _transition(name: str, row: pd.Series, config: AnalyzeConfig) -> str:
    rule = f"mean of bin means down by ≥ {config.transition_drop:g} from the next higher budget"
    if pd.isna(row["transition_budget"]):
        return (
            f"**{name} shows no transition** ({rule}: at no budget tried, and at none in "
            f"{row['support']:.0%} of {row['n_boot']} resamples)."
        )
    sure = "well supported" if row["support"] >= WELL_SUPPORTED else "not certain"
    return (
        f"**{name} breaks first at budget {row['transition_budget']:g}** ({rule}: "
        f"{-row['transition_drop']:+.2f}): {sure}, {row['support']:.0%} of {row['n_boot']} "
        f"resamples name the same budget, {row['support_any']:.0%} any."
    )


def _zone(name: str, row: pd.Series) -> Iterator[str]:
    for budget, reason in zip(row["zone_budgets"], row["zone_reasons"], strict=True):
        yield (
            f"**{name} at budget {budget:g} is in the instability zone**: {ZONE[reason]} although "
            "the mean has not collapsed."
        )
