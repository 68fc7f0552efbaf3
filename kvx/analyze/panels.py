"""Panels: the primary scores of a variant's points over the same examples, side by side."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kvx.analyze.columns import ALL_BINS, Columns, take
from kvx.analyze.frames import Experiment
from kvx.errors import UserError
from kvx.store.catalog import PointRecord, in_chunks
from kvx.store.forks import in_order


@dataclass(frozen=True)
class Panel:
    """`goodness` [points, examples] are scores: of a primary metric higher is better.

    A missing answer counts as wrong; `missing` says where. `pairs` (which example, over all
    variants), `bins` and `clusters` are [examples]; `names` are those of the clusters.
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
    names: list[str]

    def row(self, point_id: str) -> int:
        return self._rows[point_id]

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {point.id: row for row, point in enumerate(self.points)}

    def cells(self) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Each bin's examples, then all of them as bin -1."""
        for index in np.unique(self.bins):
            yield int(index), self.bins == index
        yield ALL_BINS, np.ones(len(self.bins), dtype=bool)


def panels(experiment: Experiment, n_processes: int = 1) -> Iterator[Panel]:
    """One for each variant. Raises `UserError` if its points are not scored on the same examples.

    Variants are numbered apart: clusters of one panel do not compare with those of another.
    """
    by_variant: dict[str, list[PointRecord]] = {}
    for point in experiment.points:
        by_variant.setdefault(point.info["variant_id"], []).append(point)
    for points in by_variant.values():
        yield _panel(experiment, points, n_processes)


def _primary(experiment: Experiment, point: PointRecord) -> Columns:
    columns = experiment.of("judged", point.id)
    return take(columns, columns["primary"].astype(bool))


def _panel(experiment: Experiment, points: list[PointRecord], n_processes: int) -> Panel:
    first = _primary(experiment, points[0])

    def read(some: list[PointRecord]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        scores: list[NDArray[np.float32]] = []
        absent: list[NDArray[np.bool_]] = []
        for point in some:
            columns = _primary(experiment, point)
            if not np.array_equal(columns["pair"], first["pair"]):
                raise UserError(
                    f"{experiment.dir}: {point.id} and {points[0].id} are not scored on the same "
                    "examples; run kvx.score again"
                )
            scores.append(columns["score"].astype(np.float32))
            absent.append(columns["missing"].astype(bool))
        return np.stack(scores), np.stack(absent)

    parts = list(in_order(read, in_chunks(points), n_processes))
    stacked, missing = (np.concatenate(side) for side in zip(*parts, strict=True))
    if not len(first["pair"]):
        raise UserError(f"{experiment.dir}: {points[0].id} has no scores; run kvx.score again")
    metric = str(first["metric"][0])
    higher = metric not in experiment.lower_is_better
    known, clusters = np.unique(first["cluster"], return_inverse=True)
    entries = experiment.manifest(points[0])["entries"]
    ordered = list(dict.fromkeys(entry["cluster"] for entry in entries))
    names = [ordered[number] for number in known]
    return Panel(
        points,
        metric,
        higher,
        metric in experiment.binary_metrics,
        stacked,
        missing,
        first["pair"].astype(np.int64),
        first["bin"].astype(np.int64),
        clusters.astype(np.int64),
        names,
    )
