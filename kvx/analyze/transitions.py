"""transitions: where each press's curve over budgets breaks, and where it is merely unstable."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from kvx.analyze.bin_stats import Row, null
from kvx.analyze.frames import Experiment
from kvx.analyze.press_curves import Curve, curves
from kvx.config.analyze import AnalyzeConfig
from kvx.stats.curve_shape import FOLDS, LEAST_BUDGETS, step_out_of_sample
from kvx.stats.instability import FAILURES, SPREAD, Rise, rises
from kvx.stats.multiplicity import holm
from kvx.stats.paired import least_pairs
from kvx.stats.transition import Step, curve_steps, find_transition, first_break
from kvx.store.forks import in_order

STEP, SMOOTH = "step", "smooth"


def transitions(
    experiment: Experiment, stats: list[Row], config: AnalyzeConfig, n_processes: int = 1
) -> list[Row]:
    """One row per curve: a press's budgets of one kind, begun at their full cache.

    A curve without a full cache, or without a compressed point, has no row, and neither has one of
    points with a controller, which gives entries back: no one budget is theirs. Rises of spread and
    failures are corrected over all curves, so that a report without any effect names none.
    """
    alone = [at for at in curves(experiment, stats) if at.key["controller"] == "none"]
    return _rows(in_order(lambda at: _of(at.read(), config), alone, n_processes), config)


def rows_of(found_curves: Iterable[Curve], config: AnalyzeConfig) -> list[Row]:
    """The rows of an experiment with these curves."""
    return _rows((_of(curve, config) for curve in found_curves), config)


def _of(curve: Curve, config: AnalyzeConfig) -> tuple[Row, list[str], list[Rise]]:
    """A curve's row, the labels of its budgets and the rises along it, not corrected yet."""
    row = curve.key | _row(curve, config)
    unstable = []
    if row["n_clusters"] >= least_pairs(1 - config.confidence):
        unstable = rises(
            curve.scores, curve.failed, curve.clusters.tolist(), config.transition_drop
        )
    return row, curve.labels, unstable


def _rows(found: Iterable[tuple[Row, list[str], list[Rise]]], config: AnalyzeConfig) -> list[Row]:
    parts = list(found)
    rising = [(row, labels, rise) for row, labels, unstable in parts for rise in unstable]
    corrected = holm([rise.p for _, _, rise in rising])
    for (row, labels, rise), p in zip(rising, corrected, strict=True):
        _note(row, labels[rise.index], rise, float(p), config)
    return [row for row, _, _ in parts]


def _row(curve: Curve, config: AnalyzeConfig) -> Row:
    scores, clusters, labels = curve.scores, curve.clusters.tolist(), curve.labels
    budgets = curve.stats["budget"].astype(float).tolist()
    classic = find_transition(
        [float(-i) for i in range(len(labels))],  # budgets may tie as fractions, not as ranks
        scores,
        curve.bins,
        clusters,
        config.transition_drop,
        config.n_boot,
        config.seed,
    )
    steps = curve_steps(scores, clusters)
    broken = first_break(steps, config.transition_drop, 1 - config.confidence)
    at = None if classic.budget is None else int(-classic.budget)
    both = ~np.isnan(scores[-1] - scores[0])
    lost = (scores[-1] - scores[0])[both]
    return {
        "metric": str(curve.stats["metric"].iloc[0]), "n_budgets": len(labels),
        "n_boot": config.n_boot, "n_clusters": _fewest_clusters(curve),
        "n_steps": sum(not math.isnan(step.p) for step in steps),
        "transition_budget": None if broken is None else float(budgets[broken.below]),
        "transition_label": None if broken is None else labels[broken.below],
        "transition_above_label": None if broken is None else labels[broken.above],
        "transition_drop": None if broken is None else broken.drop,
        "transition_p": None if broken is None else broken.p,
        "shape": _shape(curve, steps, broken, config),
        "classic_budget": None if at is None else float(budgets[at]),
        "classic_label": None if at is None else labels[at],
        "classic_above_label": None if at is None else labels[at - 1],
        "classic_drop": classic.drop, "classic_support": null(classic.support),
        "classic_support_any": null(classic.support_any), "lowest_label": labels[-1],
        "lowest_difference": null(lost.mean() if lost.size else math.nan),
        "n_degenerate": int(curve.stats["n_degenerate"].sum()),
        "zone_labels": [], "zone_reasons": [],
    }  # fmt: skip


def _shape(
    curve: Curve, steps: list[Step], broken: Step | None, config: AnalyzeConfig
) -> str | None:
    """`step` where the break is also what predicts held-out examples best, else `smooth`.

    None where too few budgets or clusters tell a step from a slope.
    """
    if len(curve.labels) < LEAST_BUDGETS or _fewest_clusters(curve) < FOLDS:
        return None
    if all(math.isnan(step.p) for step in steps):
        return None
    ranks = np.linspace(1.0, 0.0, len(curve.labels), endpoint=False)
    doses = np.clip(curve.stats["budget"].to_numpy(dtype=float), 1e-6, 1.0)
    doses = doses if (np.diff(doses) < 0).all() else ranks
    at = step_out_of_sample(doses.tolist(), curve.scores, curve.clusters.tolist(), config.seed)
    return STEP if broken is not None and at == broken.above else SMOOTH


def _note(row: Row, label: str, rise: Rise, p: float, config: AnalyzeConfig) -> None:
    """Put a budget into the instability zone of `row`, if its rise is large and no chance."""
    least = {SPREAD: config.spread_jump, FAILURES: config.failure_jump}[rise.what]
    if not (p <= 1 - config.confidence and rise.change >= least - 1e-9):
        return
    labels: list[Any] = row["zone_labels"]
    if label in labels:
        at = labels.index(label)
        row["zone_reasons"][at] = f"{SPREAD}+{FAILURES}"
        return
    labels.append(label)
    row["zone_reasons"].append(rise.what)


def _fewest_clusters(curve: Curve) -> int:
    """The number of clusters with a score at the budget that has fewest."""
    return min(len(set(curve.clusters[~np.isnan(row)].tolist())) for row in curve.scores)
