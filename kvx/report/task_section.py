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
            "category_table": _category_table(ordered(frame)),
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


def _category_table(frame: pd.DataFrame) -> str | None:
    """The categories' means and their average, of the points without a missing task; None if the
    tasks have no categories.
    """
    if "categories" not in frame or frame["categories"].isna().any():
        return None
    names = list(dict.fromkeys(name for row in frame["categories"] for name in row))
    rows = []
    for _, row in frame[frame["n_missing_tasks"] == 0].iterrows():
        of_tasks = pd.Series(row["task_means"]).groupby(list(row["categories"])).mean()
        average = f"{number(row['category_mean'])} {_interval_of_categories(row)}"
        cells = (number(of_tasks.get(name)) for name in names)
        rows.append([series_name(row), f"{row['budget_label']}{mark(row)}", average, *cells])
    return markdown(["press", "budget", "average", *names], rows) if rows else None


def _interval_of_categories(row: pd.Series) -> str:
    return interval(row, "category_ci_low", "category_ci_high")


def _change(row: pd.Series) -> str:
    return interval(row, "difference_ci_low", "difference_ci_high", sign=True)
