"""Panels: the primary scores of a variant's points over the same examples, side by side."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvx.analyze.columns import ALL_BINS, take
from kvx.analyze.frames import Experiment
from kvx.errors import UserError
from kvx.store.catalog import PointRecord

BEST = 1.0  # every metric of kvx gives a number from 0 to 1


@dataclass(frozen=True)
class Panel:
    """`goodness` [points, examples] is the score, or 1 - score where lower is better.

    A missing answer counts as wrong; `missing` says where. `pairs` (which example, over all
    variants), `bins` and `clusters` are [examples].
    """

    points: list[PointRecord]
    metric: str
    higher_is_better: bool
    binary: bool
    goodness: NDArray[np.float32]
    missing: NDArray[np.bool_]
    pairs: NDArray[np.int64]
    bins: NDArray[np.int64]
    clusters: NDArray[np.int64]

    def row(self, point_id: str) -> int:
        return next(i for i, point in enumerate(self.points) if point.id == point_id)

    def cells(self) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Each bin's examples, then all of them as bin -1."""
        for index in np.unique(self.bins):
            yield int(index), self.bins == index
        yield ALL_BINS, np.ones(len(self.bins), dtype=bool)


def panels(experiment: Experiment) -> Iterator[Panel]:
    """One for each variant. Raises `UserError` if its points are not scored on the same examples.

    Variants are numbered apart: clusters of one panel do not compare with those of another.
    """
    by_variant: dict[str, list[PointRecord]] = {}
    for point in experiment.points:
        by_variant.setdefault(point.info["variant_id"], []).append(point)
    for points in by_variant.values():
        yield _panel(experiment, points)


def _panel(experiment: Experiment, points: list[PointRecord]) -> Panel:
    scores: list[NDArray[np.float32]] = []
    absent: list[NDArray[np.bool_]] = []
    first: dict[str, NDArray[Any]] = {}
    for point in points:
        columns = experiment.of("judged", point.id)
        columns = take(columns, columns["primary"].astype(bool))
        first = first or columns
        if not np.array_equal(columns["pair"], first["pair"]):
            raise UserError(
                f"{experiment.dir}: {point.id} and {points[0].id} are not scored on the same "
                "examples; run kvx.score again"
            )
        scores.append(columns["score"].astype(np.float32))
        absent.append(columns["missing"].astype(bool))
    if not len(first["pair"]):
        raise UserError(f"{experiment.dir}: {points[0].id} has no scores; run kvx.score again")
    stacked, missing = np.stack(scores), np.stack(absent)
    metric = str(first["metric"][0])
    higher = metric not in experiment.lower_is_better
    goodness = stacked if higher else BEST - stacked
    _, clusters = np.unique(first["cluster"], return_inverse=True)
    return Panel(
        points,
        metric,
        higher,
        metric in experiment.binary_metrics,
        goodness,
        missing,
        first["pair"].astype(np.int64),
        first["bin"].astype(np.int64),
        clusters.astype(np.int64),
    )
