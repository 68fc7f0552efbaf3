"""Sentences about a press's curve over its budgets: where it breaks, and where it is unstable."""

from collections.abc import Iterator

import pandas as pd

from kvx.config.analyze import AnalyzeConfig
from kvx.config.numbers import plural
from kvx.report.wording import DEGENERATE
from kvx.stats.paired import least_pairs

ZONE = {
    "spread": "scores scatter more",
    "failures": "failures rise",
    "spread+failures": "scores scatter more and failures rise",
}


def curve_sentences(name: str, curve: pd.Series, config: AnalyzeConfig) -> list[str]:
    """What a row of `transitions` says about the press called `name`.

    One sentence where there are too few independent examples for any.
    """
    rule = f"a fall of ≥ {config.transition_drop:g} in one step"
    if curve["n_clusters"] < least_pairs(1 - config.confidence) or not curve["n_steps"]:
        return [
            f"**{name}**: too few examples (n = {curve['n_clusters']}) to say whether or where it "
            f"breaks ({rule})."
        ]
    return [_break(name, curve, rule), *_zone(name, curve)]


def _break(name: str, curve: pd.Series, rule: str) -> str:
    steps = plural(curve["n_steps"], "step")
    if pd.isna(curve["transition_budget"]):
        return (
            f"**{name} has no transition** ({rule} that a test can tell from chance, in {steps}). "
            f"At budget {curve['lowest_label']} it stands {curve['lowest_difference']:+.2f} from "
            "the full cache."
        )
    text = (
        f"**{name} breaks first between budgets {curve['transition_above_label']} and "
        f"{curve['transition_label']}** ({-curve['transition_drop']:+.2f} in one step, "
        f"p = {curve['transition_p']:.2g} corrected for {steps})."
    )
    if curve["n_degenerate"]:
        text += f" {DEGENERATE} The curve has degenerate points."
    return text


def _zone(name: str, curve: pd.Series) -> Iterator[str]:
    for label, reason in zip(curve["zone_labels"], curve["zone_reasons"], strict=True):
        yield (
            f"**{name} at budget {label} is in the instability zone**: {ZONE[reason]} although the "
            "mean has not collapsed."
        )
