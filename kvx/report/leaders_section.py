"""Who leads at each budget, and whether that is certain."""

from collections.abc import Iterator

import pandas as pd

from kvx.analyze.equal_budgets import BYTES
from kvx.analyze.leaders import ALL_VARIANTS
from kvx.config.numbers import byte_count
from kvx.report.tables import mark, markdown, number
from kvx.report.wording import interval

SHOWN = 4  # names of a list in a sentence
KEYS = ["scope", "budget_by", "budget_label"]


def leaders_table(leaders: pd.DataFrame, scope: str) -> str:
    """A row per budget and press of one scope, by rank; empty where no two presses compare."""
    rows = []
    for _, row in leaders[leaders["scope"] == scope].iterrows():
        first = row["rank"] == 1
        ranks = f"{row['rank_low']}–{row['rank_high']}"
        rows.append(
            [
                _budget(row) if first else "",
                f"{row['press']}{mark(row)}",
                row["rank"] if row["rank_low"] == row["rank_high"] else ranks,
                number(row["mean"]),
                "–" if first else f"{number(row['difference'], '{:+.2f}')} "
                f"{interval(row, sign=True)}",
                "–" if first else number(row["p_holm"], "{:.2g}"),
                row["n_pairs"],
            ]
        )  # fmt: skip
    header = ["budget", "press", "rank", "mean", "to the leader", "p (Holm)", "prompts"]
    return markdown(header, rows) if rows else ""


def verdicts(leaders: pd.DataFrame, several: bool) -> Iterator[str]:
    """One sentence for each scope: who leads where, and where nobody does for certain.

    Of several variants (models, datasets, settings) the one over all, if they were ranked together.
    """
    together = leaders[leaders["scope"] == ALL_VARIANTS]
    metrics = sorted(leaders["metric"].unique())
    if several and len(metrics) > 1:
        yield f"Variants are not ranked together: metrics differ ({', '.join(metrics)})."
    for scope, ranked in (together if len(together) else leaders).groupby("scope", sort=False):
        where = ""
        if scope == ALL_VARIANTS:
            where = f" over {ranked['n_variants'].iloc[0]} variants"
        elif several:
            where = f", variant `{scope}`"
        yield f"Presses at equal measured budget{where}: {_verdict(ranked)}."


def _verdict(ranked: pd.DataFrame) -> str:
    certain: dict[str, list[str]] = {}
    undecided: list[str] = []
    unknown: list[str] = []
    for _, budget in ranked.groupby(KEYS, sort=False):
        first = budget.iloc[0]
        if budget["p"].isna().sum() > 1:
            unknown.append(_budget(first))
        elif first["rank_high"] == 1:
            certain.setdefault(first["press"], []).append(f"{_budget(first)}{mark(first)}")
        else:
            first_few = budget[budget["rank_low"] == 1]
            ahead = [f"{row['press']}{mark(row)}" for _, row in first_few.iterrows()]
            names = ", ".join(ahead) if len(ahead) <= SHOWN else f"{len(ahead)} of {len(budget)}"
            undecided.append(f"{_budget(first)} ({names} may be first)")
    parts = [f"**{press}** leads at {_some(at)}" for press, at in certain.items()]
    if undecided:
        parts.append(f"no press leads for certain at {_some(undecided)}")
    if unknown:
        parts.append(f"too few independent prompts to rank at {_some(unknown)}")
    return "; ".join(parts)


def _some(told: list[str]) -> str:
    more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    return ", ".join(told[:SHOWN]) + more


def _budget(row: pd.Series) -> str:
    if row["budget_by"] == BYTES:
        return f"{byte_count(float(row['budget_label']))} of KV"
    return f"budget {row['budget_label']}"
