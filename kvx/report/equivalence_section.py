"""Which points lose at most the margin against the full cache, and what more prompts could show."""

from collections.abc import Iterator

import pandas as pd

from kvx.analyze.columns import ALL_BINS, CURVE
from kvx.config.analyze import AnalyzeConfig
from kvx.report.tables import Cells, mark, number, per_point
from kvx.report.wording import POINTS_OF, full_name, percent, series_name

SHOWN = 4  # names of a list in a sentence
OVER_SEEDS = [name for name in CURVE if name != "seed"]


def equivalence_table(equivalence: pd.DataFrame) -> str:
    """A row per compressed point over all bins; empty without one."""
    overall = equivalence[equivalence["bin"] == ALL_BINS]
    if not len(overall):
        return ""

    def cells(row: pd.Series) -> Cells:
        return (
            number(row["loss"], "{:+.2f}"), number(row["loss_upper"], "{:.2f}"),
            {True: "yes", False: "not shown"}.get(row["holds"], "n/a"),
            number(row["p_holm"], "{:.2g}"), row["n_missing"] or "–",
            number(row["detectable"], "{:.2f}"), number(row["n_for_margin"], "{:,.0f}"),
        )  # fmt: skip

    margin = f"{100 * overall['margin'].iloc[0]:g} points"
    header = [
        "loss", "at most", f"within {margin}", "p (Holm)", "missing", "detectable",
        "prompts needed",
    ]  # fmt: skip
    return per_point(overall, header, cells)


def verdicts(equivalence: pd.DataFrame, config: AnalyzeConfig, several: bool) -> Iterator[str]:
    """One sentence on all presses: down to which budget each is shown to lose at most the margin.

    A budget counts only if it holds in every seed and every larger one of its curve does too; the
    seed with the largest bound is told. A dagger marks a budget with degenerate requests.
    """
    overall = equivalence[equivalence["bin"] == ALL_BINS]
    if not len(overall):
        return
    margin = f"{100 * overall['margin'].iloc[0]:g} points"
    held, never, unknown = [], [], []
    for _, curve in overall.groupby(OVER_SEEDS, sort=False):
        name = full_name(curve.iloc[0].to_dict() | {"seed": 0}, several)
        if curve["holds"].isna().all():
            unknown.append(name)
            continue
        last: pd.Series | None = None
        for _, seeds in curve.sort_values("budget_asked", ascending=False).groupby(
            "budget_asked", sort=False
        ):
            if not (seeds["holds"] == True).all():  # noqa: E712
                break
            last = seeds.sort_values("loss_upper").iloc[-1].copy()
            last["n_degenerate"] = seeds["n_degenerate"].sum()
        if last is None:
            never.append(name)
        else:
            held.append(
                f"{name} down to budget {last['budget_label']}{mark(last)} (at most "
                f"{100 * last['loss_upper']:.1f} points, n = {last['n_pairs']})"
            )
    parts = []
    if held:
        parts.append(f"shown for {_some(held, '; ')}")
    if never:
        parts.append(f"not shown at any budget for {_some(never, ', ')}")
    if unknown:
        parts.append(f"too few independent prompts to say for {_some(unknown, ', ')}")
    at = f"{percent(config.confidence)}, {POINTS_OF[config.family]} together"
    yield f"Loses at most {margin} ({at}): {'; '.join(parts)}."
    open_ = overall[(overall["holds"] == False) & overall["n_for_margin"].notna()]  # noqa: E712
    if not never or not len(open_):
        return
    least = open_.sort_values("n_for_margin").iloc[0]
    if least["n_for_margin"] > least["n_pairs"]:
        yield (
            f"With {least['n_pairs']} prompts {series_name(least)} at budget "
            f"{least['budget_label']} would be shown to be within {margin} in fewer than 80% of "
            f"runs even if it lost nothing: {least['n_for_margin']:,.0f} would do, at the "
            f"{percent(round(least['discordance'], 2))} of answers that differ."
        )


def _some(told: list[str], between: str) -> str:
    more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    return between.join(told[:SHOWN]) + more
