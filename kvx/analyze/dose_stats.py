"""dose_response: how each press's score depends on the budget and on the length of the context."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.analyze.bin_stats import Row, null
from kvx.analyze.columns import ALL_BINS
from kvx.analyze.correction import SHARED, correct
from kvx.analyze.frames import Experiment
from kvx.analyze.press_curves import Curve, curves
from kvx.config.analyze import AnalyzeConfig
from kvx.stats.curve_area import area
from kvx.stats.dose_response import UNFITTED, DoseResponse, Threshold, fit
from kvx.stats.interaction import interaction_p
from kvx.stats.length_effect import NO_SHIFT, shift_per_doubling
from kvx.stats.multiplicity import holm
from kvx.store.forks import in_order

Doses = NDArray[np.float64]
AREA = ("area", "area_full", "area_difference", "area_ci_low", "area_ci_high", "area_p")


def dose_response(
    experiment: Experiment, stats: list[Row], config: AnalyzeConfig, n_processes: int = 1
) -> list[Row]:
    """One row per curve and bin, and one for all bins (-1), of the primary metric.

    Points with a controller have none: it gives entries back, so that no one budget is theirs.
    """
    alone = [at for at in curves(experiment, stats) if at.key["controller"] == "none"]
    frame = _by_point(pd.DataFrame(stats))
    found = in_order(lambda at: _of(at.read(), frame, config), alone, n_processes)
    return _corrected([row for rows in found for row in rows], config)


def rows_of(found_curves: Iterable[Curve], stats: pd.DataFrame, config: AnalyzeConfig) -> list[Row]:
    """The rows of an experiment with these curves; `stats` is its table bin_stats."""
    frame = _by_point(stats)
    return _corrected([row for c in found_curves for row in _of(c, frame, config)], config)


def _by_point(stats: pd.DataFrame) -> pd.DataFrame:
    return stats[stats["primary"]].set_index(["point_id", "bin"]).sort_index()


def _corrected(rows: list[Row], config: AnalyzeConfig) -> list[Row]:
    tested = [row for row in rows if row["bin"] == ALL_BINS]
    correct(tested, "length_p", "length_p_holm", holm, SHARED[config.family])
    return rows


def _of(curve: Curve, frame: pd.DataFrame, config: AnalyzeConfig) -> list[Row]:
    """A curve's rows, not corrected yet."""
    rows = []
    present = [int(b) for b in np.unique(curve.bins)]
    for index in [*present, ALL_BINS]:
        inside = curve.bins == index if index != ALL_BINS else np.ones(curve.bins.shape, bool)
        about = frame.loc[[(point_id, index) for point_id in curve.ids]]
        row = _row(curve, inside, about, config) | {"bin": index}
        rows.append(row | (_length(curve, frame, config) if index == ALL_BINS else {}))
    return rows


def _row(
    curve: Curve, inside: NDArray[np.bool_], about: pd.DataFrame, config: AnalyzeConfig
) -> Row:
    scores, clusters = curve.scores[:, inside], curve.clusters[inside].tolist()
    doses, known = _budgets(about), scores[~np.isnan(scores)]
    bounded = bool(known.size) and bool(((known >= 0) & (known <= 1)).all())
    found = fit(doses.tolist(), scores, clusters, config.confidence, config.seed) if bounded else (
        UNFITTED
    )  # fmt: skip
    answered = ~np.isnan(scores[0])
    return {
        **curve.key, "metric": str(about["metric"].iloc[0]), "n_budgets": len(doses),
        "bin_low_tokens": int(about["bin_low_tokens"].iloc[0]),
        "bin_high_tokens": int(about["bin_high_tokens"].iloc[0]), "n": int(answered.sum()),
        "n_clusters": len(set(curve.clusters[inside][answered].tolist())),
        "n_degenerate": int(about["n_degenerate"].sum()), "lowest_budget": float(doses.min()),
        "highest_budget": float(doses[1:].max()), "lowest_label": curve.labels[-1],
        "highest_label": curve.labels[1], **_fit_columns(found),
        **_area_columns(doses, scores, clusters, config, ""),
        **_area_columns(_bytes(about), scores, clusters, config, "bytes_"),
    }  # fmt: skip


def _budgets(about: pd.DataFrame) -> Doses:
    """Budgets of the points as fractions, in this bin where they are numbers of tokens."""
    doses = about["budget"].to_numpy(dtype=float).copy()
    if (about["budget_kind"] == "tokens").any():
        measured = about["budget_measured"].to_numpy(dtype=float)
        doses = np.where(np.isnan(measured), doses, measured)
    doses[0] = 1.0
    budgets: Doses = np.clip(doses, 1e-6, 1.0)
    return budgets


def _bytes(about: pd.DataFrame) -> Doses:
    """The points' KV bytes as shares of the full cache's; nan where they were not measured."""
    kept = about["kv_bytes_mean"].to_numpy(dtype=float)
    shares: Doses = np.minimum(kept / kept[0], 1.0)
    return shares


def _fit_columns(found: DoseResponse) -> Row:
    row: Row = {
        name: null(getattr(found, name))
        for name in (
            "guess", "lapse", "midpoint", "width", "overdispersion", "b50_isotonic", "b95_isotonic",
        )
    }  # fmt: skip
    for name in ("b50", "b95"):
        one: Threshold = getattr(found, name)
        row |= {
            name: null(one.budget), f"{name}_ci_low": null(one.interval.low),
            f"{name}_ci_high": null(one.interval.high), f"{name}_state": one.state,
        }  # fmt: skip
    return row


def _area_columns(
    doses: Doses, scores: Doses, clusters: list[Any], config: AnalyzeConfig, prefix: str
) -> Row:
    if np.isnan(doses).any() or doses.min() >= doses[0]:
        return {prefix + name: None for name in AREA}
    found = area(doses.tolist(), scores, clusters, config.confidence)
    values = (
        found.mean_a, found.mean_b, found.difference, found.interval.low, found.interval.high,
        found.p,
    )  # fmt: skip
    return {prefix + name: null(v) for name, v in zip(AREA, values, strict=True)}


def _length(curve: Curve, frame: pd.DataFrame, config: AnalyzeConfig) -> Row:
    """How the curve moves with the length of the context, and whether its loss depends on it."""
    clusters, known = curve.clusters.tolist(), curve.scores[~np.isnan(curve.scores)]
    middles = {
        b: math.sqrt(max(float(low), 1.0) * float(high))
        for b, low, high in (
            (b, *frame.loc[(curve.ids[0], b), ["bin_low_tokens", "bin_high_tokens"]])
            for b in np.unique(curve.bins)
        )
    }
    lengths = np.array([middles[b] for b in curve.bins])
    doses = _budgets(curve.stats)
    shift = NO_SHIFT
    if known.size and (known >= 0).all() and (known <= 1).all():
        shift = shift_per_doubling(
            doses.tolist(), curve.scores, lengths, clusters, config.confidence
        )
    losses = curve.scores[0] - curve.scores[1:].mean(axis=0)
    return {
        "shift_per_doubling": null(shift.factor), "shift_ci_low": null(shift.interval.low),
        "shift_ci_high": null(shift.interval.high), "shift_p": null(shift.p),
        "length_p": null(interaction_p(losses, curve.bins, clusters, config.seed)),
    }  # fmt: skip
