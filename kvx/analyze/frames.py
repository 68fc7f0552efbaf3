"""An experiment as data frames: what the statistics are computed from."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.analyze.columns import ByPoint, Columns, take
from kvx.analyze.naming import differences, told_apart
from kvx.analyze.score_checks import check_scores
from kvx.engines.base import ROUNDING
from kvx.errors import UserError
from kvx.guard.own_code import controller_code
from kvx.identity.user_code import press_parameters, told
from kvx.points import OWN, told_guard
from kvx.store.catalog import (
    PointRecord,
    events_of,
    finished_points,
    latency_of,
    read_frame,
    requests_of,
)
from kvx.store.schemas import SCORED
from kvx.store.shards import is_by_other_code

# the columns that statistics are made from
USED = {
    "requests": (
        "bin", "cluster", "compressed_tokens", "has_response", "budget_verified", "degenerate",
        "adapted", "kind", "failed", "output_tokens", "kv_bytes_effective", "kv_bytes_physical",
        "kv_bytes_full", "kv_compressed_share", "context_tokens_cut",
    ),
    "latency": (
        "bin", "error_type", "latency_s", "ttft_s", "tpot_s", "peak_memory_bytes", "example_id",
        "others_cpu_share", "gpu_others",
    ),
    "judged": (
        "bin", "cluster", "metric", "primary", "score", "kind", "failed", "degenerate", "pair",
        "missing",
        "output_tokens", "kv_bytes_physical",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    """Finished points with their requests, latencies and what was scored (long frames).

    Requests say their `kind` of failure, if any, and whether they `failed`.
    """

    dir: Path
    points: list[PointRecord]
    manifests: dict[str, dict[str, Any]]
    requests: pd.DataFrame
    scores: pd.DataFrame
    failures: pd.DataFrame
    latency: pd.DataFrame
    catastrophes: pd.DataFrame
    events: pd.DataFrame

    def manifest(self, point: PointRecord) -> dict[str, Any]:
        return self.manifests[point.info["manifest"]["key"]]

    def of(self, table: str, point_id: str) -> Columns:
        """The rows of one point in `requests`, `latency` or `judged`, of it what is in `USED`."""
        if table not in self._cut:
            self._cut[table] = ByPoint(getattr(self, table), USED[table])
        return self._cut[table].of(point_id)

    @cached_property
    def _cut(self) -> dict[str, ByPoint]:
        return {}

    @cached_property
    def judged(self) -> pd.DataFrame:
        """Scores with the kind of failure (if any) and the degeneracy of their requests.

        A request without an answer is `missing`, and its `score` is the metric's worst. `pair`
        numbers what is compared: rows of one example and metric; ascending within a point.
        """
        requests = self.requests.set_index("request_id")
        known = self.scores["request_id"].map
        examples, _ = pd.factorize(self.scores["example_id"])
        metrics, names = pd.factorize(self.scores["metric"])
        missing = self.scores["score"].isna()
        worst = np.where(self.scores["higher_is_better"].astype(bool), 0.0, 1.0)
        judged = self.scores.assign(
            kind=known(requests["kind"]),
            degenerate=known(requests["degenerate"]),
            missing=missing,
            score=self.scores["score"].where(~missing, worst),
            output_tokens=known(requests["output_tokens"]).astype(float),
            kv_bytes_physical=known(requests["kv_bytes_physical"]).astype(float),
            pair=examples * len(names) + metrics,
        )
        judged["failed"] = judged["kind"].notna()
        return judged.sort_values("pair", kind="stable")

    def side_by_side(self, point_id: str, full_id: str) -> Columns:
        """A point's judged requests beside the full cache's `score_full` and `failed_full`.

        One row per example and metric. `score_full` is nan where the full cache has no answer:
        there is nothing to lose. Raises `UserError` if the two do not have the same rows.
        """
        ours, theirs = self.of("judged", point_id), self.of("judged", full_id)
        if not np.array_equal(ours["pair"], theirs["pair"]):
            raise UserError(
                f"{self.dir}: {point_id} and {full_id} are not scored on the same examples; "
                "run kvx.score again"
            )
        full = np.where(theirs["missing"], np.nan, theirs["score"])
        return {**ours, "score_full": full, "failed_full": theirs["failed"]}

    def full_cache(self, point: PointRecord) -> PointRecord | None:
        """The full-cache point that `point` is compared with: same press if there is one.

        Only points of the same variant (model, data, prompt, decoding) and seed are comparable.
        """
        candidates = self._full_caches.get((point.info["variant_id"], point.info["seed"]), [])
        order, labels = [self.press_labels[point.id], "none"], self.press_labels
        rank = {p.id: order.index(labels[p.id]) if labels[p.id] in order else 2 for p in candidates}
        return min(candidates, key=lambda p: rank[p.id], default=None)

    @cached_property
    def _full_caches(self) -> dict[tuple[str, int], list[PointRecord]]:
        """The full-cache points without a controller of each variant and seed."""
        found: dict[tuple[str, int], list[PointRecord]] = defaultdict(list)
        for point in self.points:
            if point.is_full_cache and point.info["controller"] == "none":
                found[point.info["variant_id"], point.info["seed"]].append(point)
        return found

    def unguarded(self, point: PointRecord) -> PointRecord | None:
        """The same press, budget and seed without a controller, if it was run too."""
        plain, labels = ("variant_id", "seed", "budget_kind"), self.press_labels
        return next(
            (
                p
                for p in self.points
                if p.info["controller"] == "none"
                and labels[p.id] == labels[point.id]
                and all(p.info[name] == point.info[name] for name in plain)
                and p.budget_asked == point.budget_asked
            ),
            None,
        )

    @cached_property
    def binary_metrics(self) -> set[str]:
        """Metrics whose every score is 0 or 1: one interval method serves all cells of a metric."""
        known = self.scores.dropna(subset="score")
        binary = known.assign(binary=known["score"].isin((0.0, 1.0))).groupby("metric")["binary"]
        return {str(metric) for metric, all_binary in binary.all().items() if all_binary}

    @cached_property
    def lower_is_better(self) -> set[str]:
        """Metrics of which lower is better, as recorded when they were scored."""
        said = self.scores.drop_duplicates("metric")
        return set(said.loc[~said["higher_is_better"].astype(bool), "metric"])

    @cached_property
    def press_labels(self) -> dict[str, str]:
        """Point id → press name, with the parameters that differ where one name has several."""
        return told_apart(
            {p.id: str(p.info["press"]) for p in self.points},
            {p.id: press_parameters(p.info) for p in self.points},
        )

    @cached_property
    def controller_labels(self) -> dict[str, str]:
        """Point id → controller, with the settings that differ where one name has several."""
        names = {p.id: str(p.info["controller"]) for p in self.points}
        settings = {
            p.id: {
                "controller": p.info["config"]["controller"],
                "code": told(controller_code(p.info)),
                "guard": told_guard(p.info["guard"]),
            }
            for p in self.points
            if p.is_guarded
        }
        return names | told_apart({i: names[i] for i in settings}, settings)

    @cached_property
    def variant_labels(self) -> dict[str, str]:
        """Variant id → model and dataset, with the settings that differ."""
        settings = {
            p.info["variant_id"]: {k: v for k, v in p.info["config"].items() if k not in OWN}
            for p in self.points
        }
        suffixes = differences(settings)
        labels = {
            p.info["variant_id"]: ", ".join(
                filter(
                    None,
                    [p.info["model"], p.info["dataset"], suffixes[p.info["variant_id"]]],
                )
            )
            for p in self.points
        }
        return labels | self._told_apart(labels)

    def _told_apart(self, labels: dict[str, str]) -> dict[str, str]:
        """Labels of variants whose configurations are the same: by model files, data or code."""
        infos = {p.info["variant_id"]: p.info for p in self.points}
        found: dict[str, str] = {}
        for label in {one for one in labels.values() if [*labels.values()].count(one) > 1}:
            same = {
                v: {
                    "model_hash": infos[v].get("model_hash"),
                    "data": infos[v]["manifest"]["key"],
                }
                for v, one in labels.items()
                if one == label
            }
            suffixes = differences(same)
            found |= {v: f"{label}, {suffixes[v] or v}" for v in same}
        return found

    def series_columns(self, point: PointRecord) -> dict[str, Any]:
        """Columns that every row has about its point; a token budget has its mean fraction.

        A press that keeps another number by its method stands at the budget that it kept.
        """
        info = point.info
        kept = self._kept_by_method.get(point.id)
        label, budget = (info["budget_label"], info["budget"]) if kept is None else kept
        if budget is None:
            requests = self.of("requests", point.id)
            tokens = np.minimum(requests["compressed_tokens"], info["budget_tokens"])
            budget = float((tokens / requests["compressed_tokens"]).mean())
        return {
            "variant_id": info["variant_id"], "variant": self.variant_labels[info["variant_id"]],
            "model": info["model"], "dataset": info["dataset"],
            "press": self.press_labels[point.id],
            "controller": self.controller_labels[point.id],
            "seed": info["seed"], "budget_kind": info["budget_kind"],
            "budget_label": label, "budget_asked": point.budget_asked, "budget": budget,
            "point_id": point.id,
        }  # fmt: skip

    @cached_property
    def _kept_by_method(self) -> dict[str, tuple[str, float]]:
        """Label and budget, as measured, of the points that keep another number than was asked.

        Points that a controller alone tells apart share them: it decides nothing of the first cut.
        """
        requests = self.requests
        others = set(requests.loc[keeps_another_number(requests), "point_id"])
        alike: dict[tuple[Any, ...], list[PointRecord]] = defaultdict(list)
        for point in self.points:
            asked = point.info["budget_kind"], point.budget_asked
            of = point.info["variant_id"], point.info["seed"], self.press_labels[point.id]
            alike[*of, *asked].append(point)
        found: dict[str, tuple[str, float]] = {}
        for same in alike.values():
            if others.isdisjoint(p.id for p in same):
                continue
            rows = requests[requests["point_id"].isin([p.id for p in same])]
            entries = rows["kv_entries_effective"].astype(float)
            budget = float((entries / rows["compressed_tokens"]).mean())
            info = same[0].info
            kept = f"{entries.mean():.0f}t" if info["budget_kind"] == "tokens" else f"{budget:.3g}"
            label = f"{kept} (asked {info['budget_label']})"
            found |= {p.id: (label, budget) for p in same}
        return found


def keeps_another_number(requests: pd.DataFrame) -> "pd.Series[bool]":
    """Of each request, whether more than rounding parts what was kept from what was asked."""
    effective = requests["kv_entries_effective"].astype(float)
    off = (effective - requests["kv_entries_nominal"].astype(float)).abs()
    return off > ROUNDING  # what was not measured is not known to be another


def load_experiment(folder: Path, output: Path) -> Experiment:
    """Read everything. Raises `UserError` if a point is not scored or row counts do not add up."""
    points = finished_points(folder)
    for point in points:
        if not all((point.dir / f"{name}.parquet").is_file() for name in SCORED):
            raise UserError(f"{point.dir}: not scored yet; run kvx.score with the same arguments")
        if is_by_other_code(point.dir / "scores.parquet"):
            raise UserError(
                f"{point.dir}: scored by other code of kvx than this; run kvx.score again"
            )
    manifests = {}
    for point in points:
        key = point.info["manifest"]["key"]
        if key not in manifests:
            manifests[key] = json.loads((point.manifest_dir(output) / "manifest.json").read_text())
    requests, latency = requests_of(points), latency_of(points)
    scores, failures, catastrophes = (
        read_frame([p.dir / f"{name}.parquet" for p in points])
        for name in ("scores", "failures", "catastrophes")
    )
    kinds = requests["request_id"].map(failures.set_index("request_id")["error_type"])
    requests = requests.assign(kind=kinds.astype(object), failed=kinds.notna())
    experiment = Experiment(
        folder,
        points,
        manifests,
        requests,
        scores,
        failures,
        latency,
        catastrophes,
        events_of(points),
    )
    check_counts(experiment)
    check_metrics(points, scores)
    check_scores(points, scores, requests)
    return experiment


def check_counts(experiment: Experiment) -> None:
    """requests = responses + failures without a response, and one request per manifest entry."""
    requests, failures = experiment.requests, experiment.failures
    if requests["request_id"].duplicated().any():
        twice = requests.loc[requests["request_id"].duplicated(), "request_id"].iloc[0]
        raise UserError(
            f"{experiment.dir}: request {twice} is there twice; delete its point and run again"
        )
    lost = set(requests.loc[~requests["has_response"], "request_id"])
    named = set(failures.loc[~failures["has_response"], "request_id"])
    if lost != named:
        raise UserError(
            f"{experiment.dir}: {len(requests)} requests are not {len(requests) - len(lost)} "
            f"responses + {len(named)} failures; run kvx.score again"
        )
    counts = requests["point_id"].value_counts()
    for point in experiment.points:
        have = int(counts.get(point.id, 0))
        if have != point.info["manifest"]["n_requests"]:
            raise UserError(
                f"{point.dir}: {have} requests, its manifest has "
                f"{point.info['manifest']['n_requests']}; run kvx.run again"
            )


def check_metrics(points: Iterable[PointRecord], scores: pd.DataFrame) -> None:
    """Points of one variant are compared, so they must be scored by the same metrics."""
    seen: dict[str, str] = {}
    used = scores.groupby("point_id")["metric"].unique()
    for point in points:
        metrics = ", ".join(sorted(used.get(point.id, ())))
        others = seen.setdefault(point.info["variant_id"], metrics)
        if others != metrics:
            raise UserError(
                f"{point.dir}: scored by {metrics}, other points of the same experiment by "
                f"{others}; run kvx.score again"
            )


def paired_table(experiment: Experiment, point_ids: list[str]) -> tuple[NDArray[Any], Columns]:
    """Primary scores [points, examples] side by side, and the examples' bin and cluster.

    nan where a point has no score for an example that another one has.
    """
    primary = [experiment.of("judged", point_id) for point_id in point_ids]
    primary = [take(columns, columns["primary"]) for columns in primary]
    pairs, first = np.unique(np.concatenate([c["pair"] for c in primary]), return_index=True)
    scores = np.full((len(point_ids), len(pairs)), np.nan)
    for row, columns in zip(scores, primary, strict=True):
        row[np.searchsorted(pairs, columns["pair"])] = columns["score"]
    about = {name: np.concatenate([c[name] for c in primary])[first] for name in ("bin", "cluster")}
    return scores, about
