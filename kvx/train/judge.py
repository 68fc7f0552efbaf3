"""Judging scores: which traces count, with which thresholds, and where the figures go."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvx.analyze.bin_stats import null
from kvx.config.train import TrainConfig
from kvx.guard.features import SETS
from kvx.learning.evaluation import Metric, Scored, all_metrics
from kvx.learning.ranking import Resampler
from kvx.train.crossfit import CrossFit, Mask, Table, crossfit
from kvx.train.trace_data import Data

log = logging.getLogger(__name__)


@dataclass
class Results:
    """Rows of `schemas.EVALUATION`, and the reasons why analyses were skipped."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def skip(self, reason: str) -> None:
        if reason not in self.skipped:
            self.skipped.append(reason)


@dataclass(frozen=True)
class Judge:
    """One view of the data; its `table` says where a catastrophe starts."""

    table: Table
    config: TrainConfig
    fold: NDArray[np.int64]
    results: Results = field(default_factory=Results)
    started: float = field(default_factory=time.perf_counter)
    _fitted: dict[tuple[str, int], CrossFit] = field(init=False, default_factory=dict)

    @property
    def data(self) -> Data:
        return self.table.data

    @cached_property
    def resampler(self) -> Resampler:
        c = self.config
        return Resampler(self.data.n_prompts, c.n_boot, c.confidence, c.seed)

    def fitted(self, feature_set: str, horizon: int | None = None) -> CrossFit:
        """The cross-fitted scores of a feature set, fitted once."""
        key = feature_set, horizon or self.config.horizon
        if key not in self._fitted:
            names = self.table.names_of(feature_set)
            self._fitted[key] = crossfit(self.table, names, key[1], self.config, self.fold)
        return self._fitted[key]

    def done(self, what: str) -> None:
        log.info("train: %s done, %.0f s so far", what, time.perf_counter() - self.started)

    @property
    def ablations(self) -> Sequence[str]:
        """The feature sets that are reported beside the model's."""
        return list(SETS) if self.config.ablations is None else self.config.ablations

    def scored(self, score: NDArray[np.float32], rows: Mask, horizon: int | None = None) -> Scored:
        """The judged traces among `rows`, with their scores."""
        data, rows = self.data, rows & self.data.judged
        return Scored(
            data.traces.lengths[rows],
            score[self.table.tokens(rows)],
            data.about.take(rows),
            data.clusters[rows],
            horizon or self.config.horizon,
            data.frame["onset"].to_numpy(float)[rows],
        )

    def judge(
        self,
        analysis: str,
        name: str,
        cross: CrossFit,
        rows: Mask | None = None,
        probability: bool = True,
        horizon: int | None = None,
    ) -> None:
        """Add all metrics of the judged traces that have a token before their onset."""
        kept = self.data.judged & ~self.data.about.instant
        kept = kept if rows is None else kept & rows
        scored = self.scored(cross.score, kept, horizon)
        limits = {point: limit[kept] for point, limit in cross.thresholds.items()}
        metrics = all_metrics(scored, limits, self.resampler, probability)
        self.add(analysis, name, metrics, scored.clusters)

    def add(
        self,
        analysis: str,
        name: str,
        metrics: Sequence[Metric],
        clusters: NDArray[np.int64] | None = None,
    ) -> None:
        """Add rows of figures; they are of the prompts `clusters`, or of all."""
        of = self.data.clusters if clusters is None else clusters
        for m in metrics:
            low, high = m.estimate.interval
            self.results.rows.append(
                {
                    "analysis": analysis, "name": name, "metric": m.name,
                    "value": null(m.estimate.value), "ci_low": null(low), "ci_high": null(high),
                    "n": m.n, "n_positive": m.n_positive, "unit": m.unit,
                    "n_prompts": len(np.unique(of)),
                }
            )  # fmt: skip
