"""An experiment, point by point: what the statistics are computed from."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kvx.analyze.columns import Columns
from kvx.analyze.facts import Facts, check_counts, check_metrics
from kvx.analyze.naming import differences, told_apart, variant_settings
from kvx.analyze.point_tables import PointTables
from kvx.errors import UserError
from kvx.guard.own_code import controller_code
from kvx.identity.user_code import press_parameters, told
from kvx.points import told_guard
from kvx.scoring.catastrophes import flags_beside
from kvx.store.catalog import (
    PointRecord,
    events_of,
    finished_points,
    in_chunks,
    read_frame,
    requests_of,
)
from kvx.store.forks import in_order
from kvx.store.schemas import SCORED
from kvx.store.shards import is_by_other_code


@dataclass(frozen=True)
class Experiment:
    """Finished points, their manifests by key, and what `Facts` say of their scores.

    `of` reads the columns of one point when they are asked for. `requests`, `scores`, `failures`,
    `catastrophes` and `events` are whole frames: they take memory by the row and are for what needs
    all points at once (controllers, certificates).
    """

    dir: Path
    points: list[PointRecord]
    manifests: dict[str, dict[str, Any]]
    facts: Facts = field(default_factory=Facts)

    def manifest(self, point: PointRecord) -> dict[str, Any]:
        return self.manifests[point.info["manifest"]["key"]]

    def of(self, table: str, point_id: str) -> Columns:
        """The rows of one point in `requests`, `latency`, `judged` (scores) or `flags`.

        `flags` has a row per response, with each of `KINDS` and `twin_<kind>` as 1, 0, or nan where
        it is not known. What a response shows alone (`looping`, `non_termination`) is known without
        a full cache; `any` then goes by these two.
        """
        point = self._by_id[point_id]
        return self._flags(point) if table == "flags" else self._tables.of(table, point)

    @cached_property
    def _by_id(self) -> dict[str, PointRecord]:
        return {point.id: point for point in self.points}

    @cached_property
    def _tables(self) -> PointTables:
        return PointTables(self.manifests)

    def _flags(self, point: PointRecord) -> Columns:
        seen, full = self._tables.of("seen", point), self.full_cache(point)
        about = {name: seen[name] for name in ("bin", "cluster", "degenerate")}
        theirs = None if full is None or full.id == point.id else self._tables.of("seen", full)
        return {**about, **flags_beside(seen, theirs)}

    @cached_property
    def requests(self) -> pd.DataFrame:
        """Every request with its `kind` of failure, if any, and whether it `failed`."""
        requests = requests_of(self.points)
        kinds = requests["request_id"].map(self.failures.set_index("request_id")["error_type"])
        return requests.assign(kind=kinds.astype(object), failed=kinds.notna())

    @cached_property
    def scores(self) -> pd.DataFrame:
        return self._scored("scores")

    @cached_property
    def failures(self) -> pd.DataFrame:
        return self._scored("failures")

    @cached_property
    def catastrophes(self) -> pd.DataFrame:
        return self._scored("catastrophes")

    def _scored(self, name: str) -> pd.DataFrame:
        return read_frame([point.dir / f"{name}.parquet" for point in self.points])

    @cached_property
    def events(self) -> pd.DataFrame:
        return events_of(self.points)

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

    @property
    def binary_metrics(self) -> set[str]:
        """Metrics whose every score is 0 or 1: one interval method serves all cells of a metric."""
        return self.facts.scored - self.facts.graded

    @property
    def lower_is_better(self) -> set[str]:
        """Metrics of which lower is better, as recorded when they were scored."""
        return self.facts.lower_is_better

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
        suffixes = variant_settings({p.info["variant_id"]: p.info["config"] for p in self.points})
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
        others = self.facts.keep_another_number
        alike: dict[tuple[Any, ...], list[PointRecord]] = defaultdict(list)
        for point in self.points:
            asked = point.info["budget_kind"], point.budget_asked
            of = point.info["variant_id"], point.info["seed"], self.press_labels[point.id]
            alike[*of, *asked].append(point)
        found: dict[str, tuple[str, float]] = {}
        for same in alike.values():
            if others.isdisjoint(p.id for p in same):
                continue
            tables = [self.of("requests", p.id) for p in same]
            entries = pd.Series(np.concatenate([t["kv_entries_effective"] for t in tables]))
            tokens = np.concatenate([t["compressed_tokens"] for t in tables])
            budget = float((entries / tokens).mean())
            info = same[0].info
            kept = f"{entries.mean():.0f}t" if info["budget_kind"] == "tokens" else f"{budget:.3g}"
            label = f"{kept} (asked {info['budget_label']})"
            found |= {p.id: (label, budget) for p in same}
        return found


def load_experiment(folder: Path, output: Path, n_processes: int = 1) -> Experiment:
    """Read everything once, point by point, and check it.

    Raises `UserError` if a point is not scored or row counts do not add up.
    """
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
    experiment = Experiment(folder, points, manifests)
    metrics: dict[str, str] = {}

    def check(some: Sequence[PointRecord]) -> tuple[Facts, list[str]]:
        facts, named = Facts(), []
        for point in some:
            requests = experiment.of("requests", point.id)
            check_counts(point, requests)  # before scores are compared with them
            judged = experiment.of("judged", point.id)
            facts.add(point, requests, judged)
            named.append(", ".join(sorted(set(judged["metric"]))))
        return facts, named

    chunks = in_chunks(points)
    for some, (facts, named) in zip(chunks, in_order(check, chunks, n_processes), strict=True):
        experiment.facts.join(facts)
        for point, names in zip(some, named, strict=True):
            check_metrics(point, names, metrics)
    return experiment
