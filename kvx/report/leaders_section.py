"""Who leads at each budget, and whether that is certain."""

from collections.abc import Iterator

import pandas as pd

from kvx.analyze.equal_budgets import BYTES
from kvx.analyze.leaders import ALL_VARIANTS
from kvx.config.numbers import byte_count
from kvx.report.tables import markdown, number
from kvx.report.wording import DEGENERATE, interval

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
                f"{row['press']}{f' {DEGENERATE}' if row['n_degenerate'] else ''}",
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
    """One sentence for each scope: who leads where, and where nobody does for certain."""
    chosen = leaders
    if several and (leaders["scope"] == ALL_VARIANTS).any():
        chosen = leaders[leaders["scope"] == ALL_VARIANTS]
    for _, scope in chosen.groupby("scope", sort=False):
        certain: dict[str, list[str]] = {}
        open_at, unknown = [], []
        for _, budget in scope.groupby(KEYS, sort=False):
            first = budget.iloc[0]
            if budget["p"].isna().sum() > 1:
                unknown.append(_budget(first))
            elif first["rank_high"] == 1:
                certain.setdefault(first["press"], []).append(_budget(first))
            else:
                ahead = budget.loc[budget["rank_low"] == 1, "press"]
                open_at.append(f"{_budget(first)} ({', '.join(ahead)})")
        parts = [f"**{press}** leads at {', '.join(at)}" for press, at in certain.items()]
        if open_at:
            parts.append(f"no press leads for certain at {'; '.join(open_at)}: these may be first")
        if unknown:
            parts.append(f"too few independent prompts to rank at {', '.join(unknown)}")
        first = scope.iloc[0]
        where = f" over {first['n_variants']} models and datasets" if several else ""
        yield f"Presses at equal measured budget{where}: {'; '.join(parts)}."


def _budget(row: pd.Series) -> str:
    if row["budget_by"] == BYTES:
        return f"{byte_count(float(row['budget_label']))} of KV"
    return f"budget {row['budget_label']}"
