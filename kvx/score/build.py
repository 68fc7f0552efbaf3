"""Score every finished point of an experiment; needs no model, and repeats with other metrics.

Everything is done by columns, point after point. What a text alone decides is judged once for all
points that gave the same text (`responses.py`).
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kvx.config.schema import Config
from kvx.data.frozen_examples import load_examples
from kvx.identity.hashing import digest, package_digest
from kvx.points import experiment_dir
from kvx.score.responses import Judge, Judged, Response
from kvx.score.settings import Judging, judging_of, tell_of_others
from kvx.scoring.catastrophes import TOKENS, WORDS
from kvx.scoring.loops import find_loop, may_loop
from kvx.store import schemas
from kvx.store.catalog import PointRecord, columns_of, finished_points, in_chunks, n_requests
from kvx.store.forks import in_order, processes
from kvx.store.layout import REQUESTS
from kvx.store.shards import read_inputs, stamped, write_arrow

log = logging.getLogger(__name__)
KEYS = ("request_id", "point_id", "example_id", "cluster", "bin")
READ = (
    *KEYS, "has_response", "text", "token_ids", "finish_reason", "error_type", "error_message",
    "reasoning", "reasoning_tokens", "opens_reasoning",
)  # fmt: skip
Columns = dict[str, Any]  # of equal length: Arrow arrays or lists


def score_experiment(config: Config) -> None:
    """Write scores, failures and catastrophes (.parquet) beside each point's requests, if stale."""
    experiment, output = experiment_dir(config), Path(config.paths.output)
    records = finished_points(experiment)
    tell_of_others([record.info for record in records], config)
    judges: dict[str, Judge] = {}  # each process fills its own

    def score(some: Sequence[PointRecord]) -> int:
        return sum(score_point(r, judging_of(r.info, config), output, judges) for r in some)

    redone = sum(in_order(score, in_chunks(records), processes(n_requests(records))))
    if redone:
        log.info("score: %d points scored → %s", redone, experiment)
    else:
        log.info("score: all %d points are scored; nothing to do → %s", len(records), experiment)


def score_point(
    record: PointRecord, judging: Judging, output: Path, judges: dict[str, Judge]
) -> bool:
    """Score one point unless its inputs are unchanged; returns whether anything was written.

    `judges` of manifests and settings seen before are used again, new ones added.
    """
    inputs = digest([package_digest(), record.content_sha256(REQUESTS), *judging.identity], 16)
    paths = {name: record.dir / f"{name}.parquet" for name in schemas.SCORED}
    if all(read_inputs(path) == inputs for path in paths.values()):
        return False
    folder = record.manifest_dir(output)
    key = digest([str(folder), *judging.identity])
    if key not in judges:
        judges[key] = Judge(judging, load_examples(folder))
    tables = score_requests(columns_of(record, REQUESTS, READ), judges[key])
    for name, schema in schemas.SCORED.items():
        write_arrow(paths[name], stamped(_table(tables[name], schema), inputs))
    return True


def score_requests(requests: pa.Table, judge: Judge) -> dict[str, Columns]:
    """Columns of scores, failures and catastrophes of one point's `requests` (columns `READ`)."""
    judged = _judged(requests, judge)
    return {
        "scores": _scores(requests, judged, judge),
        "failures": _failures(requests, judged),
        "catastrophes": _catastrophes(requests, judged),
    }


def _judged(requests: pa.Table, judge: Judge) -> list[Judged | None]:
    """What is said of each request's response; None without one."""
    names = ("example_id", "text", "finish_reason", "reasoning", "opens_reasoning", "request_id")
    columns = [requests[name].to_pylist() for name in names]
    has_ids = requests["token_ids"].is_valid().to_pylist()
    return [
        judge(Response(example, text, finish, beside, opens is True, ids), request)
        if has_response
        else None
        for has_response, ids, example, text, finish, beside, opens, request in zip(
            requests["has_response"].to_pylist(), has_ids, *columns, strict=True
        )
    ]


