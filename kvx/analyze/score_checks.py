"""Scores that no statistic should be made from."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kvx.analyze.columns import Columns
from kvx.errors import UserError
from kvx.points import request_id
from kvx.store.catalog import PointRecord

AGAIN = "delete it and run kvx.score again"


def check_scores(
    point: PointRecord,
    scores: Columns,
    pair: NDArray[np.int64],
    requests: Columns,
    at: NDArray[np.int64],
    ids: pa.Array,
) -> None:
    """Every request has one score per metric, from 0 to 1, null exactly where it has no response.

    `pair` [n] numbers request and metric of each score and `at` [n] is its request's row, -1
    without one; `ids` are the examples that `place` numbers. Raises `UserError` with the file and
    the row (from 0) of the first that has not.
    """
    file = point.dir / "scores.parquet"

    def named(place: int) -> str:
        return request_id(point.id, ids[place].as_py())

    unscored = np.setdiff1d(requests["place"], scores["place"])
    if len(unscored):
        raise UserError(f"{file}: no score of {named(int(unscored[0]))}; {AGAIN}")
    value, stranger = scores["score"], at < 0
    answered = requests["has_response"][at] & ~stranger
    again = np.ones(len(pair), dtype=bool)
    again[np.unique(pair, return_index=True)[1]] = False
    missing = np.isnan(value)
    faults = {
        "is there twice": again,
        "is of a request that the point does not have": stranger,
        "is not a number from 0 to 1": ~missing & ~((value >= 0.0) & (value <= 1.0)),
        "is not a number, though the request has a response": missing & answered,
        "is a number, though the request has no response": ~missing & ~answered,
    }
    for fault, rows in faults.items():
        if rows.any():
            row = int(np.argmax(rows))
            shown = "" if missing[row] else f" {value[row]:g}"
            raise UserError(
                f"{file}: row {row}: the score{shown} of {scores['metric'][row]} for "
                f"{named(int(scores['place'][row]))} {fault}; {AGAIN}"
            )
