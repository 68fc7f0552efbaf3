"""Sentences about a press's curve: how far it keeps the score, where it breaks or is unstable."""

from collections.abc import Iterator

import pandas as pd

from kvx.analyze.columns import ALL_BINS
from kvx.config.analyze import AnalyzeConfig
from kvx.config.numbers import plural
from kvx.report.wording import DEGENERATE, token_range
from kvx.stats.dose_response import BELOW, REACHED, UNKNOWN
from kvx.stats.paired import least_pairs

KEYS = ["variant_id", "press", "controller", "seed", "budget_kind"]
SMOOTH = "smooth"
ZONE = {
    "spread": "scores scatter more",
    "failures": "failures rise",
    "spread+failures": "scores scatter more and failures rise",
}


def curve_sentences(
    name: str, curve: pd.Series, config: AnalyzeConfig, doses: pd.DataFrame | None = None
) -> list[str]:
    """What a row of `transitions` says about the press called `name`.

    With `doses` (the table `dose_response`) the first sentence says how far the score is kept. A
    single sentence where there are too few independent examples for any.
    """
    rule = f"a fall of ≥ {config.transition_drop:g} in one step"
    alpha = 1 - config.confidence
    if curve["n_clusters"] < least_pairs(alpha) or not curve["n_steps"]:
        return [
            f"**{name}**: too few examples (n = {curve['n_clusters']}) to say whether or where it "
            f"breaks ({rule})."
        ]
    own = _own(curve, doses)
    overall = own[own["bin"] == ALL_BINS]
    kept = [_kept(name, row) for _, row in overall.iterrows() if row["b95_state"] != UNKNOWN]
    by_length = [
        text for _, row in overall.iterrows() for text in _by_length(name, row, own, alpha)
    ]
    return [*kept, _break(name, curve, rule, overall), *by_length, *_zone(name, curve)]


def _own(curve: pd.Series, doses: pd.DataFrame | None) -> pd.DataFrame:
    """The rows of `doses` about this curve."""
    if doses is None or not len(doses):
        return pd.DataFrame({"bin": []})
    same = pd.concat([doses[name] == curve[name] for name in KEYS], axis=1).all(axis=1)
    own: pd.DataFrame = doses[same]
    return own


def _kept(name: str, row: pd.Series) -> str:
    """`snapkv keeps 95% of the score down to budget 0.43 [0.36, 0.51]`, and 50%."""
    low, high = (float(row[f"{name}_budget"]) for name in ("lowest", "highest"))
    if row["b95_state"] == BELOW and row["b95_ci_high"] <= high:
        text = (
            f"**{name} keeps 95% of the score at every budget tried**, down to {low:.2g}; the "
            f"examples (n = {row['n']}) bear it out down to {row['b95_ci_high']:.2g}"
        )
    elif row["b95_ci_high"] > high and row["b95_ci_low"] < low:
        unknown = f"cannot be told from {plural(row['n'], 'example')}"
        return f"**{name}**: how far it keeps 95% of the score {unknown}."
    elif row["b95_ci_low"] > high:
        text = f"**{name} keeps 95% of the score at no budget tried**, from {high:.2g} down"
    else:
        text = f"**{name} keeps 95% of the score down to budget {_threshold(row, 'b95')}**"
    half = f"; half of it down to {_threshold(row, 'b50')}" if row["b50_state"] == REACHED else ""
    return f"{text}{half}."


def _threshold(row: pd.Series, which: str) -> str:
    """`0.43 [0.36, 0.51]`; an interval that goes below every budget tried says so."""
    low, lowest = float(row[f"{which}_ci_low"]), float(row["lowest_budget"])
    begin = f"< {lowest:.2g}" if low < lowest else f"{low:.2g}"
    value = f"{row[which]:.2g}" if row[f"{which}_state"] == REACHED else f"below {lowest:.2g}"
    return f"{value} [{begin}, {row[f'{which}_ci_high']:.2g}]"


def _break(name: str, curve: pd.Series, rule: str, overall: pd.DataFrame) -> str:
    steps = plural(curve["n_steps"], "step")
    if pd.isna(curve["transition_budget"]):
        lost = len(overall) and overall.iloc[0]["area_ci_high"] < 0
        says = "declines without a break" if lost else "has no transition"
        return (
            f"**{name} {says}** (no {rule[2:]} that a test can tell from chance, in {steps}). "
            f"At budget {curve['lowest_label']} it stands {curve['lowest_difference']:+.2f} from "
            "the full cache."
        )
    text = (
        f"**{name} breaks first between budgets {curve['transition_above_label']} and "
        f"{curve['transition_label']}** ({-curve['transition_drop']:+.2f} in one step, "
        f"p = {curve['transition_p']:.2g} corrected for {steps})."
    )
    if curve.get("shape") == SMOOTH:
        text += " It is part of a slope: held-out examples are predicted no better by a step."
    if curve["n_degenerate"]:
        text += f" {DEGENERATE} The curve has degenerate points."
    return text


def _by_length(name: str, row: pd.Series, own: pd.DataFrame, alpha: float) -> Iterator[str]:
    """Where the loss depends on the length: the shortest and the longest contexts, and the rate."""
    if pd.isna(row["length_p_holm"]) or row["length_p_holm"] > alpha:
        return
    bins = own[(own["bin"] != ALL_BINS) & (own["b95_state"] != UNKNOWN)].sort_values("bin")
    text = f"**{name} depends on the length of the context** (p = {row['length_p_holm']:.2g})"
    if len(bins) > 1:
        ends = [
            f"{_threshold(one, 'b95')} at {token_range(one)} tokens"
            for _, one in bins.iloc[[0, -1]].iterrows()
        ]
        text += f": 95% of the score is kept down to {ends[0]} and down to {ends[1]}"
    if pd.notna(row["shift_p"]) and row["shift_p"] <= alpha:
        text += (
            f". Each doubling multiplies the budget it needs by {row['shift_per_doubling']:.2f} "
            f"[{row['shift_ci_low']:.2f}, {row['shift_ci_high']:.2f}]"
        )
    yield f"{text}."


def _zone(name: str, curve: pd.Series) -> Iterator[str]:
    for label, reason in zip(curve["zone_labels"], curve["zone_reasons"], strict=True):
        yield (
            f"**{name} at budget {label} is in the instability zone**: {ZONE[reason]} although the "
            "mean has not collapsed."
        )
