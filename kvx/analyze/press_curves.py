"""A press's curve over its budgets: primary scores of the same examples, the full cache first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.analyze.bin_stats import Row
from kvx.analyze.columns import ALL_BINS, CURVE, take
from kvx.analyze.frames import Experiment
from kvx.store.catalog import PointRecord

KEYS = [*CURVE, "variant", "model", "dataset"]


@dataclass(frozen=True)
class Curve:
    """`scores` and `failed` [k, n] of n examples at k points, with `bins` and `clusters` [n].

    A missing answer counts as 0; an example that the full cache did not answer is nan everywhere.
    `stats` are the points' rows of bin_stats over all bins, highest budget first.
    """

    key: Row
    stats: pd.DataFrame
    scores: NDArray[np.float64]
    failed: NDArray[np.bool_]
    bins: NDArray[np.intp]
    clusters: NDArray[Any]

    @property
    def ids(self) -> list[str]:
        return [str(point_id) for point_id in self.stats.index]

    @property
    def labels(self) -> list[str]:
        return [str(label) for label in self.stats["budget_label"]]


def curves(experiment: Experiment, stats: list[Row]) -> Sequence["CurveAt"]:
    """One per press, controller, seed and kind of budget; none without a full cache."""
    frame = pd.DataFrame(stats)
    overall = frame[frame["primary"] & (frame["bin"] == ALL_BINS)].set_index("point_id")
    groups: dict[tuple[Any, ...], list[PointRecord]] = {}
    keys = overall[KEYS].to_dict("index")
    for point in experiment.points:
        if not point.is_full_cache:
            groups.setdefault(tuple(keys[point.id].values()), []).append(point)
    found = []
    for key, points in groups.items():
        full = experiment.full_cache(points[0])
        if full is None:
            continue
        points.sort(key=lambda point: point.budget_asked, reverse=True)
        ids = [full.id, *(p.id for p in points)]
        found.append(CurveAt(experiment, dict(zip(KEYS, key, strict=True)), overall.loc[ids]))
    return found


@dataclass(frozen=True)
class CurveAt:
    """A curve whose scores are read when they are asked for."""

    experiment: Experiment
    key: Row
    stats: pd.DataFrame

    def read(self) -> Curve:
        return _curve(self.experiment, self.key, self.stats)


def _curve(experiment: Experiment, key: Row, stats: pd.DataFrame) -> Curve:
    judged = [experiment.of("judged", point_id) for point_id in stats.index]
    judged = [take(columns, columns["primary"]) for columns in judged]
    pairs, first = np.unique(np.concatenate([c["pair"] for c in judged]), return_index=True)
    scores = np.full((len(judged), len(pairs)), np.nan)
    failed = np.zeros(scores.shape, dtype=bool)
    for i, columns in enumerate(judged):
        place = np.searchsorted(pairs, columns["pair"])
        scores[i, place] = np.nan_to_num(columns["score"].astype(float), nan=0.0)
        failed[i, place] = columns["failed"].astype(bool)
        if i == 0:  # no answer of the full cache: nothing to compare with
            missing = columns.get("missing", pd.isna(columns["score"]))
            unknown = place[np.asarray(missing, dtype=bool)]
    scores[:, unknown] = np.nan
    bins, clusters = (
        np.concatenate([c[name] for c in judged])[first] for name in ("bin", "cluster")
    )
    return Curve(key, stats, scores, failed, bins.astype(int), clusters)
