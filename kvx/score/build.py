"""Score every finished point of an experiment; needs no model, and repeats with other metrics."""

import logging
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from kvx.config.schema import Config, Reasoning
from kvx.data.example import Example
from kvx.data.frozen_examples import load_examples
from kvx.identity.hashing import digest, package_digest
from kvx.points import experiment_dir
from kvx.score.settings import Judging, judging_of, tell_of_others
from kvx.scoring.catastrophes import inspect
from kvx.scoring.failure_rules import ONLY_REASONING, classify_response
from kvx.scoring.metrics import measured, resolve
from kvx.store import schemas
from kvx.store.catalog import PointRecord, finished_points, requests_of
from kvx.store.layout import REQUESTS
from kvx.store.shards import read_inputs, write_table
from kvx.text.answer import Answer, answer_of
from kvx.text.reasoning import split

log = logging.getLogger(__name__)
Request = dict[Hashable, Any]  # a row of requests.parquet
Row = dict[str, Any]
KEYS = ("request_id", "point_id", "example_id", "cluster", "bin")


def score_experiment(config: Config) -> None:
    """Write scores, failures and catastrophes (.parquet) beside each point's requests, if stale."""
    experiment, output = experiment_dir(config), Path(config.paths.output)
    records = finished_points(experiment)
    tell_of_others([record.info for record in records], config)
    redone = sum(score_point(r, judging_of(r.info, config), output) for r in records)
    if redone:
        log.info("score: %d points scored → %s", redone, experiment)
    else:
        log.info("score: all %d points are scored; nothing to do → %s", len(records), experiment)


def score_point(record: PointRecord, judging: Judging, output: Path) -> bool:
    """Score one point unless its inputs are unchanged; returns whether anything was written."""
    inputs = digest([package_digest(), record.content_sha256(REQUESTS), *judging.identity], 16)
    paths = {name: record.dir / f"{name}.parquet" for name in schemas.SCORED}
    if all(read_inputs(path) == inputs for path in paths.values()):
        return False
    examples = load_examples(record.manifest_dir(output))
    requests = requests_of([record]).to_dict("records")
    answers = {r["request_id"]: judged(r, judging) for r in requests if r["has_response"]}
    scores = [row for r in requests for row in score_request(r, examples, judging, answers)]
    failures = [f for r in requests if (f := failure_of(r, judging, answers)) is not None]
    derailed = catastrophe_rows(requests, examples, answers, scores, failures)
    rows = {"scores": scores, "failures": failures, "catastrophes": derailed}
    for name, schema in schemas.SCORED.items():
        write_table(paths[name], rows[name], schema, inputs)
    return True


def judged(request: Request, judging: Judging) -> Answer:
    """The part of a response that is judged; the stored text stays as it is."""
    strips = judging.reasoning is Reasoning.strip
    answer = answer_of(
        request["text"],
        _known(request["finish_reason"]),
        judging.until,
        strips,
        opened=_known(request["opens_reasoning"]) is True,
    )
    beside = strips and _known(request["reasoning"]) is not None
    if beside and not answer.text.strip():  # the server split off reasoning, and no text is left
        return replace(answer, unfinished=True)
    return answer


def score_request(
    request: Request, examples: dict[str, Example], judging: Judging, answers: dict[str, Answer]
) -> list[Row]:
    """One row per metric. The score of a request without a response is null, not zero."""
    references = examples[request["example_id"]].answers
    rows = []
    for index, (name, metric) in enumerate(resolve(judging.metrics).items()):
        row = {k: request[k] for k in KEYS} | {"metric": name, "primary": index == 0}
        row["higher_is_better"] = metric.higher_is_better
        if (answer := answers.get(request["request_id"])) is not None:
            thought = _known(request["reasoning_tokens"])
            score = measured(name, metric, answer.text, references, request["request_id"])
            row |= {
                "score": score.value,
                "prediction_normalized": score.prediction,
                "reference_normalized": score.reference,
                "reasoning_tokens": None if thought is None else int(thought),
            }
        rows.append(row)
    return rows


def catastrophe_rows(
    requests: list[Request],
    examples: dict[str, Example],
    answers: dict[str, Answer],
    scores: list[Row],
    failures: list[Row],
) -> list[Row]:
    """One row per response: what the detectors find in it, its primary score and failure.

    Loops are sought in everything generated, reasoning too; instructions and names in the answer.
    An answer that was cut has no token ids of its own: its words stand for them.
    """
    score = {s["request_id"]: s["score"] for s in scores if s["primary"] and "score" in s}
    failure = {f["request_id"]: f["error_type"] for f in failures}
    rows = []
    for request in requests:
        if not request["has_response"]:
            continue
        example, ids = examples[request["example_id"]], request["token_ids"]
        answer = answers[request["request_id"]]
        row = {k: request[k] for k in KEYS}
        seen = inspect(
            answer.text,
            None if ids is None or answer.cut else ids.tolist(),
            answer.finish_reason,
            example.question,
            example.answers,
            _generated(request, answer),
        )
        found = {"score": score[row["request_id"]], "failure": failure.get(row["request_id"])}
        rows.append(row | seen | found)
    return rows


def failure_of(request: Request, judging: Judging, answers: dict[str, Answer]) -> Row | None:
    """The request's failure row, or None. Truncated responses are both scored and a failure."""
    row = {k: request[k] for k in ("request_id", "point_id", "example_id", "bin", "has_response")}
    answer = answers.get(request["request_id"])
    if answer is None:
        return row | {"error_type": request["error_type"], "message": request["error_message"]}
    kind = classify_response(
        answer.text, answer.finish_reason, judging.answer_format, answer.unfinished
    )
    if kind is None:
        return None
    only = f"{ONLY_REASONING}, no answer" if answer.unfinished else None
    return row | {"error_type": str(kind), "message": only}


def _generated(request: Request, answer: Answer) -> str:
    """Reasoning and answer, up to where the answer was cut."""
    beside, text = _known(request["reasoning"]) or "", str(request["text"])
    if not answer.cut:
        return f"{beside} {text}"
    inside = split(text, _known(request["opens_reasoning"]) is True).reasoning or ""
    return f"{beside} {inside} {answer.text}"


def _known(value: Any) -> Any:
    return None if pd.isna(value) else value
