"""transitions: where each press's curve over budgets breaks, and where it is merely unstable."""

import math
from typing import Any

import numpy as np
import pandas as pd

from kvx.analyze.bin_stats import Row, null
from kvx.analyze.columns import ALL_BINS
from kvx.analyze.frames import Experiment, paired_table
from kvx.config.analyze import AnalyzeConfig
from kvx.stats.paired import mcnemar_exact
from kvx.stats.transition import (
    curve_steps,
    find_transition,
    first_break,
    instability_zone,
    mean_of_bin_means,
)
from kvx.store.catalog import PointRecord

FEW = 20
KEYS = ["variant_id", "variant", "model", "dataset", "press", "controller", "seed", "budget_kind"]


def transitions(experiment: Experiment, stats: list[Row], config: AnalyzeConfig) -> list[Row]:
    """One row per curve: a press's budgets of one kind, begun at their full cache.

    A curve without a full cache, or without a compressed point, has no row.
    """
    frame = pd.DataFrame(stats)
    overall = frame[frame["primary"] & (frame["bin"] == ALL_BINS)].set_index("point_id")
    curves: dict[tuple[Any, ...], list[PointRecord]] = {}
    for point in experiment.points:
        if not point.is_full_cache:
            key = tuple(overall.loc[point.id, KEYS])
            curves.setdefault(key, []).append(point)
    rows = []
    for key, points in curves.items():
        full = experiment.full_cache(points[0])
        if full is None:
            continue
        points.sort(key=lambda point: point.budget_asked, reverse=True)
        ids = [full.id, *(p.id for p in points)]
        rows.append(dict(zip(KEYS, key, strict=True)) | _curve(experiment, ids, overall, config))
    return rows


def _curve(
    experiment: Experiment, ids: list[str], overall: pd.DataFrame, config: AnalyzeConfig
) -> Row:
    scores, about = paired_table(experiment, ids)
    bins, curve = about["bin"], overall.loc[ids]
    rank = [float(-i) for i in range(len(ids))]  # budgets may tie as fractions, not as ranks
    found = find_transition(
        rank,
        scores,
        bins,
        about["cluster"].tolist(),
        config.transition_drop,
        config.n_boot,
        config.seed,
    )
    metric = str(curve["metric"].iloc[0])
    # of a 0/1 score the spread is a function of the mean, and of few scores it is mostly chance
    tells = metric not in experiment.binary_metrics and curve["n"].min() >= FEW
    spread = curve["sd"] if tells else np.full(len(ids), np.nan)
    zone = instability_zone(
        rank,
        _means(scores, bins),
        np.asarray(spread, dtype=float),
        _clear_failure_rates(experiment, ids, curve, 1 - config.confidence),
        config.transition_drop,
        config.spread_jump,
        config.failure_jump,
    )
    steps = curve_steps(scores, about["cluster"].tolist())
    broken = first_break(steps, config.transition_drop, 1 - config.confidence)
    at = None if found.budget is None else int(-found.budget)
    labels, budgets = curve["budget_label"].tolist(), curve["budget"].tolist()
    return {
        "metric": metric, "n_budgets": len(ids), "n_boot": config.n_boot,
        "n_clusters": min(_clusters(about["cluster"], row) for row in scores),
        "n_steps": sum(not math.isnan(step.p) for step in steps),
        "transition_budget": None if broken is None else float(budgets[broken.below]),
        "transition_label": None if broken is None else labels[broken.below],
        "transition_above_label": None if broken is None else labels[broken.above],
        "transition_drop": None if broken is None else broken.drop,
        "transition_p": None if broken is None else broken.p,
        "classic_budget": None if at is None else float(budgets[at]),
        "classic_label": None if at is None else labels[at],
        "classic_above_label": None if at is None else labels[at - 1],
        "classic_drop": found.drop, "classic_support": null(found.support),
        "classic_support_any": null(found.support_any),
        "lowest_label": curve["budget_label"].iloc[-1],
        "lowest_difference": null(_means(scores, bins)[-1] - _means(scores, bins)[0]),
        "n_degenerate": int(curve["n_degenerate"].sum()),
        "zone_labels": [curve["budget_label"].iloc[int(-r)] for r, _ in zone],
        "zone_reasons": [reason for _, reason in zone],
    }  # fmt: skip


def _clusters(clusters: np.ndarray[Any, Any], scores: np.ndarray[Any, Any]) -> int:
    """The number of clusters with a score."""
    return len(set(clusters[~np.isnan(scores)].tolist()))


def _means(scores: np.ndarray[Any, Any], bins: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mean of bin means at each budget, changes taken over the examples scored at both ends."""
    first = mean_of_bin_means(scores[:1], bins)[0]
    means = [first]
    for row in scores[1:]:
        both = ~np.isnan(row) & ~np.isnan(scores[0])
        full, here = mean_of_bin_means(np.stack([scores[0], row])[:, both], bins[both])
        means.append(first + here - full)
    return np.array(means)


def _clear_failure_rates(
    experiment: Experiment, ids: list[str], curve: pd.DataFrame, alpha: float
) -> np.ndarray[Any, Any]:
    """Failure rates; nan (no evidence) where the paired change could well be chance."""
    rates = curve["failure_rate"].to_numpy(dtype=float).copy()
    for i, point_id in enumerate(ids[1:], 1):
        pairs = experiment.side_by_side(point_id, ids[0])
        here, there = (pairs[name][pairs["primary"]] for name in ("failed", "failed_full"))
        more, fewer = int((here & ~there).sum()), int((~here & there).sum())
        if mcnemar_exact(more, fewer) > alpha:
            rates[i] = np.nan
    return rates
