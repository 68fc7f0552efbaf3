"""The report's fidelity: how far each point is from the full cache along the same text."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from kvx.analyze.columns import ALL_BINS, is_full
from kvx.analyze.fidelity_plots import whole
from kvx.report.tables import Cells, mark, markdown, number, ordered, per_point
from kvx.report.wording import full_name, series_name, token_range

INTRODUCTION = (
    "Every point was fed the full cache's own greedy answer, token by token, so all are compared "
    "at the same text and no reference answer is needed. *KL*: KL(full cache ‖ compressed) of the "
    "next-token distributions, in nats per token. *Same token*: the share of tokens at which both "
    "find the same one likeliest. *Same answer*: the share of prompts at which that holds for "
    "every token, so that greedy decoding would give the full cache's answer. *Perplexity*: that "
    "of the full cache's answer here, as a multiple of the full cache's own. Intervals are over "
    "clusters of prompts; [n/a] where all are alike or there are too few."
)


def tables(stats: pd.DataFrame, variant: str) -> dict[str, Any]:
    """The tables of one variant, and whether it has plots; empty if nothing was compared."""
    rows = stats[stats["variant_id"] == variant]
    if not len(rows):
        return {}
    return {
        "table": fidelity_table(rows), "positions": position_table(rows),
        "lengths": length_table(rows), "plots": bool((~is_full(rows)).any()),
    }  # fmt: skip


def fidelity_table(stats: pd.DataFrame) -> str:
    """A row per point over all lengths and positions; empty without rows."""
    overall = whole(stats[stats["bin"] == ALL_BINS])
    if not len(overall):
        return ""
    failed = bool(overall["n_failed"].any())

    def cells(row: pd.Series) -> Cells:
        return (
            number(row["budget_measured"], "{:.3f}"),
            _value(row, "kl_nats", "{:.2g}"), _value(row, "agreement", "{:.3f}"),
            _value(row, "same_answer", "{:.2f}"), _value(row, "perplexity_ratio", "{:.3g}"),
            row["n_tokens"], row["n_prompts"], *([row["n_failed"]] if failed else []),
        )  # fmt: skip

    header = [
        "kept", "KL (nats)", "same token", "same answer", "perplexity", "tokens", "prompts",
        *(["failed"] if failed else []),
    ]  # fmt: skip
    return per_point(overall, header, cells)


def position_table(stats: pd.DataFrame) -> str:
    """KL over ranges of positions in the answer; empty without compressed points."""
    rows = stats[(stats["bin"] == ALL_BINS) & ~is_full(stats)]
    rows = rows.drop(whole(rows).index)
    lows = sorted(set(rows["position_low"]))
    heads = {low: position_range(rows, low) for low in lows}
    return _spread(rows, "position_low", [f"token {heads[low]}" for low in lows], lows)


def length_table(stats: pd.DataFrame) -> str:
    """KL by length of the context; empty with one bin or without compressed points."""
    rows = whole(stats[(stats["bin"] != ALL_BINS) & ~is_full(stats)])
    bins = rows.drop_duplicates("bin").sort_values("bin")
    if len(bins) < 2:
        return ""
    return _spread(rows, "bin", [token_range(row) for _, row in bins.iterrows()], list(bins["bin"]))


def position_range(rows: pd.DataFrame, low: int) -> str:
    """`1`, `2–4`, `65–`."""
    high = rows.loc[rows["position_low"] == low, "position_high"].iloc[0]
    if pd.isna(high):
        return f"{low}–"
    return f"{low}" if high == low else f"{low}–{int(high)}"


def verdicts(stats: pd.DataFrame, several: bool) -> Iterator[str]:
    """For each budget the points that are nearest to the full cache and farthest from it."""
    overall = whole(stats[(stats["bin"] == ALL_BINS) & ~is_full(stats)])
    overall = overall[overall["kl_nats"].notna()]
    overall = overall.sort_values(["budget_kind", "budget"], ascending=[True, False], kind="stable")
    for _, frame in overall.groupby(["variant_id", "budget_kind", "budget_asked"], sort=False):
        order = frame.sort_values("kl_nats", kind="stable")
        near, far = order.iloc[0], order.iloc[-1]
        told = _told(near, several)
        if len(order) > 1:
            told = f"from {told} to {_told(far, several)}"
        unit = "t" if near["budget_kind"] == "tokens" else ""
        yield f"Fidelity at budget {near['budget_asked']:g}{unit}: {told}."


def _told(row: Any, several: bool) -> str:
    return (
        f"{full_name(row, several)}{mark(row)} (KL {_value(row, 'kl_nats', '{:.2g}')} nats per "
        f"token, the same token likeliest at {row['agreement']:.0%})"
    )


def _spread(rows: pd.DataFrame, column: str, heads: list[str], keys: list[int]) -> str:
    lines = []
    for _, group in ordered(rows).groupby("point_id", sort=False):
        first, by_key = group.iloc[0], group.set_index(column)
        cells = [
            _value(by_key.loc[key], "kl_nats", "{:.2g}") if key in by_key.index else "–"
            for key in keys
        ]
        lines.append([series_name(first), f"{first['budget_label']}{mark(first)}", *cells])
    return markdown(["press", "budget", *heads], lines) if lines else ""


def _value(row: Any, name: str, form: str) -> str:
    if pd.isna(row[name]):
        return "–"
    ends = (row[f"{name}_ci_low"], row[f"{name}_ci_high"])
    between = "[n/a]" if any(map(pd.isna, ends)) else "[{}, {}]".format(*map(form.format, ends))
    return f"{form.format(row[name])} {between}"
