"""The report's catastrophes: rates, and what of them compression caused."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from kvx.analyze.columns import ALL_BINS
from kvx.report.tables import Cells, number, per_point
from kvx.report.wording import interval
from kvx.scoring.catastrophes import WORDS

HEADERS = {
    "looping": "looping",
    "non_termination": "non-termination",
    "amnesia": "instruction amnesia",
    "silent_failure": "silent failure",
    "any": "any catastrophe",
}


def catastrophe_table(stats: pd.DataFrame, alpha: float) -> str:
    """Per press and budget and kind: the rate, and below it the excess over the full cache.

    A dash stands for what was not measured. An excess is bold if its p, corrected for all points
    and kinds, is below `alpha`.
    """
    overall = stats[stats["bin"] == ALL_BINS]
    by_point = {point: rows.set_index("kind") for point, rows in overall.groupby("point_id")}

    def cells(row: pd.Series) -> Cells:
        kinds = by_point[row["point_id"]]
        return (*(_cell(kinds.loc[kind], alpha) for kind in HEADERS), row["n_pairs"] or "–")

    points = overall[overall["kind"] == "looping"]
    return per_point(points, [*HEADERS.values(), "pairs"], cells)


def _cell(row: Any, alpha: float) -> str:
    if pd.isna(row["rate"]):
        return "–"
    rate = f"{number(row['rate'])} {interval(row)}"
    if pd.isna(row["excess"]):
        return rate
    between = interval(row, "excess_ci_low", "excess_ci_high", sign=True)
    excess = f"{row['excess']:+.2f}"
    bold = pd.notna(row["excess_p_bh"]) and row["excess_p_bh"] < alpha
    return f"{rate}<br>{f'**{excess}**' if bold else excess} {between}"


def notes(stats: pd.DataFrame, seen: pd.DataFrame) -> Iterator[str]:
    """What is missing from the table, and why; `stats` and `seen` are one variant's tables."""
    if (seen["unit"] == WORDS).any():
        yield (
            "Where a server gave no token ids, or an answer was cut at a stop string when it was "
            "scored, loops were looked for among words: one inside a word is not seen."
        )
    compared = stats[stats["twin_point_id"].notna()]
    if not len(compared):
        yield "No compressed point has a full cache beside it, so there is no excess."
        return
    known = compared.groupby("kind")["n_pairs"].max()
    if not known["amnesia"]:
        yield (
            "Instruction amnesia was not measured: the dataset has no checkable instructions, and "
            "its questions hold fewer than two names or numbers."
        )
    if not known["silent_failure"]:
        yield "Silent failures were not measured: no pair has two scores."
