"""Tables as columns of arrays, cut by point and by bin: cheap enough for thousands of cells."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

ALL_BINS = -1  # the value of `bin` in rows about all bins together
ALL = "all"  # the group of all rows

# distinguishes the budgets of a press; `budget_label` is only for people
BUDGET = ["budget_kind", "budget_asked"]

Columns = dict[str, NDArray[Any]]


class ByPoint:
    """`names` of a frame with a `point_id`, cut once."""

    def __init__(self, frame: pd.DataFrame, names: Sequence[str]) -> None:
        codes, ids = pd.factorize(frame["point_id"])
        order = np.argsort(codes, kind="stable")
        ends = np.cumsum(np.bincount(codes, minlength=len(ids)))
        self._columns = {name: frame[name].to_numpy()[order] for name in names}
        self._slices = {
            point_id: slice(end - n, end)
            for point_id, end, n in zip(ids, ends, np.diff(ends, prepend=0), strict=True)
        }

    def of(self, point_id: str) -> Columns:
        """The rows of one point in the frame's order; none if it has none."""
        return take(self._columns, self._slices.get(point_id, slice(0)))


def is_full(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Of each row of a table, whether its point was asked for the full cache."""
    return (frame["budget_kind"] == "ratio") & (frame["budget_asked"] == 1.0)


def take(columns: Columns, rows: Any) -> Columns:
    """Those rows (a mask, numbers or a slice) of every column."""
    return {name: column[rows] for name, column in columns.items()}


def groups(frame: pd.DataFrame) -> Iterator[tuple[str, "pd.Series[bool]"]]:
    """`all`, then `dataset=…`, `press=…` and `budget=…` where there are several: name and rows.

    A group of a budget is what was asked for. Its name is what its points are told by.
    """
    yield ALL, pd.Series(True, index=frame.index)
    for name in ("dataset", "press"):
        values = sorted(set(frame[name]))
        for value in values if len(values) > 1 else ():
            yield f"{name}={value}", frame[name] == value
    number = frame.groupby(BUDGET).ngroup()
    told = [
        (", ".join(sorted(set(labels))), budget)
        for budget, labels in frame["budget_label"].groupby(number)
    ]
    for label, budget in sorted(told) if len(told) > 1 else ():
        yield f"budget={label}", number == budget


def by_bin(columns: Columns) -> Iterator[tuple[int, Columns]]:
    """Each bin's rows, then all rows as bin -1."""
    for index in np.unique(columns["bin"]):
        yield int(index), take(columns, columns["bin"] == index)
    yield ALL_BINS, columns


def by_metric(columns: Columns) -> Iterator[tuple[str, bool, Columns]]:
    """Each metric's name, whether it is the primary one, and its rows; by name."""
    found = dict(zip(columns["metric"], columns["primary"], strict=True))
    for metric in sorted(found):
        yield metric, bool(found[metric]), take(columns, columns["metric"] == metric)
