"""The report's tables, as Markdown."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from kvx.analyze.columns import ALL_BINS, is_full
from kvx.config.numbers import byte_count
from kvx.engines.base import BudgetProof
from kvx.report import proof_section
from kvx.report.wording import ADAPTED, DEGENERATE, interval, metric_name, series_name, token_range

Cells = Sequence[Any]
ORDER = ["press", "controller", "seed", "budget"]


def markdown(header: Cells, rows: Sequence[Cells]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(c) for c in line) + " |" for line in lines)


def number(value: Any, form: str = "{:.2f}") -> str:
    return "–" if value is None or pd.isna(value) else form.format(value)


def ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """By press, without a controller before with one, dearest budget first."""
    return frame.sort_values(ORDER, ascending=[True, True, True, False], key=_none_first)


def _none_first(column: pd.Series) -> pd.Series:
    return column.replace("none", "") if column.name == "controller" else column


def mark(row: pd.Series) -> str:
    """A dagger if the press acts as another method, a double one if kvx adapted it to the model."""
    found = f" {DEGENERATE}" if row["n_degenerate"] else ""
    return f"{found} {ADAPTED}" if row.get("n_adapted", 0) > 0 else found


def marked(frame: pd.DataFrame, stats: pd.DataFrame) -> pd.DataFrame:
    """`frame` with `n_degenerate` of each point, which `stats` (bin_stats, all bins) knows."""
    found = frame["point_id"].map(stats.set_index("point_id")["n_degenerate"])
    return frame.assign(n_degenerate=found.fillna(0).astype(int))


def per_point(frame: pd.DataFrame, header: Cells, cells: Callable[[pd.Series], Cells]) -> str:
    """A table with a row per point: press, budget (marked if degenerate), then `cells`."""
    rows = [
        [series_name(row), f"{row['budget_label']}{mark(row)}", *cells(row)]
        for _, row in ordered(frame).iterrows()
    ]
    return markdown(["press", "budget", *header], rows)


def accuracy_table(frame: pd.DataFrame) -> str:
    """Rows: press and budget; columns: bins, then all of them."""
    bins = frame.drop_duplicates("bin").sort_values("bin")
    ranges = [token_range(row) for _, row in bins.iterrows() if row["bin"] != ALL_BINS]
    rows = []
    for _, group in ordered(frame).groupby("point_id", sort=False):
        first = group.iloc[0]
        by_bin = sorted(
            (row for _, row in group.iterrows()), key=lambda r: (r["bin"] == ALL_BINS, r["bin"])
        )
        cells = [f"{number(r['mean'])} {interval(r)}{mark(r)}" for r in by_bin]
        rows.append([series_name(first), first["budget_label"], *cells])
    return markdown(["press", "budget", *ranges, "all"], rows)


def not_applicable_table(rows: Sequence[Mapping[str, str]]) -> str:
    """A row per model, press and reason, with its budgets; empty if there is none."""
    cells = [[press, model, ", ".join(told), why]
             for (press, model, why), told in by_reason(rows).items()]  # fmt: skip
    return markdown(["press", "model", "budgets", "because"], cells) if cells else ""


def by_reason(rows: Sequence[Mapping[str, str]]) -> dict[tuple[str, str, str], list[str]]:
    """Budgets of the points that are not applicable, by press, model and reason."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        budgets = found.setdefault((row["press"], row["model"], row["reason"]), [])
        if row["budget_label"] not in budgets:
            budgets.append(row["budget_label"])
    return found


def budget_table(
    overall: pd.DataFrame, found: dict[str, list[BudgetProof]], used: dict[str, float]
) -> str:
    """The share that presses kept; with controllers also the mean on the device (`used`)."""

    def cells(row: pd.Series) -> Cells:
        point = row["point_id"]
        controlled = (number(used.get(point), "{:.3f}"),) if used else ()
        return (
            number(row["budget_measured"], "{:.3f}"), *controlled,
            proof_section.short(found[point]), byte_count(row["kv_bytes_mean"]),
            byte_count(row["kv_bytes_full_mean"]), row["n_degenerate"],
        )  # fmt: skip

    raised = ["with its controller"] if used else []
    header = ["measured", *raised, "proved", "KV bytes", "full KV bytes", "degenerate requests"]
    return per_point(overall, header, cells)


def comparison_table(comparisons: pd.DataFrame) -> str:
    overall = comparisons[(comparisons["bin"] == ALL_BINS) & ~is_full(comparisons)]
    if not len(overall):
        return "No compressed point has a full cache beside it."

    def cells(row: pd.Series) -> Cells:
        return (
            metric_name(row), number(row["twin_mean"]), number(row["mean"]),
            f"{number(row['difference'], '{:+.2f}')} {interval(row, sign=True)}", row["n_pairs"],
            row["n_lost"], row["n_won"], number(row["p"], "{:.2g}"),
            number(row["p_holm"] if row["primary"] else row["p_bh"], "{:.2g}"),
        )  # fmt: skip

    header = [
        "metric", "full cache", "here", "difference", "pairs", "lost", "won", "p", "corrected p",
    ]  # fmt: skip
    return per_point(overall, header, cells)


def failure_table(overall: pd.DataFrame, comparisons: pd.DataFrame, failures: pd.DataFrame) -> str:
    """Failure rate, its excess over the full cache, and the count of each kind."""
    failures = failures[failures["point_id"].isin(overall["point_id"])]
    kinds = sorted(failures["error_type"].unique())
    counts = failures.groupby(["point_id", "error_type"]).size()
    compared = comparisons[(comparisons["bin"] == ALL_BINS) & comparisons["primary"]]
    excess = compared.set_index("point_id")["failure_rate_difference"]

    def cells(row: pd.Series) -> Cells:
        rate = f"{number(row['failure_rate'])} {interval(row, 'failure_ci_low', 'failure_ci_high')}"
        point = row["point_id"]
        return (
            rate,
            number(excess.get(point), "{:+.2f}"),
            *(counts.get((point, kind), 0) for kind in kinds),
        )

    return per_point(overall, ["failure rate", "excess over full cache", *kinds], cells)


def cost_table(overall: pd.DataFrame) -> str:
    def cells(row: pd.Series) -> Cells:
        return (
            byte_count(row["kv_bytes_mean"]), byte_count(row["kv_bytes_full_mean"]),
            number(row["output_tokens_mean"], "{:.1f}"),
        )  # fmt: skip

    return per_point(overall, ["KV (mean)", "full KV (mean)", "output tokens (mean)"], cells)


def latency_table(overall: pd.DataFrame) -> str:
    """Points of which nothing was measured have no row."""

    def cells(row: pd.Series) -> Cells:
        return (
            number(row["ttft_p50_s"], "{:.3f}"), number(row["tpot_p50_s"], "{:.4f}"),
            number(row["latency_p50_s"], "{:.3f}"), number(row["latency_p95_s"], "{:.3f}"),
            byte_count(row["peak_memory_bytes_max"]), number(row["latency_spread"], "{:.0%}"),
            number(row["others_cpu_share"], "{:.0%}"), row["n_latency"], row["n_latency_failed"],
        )  # fmt: skip

    header = [
        "TTFT p50 (s)", "TPOT p50 (s)", "latency p50 (s)", "latency p95 (s)", "peak memory",
        "repeats differ by", "CPU of others", "measured", "failed",
    ]  # fmt: skip
    measured = overall["n_latency"] + overall["n_latency_failed"] > 0
    return per_point(overall[measured], header, cells)
