"""What each prompt of a point loses against its full-cache twin."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.analyze.catastrophe_stats import judged
from kvx.analyze.columns import ALL_BINS
from kvx.analyze.frames import Experiment
from kvx.certify.device import DeviceBudgets
from kvx.config.certify import CertifyConfig, Loss
from kvx.data.frozen_examples import load_examples
from kvx.errors import UserError
from kvx.scoring.metrics import METRICS
from kvx.stats.certify import PValue, binomial_p, cluster_means, hoeffding_bentkus_p
from kvx.store.catalog import PointRecord


@dataclass(frozen=True)
class PointLosses:
    """The losses [n] of a point's examples, nan where the twin gave no answer to compare with.

    `obstacles` say of each example why its budget is no proof, empty where it is one.
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
    def n_left_out(self) -> int:
        return int(np.isnan(self.losses).sum())

    @property
    def obstacle(self) -> str | None:
        """Why these answers say nothing about their budget, and of how many that holds."""
        found = [o for o in self.obstacles.tolist() if o]
        return f"{found[0]} ({len(found)} of {len(self.obstacles)} answers)" if found else None


class LossReader:
    """Losses of an experiment's points, as `settings` ask for them."""

    def __init__(self, experiment: Experiment, settings: CertifyConfig, output: Path) -> None:
        self.experiment, self.settings, self.output = experiment, settings, output
        self.devices = DeviceBudgets(experiment)

    def metric(self, point: PointRecord) -> str | None:
        """The metric whose loss it is; None for other losses.

        Raises `UserError` if the point is not scored by `certify.metric`.
        """
        if self.settings.loss is not Loss.score:
            return None
        scored = self._scores.loc[self._scores["point_id"] == point.id]
        names = scored.drop_duplicates("metric")
        asked = self.settings.metric
        if asked is None:
            return str(names.loc[names["primary"], "metric"].iloc[0])
        if asked not in set(names["metric"]):
            known = ", ".join(sorted(names["metric"]))
            raise UserError(f"certify.metric={asked}: not scored here; choose from {known}")
        if not METRICS.get(asked, "certify.metric").higher_is_better:
            raise UserError(f"certify.metric={asked}: lower is better, so a fall is not a loss")
        return asked

    def test(self, point: PointRecord) -> tuple[str, PValue]:
        """The test that suits its losses, by their kind and never by what was observed."""
        one_each = not self.requests(point)["cluster"].duplicated().any()
        metric = self.metric(point)
        if one_each and (metric is None or self._is_binary(metric, point)):
            return "exact binomial", binomial_p
        return "Hoeffding–Bentkus", hoeffding_bentkus_p

    def of(self, point: PointRecord, twin: PointRecord) -> PointLosses:
        """One loss per example of the twin's manifest.

        An example that has no answer here has lost everything; one without an answer of the twin's
        is left out (nan), as there is nothing that it could have lost.
        """
        ours, theirs = self.requests(point), self.requests(twin)
        if not ours.index.equals(theirs.index):
            raise UserError(
                f"{self.experiment.dir}: {point.id} and {twin.id} did not run the same examples; "
                "run kvx.run again"
            )
        losses = np.where(ours["has_response"], self._lost(ours, theirs, point), 1.0)
        losses = np.where(theirs["has_response"], losses, np.nan)
        proved = ours["budget_verified"] & theirs["budget_verified"]
        obstacles = np.where(
            ours["degenerate"], "degenerate: the press is not what it is meant to be",
            np.where(proved, "", "the budget is not verified"),
        )  # fmt: skip
        return PointLosses(
            losses,
            ours["cluster"].to_numpy(dtype=object),
            ours["bin"].to_numpy(dtype=np.int64),
            obstacles.astype(object),
        )

    def _lost(
        self, ours: pd.DataFrame, theirs: pd.DataFrame, point: PointRecord
    ) -> NDArray[np.float64]:
        match self.settings.loss:
            case Loss.failure:
                lost = ours["failed"] & ~theirs["failed"]
            case Loss.catastrophe:
                seen = self._judged.reindex(ours["request_id"])
                lost = (seen["any"] == 1) & (seen["twin_any"] == 0)
            case Loss.score:
                scores = self._scores_of(str(self.metric(point)))
                here, there = (scores.reindex(side["request_id"]) for side in (ours, theirs))
                return np.maximum(0.0, there.to_numpy(float) - here.to_numpy(float))
        return np.asarray(lost, dtype=np.float64)

    def requests(self, point: PointRecord) -> pd.DataFrame:
        """Those of a point, by example."""
        requests = self.experiment.requests
        own = requests[requests["point_id"] == point.id]
        return own.set_index("example_id", drop=False).sort_index()

    @cached_property
    def _judged(self) -> pd.DataFrame:
        return judged(self.experiment).set_index("request_id")

    @cached_property
    def _scores(self) -> pd.DataFrame:
        return self.experiment.scores

    def _scores_of(self, metric: str) -> "pd.Series[float]":
        scores = self._scores[self._scores["metric"] == metric]
        return scores.set_index("request_id")["score"]

    def _is_binary(self, metric: str, point: PointRecord) -> bool:
        known = METRICS.get(metric, "certify.metric")
        if known.binary != "one reference":
            return known.binary
        examples = load_examples(point.manifest_dir(self.output))
        return all(known.is_binary(len(e.answers)) for e in examples.values())
