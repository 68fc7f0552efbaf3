"""Goodput: what a right answer costs in memory, tokens and time."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from kvx.analyze.columns import ALL_BINS
from kvx.report.tables import Cells, mark, number, per_point
from kvx.report.wording import full_name, interval

SHOWN = 4
INTRODUCTION = (
    "A right answer counts by its score, if it ended by itself: what is missing or was cut counts "
    "nothing. *Per GiB*: of the KV cache of the compressed prompt part, – if that of one answer is "
    "unknown. *Per second*: one request "
    "after the other, at the latencies measured alone. *Length*: generated tokens here per token "
    "of the full cache, over the same prompts."
)


def goodput_table(goodput: pd.DataFrame) -> str:
    """A row per point over all bins."""
    overall = goodput[goodput["bin"] == ALL_BINS]

    def cells(row: pd.Series) -> Cells:
        return (
            f"{number(row['correct_ended'])} {_interval(row, 'correct_ended')}",
            number(row["correct_per_gib"], "{:.4g}"), number(row["correct_per_s"], "{:.3g}"),
            number(row["tokens_per_correct"], "{:.4g}"),
            f"{number(row['inflation'])} {_interval(row, 'inflation')}"
            if row["n_inflation"] else "–",
        )  # fmt: skip

    header = ["right and ended", "per GiB", "per second", "tokens per right answer", "length"]
    return per_point(overall, header, cells) if len(overall) else ""


def verdicts(goodput: pd.DataFrame, alpha: float, several: bool) -> Iterator[str]:
    """One sentence on the points whose answers are longer or shorter than the full cache's.

    A point counts if its test, corrected within `analyze.family`, says so; the `SHOWN` farthest are
    named.
    """
    changed = goodput[(goodput["bin"] == ALL_BINS) & (goodput["inflation_p_holm"] <= alpha)]
    far = np.argsort(-np.abs(np.log(changed["inflation"].to_numpy(dtype=float))), kind="stable")
    overall = changed.iloc[far[:SHOWN]]
    named = [
        f"{full_name(row, several)} at {row['budget_label']}{mark(row)} ×{row['inflation']:.2f} "
        f"{_interval(row, 'inflation')}"
        for _, row in overall.iterrows()
    ]
    more = f"; and {len(changed) - SHOWN} more points" if len(changed) > SHOWN else ""
    if named:
        yield f"Length of the answers against the full cache: {'; '.join(named)}{more}."


def _interval(row: pd.Series, name: str) -> str:
    return interval(row, f"{name}_ci_low", f"{name}_ci_high")
