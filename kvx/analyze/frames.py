"""An experiment as data frames: what the statistics are computed from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kvx.errors import UserError
from kvx.store.catalog import PointRecord, finished_points, read_frame

ALL_BINS = -1  # the value of `bin` in rows about all bins together


@dataclass(frozen=True)
class Experiment:
    """Finished points with their requests, scores and failures (long frames, one row each)."""

    dir: Path
    points: list[PointRecord]
    manifests: dict[str, dict[str, Any]]
    requests: pd.DataFrame
    scores: pd.DataFrame
    failures: pd.DataFrame

    def record(self, point_id: str) -> PointRecord:
        return next(p for p in self.points if p.id == point_id)

    def manifest(self, point: PointRecord) -> dict[str, Any]:
        return self.manifests[point.info["manifest"]["key"]]

    def twin(self, point: PointRecord) -> PointRecord | None:
        """The full-cache point that `point` is compared with: same press if there is one.

        Only points of the same variant (model, data, prompt, decoding) and seed are comparable.
        """
        candidates = [
            p
            for p in self.points
            if p.is_full_cache
            and p.info["variant_id"] == point.info["variant_id"]
            and p.info["seed"] == point.info["seed"]
            and p.info["controller"] == "none"
        ]
        names = [point.info["press"], "none"]
        candidates.sort(
            key=lambda p: names.index(p.info["press"]) if p.info["press"] in names else 2
        )
        return candidates[0] if candidates else None


def load_experiment(folder: Path, output: Path) -> Experiment:
    """Read everything. Raises `UserError` if a point is not scored or row counts do not add up."""
    points = finished_points(folder)
    for point in points:
        if not (point.dir / "scores.parquet").is_file():
            raise UserError(f"{point.dir}: not scored yet; run kvx.score with the same arguments")
    manifests = {}
    for point in points:
        key = point.info["manifest"]["key"]
        if key not in manifests:
            manifests[key] = json.loads((point.manifest_dir(output) / "manifest.json").read_text())
    requests = pd.concat([p.requests() for p in points], ignore_index=True)
    scores = read_frame([p.dir / "scores.parquet" for p in points])
    failures = read_frame([p.dir / "failures.parquet" for p in points])
    experiment = Experiment(folder, points, manifests, requests, scores, failures)
    check_counts(experiment)
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
    for point in experiment.points:
        have = int((requests["point_id"] == point.id).sum())
        if have != point.info["manifest"]["n_requests"]:
            raise UserError(
                f"{point.dir}: {have} requests, its manifest has "
                f"{point.info['manifest']['n_requests']}; run kvx.run again"
            )


def series_columns(point: PointRecord, requests: pd.DataFrame) -> dict[str, Any]:
    """What every analysed row says about its point; a token budget counts as its mean fraction."""
    info = point.info
    budget = info["budget"]
    if budget is None:
        budget = float((requests["kv_entries_nominal"] / requests["compressed_tokens"]).mean())
    return {
        "variant_id": info["variant_id"], "model": info["model"], "dataset": info["dataset"],
        "press": info["press"], "controller": info["controller"], "seed": info["seed"],
        "budget_label": info["budget_label"], "budget": budget, "point_id": point.id,
    }  # fmt: skip
