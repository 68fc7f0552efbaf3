"""The short report: a sentence for each press and one table of all points."""

from collections.abc import Iterator, Mapping

import pandas as pd

from kvx.analyze.columns import ALL_BINS, is_full
from kvx.config.analyze import AnalyzeConfig
from kvx.config.numbers import byte_count
from kvx.report.curve_findings import curve_sentences
from kvx.report.tables import Cells, number, per_point
from kvx.report.verdicts import in_a_cell
from kvx.report.wording import curve_name, interval, ranges_of

SHOWN = 12  # presses that get a sentence; the table has them all


def verdict_sentences(
    comparisons: pd.DataFrame,
    transitions: pd.DataFrame,
    config: AnalyzeConfig,
    dose_response: pd.DataFrame | None = None,
) -> Iterator[str]:
    """What each press's curve says, the first thing only; details.md has the rest."""
    if not len(transitions):
        if not (comparisons["primary"] & ~is_full(comparisons)).any():
            yield "No compressed point has a full cache beside it, so nothing can be compared."
        return
    several = transitions["variant_id"].nunique() > 1
    for _, row in transitions.head(SHOWN).iterrows():
        yield curve_sentences(curve_name(row, several), row, config, dose_response)[0]
    if len(transitions) > SHOWN:
        yield f"{len(transitions) - SHOWN} more are in the table and in details.md."


def summary_table(
    overall: pd.DataFrame,
    comparisons: pd.DataFrame,
    stats: pd.DataFrame,
    config: AnalyzeConfig,
    used: Mapping[str, float],
) -> str:
    """A row per point: what was kept, the score beside the full cache's, and the verdict.

    `stats` is bin_stats, which knows the tokens of each bin; `used` the share that guarded points
    had on the device, whose bytes were not measured.
    """
    paired = comparisons[comparisons["primary"] & (comparisons["bin"] == ALL_BINS)]
    by_point = paired.set_index("point_id")
    by_bin = comparisons[comparisons["primary"] & (comparisons["bin"] != ALL_BINS)]
    ranges = ranges_of(stats)

    def cells(row: pd.Series) -> Cells:
        mean = f"{number(row['mean'])} {interval(row)}"
        point = row["point_id"]
        if point not in by_point.index or is_full(row):
            change, told = "", ""
        else:
            pair, bins = by_point.loc[point], by_bin[by_bin["point_id"] == point]
            change = f"{number(pair['difference'], '{:+.2f}')} {interval(pair, sign=True)}"
            told = in_a_cell(pair, bins, ranges, 1 - config.confidence)
        kept, held = row["budget_measured"], byte_count(row["kv_bytes_mean"])
        if row["controller"] != "none":
            kept, held = used.get(point), number(None)
        return (
            number(kept, "{:.3f}"), mean, change, told, number(row["failure_rate"]), held
        )  # fmt: skip

    header = ["kept", "score", "against the full cache", "verdict", "failures", "KV bytes"]
    return per_point(overall, header, cells)
