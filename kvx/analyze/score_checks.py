"""Scores that no statistic should be made from."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kvx.errors import UserError
from kvx.store.catalog import PointRecord

AGAIN = "delete it and run kvx.score again"


def check_scores(
    points: Sequence[PointRecord], scores: pd.DataFrame, requests: pd.DataFrame
) -> None:
    """Every request has one score per metric, from 0 to 1, null exactly where it has no response.

    Raises `UserError` with the file and the row (from 0) of the first that has not.
    """
    unscored = requests.loc[~requests["request_id"].isin(scores["request_id"])]
    if len(unscored):
        first = unscored.iloc[0]
        raise UserError(
            f"{_file(points, first['point_id'])}: no score of {first['request_id']}; {AGAIN}"
        )
    answered = scores["request_id"].map(requests.set_index("request_id")["has_response"])
    value = scores["score"].astype(float)
    faults = {
        "is there twice": scores.duplicated(["request_id", "metric"]),
        "is of a request that the point does not have": answered.isna(),
        "is not a number from 0 to 1": ~value.isna() & ~value.between(0.0, 1.0),
        "is not a number, though the request has a response": value.isna() & answered.eq(True),
        "is a number, though the request has no response": value.notna() & answered.eq(False),
    }
    for fault, rows in faults.items():
        if rows.any():
            at = int(np.argmax(rows.to_numpy()))
            row = scores.iloc[at]
            number = int((scores["point_id"].iloc[:at] == row["point_id"]).sum())
            shown = "" if pd.isna(value.iloc[at]) else f" {value.iloc[at]:g}"
            raise UserError(
                f"{_file(points, row['point_id'])}: row {number}: the score{shown} of "
                f"{row['metric']} for {row['request_id']} {fault}; {AGAIN}"
            )


def _file(points: Sequence[PointRecord], point_id: str) -> Path:
    return next(p.dir / "scores.parquet" for p in points if p.id == point_id)
