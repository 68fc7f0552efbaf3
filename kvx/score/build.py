"""Score every finished point of an experiment.

Scoring needs no model and can be repeated with other metrics.
"""

import logging
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pandas as pd

from kvx.config import Config
from kvx.data.example import Example
from kvx.data.examples import load_examples
from kvx.data.manifest import dataset_id
from kvx.guard.catastrophes import inspect
from kvx.hashing import digest, package_digest
from kvx.points import experiment_dir
from kvx.score.failures import classify_response
from kvx.score.metrics import resolve
from kvx.store import schemas
from kvx.store.catalog import PointRecord, finished_points, requests_of
from kvx.store.layout import REQUESTS
from kvx.store.shards import read_inputs, write_table

log = logging.getLogger(__name__)


def score_experiment(config: Config) -> None:
    """Write scores, failures and catastrophes (.parquet) beside each point's requests.

    Only where they are stale.
    """
    experiment = experiment_dir(config)
    records = finished_points(experiment)
    output = Path(config.paths.output)
    redone = 0
    for record in records:
        # the command line decides for its own dataset; other points keep what they were run with
        own = record.info["dataset"] == dataset_id(config.dataset)
        metrics = config.dataset.metrics if own else record.info["metrics"]
        answer_format = config.dataset.answer_format if own else record.info["answer_format"]
        redone += score_point(record, config.score.metrics or metrics, answer_format, output)
    if redone:
        log.info("score: %d points scored → %s", redone, experiment)
    else:
        log.info("score: all %d points are scored; nothing to do → %s", len(records), experiment)


def score_point(
    record: PointRecord, names: list[str], answer_format: str | None, output: Path
) -> bool:
    """Score one point unless that was done for the same inputs; whether anything was written."""
    inputs = digest([package_digest(), record.content_sha256(REQUESTS), names, answer_format], 16)
    paths = {name: record.dir / f"{name}.parquet" for name in schemas.SCORED}
    if all(read_inputs(path) == inputs for path in paths.values()):
        return False
    examples = load_examples(record.manifest_dir(output))
    requests = requests_of([record]).to_dict("records")
    scores = [row for request in requests for row in score_request(request, examples, names)]
    failures = [f for r in requests if (f := failure_of(r, answer_format)) is not None]
    rows = {
        "scores": scores,
        "failures": failures,
        "catastrophes": catastrophe_rows(requests, examples, scores, failures),
    }
    for name, schema in schemas.SCORED.items():
        write_table(paths[name], rows[name], schema, inputs)
    return True


def score_request(
    request: dict[Hashable, Any], examples: dict[str, Example], names: list[str]
) -> list[dict[str, Any]]:
    """One row per metric. A request without a response has no score (null), which is not a zero."""
    answers = examples[request["example_id"]].answers
    rows = []
    for index, (name, metric) in enumerate(resolve(names).items()):
        row = {k: request[k] for k in ("request_id", "point_id", "example_id", "cluster", "bin")}
        row |= {"metric": name, "primary": index == 0}
        if request["has_response"]:
            score = metric(request["text"], answers)
            row |= {
                "score": score.value, "prediction_normalized": score.prediction,
                "reference_normalized": score.reference,
            }  # fmt: skip
        rows.append(row)
    return rows


def catastrophe_rows(
    requests: list[dict[Hashable, Any]],
    examples: dict[str, Example],
    scores: list[dict[str, Any]],
    failures: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """One row per response: what the guard's detectors see in it, its primary score and failure."""
    score = {s["request_id"]: s["score"] for s in scores if s["primary"] and "score" in s}
    failure = {f["request_id"]: f["error_type"] for f in failures}
    rows = []
    for request in requests:
        if not request["has_response"]:
            continue
        example, ids = examples[request["example_id"]], request["token_ids"]
        row = {k: request[k] for k in ("request_id", "point_id", "example_id", "cluster", "bin")}
        seen = inspect(
            request["text"], None if ids is None else ids.tolist(), _finish_reason(request),
            example.question, example.answers,
        )  # fmt: skip
        found = {"score": score[row["request_id"]], "failure": failure.get(row["request_id"])}
        rows.append(row | seen | found)
    return rows


def failure_of(request: dict[Hashable, Any], answer_format: str | None) -> dict[str, Any] | None:
    """The request's failure row, or None. Truncated responses are both scored and counted here."""
    row = {k: request[k] for k in ("request_id", "point_id", "example_id", "bin", "has_response")}
    if not request["has_response"]:
        return row | {"error_type": request["error_type"], "message": request["error_message"]}
    kind = classify_response(request["text"], _finish_reason(request), answer_format)
    return None if kind is None else row | {"error_type": str(kind), "message": None}


def _finish_reason(request: dict[Hashable, Any]) -> str | None:
    reason = request["finish_reason"]
    return None if pd.isna(reason) else str(reason)
