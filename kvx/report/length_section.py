"""Where compression costs something: the difference from the full cache, length by length."""

import pandas as pd

from kvx.analyze.columns import ALL_BINS, is_full
from kvx.report.tables import Cells, number, per_point
from kvx.report.verdicts import Verdict, verdict
from kvx.report.wording import interval, token_range


def length_table(comparisons: pd.DataFrame, stats: pd.DataFrame, alpha: float) -> str:
    """Per point and bin the paired difference of the primary metric, and press × length.

    `comparisons` and `stats` (bin_stats) are of one variant. Bold: a loss or a gain by the p that
    is corrected for all points and bins. Empty with fewer than two bins or no compressed point.
    """
    compared = comparisons[comparisons["primary"] & ~is_full(comparisons)]
    edges = stats[stats["bin"] != ALL_BINS].drop_duplicates("bin").sort_values("bin")
    if len(edges) < 2 or not len(compared):
        return ""
    by_cell = {(row["point_id"], row["bin"]): row for row in compared.to_dict("records")}

    def cell(point: str, index: int) -> str:
        row = by_cell.get((point, index))
        if row is None:
            return "–"
        told, found = number(row["difference"], "{:+.2f}"), verdict(row, alpha)
        bold = found in (Verdict.loss, Verdict.gain)
        return f"{f'**{told}**' if bold else told} {interval(row, sign=True)}"

    def cells(row: pd.Series) -> Cells:
        differences = (cell(row["point_id"], index) for index in edges["bin"])
        return (
            *differences,
            number(row["interaction_p"], "{:.2g}"),
            number(row["interaction_p_bh"], "{:.2g}"),
        )

    overall = compared[compared["bin"] == ALL_BINS]
    ranges = [token_range(row) for _, row in edges.iterrows()]
    return per_point(overall, [*ranges, "press × length p", "corrected"], cells)
