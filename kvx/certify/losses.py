"""What each prompt of a point loses against its full cache."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.analyze.catastrophe_stats import judged
from kvx.analyze.columns import ALL_BINS
from kvx.analyze.frames import Experiment
from kvx.analyze.guard_stats import numbers, responses, use
from kvx.config.certify import Average, CertifyConfig, Loss
from kvx.data.frozen_examples import load_examples
from kvx.errors import UserError
from kvx.learning.live_stats import device_budget
from kvx.scoring.metrics import METRICS
from kvx.stats.bootstrap import cluster_sums
from kvx.stats.risk_control import RiskTest, cluster_means, risk_test, weighted_losses
from kvx.store.catalog import PointRecord


@dataclass(frozen=True)
class PointLosses:
    """The losses [n] of a point's examples, nan where the full cache gave no answer.

    `obstacles` [n] say why the answer proves nothing about its budget; empty where it does.
    """

    losses: NDArray[np.float64]
    clusters: NDArray[np.object_]
    bins: NDArray[np.int64]
    obstacles: NDArray[np.object_]

    def of_bin(self, index: int) -> "PointLosses":
        keep = np.full(len(self.bins), True) if index == ALL_BINS else self.bins == index
        return PointLosses(
            self.losses[keep], self.clusters[keep], self.bins[keep], self.obstacles[keep]
        )

    @cached_property
    def by_prompt(self) -> NDArray[np.float64]:
        """One loss for each independent prompt: the mean of its cluster."""
        return cluster_means(self.losses, self.clusters.tolist())

    @property
    def known(self) -> NDArray[np.float64]:
        """One loss for each example that has one."""
        return self.losses[~np.isnan(self.losses)]

    @property
    def n_clusters(self) -> int:
        """Independent prompts, those left out too: known before any answer is."""
        return len(set(self.clusters.tolist()))

    def tested(self, average: Average, alpha: float) -> NDArray[np.float64]:
        """One loss for each independent prompt, whose mean is above alpha if the risk is."""
        if average is Average.clusters:
            return self.by_prompt
        _, sizes = cluster_sums(self.losses, self.clusters.tolist())
        return weighted_losses(self.by_prompt, sizes[sizes > 0], alpha)

    @property
    def n_left_out(self) -> int:
        return int(np.isnan(self.losses).sum())

    @property
    def obstacle(self) -> str | None:
        """Why these answers prove nothing about their budget, and how many of them do not."""
        found = [o for o in self.obstacles.tolist() if o]
        return f"{found[0]} ({len(found)} of {len(self.obstacles)} answers)" if found else None


class LossReader:
    """Losses of an experiment's points, as `settings` define them."""

    def __init__(self, experiment: Experiment, settings: CertifyConfig, output: Path) -> None:
        self.experiment, self.settings, self.output = experiment, settings, output

    def metric(self, point: PointRecord) -> str | None:
        """The metric of `certify.loss=score`; None for other losses.

        Raises `UserError` if the point is not scored by `certify.metric`.
        """
        if self.settings.loss is not Loss.score:
            return None
        scores = self.experiment.scores
        names = scores[scores["point_id"] == point.id].drop_duplicates("metric")
        asked = self.settings.metric
        if asked is None:
            return str(names.loc[names["primary"], "metric"].iloc[0])
        if asked not in set(names["metric"]):
            known = ", ".join(sorted(names["metric"]))
            raise UserError(f"certify.metric={asked}: not scored here; choose from {known}")
        if not METRICS.get(asked, "certify.metric").higher_is_better:
            raise UserError(f"certify.metric={asked}: lower is better, so a fall is not a loss")
        return asked

    def test(self, point: PointRecord, n: int, level: float) -> RiskTest:
        """The test for its losses of `n` clusters: by their number and kind, never their values."""
        one_each = not self.requests(point)["cluster"].duplicated().any()
        metric = self.metric(point)
        zero_or_one = one_each and (metric is None or self._is_binary(metric, point))
        return risk_test(n, zero_or_one, self.settings.net, self.settings.alpha, level)

    def of(self, point: PointRecord, full: PointRecord) -> PointLosses:
        """One loss per example of the full cache's manifest.

        An example without an answer here has lost everything. One that the full cache left open is
        left out (nan): it had nothing to lose.
        """
        ours, theirs = self.requests(point), self.requests(full)
        if not ours.index.equals(theirs.index):
            raise UserError(
                f"{self.experiment.dir}: {point.id} and {full.id} did not run the same examples; "
                "run kvx.run again"
            )
        losses = np.where(ours["has_response"], self._lost(ours, theirs, point), 1.0)
        losses = np.where(theirs["has_response"], losses, np.nan)
        proved = ours["budget_verified"] & theirs["budget_verified"]
        obstacles = np.where(
            ours["degenerate"],
            "degenerate: the press is not what it is meant to be",
            np.where(proved, "", "the budget is not verified"),
        )
        return PointLosses(
            losses,
            ours["cluster"].to_numpy(dtype=object),
            ours["bin"].to_numpy(dtype=np.int64),
            obstacles.astype(object),
        )

    def _lost(
        self, ours: pd.DataFrame, theirs: pd.DataFrame, point: PointRecord
    ) -> NDArray[np.float64]:
        change = self._change(ours, theirs, point)
        return change if self.settings.net else np.maximum(0.0, change)

    def _change(
        self, ours: pd.DataFrame, theirs: pd.DataFrame, point: PointRecord
    ) -> NDArray[np.float64]:
        """How much worse every answer is than the full cache's, in [-1, 1]; below 0 if better."""
        match self.settings.loss:
            case Loss.failure:
                worse, there = ours["failed"].to_numpy(float), theirs["failed"].to_numpy(float)
            case Loss.catastrophe:
                seen = self._judged.reindex(ours["request_id"])
                known = seen["any"].notna() & seen["twin_any"].notna()
                worse = seen["any"].where(known, 0.0).to_numpy(float)
                there = seen["twin_any"].where(known, 0.0).to_numpy(float)
            case Loss.score:
                table = self.experiment.scores
                own = table[table["metric"] == self.metric(point)]
                scores = own.set_index("request_id")["score"]
                there, worse = (
                    scores.reindex(side["request_id"]).to_numpy(float) for side in (ours, theirs)
                )
        found: NDArray[np.float64] = worse - there
        return found

    def requests(self, point: PointRecord) -> pd.DataFrame:
        """The requests of a point, by example."""
        requests = self.experiment.requests
        own = requests[requests["point_id"] == point.id]
        return own.set_index("example_id", drop=False).sort_index()

    @cached_property
    def _judged(self) -> pd.DataFrame:
        return judged(self.experiment).set_index("request_id")

    @cached_property
    def _responses(self) -> pd.DataFrame:
        return responses(self.experiment)

    def device_use(self, point: PointRecord, index: int) -> tuple[float, int] | None:
        """The mean share of the prompt's entries that guarded answers of one bin (-1: all) kept on
        the device, and the number of these answers. None without a controller or an answer.
        """
        if not point.is_guarded:
            return None
        own = self._responses[self._responses["point_id"] == point.id]
        own = own if index == ALL_BINS else own[own["bin"] == index]
        own = own.assign(prompt=numbers(own["cluster"]))
        value, n = device_budget(use(own, self.experiment.events))
        return (value, n) if n else None

    def _is_binary(self, metric: str, point: PointRecord) -> bool:
        known = METRICS.get(metric, "certify.metric")
        if known.binary != "one reference":
            return known.binary
        examples = load_examples(point.manifest_dir(self.output))
        return all(known.is_binary(len(e.answers)) for e in examples.values())
