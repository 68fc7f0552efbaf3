"""A benchmark's average over its tasks: from answers on disk to the report."""

import math

import numpy as np
import pytest

from kvx.stats.averages import average
from kvx.stats.intervals import Interval, clopper_pearson
from tests.conftest import Kvx
from tests.test_catastrophes import FOLDER, write_experiment
from tests.test_press_pairs import failing, tables


def test_distances_to_the_limits_are_averaged_in_squares() -> None:
    mean, (low, high) = average([0.5, 1.0], [Interval(0.2, 0.8), Interval(0.6, 1.0)])
    assert (mean, low, high) == pytest.approx((0.75, 0.75 - 0.5 / 2, 0.75 + 0.3 / 2))
    assert tuple(average([0.3], [Interval(0.1, 0.9)])[1]) == pytest.approx((0.1, 0.9))
    unknown = average([0.3, 0.4], [Interval(0.1, 0.9), Interval(math.nan, math.nan)])
    assert unknown[0] == pytest.approx(0.35)
    assert all(map(math.isnan, unknown[1]))
    assert math.isnan(average([], [])[0])


def test_the_interval_of_an_average_covers_it() -> None:
    rng, hits = np.random.default_rng(0), 0
    shares = np.array([1.0, 0.97, 0.9, 0.6, 0.3, 0.05, 0.0])  # some at the edge, as tasks are
    for _ in range(400):
        right = rng.binomial(20, shares)
        ends = [clopper_pearson(int(k), 20, 0.95) for k in right]
        low, high = average(list(right / 20), ends)[1]
        hits += low <= shares.mean() <= high
    assert 0.95 <= hits / 400 <= 1


def test_a_benchmark_counts_each_of_its_tasks_alike(kvx: Kvx) -> None:
    lost = {"a": range(10), "b": range(30), "c": range(0)}
    write_experiment(
        failing(), "dataset.task=a,b,c", "press=knorm",
        choose=lambda point: failing(lost[point.config.dataset.task]),
    )  # fmt: skip
    found, stats, compared = tables(kvx, "task_means", "bin_stats", "comparisons")
    half, full = (row for _, row in found.sort_values("budget_label").iterrows())
    assert (half["budget_label"], full["budget_label"]) == ("0.5", "1")
    assert full["mean"] == 1
    assert math.isnan(full["difference"])
    assert list(half["tasks"]) == ["a", "b", "c"]
    assert list(half["task_means"]) == [0.75, 0.25, 1.0]
    assert half["mean"] == pytest.approx(2 / 3)
    assert half["difference"] == pytest.approx(-1 / 3)
    assert (half["n"], half["n_tasks"], half["n_missing_tasks"]) == (120, 3, 0)
    for table, low, high, mean in (
        (stats, "ci_low", "ci_high", "mean"),
        (compared, "difference_ci_low", "difference_ci_high", "difference"),
    ):
        rows = table[(table["bin"] == -1) & (table["budget_label"] == "0.5")].sort_values("dataset")
        ends = [Interval(*pair) for pair in zip(rows["ci_low"], rows["ci_high"], strict=True)]
        expected = average(rows[mean].tolist(), ends)[1]
        assert (half[low], half[high]) == pytest.approx(tuple(expected))
    report = (FOLDER / "report.md").read_text()
    cells = " | ".join(["| knorm | 0.5", f"0.67 [{half['ci_low']:.2f}, {half['ci_high']:.2f}]"])
    assert f"{cells} | -0.33 [" in report
    assert "| 0.75 | 0.25 | 1.00 |" in report
    assert "average over 3 tasks" in report
    # their own templates, limits and metrics are no part of a variant's label
    assert set(stats["variant"]) == {f"tiny_recall, {name}" for name in set(stats["dataset"])}


def test_one_task_has_no_average_and_a_missing_one_is_told(kvx: Kvx) -> None:
    write_experiment(failing(), "dataset.task=a", "press=knorm")
    (alone,) = tables(kvx, "task_means")
    assert alone.empty
    write_experiment(failing(), "dataset.task=a,b", "press=tova")
    (found,) = tables(kvx, "task_means")
    by_press = found.groupby("press")["n_missing_tasks"].agg(set).to_dict()
    assert by_press == {"knorm": {1}, "tova": {0}}
    assert "| knorm | 0.5 | – |  | 1.00 | – |" in (FOLDER / "report.md").read_text()


def test_categories_count_alike_whatever_their_number_of_tasks(kvx: Kvx) -> None:
    lost = {"a": range(10), "b": range(30), "c": range(0)}
    of = {"a": "code", "b": "code", "c": "summaries"}
    for task, category in of.items():
        settings = (f"dataset.task={task}", f"dataset.category={category}", "press=knorm")
        write_experiment(failing(lost[task]), *settings)
    (found,) = tables(kvx, "task_means")
    (half,) = (row for _, row in found.iterrows() if row["budget_label"] == "0.5")
    assert list(half["categories"]) == ["code", "code", "summaries"]
    assert half["mean"] == pytest.approx(2 / 3)
    assert half["category_mean"] == pytest.approx((0.5 + 1) / 2)
    assert half["category_ci_low"] < half["category_mean"] < half["category_ci_high"]
    report = (FOLDER / "report.md").read_text()
    assert "| press | budget | average | code | summaries |" in report
    ends = f"[{half['category_ci_low']:.2f}, {half['category_ci_high']:.2f}]"
    assert f"| knorm | 0.5 | 0.75 {ends} | 0.50 | 1.00 |" in report
