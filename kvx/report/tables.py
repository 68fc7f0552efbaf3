"""The report's tables, as Markdown."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from kvx.analyze.frames import ALL_BINS
from kvx.report.words import interval, series_name, token_range

Cells = Sequence[Any]


def markdown(header: Cells, rows: Sequence[Cells]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(c) for c in line) + " |" for line in lines)


def _number(value: Any, form: str = "{:.2f}") -> str:
    return "–" if value is None or pd.isna(value) else form.format(value)


def _bytes(value: Any) -> str:
    if value is None or pd.isna(value):
        return "–"
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def _ordered(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values(
        ["variant_id", "press", "controller", "seed", "budget"],
        ascending=[True, True, True, True, False],
    )


def mark(row: pd.Series) -> str:
    """A dagger for points in which the press cannot do what it is meant to."""
    return " †" if row["n_degenerate"] else ""


def accuracy_table(frame: pd.DataFrame) -> str:
    """Rows: press and budget; columns: bins. `†` marks degenerate cells."""
    bins = frame.drop_duplicates("bin").sort_values("bin")
    ranges = [token_range(row) for _, row in bins.iterrows() if row["bin"] != ALL_BINS]
    rows = []
    for _, group in _ordered(frame).groupby("point_id", sort=False):
        first = group.iloc[0]
        by_bin = sorted(
            (row for _, row in group.iterrows()), key=lambda r: (r["bin"] == ALL_BINS, r["bin"])
        )
        cells = [f"{_number(r['mean'])} {interval(r)}{mark(r)}" for r in by_bin]
        rows.append([series_name(first), first["budget_label"], *cells])
    note = "† degenerate: the budget leaves the press fewer entries than it needs."
    table = markdown(["press", "budget", *ranges, "all"], rows)
    return f"{table}\n\n{note}" if frame["n_degenerate"].any() else table


def budget_table(overall: pd.DataFrame) -> str:
    rows = [
        [
            series_name(r), r["budget_label"], _number(r["budget_measured"], "{:.3f}"),
            "yes" if r["budget_verified"] else "no", _bytes(r["kv_bytes_mean"]),
            _bytes(r["kv_bytes_full_mean"]), f"{r['n_degenerate']}{mark(r)}",
        ]
        for _, r in _ordered(overall).iterrows()
    ]  # fmt: skip
    header = [
        "press",
        "budget asked",
        "measured",
        "proved",
        "KV bytes",
        "full KV bytes",
        "degenerate responses",
    ]
    return markdown(header, rows)


def comparison_table(comparisons: pd.DataFrame) -> str:
    if not len(comparisons):
        return "No compressed point has a full-cache twin."
    overall = comparisons[comparisons["bin"] == ALL_BINS]
    rows = [
        [
            series_name(r), r["budget_label"], r["metric"].replace("_", " "),
            _number(r["twin_mean"]), _number(r["mean"]),
            f"{_number(r['difference'], '{:+.2f}')} {interval(r, sign=True)}",
            r["n_pairs"], r["n_lost"], r["n_won"], _number(r["mcnemar_p"], "{:.2g}"),
            _number(r["difference_from_failures"], "{:+.2f}"),
        ]
        for _, r in _ordered(overall).iterrows()
        if r["budget"] < 1
    ]  # fmt: skip
    header = [
        "press",
        "budget",
        "metric",
        "full cache",
        "here",
        "difference",
        "pairs",
        "lost",
        "won",
        "McNemar p",
        "of it from failures",
    ]
    return markdown(header, rows)


def failure_table(overall: pd.DataFrame, failures: pd.DataFrame) -> str:
    kinds = sorted(failures["error_type"].unique())
    counts = failures.groupby(["point_id", "error_type"]).size()
    rows = [
        [
            series_name(r), r["budget_label"],
            f"{_number(r['failure_rate'])} {interval(r, 'failure_ci_low', 'failure_ci_high')}",
            *(counts.get((r["point_id"], kind), 0) for kind in kinds),
        ]
        for _, r in _ordered(overall).iterrows()
    ]  # fmt: skip
    return markdown(["press", "budget", "failure rate", *kinds], rows)


def cost_table(overall: pd.DataFrame) -> str:
    rows = [
        [
            series_name(r), r["budget_label"], _number(r["ttft_p50_s"], "{:.3f}"),
            _number(r["tpot_p50_s"], "{:.4f}"), _number(r["latency_p50_s"], "{:.3f}"),
            _number(r["latency_p95_s"], "{:.3f}"), _bytes(r["kv_bytes_mean"]),
            _bytes(r["peak_memory_bytes_max"]),
        ]
        for _, r in _ordered(overall).iterrows()
    ]  # fmt: skip
    header = [
        "press",
        "budget",
        "TTFT p50 (s)",
        "TPOT p50 (s)",
        "latency p50 (s)",
        "latency p95 (s)",
        "KV (mean)",
        "peak memory",
    ]
    return markdown(header, rows)
