"""task_means: a benchmark's average over its tasks, for each press and budget.

The tasks are the benchmark's own and fixed; prompts are drawn within each. So the average's
interval is made from those of the tasks, which are independent of each other.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kvx.analyze.columns import ALL_BINS
from kvx.analyze.frames import Experiment
from kvx.analyze.naming import benchmark_settings, differences
from kvx.identity.hashing import digest
from kvx.stats.averages import average
from kvx.stats.intervals import Interval
from kvx.store.catalog import PointRecord

Row = dict[str, Any]


def task_means(
    experiment: Experiment, stats: Sequence[Row], comparisons: Sequence[Row]
) -> list[Row]:
    """One row per benchmark with several tasks, press, budget, controller and seed.

    `stats` and `comparisons` are the rows of those tables; of each task its primary metric over all
    bins counts. Where a point is missing, `tasks` says which ones the mean is over, and
    `n_missing_tasks` how many are not. The difference is that to the full cache, task by task.
    """
    own, paired = _primary(stats), _primary(comparisons)
    found: list[Row] = []
    families = _families(experiment)
    labels = _labels(families)
    for family, points in families.items():
        tasks = {_task(p) for p in points}
        cells: dict[tuple[Any, ...], list[PointRecord]] = defaultdict(list)
        for point in points:
            cells[_series(experiment, point)].append(point)
        for alike in cells.values():
            by_task = {_task(p): p for p in alike if p.id in own}
            if len(by_task) < len(alike):
                continue  # two data sets of one task: there is no one average
            members = [by_task[t] for t in sorted(by_task)]
            first = experiment.series_columns(members[0])
            rows = [own[p.id] for p in members]
            budgets = [row["budget"] for row in rows]
            found.append(
                {
                    "benchmark_id": family, "benchmark": labels[family],
                    **{n: first[n] for n in ("model", "press", "controller", "seed")},
                    **{n: first[n] for n in ("budget_kind", "budget_asked")},
                    "budget_label": members[0].info["budget_label"],
                    "budget": float(np.mean(budgets)),
                    "n_tasks": len(members), "n_missing_tasks": len(tasks) - len(members),
                    "tasks": [_task(p) for p in members],
                    "task_means": [row["mean"] for row in rows],
                    "n": sum(row["n"] for row in rows),
                    "n_degenerate": sum(row["n_degenerate"] for row in rows),
                    **_average(rows, "mean"),
                    **_average([paired.get(p.id, {}) for p in members], "difference"),
                    **_of_categories(rows, [_category(p) for p in members]),
                }
            )  # fmt: skip
    return found


def _primary(rows: Sequence[Row]) -> dict[str, Row]:
    return {r["point_id"]: r for r in rows if r["primary"] and r["bin"] == ALL_BINS}


def _families(experiment: Experiment) -> dict[str, list[PointRecord]]:
    """The points of each benchmark with several tasks, by what else they have in common."""
    alike: dict[str, list[PointRecord]] = defaultdict(list)
    for point in experiment.points:
        model = point.info.get("model_hash")
        alike[digest([model, benchmark_settings(point.info["config"])])].append(point)
    return {k: points for k, points in alike.items() if len({_task(p) for p in points}) > 1}


def _labels(families: Mapping[str, list[PointRecord]]) -> dict[str, str]:
    """Model and benchmark of each family, with the settings that differ."""
    settings = {k: benchmark_settings(points[0].info["config"]) for k, points in families.items()}
    suffixes = differences(settings)
    names = {
        k: (points[0].info["model"], points[0].info["config"]["dataset"]["name"])
        for k, points in families.items()
    }
    return {k: ", ".join(filter(None, [*names[k], suffixes[k]])) for k in families}


def _task(point: PointRecord) -> str:
    return str(point.info["config"]["dataset"]["task"])


def _category(point: PointRecord) -> str | None:
    found: str | None = point.info["config"]["dataset"].get("category")
    return found


def _series(experiment: Experiment, point: PointRecord) -> tuple[Any, ...]:
    """What the averaged points have in common beside their family."""
    labels = experiment.press_labels[point.id], experiment.controller_labels[point.id]
    return (*labels, point.info["seed"], point.info["budget_kind"], point.budget_asked)


def _of_categories(rows: Sequence[Row], categories: Sequence[str | None]) -> Row:
    """The mean of the categories' means, each of its tasks; null where a task has no category."""
    names = ("category_mean", "category_ci_low", "category_ci_high")
    if None in categories:
        return {"categories": None, **dict.fromkeys(names)}
    grouped: dict[str | None, list[Row]] = defaultdict(list)
    for row, category in zip(rows, categories, strict=True):
        grouped[category].append(row)
    means = [_average(alike, "mean") for alike in grouped.values()]
    found = _average(means, "mean")
    return {"categories": list(categories), **dict(zip(names, found.values(), strict=True))}


def _average(rows: Sequence[Row], name: str) -> Row:
    """The mean over tasks of a column and its interval; null where a task has none."""
    values = [row.get(name) for row in rows]
    prefix = "" if name == "mean" else f"{name}_"
    empty = {name: None, f"{prefix}ci_low": None, f"{prefix}ci_high": None}
    if any(value is None for value in values):
        return empty
    ends = [(row["ci_low"], row["ci_high"]) for row in rows]
    known = [Interval(*(math.nan if e is None else e for e in pair)) for pair in ends]
    mean, interval = average([float(value) for value in values if value is not None], known)
    if math.isnan(interval.low):
        return {**empty, name: mean}
    return {name: mean, f"{prefix}ci_low": interval.low, f"{prefix}ci_high": interval.high}
