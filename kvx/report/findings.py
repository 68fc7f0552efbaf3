"""Key findings as sentences: every one with its numbers, intervals and n."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from kvx.analyze.frames import ALL_BINS
from kvx.config import AnalyzeConfig

CAP_RATE = (
    0.5  # a full cache truncated this often cannot show that compression stops generations ending
)


def interval(row: pd.Series, low: str = "ci_low", high: str = "ci_high", sign: bool = False) -> str:
    """`[0.12, 0.30]`, or `[n/a]` where n is too small for one."""
    if pd.isna(row[low]) or pd.isna(row[high]):
        return "[n/a]"
    form = "{:+.2f}" if sign else "{:.2f}"
    return f"[{form.format(row[low])}, {form.format(row[high])}]"


def series_name(row: Any) -> str:
    name = str(row["press"])
    if row["controller"] != "none":
        name += f" + {row['controller']}"
    return name if row["seed"] == 0 else f"{name} (seed {row['seed']})"


def findings(
    comparisons: pd.DataFrame, transitions: pd.DataFrame, config: AnalyzeConfig
) -> list[str]:
    """For every press: what each budget cost, where it breaks, what failures could explain."""
    primary = comparisons[comparisons["primary"]] if len(comparisons) else comparisons
    if not len(primary):
        return ["There is no compressed point with a full-cache twin, so nothing can be compared."]
    sentences = []
    keys = ["variant_id", "press", "controller", "seed"]
    for key, group in primary.groupby(keys, sort=False):
        curve = group[(group["bin"] == ALL_BINS) & (group["budget"] < 1)]
        for _, row in curve.sort_values("budget", ascending=False).iterrows():
            sentences.append(_cost(row, group))
        same = (
            [transitions[k] == v for k, v in zip(keys, key, strict=True)]
            if len(transitions)
            else []
        )
        for _, row in transitions[pd.concat(same, axis=1).all(axis=1)].iterrows() if same else ():
            sentences.append(_transition(row, config))
            sentences += _zone(row)
    return sentences


def _cost(row: pd.Series, group: pd.DataFrame) -> str:
    """What one budget cost over all bins, and in which bin most."""
    clear = row["ci_high"] < 0 or row["ci_low"] > 0
    verb = "no clear change" if not clear else ("a loss" if row["difference"] < 0 else "a gain")
    text = (
        f"**{series_name(row)} at budget {row['budget_label']}**: {verb} of {row['metric'].replace('_', ' ')} "
        f"against the full cache, {row['twin_mean']:.2f} → {row['mean']:.2f} "
        f"({row['difference']:+.2f} {interval(row, sign=True)}, n = {row['n_pairs']} pairs; "
        f"{row['n_lost']} lost, {row['n_won']} won"
    )
    text += f"; McNemar p = {row['mcnemar_p']:.2g})." if pd.notna(row["mcnemar_p"]) else ")."
    bins = group[(group["bin"] != ALL_BINS) & (group["budget_label"] == row["budget_label"])]
    if len(bins) > 1 and clear and row["difference"] < 0:
        worst = bins.loc[bins["difference"].idxmin()]
        text += f" Worst in bin {worst['bin']} ({worst['difference']:+.2f} {interval(worst, sign=True)})."
    return text + _attribution(row)


def _attribution(row: pd.Series) -> str:
    """How much of a loss failed examples account for: an exact share of the paired difference."""
    if not row["difference"] < 0 or pd.isna(row["difference_from_failures"]):
        return ""
    share = min(max(row["difference_from_failures"] / row["difference"], 0.0), 1.0)
    return f" Failed requests account for {share:.0%} of the loss; the rest are wrong answers."


def _transition(row: pd.Series, config: AnalyzeConfig) -> str:
    rule = f"the mean of bin means falling by ≥ {config.transition_drop:g} below the next higher budget"
    if pd.isna(row["transition_budget"]):
        return (
            f"**{series_name(row)}**: no transition ({rule} at no budget tried; so in "
            f"{row['support']:.0%} of {row['n_boot']} resamples)."
        )
    sure = "well supported" if row["support"] >= 0.9 else "not certain"
    return (
        f"**{series_name(row)} breaks first at budget {row['transition_budget']:g}** ({rule}: "
        f"{-row['transition_drop']:+.2f}); {row['support']:.0%} of {row['n_boot']} resamples name the "
        f"same budget, {row['support_any']:.0%} any: {sure}."
    )


def _zone(row: pd.Series) -> Iterator[str]:
    for budget, reason in zip(row["zone_budgets"], row["zone_reasons"], strict=True):
        what = {"spread": "scores scatter more", "failures": "failures rise"}.get(
            reason, "scores scatter more and failures rise"
        )
        yield (
            f"**{series_name(row)} at budget {budget:g} is in the instability zone**: {what} "
            "although the mean has not collapsed."
        )


def warnings(stats: pd.DataFrame, comparisons: pd.DataFrame, config: AnalyzeConfig) -> list[str]:
    """What a reader must know before believing a number."""
    primary = stats[stats["primary"]]
    bins = primary[primary["bin"] != ALL_BINS]
    full = bins[bins["budget"] == 1.0]
    found = []
    floor = full[full["mean"] < config.baseline_floor]
    for variant, rows in floor.groupby("variant_id", sort=False):
        where = ", ".join(str(b) for b in sorted(rows["bin"].unique()))
        found.append(
            f"**Baseline floor.** In bin {where} of {rows['dataset'].iloc[0]} ({rows['model'].iloc[0]}, "
            f"{variant}) the full cache scores below {config.baseline_floor:g} "
            f"(mean {rows['mean'].mean():.2f}): there is little to lose there, so a small difference does "
            "not mean that compression does no harm."
        )
    capped = full[full["truncated_rate"] >= CAP_RATE]
    if len(capped):
        found.append(
            f"**Baseline at the token cap.** With the full cache up to {capped['truncated_rate'].max():.0%} of "
            f"the responses in bin {', '.join(map(str, sorted(capped['bin'].unique())))} are cut at "
            "max_new_tokens: that compression keeps generations from ending cannot be seen there."
        )
    unproved = primary[~primary["budget_verified"]]
    if len(unproved):
        found.append(
            f"**Budget not proved** for {unproved['point_id'].nunique()} point(s): the engine gave no evidence "
            "that the asked budget was applied, or requests failed before it could be measured."
        )
    degenerate = primary[(primary["bin"] == ALL_BINS) & (primary["n_degenerate"] > 0)]
    for _, row in degenerate.iterrows():
        found.append(
            f"**Degenerate point.** {row['point_id']}: in {row['n_degenerate']} of "
            f"{row['n_responses']} responses the budget leaves {row['press']} fewer entries than it needs to "
            "do what it is meant to. Do not count these as that press's quality."
        )
    small = int(bins["n"].min()) if len(bins) else 0
    if small < 20:
        found.append(
            f"**Small bins.** The smallest holds {small} scored examples; read intervals, not means."
        )
    without = set(primary.loc[primary["budget"] < 1, "point_id"]) - set(
        comparisons["point_id"] if len(comparisons) else ()
    )
    if without:
        found.append(
            f"**No full-cache twin** for {len(without)} point(s); run budget=1.0 too to know what compression cost."
        )
    return found