def _scores(requests: pa.Table, judged: Sequence[Judged | None], judge: Judge) -> Columns:
    """One row per request and metric. The score of a request without a response is null."""
    n, metrics = len(judged), judge.metrics
    nothing = (None,) * len(metrics)
    rows = pa.array(np.repeat(np.arange(n), len(metrics)))
    each = [pa.array(list(metrics)), pa.array([i == 0 for i in range(len(metrics))])]
    each.append(pa.array([metric.higher_is_better for metric in metrics.values()]))
    again = pa.array(np.tile(np.arange(len(metrics)), n))
    named = ("metric", "primary", "higher_is_better")
    values, predictions, references = (
        [v for one in judged for v in (nothing if one is None else getattr(one, name))]
        for name in ("values", "predictions", "references")
    )
    thought = [
        tokens if one is not None else None
        for one, tokens in zip(judged, requests["reasoning_tokens"].to_pylist(), strict=True)
    ]
    return {
        **{name: requests[name].take(rows) for name in KEYS},
        **{name: column.take(again) for name, column in zip(named, each, strict=True)},
        "score": values, "prediction_normalized": predictions,
        "reference_normalized": references,
        "reasoning_tokens": pa.array(thought, pa.int32()).take(rows),
    }  # fmt: skip


def _failures(requests: pa.Table, judged: Sequence[Judged | None]) -> Columns:
    """One row per failure. Truncated responses are both scored and a failure."""
    found = [i for i, one in enumerate(judged) if one is None or one.failure is not None]
    rows = requests.take(pa.array(found, pa.int64()))
    kinds = rows["error_type"].to_pylist()
    messages = rows["error_message"].to_pylist()
    for at, i in enumerate(found):
        if (one := judged[i]) is not None:
            kinds[at], messages[at] = one.failure, one.message
    same = ("request_id", "point_id", "example_id", "bin", "has_response")
    return {name: rows[name] for name in same} | {"error_type": kinds, "message": messages}


def _catastrophes(requests: pa.Table, judged: Sequence[Judged | None]) -> Columns:
    """One row per response: what the detectors find in it, its primary score and failure.

    Loops are sought in everything generated, reasoning too; instructions and names in the answer.
    An answer that was cut has no token ids of its own: its words stand for them.
    """
    answered = [i for i, one in enumerate(judged) if one is not None]
    rows = requests.take(pa.array(answered, pa.int64()))
    seen = [one for one in judged if one is not None]
    ids = rows["token_ids"].combine_chunks()
    lengths = ids.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = ids.flatten().to_numpy(zero_copy_only=False)
    loops = [one.loop_columns(None) for one in seen]
    for i in np.flatnonzero(may_loop(tokens, starts)):
        loop = find_loop(tokens[starts[i] : starts[i + 1]].tolist())
        loops[i] = seen[i].loop_columns(loop)
    return {
        **{name: rows[name] for name in KEYS},
        "n_tokens": [
            one.n_words if one.by_words else int(n) for one, n in zip(seen, lengths, strict=True)
        ],
        "unit": [WORDS if one.by_words else TOKENS for one in seen],
        **{name: [found[name] for found in loops] for name in
           ("looping", "loop_onset", "loop_rule", "loop_period")},
        **{name: [getattr(one, name) for one in seen] for name in
           ("cap_reached", "instruction_kept", "question_recall", "failure")},
        "score": [one.values[0] if one.values else None for one in seen],
    }  # fmt: skip


def _table(columns: Columns, schema: pa.Schema) -> pa.Table:
    """Raises `pyarrow.ArrowInvalid` if a column does not fit the schema."""
    arrays = []
    for field in schema:
        column = columns[field.name]
        if isinstance(column, list):
            column = pa.array(column, field.type)
        elif column.type != field.type:
            column = column.cast(field.type)
        arrays.append(column)
    table = pa.Table.from_arrays(arrays, schema=schema)
    table.validate()
    return table
