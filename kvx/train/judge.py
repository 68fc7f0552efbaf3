"""Judging scores: which traces count, with which thresholds, and where the figures go."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvx.config.train import TrainConfig
from kvx.guard.features import SETS
from kvx.learning.evaluation import Metric, Scored, all_metrics
from kvx.learning.labels import Role
from kvx.learning.ranking import Resampler
from kvx.train.crossfit import CrossFit, Mask, Table, limits_of
from kvx.train.data import Data


@dataclass
class Results:
    """Rows of `schemas.EVALUATION`, and what could not be done, and why."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def skip(self, reason: str) -> None:
        if reason not in self.skipped:
            self.skipped.append(reason)

    def add(self, analysis: str, name: str, metrics: list[Metric], n_prompts: int) -> None:
        for m in metrics:
            low, high = m.estimate.interval
            self.rows.append(
                {
                    "analysis": analysis, "name": name, "metric": m.name,
                    "value": _null(m.estimate.value), "ci_low": _null(low), "ci_high": _null(high),
                    "n": m.n, "n_positive": m.n_positive, "unit": m.unit, "n_prompts": n_prompts,
                }
            )  # fmt: skip


@dataclass(frozen=True)
class Judge:
    """What every analysis needs."""

    table: Table
    config: TrainConfig
    fold: NDArray[np.int64]
    resampler: Resampler
    results: Results

    @property
    def data(self) -> Data:
        return self.table.data

    @property
    def ablations(self) -> Sequence[str]:
        """The feature sets that are reported beside the model's."""
        return list(SETS) if self.config.ablations is None else self.config.ablations

    def scored(self, score: NDArray[np.float32], rows: Mask, horizon: int | None = None) -> Scored:
        """The compressed traces `rows` that are not left out, with their scores."""
        data = self.data
        rows = rows & data.compressed & (data.about.role != Role.LEFT_OUT)
        return Scored(
            data.traces.lengths[rows], score[self.table.tokens(rows)], data.about.take(rows),
            data.clusters[rows], horizon or self.config.horizon,
            data.frame["onset"].to_numpy(float)[rows],
        )  # fmt: skip

    def judge(
        self, analysis: str, name: str, cross: CrossFit, rows: Mask | None = None,
        probability: bool = True, horizon: int | None = None,
    ) -> None:  # fmt: skip
        """All metrics of traces with something to see before their onset."""
        data = self.data
        rows = np.ones(len(data), bool) if rows is None else rows
        kept = rows & data.compressed & (data.about.role != Role.LEFT_OUT) & ~data.about.instant
        scored = self.scored(cross.score, kept, horizon)
        metrics = all_metrics(scored, limits_of(cross, kept), self.resampler, probability)
        self.results.add(analysis, name, metrics, len(np.unique(scored.clusters)))


def _null(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
