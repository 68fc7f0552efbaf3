"""The report's tables of benchmarks: the average over their tasks, beside each task."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from kvx.report.tables import mark, markdown, number, ordered
from kvx.report.wording import interval, series_name


def benchmarks(task_means: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """A label and a table for each benchmark: a row per point, the average and each task's mean."""
    for _, frame in task_means.groupby("benchmark_id", sort=False):
        tasks = list(dict.fromkeys(task for names in frame["tasks"] for task in names))
        yield {
            "label": frame["benchmark"].iloc[0],
            "n_tasks": len(tasks),
            "incomplete": bool((frame["n_missing_tasks"] > 0).any()),
            "table": _table(ordered(frame), tasks),
        }


def _table(frame: pd.DataFrame, tasks: list[str]) -> str:
    rows = []
    for _, row in frame.iterrows():
        means = dict(zip(row["tasks"], row["task_means"], strict=True))
        complete = row["n_missing_tasks"] == 0
        change = f"{number(row['difference'], '{:+.2f}')} {_change(row)}"
        rows.append(
            [
                series_name(row), f"{row['budget_label']}{mark(row)}",
                f"{number(row['mean'])} {interval(row)}" if complete else "–",
                change if complete and not pd.isna(row["difference"]) else "",
                *(number(means.get(task)) for task in tasks),
            ]
        )  # fmt: skip
    return markdown(["press", "budget", "average", "against the full cache", *tasks], rows)


def _change(row: pd.Series) -> str:
    return interval(row, "difference_ci_low", "difference_ci_high", sign=True)
