"""Sentences about a press's curve: how far it keeps the score, where it breaks or is unstable."""

from collections.abc import Iterator

import pandas as pd

from kvx.analyze.columns import ALL_BINS, CURVE
from kvx.config.analyze import AnalyzeConfig
from kvx.config.numbers import plural
from kvx.report.wording import DEGENERATE, token_range
from kvx.stats.dose_response import BELOW, BETWEEN, REACHED, UNKNOWN
from kvx.stats.paired import least_pairs

SMOOTH = "smooth"
ZONE = {
    "spread": "scores scatter more",
    "failures": "failures rise",
    "spread+failures": "scores scatter more and failures rise",
}


def curve_sentences(
    name: str, curve: pd.Series, config: AnalyzeConfig, doses: pd.DataFrame | None = None
) -> list[str]:
    """What a row of `transitions` says about the curve called `name` (`curve_name`).

    With `doses` (the table `dose_response`) the first sentence says how far the score is kept. A
    single sentence where there are too few independent examples for any.
    """
    alpha = 1 - config.confidence
    if curve["n_clusters"] < least_pairs(alpha) or not curve["n_steps"]:
        return [
            f"**{name}**: too few examples (n = {curve['n_clusters']}) to say whether or where it "
            f"breaks (a fall of ≥ {config.transition_drop:g} in one step)."
        ]
    own = _own(curve, doses)
    overall = own[own["bin"] == ALL_BINS]
    kept = [_kept(name, row) for _, row in overall.iterrows() if row["b95_state"] != UNKNOWN]
    by_length = [
        text for _, row in overall.iterrows() for text in _by_length(name, row, own, alpha)
    ]
    return [*by_length, *kept, _break(name, curve, config.transition_drop), *_zone(name, curve)]


def _own(curve: pd.Series, doses: pd.DataFrame | None) -> pd.DataFrame:
    """The rows of `doses` about this curve."""
    if doses is None or not len(doses):
        return pd.DataFrame({"bin": []})
    same = pd.concat([doses[name] == curve[name] for name in CURVE], axis=1).all(axis=1)
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
    elif _untold(row):
        unknown = f"cannot be told from {plural(row['n'], 'example')}"
        return f"**{name}**: how far it keeps 95% of the score {unknown}."
    elif _at_none(row):
        text = f"**{name} keeps 95% of the score at no budget tried**, from {high:.2g} down"
    else:
        text = f"**{name} keeps 95% of the score down to {_threshold(row, 'b95')}**"
    known = row["b50_state"] in (REACHED, BETWEEN)
    half = f"; half of it down to {_threshold(row, 'b50')}" if known else ""
    return f"{text}{half}{f' {DEGENERATE}' if row['n_degenerate'] else ''}."


def _untold(row: pd.Series) -> bool:
    """Whether the interval goes from below the lowest budget tried to above the highest."""
    low, high = float(row["b95_ci_low"]), float(row["b95_ci_high"])
    return low < float(row["lowest_budget"]) and high > float(row["highest_budget"])


def _at_none(row: pd.Series) -> bool:
    """Whether 95% is lost at the highest budget tried; an interval between two holds no end."""
    low, high = float(row["b95_ci_low"]), float(row["highest_budget"])
    return low >= high if row["b95_state"] == BETWEEN else low > high


def _threshold(row: pd.Series, which: str) -> str:
    """`budget 0.43 [0.36, 0.51]`, or `a budget between 1 and 0.5` where any there fits.

    Budgets in tokens are told as shares of the context, as they were measured.
    """
    one = "share" if row["budget_kind"] == "tokens" else "budget"
    low, high = float(row[f"{which}_ci_low"]), float(row[f"{which}_ci_high"])
    lowest, state = float(row["lowest_budget"]), row[f"{which}_state"]
    if state == BETWEEN:
        end = f"below {lowest:.2g}" if low < lowest else f"{low:.2g}"
        return f"a {one} between {high:.2g} and {end}"
    begin = f"< {lowest:.2g}" if low < lowest else f"{low:.2g}"
    value = f"{row[which]:.2g}" if state == REACHED else f"below {lowest:.2g}"
    return f"{one} {value} [{begin}, {high:.2g}]"


def _break(name: str, curve: pd.Series, drop: float) -> str:
    steps = plural(curve["n_steps"], "step")
    if pd.isna(curve["transition_budget"]):
        return (
            f"**{name} has no step of ≥ {drop:g} that a test can tell from chance** ({steps}, "
            f"n = {curve['n_clusters']}). At budget {curve['lowest_label']} it stands "
            f"{curve['lowest_difference']:+.2f} from the full cache."
        )
    where = f"between budgets {curve['transition_above_label']} and {curve['transition_label']}"
    size = (
        f"{-curve['transition_drop']:+.2f} in one step, p = {curve['transition_p']:.2g} corrected "
        f"for {steps}"
    )
    text = f"**{name} breaks first {where}** ({size})."
    if curve.get("shape") == SMOOTH:
        text = (
            f"**{name} falls first {where}** ({size}), but a slope predicts held-out examples as "
            "well as a step."
        )
    if curve["n_degenerate"]:
        text += f" {DEGENERATE} The curve has degenerate points."
    return text


def _by_length(name: str, row: pd.Series, own: pd.DataFrame, alpha: float) -> Iterator[str]:
    """Where the loss depends on the length: the shortest and the longest contexts, and the rate."""
    if pd.isna(row["length_p_holm"]) or row["length_p_holm"] > alpha:
        return
    bins = own[(own["bin"] != ALL_BINS) & (own["b95_state"] != UNKNOWN)].sort_values("bin")
    text = f"**{name} depends on the length of the context**"
    if len(bins) > 1:
        short, long = (bins.iloc[i] for i in (0, -1))
        told = [
            f"{_down_to(one)} at {token_range(one)} tokens"
            for one in (short, long)
            if not _untold(one)
        ]
        if told:
            text = f"**{name} keeps 95% of the score {', and '.join(told)}**"
            text += "".join(_cannot(one) for one in (short, long) if _untold(one))
    text += f" (its loss differs between lengths, p = {row['length_p_holm']:.2g})"
    if pd.notna(row["shift_p"]) and row["shift_p"] <= alpha:
        text += (
            f"; each doubling multiplies the budget it needs by {row['shift_per_doubling']:.2f} "
            f"[{row['shift_ci_low']:.2f}, {row['shift_ci_high']:.2f}]"
        )
    yield f"{text}."


def _cannot(row: pd.Series) -> str:
    return f"; at {token_range(row)} tokens {plural(row['n'], 'example')} cannot tell how far"


def _down_to(row: pd.Series) -> str:
    if row["b95_state"] == BELOW and row["b95_ci_high"] <= row["highest_budget"]:
        return f"at every budget tried (down to {row['lowest_budget']:.2g})"
    if _at_none(row):
        return f"at no budget tried (from {row['highest_budget']:.2g} down)"
    return f"down to {_threshold(row, 'b95')}"


def _zone(name: str, curve: pd.Series) -> Iterator[str]:
    for label, reason in zip(curve["zone_labels"], curve["zone_reasons"], strict=True):
        yield (
            f"**{name} at budget {label} is in the instability zone**: {ZONE[reason]} although the "
            "mean has not collapsed."
        )
